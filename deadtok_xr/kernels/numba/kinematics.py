"""Measure the cloud of tokens as a whole: its centroid C, the velocity of C, and motion in the centre-of-mass frame.

thermal_rms        √(mean ‖ΔW - ΔC‖₂²)
thermal_residual   ‖Σ (ΔW - ΔC)‖₂, which is zero except for rounding
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.kernels.numba.bit_words import to_float64
from deadtok_xr.kernels.numba.changes import finite_row
from deadtok_xr.kernels.numba.jit import compiled, inlined_sums, inner
from deadtok_xr.kernels.numba.rows import copy_row


def kinematics(
    steps: NDArray[Any], changed: NDArray[np.bool_], before: NDArray[np.float64] | None, out: dict[str, NDArray[Any]]
) -> NDArray[np.float64]:
    """Fill ``out`` with the steps and the transitions between them.

    Parameters
    ----------
    steps
        (t, n, d), floats or bfloat16 words.
    changed
        Which rows differ from the step before, (t - 1, n).
    before
        The centroid of the first step, if it is known.
    out
        Arrays to fill. For the steps, (t,), or all but the last, (t - 1,): centroid, radius, radius_max, n_invalid. For
        the transitions, (t - 1,): bulk_velocity, bulk_speed, thermal_rms, thermal_residual.

    Returns
    -------
    The centroid of the last step.
    """
    centre = np.empty((steps.shape[0], steps.shape[2]))
    first = 0
    if before is not None:
        centre[0], first = before, 1
    any_changed = changed.any(axis=1)
    _centroids(steps, any_changed, centre, first)
    n_states = len(out["centroid"])
    out["centroid"][:] = centre[:n_states]
    _spread(steps, any_changed, centre, out["radius"], out["radius_max"], out["n_invalid"])
    out["bulk_velocity"][:] = bulk = np.diff(centre, axis=0)
    out["bulk_speed"][:] = np.linalg.norm(bulk, axis=1)
    _heat(steps, changed, bulk, out["thermal_rms"], out["thermal_residual"])
    return centre[-1]


@compiled
def _centroids(steps, any_changed, centre, first):
    for t in range(first, len(steps)):
        if t > 0 and not any_changed[t - 1]:
            copy_row(centre, t - 1, centre, t)
        else:
            _mean(steps, t, centre)


@inner
def _mean(steps, t, out):
    out[t] = 0.0
    for n in range(steps.shape[1]):
        for d in range(steps.shape[2]):
            out[t, d] += to_float64(steps[t, n, d])
    for d in range(steps.shape[2]):
        out[t, d] = out[t, d] / steps.shape[1] if np.isfinite(out[t, d]) else np.nan


@compiled
def _spread(steps, any_changed, centre, radius, radius_max, n_invalid):
    N = steps.shape[1]
    for t in range(len(radius)):
        if t > 0 and not any_changed[t - 1]:
            radius[t], radius_max[t], n_invalid[t] = radius[t - 1], radius_max[t - 1], n_invalid[t - 1]
            continue
        total = 0.0
        largest = 0.0
        for n in range(N):
            distance = np.sqrt(_squares(steps, t, n, centre))
            total += distance
            if not largest >= distance:
                largest = distance
        radius[t], radius_max[t], n_invalid[t] = total / N, largest, 0
        finite = 0.0
        for d in range(centre.shape[1]):
            finite += centre[t, d] - centre[t, d]  # 0 for finite values, else NaN
        if finite != 0.0:  # a mean is finite only if everything in it is
            for n in range(N):
                n_invalid[t] += not finite_row(steps, t, n)


@inlined_sums
def _squares(steps, t, n, centre):
    total = 0.0
    for d in range(steps.shape[2]):
        off = to_float64(steps[t, n, d]) - centre[t, d]
        total += off * off
    return total


@compiled
def _heat(steps, changed, bulk, rms, residual):
    T, N = changed.shape
    D = steps.shape[2]
    sums = np.empty(D)
    for t in range(T):
        rest = 0.0  # ‖ΔC‖² of a token at rest, which moves relative to the centroid
        for d in range(D):
            rest += bulk[t, d] * bulk[t, d]
            sums[d] = 0.0
        total = 0.0
        still = 0
        for n in range(N):
            if changed[t, n]:
                total += _own(steps, t, n, bulk, sums)
            else:
                still += 1
        if still:
            total += still * rest
            for d in range(D):
                sums[d] -= still * bulk[t, d]
        rms[t] = np.sqrt(total / N)
        squares = 0.0
        for d in range(D):
            squares += sums[d] * sums[d]
        residual[t] = np.sqrt(squares)


@inlined_sums
def _own(steps, t, n, bulk, sums):
    """Return ‖ΔW - ΔC‖₂² of a token; add ΔW - ΔC to ``sums``."""
    heat = 0.0
    for d in range(steps.shape[2]):
        own = to_float64(steps[t + 1, n, d]) - to_float64(steps[t, n, d]) - bulk[t, d]
        heat += own * own
        sums[d] += own
    return heat
