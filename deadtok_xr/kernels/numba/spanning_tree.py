"""The minimum spanning tree of tokens under the L∞ distance, in O(N) memory (Prim)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.kernels.numba.bit_words import compiled
from deadtok_xr.kernels.numba.unique_rows import places, value_word


def spanning_tree(step: NDArray[Any], shift: int) -> NDArray[np.float64]:
    """The lengths of the tree's edges between the tokens of a step of words (n, d), ascending, (n - 1,).

    All values are finite. Tokens in one place are joined by edges of length 0. Takes P²/2·D operations for P places.
    """
    out = np.zeros(max(len(step) - 1, 0))
    _prim(step, shift, out)
    out.sort()
    return out


@compiled
def _prim(words, shift, out):
    place, _, _ = places(words, shift)
    P = len(place)
    rows = np.empty((P, words.shape[1]), np.float32)
    for p in range(P):
        for d in range(words.shape[1]):
            rows[p, d] = np.uint32(value_word(words, place[p], d, shift)).view(np.float32)
    nearest = np.full(P, np.inf)
    now = 0
    for i in range(P - 1):
        nearest[now] = -1.0  # in the tree
        best = -1
        for p in range(P):
            if nearest[p] >= 0:
                nearest[p] = min(nearest[p], _distance(rows, now, p))
                if best < 0 or nearest[p] < nearest[best]:
                    best = p
        out[i] = nearest[best]
        now = best


@compiled
def _distance(rows, a, b):
    """The L∞ distance in float64; the bits of gaps order as the gaps do."""
    top = np.int64(0)
    for d in range(rows.shape[1]):
        top = max(top, np.float64(abs(np.float64(rows[a, d]) - np.float64(rows[b, d]))).view(np.int64))
    return np.int64(top).view(np.float64)
