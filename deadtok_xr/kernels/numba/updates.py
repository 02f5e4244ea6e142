"""Count what one update of an optimizer does to the elements of a parameter, in one pass over a tile."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.kernels import Lattice, OptimizerUpdate
from deadtok_xr.kernels.numba.bit_words import INFINITY, MAGNITUDE
from deadtok_xr.kernels.numba.jit import compiled, inlined, inlined_sums
from deadtok_xr.kernels.updates import LOWEST, N_BINS

MOVED, ROUNDED, NO_GRADIENT, UNKNOWN, VISIBLE, STALLED = range(6)


def count_update(update: OptimizerUpdate, lattice: Lattice, out: dict[str, NDArray[Any]]) -> None:
    """Add a tile to ``out``.

    Parameters
    ----------
    update
        Flat arrays of the tile.
    lattice
        The number format of the weights.
    out
        Arrays to add to: counts, squares and margins, see `deadtok_xr.kernels.updates`.
    """
    _count(*update, lattice.smallest, lattice.ulp_offset, out["counts"], out["squares"], out["margins"])


def checksums(values: NDArray[Any]) -> NDArray[np.int64]:
    """Return two sums over the bits of a flat array, modulo 2^64: of its elements' bits, and of their squares.

    Two elements that are not as predicted may cancel in the first sum, but then not in the second.
    """
    out = np.zeros(2, np.int64)
    _add_bits(values.view(np.dtype(f"i{values.itemsize}")), out)
    return out


@compiled
def _add_bits(words, out):
    total, squares = np.int64(0), np.int64(0)
    for i in range(words.size):
        word = np.int64(words[i])
        total += word
        squares += word * word
    out[0], out[1] = total, squares


@compiled
def _count(
    before, after, gradient, intended, has_second, second_before, second_after, decayed, smallest, ulp_offset, counts,
    squares, margins,
):  # fmt: skip
    words, words_after = before.view(np.uint32), after.view(np.uint32)
    _add_elements(before, after, gradient, intended, words, words_after, counts, squares)
    for i in range(before.size):
        counts[VISIBLE] += _is_visible(words[i], words_after[i])
    if has_second:
        counts[STALLED] += _stalled(second_before, second_after, decayed)
    _add_margins(before, intended, words, intended.view(np.uint64), smallest, ulp_offset, margins)


@inlined_sums
def _add_elements(before, after, gradient, intended, words, words_after, counts, squares):
    """Add the counts of the elements by cause, and the sums of squares; without branches, for vector units."""
    moved = no_gradient = unknown = 0
    weights = gradients = updates = steps = 0.0
    for i in range(before.size):
        w0, w1, g, u = np.float64(before[i]), np.float64(after[i]), np.float64(gradient[i]), intended[i]
        step = w1 - w0
        weights += w1 * w1
        gradients += g * g
        updates += u * u
        steps += step * step
        finite = ((words[i] & MAGNITUDE) < INFINITY) & ((words_after[i] & MAGNITUDE) < INFINITY)
        moves = finite & (step != 0)
        moved += moves
        unknown += (not finite) | ((not moves) & np.isnan(u))
        no_gradient += finite & (not moves) & (u == 0) & (g == 0)
    counts[MOVED] += moved
    counts[NO_GRADIENT] += no_gradient
    counts[UNKNOWN] += unknown
    counts[ROUNDED] += before.size - moved - no_gradient - unknown
    squares[0] += weights
    squares[1] += gradients
    squares[2] += updates
    squares[3] += steps


@inlined
def _add_margins(before, intended, words, words_intended, smallest, ulp_offset, margins):
    """Add the updates that are not 0 to the bins of their margins."""
    for i in range(before.size):
        word = words_intended[i]
        field = np.int64((word >> np.uint64(52)) & np.uint64(0x7FF))
        if (word << np.uint64(1) != 0) & (field < 0x7FF):
            magnitude = np.int64(words[i] & MAGNITUDE)
            inward = np.int64((word >> np.uint64(63)) ^ np.uint64(words[i] >> np.uint32(31))) & (magnitude > 0)
            # the exponent of the gap on the side of u: below a power of two it is that of the next smaller number
            exponent = max((magnitude - inward) >> 23, smallest)
            margin = field - 1023 - exponent + ulp_offset + 1
            margins[min(max(margin - LOWEST, 0), N_BINS - 1)] += 1


@inlined
def _is_visible(word, word_after):
    """Return whether two float32 words round to different bfloat16 values, and both are finite."""
    finite = ((word & MAGNITUDE) < INFINITY) & ((word_after & MAGNITUDE) < INFINITY)
    return finite & (_as_bfloat16(word) != _as_bfloat16(word_after))


@inlined
def _as_bfloat16(word):
    """Return the bfloat16 that a float32 word of a finite value rounds to, without the sign of a zero."""
    rounded = (word + np.uint32(0x7FFF) + ((word >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return rounded if rounded & np.uint32(0x7FFF) else np.uint32(0)


@inlined
def _stalled(before, after, gradient):
    """Count the second moments that keep their value although g² differs from it."""
    n = 0
    for i in range(before.size):
        square = np.float64(gradient[i]) * np.float64(gradient[i])
        n += (before[i] == after[i]) & (square != np.float64(before[i])) & (not np.isnan(square))
    return n
