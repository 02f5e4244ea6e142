"""What the kernels share: reading words as float32, and how they are compiled."""

from __future__ import annotations

import numpy as np
from numba import njit

# sums may be reordered, which lets loops use vector units; NaN and infinity keep their meaning
compiled = njit(nogil=True, cache=True, fastmath={"reassoc", "contract"}, error_model="numpy")
inlined = njit(nogil=True, inline="always")


@inlined
def float32_word(word, shift):
    """The float32 word of a stored word."""
    return np.uint32(np.uint32(word) << np.uint32(shift))


@inlined
def value(word, shift):
    """The value of a stored word, in float64."""
    return np.float64(np.uint32(np.uint32(word) << np.uint32(shift)).view(np.float32))


@inlined
def field(word, shift):
    """The float32 exponent field of a stored word."""
    return (np.uint32(np.uint32(word) << np.uint32(shift)) >> np.uint32(23)) & np.uint32(0xFF)


@compiled
def same_row(a, b):
    """Whether two rows of words are equal bit by bit."""
    for d in range(a.shape[0]):
        if a[d] != b[d]:
            return False
    return True


@compiled
def row_is_finite(row, shift):
    """Whether a row of words holds neither NaN nor infinity."""
    for d in range(row.shape[0]):
        if field(row[d], shift) == 255:
            return False
    return True
