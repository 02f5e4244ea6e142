"""Positions of values on the grid of their format, counted from zero, and a check that they are on it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.kernels import Lattice
from deadtok_xr.kernels.numba.bit_words import INFINITY, MAGNITUDE, float32_word
from deadtok_xr.kernels.numba.jit import compiled


def count_off_grid(steps: NDArray[Any], lattice: Lattice) -> int:
    """Count the rows of words (t, n, d) that hold a finite value that is not on the lattice."""
    spare = lattice.spare[:255]  # of the exponents of finite values
    if (spare == spare[0]).all():
        return int(_count_spare(steps, spare[0], np.uint32(lattice.largest)))
    return int(_count_off_grid(steps, lattice.spare, lattice.largest))


@compiled
def _count_spare(steps, spare, largest):
    """Count as `count_off_grid` if all exponents have the same spare bits, which vector units can do."""
    count = 0
    for t in range(steps.shape[0]):
        for n in range(steps.shape[1]):
            off = np.uint32(0)
            for d in range(np.uint64(steps.shape[2])):
                word = float32_word(steps[t, n, d])
                magnitude = word & MAGNITUDE
                bad = (word & spare) | np.uint32(magnitude > largest)
                off |= bad if magnitude < np.uint32(INFINITY) else np.uint32(0)
            count += off != 0
    return count


@compiled
def _count_off_grid(steps, spare, largest):
    count = 0
    for t in range(steps.shape[0]):
        for n in range(steps.shape[1]):
            off = False
            for d in range(steps.shape[2]):
                word = float32_word(steps[t, n, d])
                if (word & MAGNITUDE) < INFINITY:
                    off |= (word & MAGNITUDE) > largest
                    off |= (word & spare[(word >> np.uint32(23)) & np.uint32(0xFF)]) != 0
            count += off
    return count


def ordinals(steps: NDArray[Any], lattice: Lattice, mantissa_bits: int) -> NDArray[np.uint32]:
    """Return the position of each value of a 16-bit format on its grid, as the words of float32 numbers; NaN is NaN.

    Positions are monotone, one apart for neighbours, 0 for both zeros, and below 2¹⁵, thus exact in float32.
    """
    out = np.empty(steps.shape, np.float32)
    _ordinals(steps, lattice.smallest, mantissa_bits, out)
    return out.view(np.uint32)


@compiled
def _ordinals(steps, smallest, mantissa_bits, out):
    base = np.int64(smallest - 1) << 23
    unit = np.float64(2.0) ** (smallest - 127 - mantissa_bits)  # the smallest number of the format
    for t in range(steps.shape[0]):
        for n in range(steps.shape[1]):
            for d in range(steps.shape[2]):
                word = float32_word(steps[t, n, d])
                magnitude = np.int64(word & MAGNITUDE)
                if magnitude >= INFINITY:
                    out[t, n, d] = np.nan
                    continue
                if magnitude >> 23 >= smallest:
                    position = np.float32((magnitude - base) >> (23 - mantissa_bits))
                else:
                    position = np.float32(np.float64(np.uint32(magnitude).view(np.float32)) / unit)
                out[t, n, d] = -position if word > MAGNITUDE else position
