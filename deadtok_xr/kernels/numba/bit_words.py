"""Elements as bit words: unsigned integers with the bits of bfloat16 (16) or float32 (32).

Each is converted to a float32 word where it is used. In a number format (`kernels.Lattice`) a float32 word has an
*exponent*, the format's own exponent field, 0 for its zero and subnormals, and an *ordinal*, the number of
representable numbers between it and zero.
"""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import overload

from deadtok_xr.kernels.numba.jit import inner

INFINITY = 0x7F800000
"""The float32 word of infinity: a magnitude at or above it is infinite or NaN."""
SIGN, MAGNITUDE, MANTISSA = np.uint32(1 << 31), np.uint32((1 << 31) - 1), np.uint32((1 << 23) - 1)
"""Masks of a float32 word: its sign; all bits but the sign; its mantissa."""


def to_float64(x):
    """Convert an element, a bfloat16 word or a float, to float64. For compiled loops only."""
    raise NotImplementedError


@overload(to_float64)
def _to_float64(x):
    if x == types.uint16:
        return lambda x: np.float64(np.uint32(np.uint32(x) << np.uint32(16)).view(np.float32))
    return lambda x: np.float64(x)


def float32_word(word):
    """Convert a bit word to one of float32. For compiled loops only."""
    raise NotImplementedError


@overload(float32_word)
def _float32_word(word):
    if word == types.uint16:
        return lambda word: np.uint32(np.uint32(word) << np.uint32(16))
    return lambda word: np.uint32(word)


@inner
def float32_value(word):
    """Return the value of a bit word, as float32."""
    return np.uint32(float32_word(word)).view(np.float32)


@inner
def unsigned_zero(word):
    """Return a float32 word, with -0 replaced by +0, because the two are the same value."""
    return word if word & MAGNITUDE else np.uint32(0)


@inner
def value_of(word):
    """Return the value of a float32 word, as float64."""
    return np.float64(np.uint32(word).view(np.float32))


@inner
def word_of(x):
    """Return the word of a float32: a view of a whole array takes ten times as long to compile."""
    return np.float32(x).view(np.uint32)


@inner
def exponent_of(word, smallest):
    """Return a float32 word's exponent field in the format: 0 for the format's zero and subnormals."""
    return max(np.int64((word >> np.uint32(23)) & np.uint32(0xFF)) - smallest + 1, 0)


@inner
def ordinal_of(word, smallest, ulp_offset):
    """Count the numbers of the format between a float32 word and zero; negative below zero."""
    exponent = exponent_of(word, smallest)
    if exponent:
        size = (exponent << (ulp_offset - 127)) + (np.int64(word & MANTISSA) >> (150 - ulp_offset))
    else:
        size = np.int64(value_of(word & MAGNITUDE) * power_of_two(ulp_offset - smallest))
    return -size if word & SIGN else size


@inner
def power_of_two(exponent):
    """Return 2^exponent as a float64, made from its bits."""
    return np.int64((1023 + exponent) << 52).view(np.float64)


@inner
def off_grid(word, spare, largest):
    """Return whether a float32 word is finite and not a number of the format."""
    size = np.uint32(word & MAGNITUDE)
    field = size >> np.uint32(23)
    return (field < np.uint32(255)) & ((size > np.uint32(largest)) | ((word & spare[np.uint64(field)]) != 0))


@inner
def not_finite(word):
    """Return whether a float32 word is NaN or infinite."""
    return (word & MAGNITUDE) >= np.uint32(0x7F800000)
