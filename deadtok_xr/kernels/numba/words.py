"""What the kernels share: how they are compiled, and rows of words."""

from __future__ import annotations

import numpy as np
from numba import njit

compiled = njit(nogil=True, cache=True, error_model="numpy")
# Sums may be reordered and NaN does not occur: for finite values only. It lets loops use vector units.
compiled_finite = njit(nogil=True, cache=True, error_model="numpy", fastmath=True)
# Sums may be reordered, NaN and infinity keep their meaning.
compiled_sums = njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract"})

INFINITY = 0x7F800000
"""The float32 word of infinity: a magnitude at or above it is infinite or NaN."""


# Rows are named by block and indices: a view of each row would cost more than the work on it.


@compiled
def same_row(a, t, b, u, n):
    """Whether row n is the same, bit by bit, at step t of one block and step u of another."""
    if a[t, n, 0] != b[u, n, 0]:
        return False  # most rows that move at all move here
    difference = a[t, n, 0] ^ b[u, n, 0]
    for d in range(1, a.shape[2]):
        difference |= a[t, n, d] ^ b[u, n, d]
    return difference == 0


@compiled
def expand(block, t, n, shift, out):
    """Write row n at step t as float32 words into ``out``; return their union and largest magnitude."""
    union = np.uint32(0)
    largest = np.uint32(0)
    for d in range(out.shape[0]):
        word = np.uint32(block[t, n, d]) << np.uint32(shift)
        out[d] = word
        union |= word
        largest = max(largest, word & np.uint32(0x7FFFFFFF))
    return union, largest
