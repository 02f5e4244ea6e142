"""Count the values that number formats cannot hold exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.kernels import Lattice
from deadtok_xr.kernels.numba.bit_words import not_finite, off_grid
from deadtok_xr.kernels.numba.jit import compiled


def count_off_grid(words: NDArray[np.uint32], changed: NDArray[np.bool_], grids: Sequence[Lattice],
                   held: NDArray[np.int64], totals: NDArray[np.int64]) -> None:  # fmt: skip
    """Count the values of steps that are not finite, and those that are not on each of g grids.

    Parameters
    ----------
    words
        float32 words (t, n, d).
    changed
        Which rows to count, (t, n); the others have the counts of the step before.
    grids
        The lattices.
    held
        The counts of each row at the last step, (n, 1 + g), updated.
    totals
        Added to, (1 + g,).
    """
    spare = np.stack([grid.spare for grid in grids])
    _count(words, changed, spare, np.array([grid.largest for grid in grids], np.uint32), held, totals)


@compiled
def _count(words, changed, spare, largest, held, totals):
    T, N, D = words.shape
    for t in range(T):
        for n in range(N):
            if changed[t, n]:
                held[n] = 0
                for d in range(D):
                    held[n, 0] += not_finite(words[t, n, d])
                    for g in range(len(largest)):
                        held[n, 1 + g] += off_grid(words[t, n, d], spare[g], largest[g])
            for k in range(len(totals)):
                totals[k] += held[n, k]
