"""An element of a matrix on its lattice, as a float32 word.

Its *cell height* is its exponent field on the lattice, 0 for zero and subnormals; its *ordinal* is how many numbers of
the format lie between it and zero.
"""

import numpy as np

from deadtok_xr.kernels.numba.bit_words import compiled

SIGN, SIZE, MANTISSA = np.uint32(1 << 31), np.uint32((1 << 31) - 1), np.uint32((1 << 23) - 1)


@compiled
def word_of(steps, t, n, d, shift):
    """An element of words (t, n, d) as a float32 word."""
    return np.uint32(np.uint32(steps[t, n, d]) << np.uint32(shift))


@compiled
def value_of(word):
    """The number that a word stands for."""
    return np.float64(np.uint32(word).view(np.float32))


@compiled
def height_of(word, smallest):
    """The exponent field on the lattice: 0 for zero and subnormals."""
    return max(np.int64((word >> np.uint32(23)) & np.uint32(0xFF)) - smallest + 1, 0)


@compiled
def ordinal_of(word, smallest, ulp_offset):
    """How many numbers of the lattice lie between it and zero, negative below it."""
    height = height_of(word, smallest)
    if height:
        size = (height << (ulp_offset - 127)) + (np.int64(word & MANTISSA) >> (150 - ulp_offset))
    else:
        size = np.int64(value_of(word & SIZE) * power(ulp_offset - smallest))
    return -size if word & SIGN else size


@compiled
def power(exponent):
    """2^exponent as a float64, put together from its bits."""
    return np.int64((1023 + exponent) << 52).view(np.float64)


@compiled
def off_grid(word, spare, largest):
    """Whether a finite element is no number of the lattice."""
    size = np.uint32(word & SIZE)
    field = size >> np.uint32(23)
    return (field < np.uint32(255)) & ((size > np.uint32(largest)) | ((word & spare[np.uint64(field)]) != 0))


@compiled
def not_finite(word):
    """Whether it is NaN or infinite."""
    return (word & SIZE) >= np.uint32(0x7F800000)
