"""Follow the phases of motion of each token: the phase of each transition, and counts along its path."""

from __future__ import annotations

import numpy as np

from deadtok_xr.kernels.numba.jit import compiled

LATTICE, MAGNITUDE, CELLS = 0, 1, 2
"""The schemes of phases."""
INVALID, STILL, WITHIN_A_CELL, BEYOND = -1, 0, 1, 2
"""How a token moved: unknown (NaN or infinity), not at all, by ‖ΔW'‖₁ <= 1, by more."""
PATH = (
    "first_freeze", "last_motion", "thaw_count", "moved_steps", "invalid_steps", "last_invalid", "first_stumble",
    "last_thrust", "reheats", "cools",
)  # fmt: skip
"""Rows of the path of each token; steps are counted from 0, the first transition, and -1 means never."""
NEVER = ("first_freeze", "last_motion", "last_invalid", "first_stumble", "last_thrust")
PER_STEP = ("n_moving", "n_invalid", "n_reheats", "n_cools")


@compiled
def phases_of(l1, l2, linf, norm_ulp, moved, scheme, root, limits, phase, motion):
    """Find the phase of each transition, and how the token moved.

    Parameters
    ----------
    l1, l2, linf, norm_ulp, moved
        (t, n), from `motion`.
    scheme
        `LATTICE`, `MAGNITUDE` or `CELLS`.
    root
        √D.
    limits
        Limits of the phases: in norm ULP for `MAGNITUDE`, in cells for `CELLS`.
    phase, motion
        Filled, (t, n): the phase, 0 the coldest, -1 invalid; and `STILL`, `WITHIN_A_CELL`, `BEYOND` or `INVALID`.
    """
    for t in range(moved.shape[0]):
        for n in range(moved.shape[1]):
            if moved[t, n] < 0:
                phase[t, n] = INVALID
                motion[t, n] = INVALID
                continue
            a, b = l1[t, n], l2[t, n]
            motion[t, n] = STILL if moved[t, n] == 0 else WITHIN_A_CELL if a <= 1 else BEYOND
            if scheme == LATTICE:
                phase[t, n] = 0 if a <= 0 else 1 if linf[t, n] <= 1 else 2 if b <= root else 3
            elif scheme == MAGNITUDE:
                x = np.float64(norm_ulp[t, n])
                phase[t, n] = 0 if x < limits[0] else 1 if x < limits[1] else 2 if x < limits[2] else 3
            else:
                phase[t, n] = 0 if a <= 0 else 1 if a <= limits[0] else 2 if b <= root else 3 if b <= limits[1] else 4


@compiled
def cells(l1, l2, moved, root, limits, out):
    """Add the tokens in each phase of the scheme `CELLS` to ``out`` (t, 5); parameters are as in `phases_of`."""
    for t in range(moved.shape[0]):
        for n in range(moved.shape[1]):
            if moved[t, n] >= 0:
                a, b = l1[t, n], l2[t, n]
                out[t, 0 if a <= 0 else 1 if a <= limits[0] else 2 if b <= root else 3 if b <= limits[1] else 4] += 1


@compiled
def follow(phase, motion, start, path, last, before, passages, steps):
    """Extend the paths of all tokens.

    Parameters
    ----------
    phase, motion
        (t, n), from `phases_of`.
    start
        The number of the first of these transitions.
    path
        `PATH`, (10, n), updated.
    last
        The last transition in each phase, (n, phase), updated.
    before
        Phase and motion of the transition before, (2, n), updated; -1 at the beginning.
    passages
        How often a token was in one phase and in another at the next transition, (from, to), added to.
    steps
        `PER_STEP`, (4, t), added to.
    """
    T, N = phase.shape
    for t in range(T):
        now = start + t
        for n in range(N):
            p, m, was, did = phase[t, n], motion[t, n], before[0, n], before[1, n]
            if m == STILL and did == STILL and p == was:  # still at rest
                passages[p, p] += 1
                last[n, p] = now
                continue
            before[0, n], before[1, n] = p, m
            if m == INVALID:
                path[4, n] += 1
                path[5, n] = now
                steps[1, t] += 1
                continue
            last[n, p] = now
            if m == STILL:
                if path[0, n] < 0 and path[1, n] >= 0:
                    path[0, n] = now
            else:
                path[2, n] += did == STILL and path[0, n] >= 0
                path[1, n] = now
                path[3, n] += 1
                steps[0, t] += 1
            if m == BEYOND:
                path[7, n] = now
            elif path[6, n] < 0:
                path[6, n] = now
            if was >= 0:
                passages[was, p] += 1
                path[8, n] += p > was
                path[9, n] += p < was
                steps[2, t] += p > was
                steps[3, t] += p < was
