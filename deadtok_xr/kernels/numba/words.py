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


@compiled
def same_row(a, b):
    """Whether two rows of words are equal bit by bit."""
    difference = a[0] ^ b[0]
    for d in range(1, a.shape[0]):
        difference |= a[d] ^ b[d]
    return difference == 0


@compiled
def expand(row, shift, out):
    """Write a row's words as float32 words into ``out``; return their union and their largest magnitude."""
    union = np.uint32(0)
    largest = np.uint32(0)
    for d in range(row.shape[0]):
        word = np.uint32(row[d]) << np.uint32(shift)
        out[d] = word
        union |= word
        largest = max(largest, word & np.uint32(0x7FFFFFFF))
    return union, largest
