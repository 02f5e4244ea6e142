"""The paths of all tokens through the phases of motion, followed from block to block of steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Longs = NDArray[np.int64]


@dataclass(frozen=True)
class PhasePaths:
    """The paths of all tokens through the phases up to a step; see `kernels.numba.lifecycle`.

    Attributes
    ----------
    n
        The number of transitions so far.
    path
        Quantities of each token, named by the kernel.
    last
        Per token and phase, the last transition in it.
    before
        The phase and motion at the last transition.
    passages
        Counts by the phases before and after.
    steps
        Counts per step, an array for each block.
    """

    n: int
    path: Longs
    last: Longs
    before: NDArray[np.int8]
    passages: Longs
    steps: tuple[Longs, ...]


def begin(block: dict[str, Any]) -> PhasePaths:
    """Return the paths up to the end of the first block."""
    from deadtok_xr.kernels.numba import lifecycle as kernel

    N, P = block["phase"].shape[1], block["n_phases"]
    path = np.zeros((len(kernel.PATH), N), np.int64)
    path[[kernel.PATH.index(name) for name in kernel.NEVER]] = -1
    paths = PhasePaths(0, path, np.full((N, P), -1), np.full((2, N), -1, np.int8), np.zeros((P, P), np.int64), ())
    return follow(paths, block)


def follow(paths: PhasePaths, block: dict[str, Any]) -> PhasePaths:
    """Return the paths up to the end of a block."""
    from deadtok_xr.kernels.numba import lifecycle as kernel

    T = len(block["phase"])
    path, last, before, passages = paths.path.copy(), paths.last.copy(), paths.before.copy(), paths.passages.copy()
    steps = np.zeros((len(kernel.PER_STEP), T), np.int64)
    kernel.follow(block["phase"], block["motion"], paths.n, path, last, before, passages, steps)
    return PhasePaths(paths.n + T, path, last, before, passages, (*paths.steps, steps))


def hottest_to_come(paths: list[list[PhasePaths]], position: Longs) -> NDArray[np.int8]:
    """Return the hottest phase that each token is in at some transitions or later, (step, token); -1 where unknown."""
    from deadtok_xr.kernels.numba.lifecycle import PATH

    (whole,) = paths[0] if isinstance(paths[0], list) else paths
    left = np.maximum.accumulate(whole.last[:, ::-1], axis=1)[:, :-1]  # of all phases but the coldest
    phase = np.zeros((len(position), len(left)), np.int8)
    for until in left.T:
        phase += until >= position[:, None]
    unknown = whole.path[PATH.index("last_invalid")] >= position[:, None]
    return np.where(unknown, np.int8(-1), phase)
