"""Compute the minimum spanning tree of tokens under the L∞ distance, in O(N) memory (Prim 1957)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.kernels.numba.bit_words import float32_word, unsigned_zero
from deadtok_xr.kernels.numba.jit import compiled
from deadtok_xr.kernels.numba.unique_rows import unique_rows


def spanning_tree(step: NDArray[Any]) -> NDArray[np.float64]:
    """Return the lengths of the tree's edges, ascending, (n - 1,).

    Takes u²/2·D operations for u distinct rows; equal rows are joined by edges of length 0.

    Parameters
    ----------
    step
        Words (n, d); all values are finite.
    """
    out = np.zeros(max(len(step) - 1, 0))
    _prim(step, out)
    out.sort()
    return out


@compiled
def _prim(words, out):
    index, _, _ = unique_rows(words)
    U = len(index)
    rows = np.empty((U, words.shape[1]), np.float32)
    for u in range(U):
        for d in range(words.shape[1]):
            rows[u, d] = np.uint32(unsigned_zero(float32_word(words[index[u], d]))).view(np.float32)
    nearest = np.full(U, np.inf)  # the distance of each row to the tree
    now = 0
    for i in range(U - 1):
        nearest[now] = -1.0  # it is in the tree now
        best = -1
        for u in range(U):
            if nearest[u] >= 0:
                nearest[u] = min(nearest[u], _distance(rows, now, u))
                if best < 0 or nearest[u] < nearest[best]:
                    best = u
        out[i] = nearest[best]
        now = best


@compiled
def _distance(rows, a, b):
    """Return the L∞ distance in float64, as a maximum of integers: the bits of gaps have the order of the gaps."""
    top = np.int64(0)
    for d in range(rows.shape[1]):
        top = max(top, np.float64(abs(np.float64(rows[a, d]) - np.float64(rows[b, d]))).view(np.int64))
    return np.int64(top).view(np.float64)
