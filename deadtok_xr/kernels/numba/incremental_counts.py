"""Counts of what the elements of a step are like, carried from step to step by those that changed.

Exponents and mantissas are counted together, by the leading 16 bits of a float32 word: one place to add to, seldom the
one before, and nothing to decide. What is asked for is summed up from these where a step needs it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.errors import OffGridError
from deadtok_xr.kernels import Lattice, word_shift
from deadtok_xr.kernels.numba.bit_words import MAGNITUDE, MANTISSA, SIGN, float32_word, not_finite, off_grid
from deadtok_xr.kernels.numba.jit import compiled

STATES = ("n_zero", "n_negative", "n_power_of_two")
"""Columns of the running counts, beside the exponents."""
ULPS = ("mean", "mean_upward", "largest")
"""What the spacing of a whole token may be taken for."""
_WORDS, _FIELDS = 1 << 16, 1 << 9
"""Places for the leading bits of words; behind them one for each sign and exponent, which says that it occurred."""


class IncrementalCounts:
    """What is known of the step at hand: which tokens are valid, and the counts over these."""

    def __init__(self, steps: NDArray[Any], lattice: Lattice) -> None:
        self.smallest = lattice.smallest
        self.broken = np.zeros(steps.shape[1], np.int64)  # elements that are not finite, by token
        self.leading = np.zeros(_WORDS + _FIELDS, np.int64)
        self.counts = np.zeros(len(STATES), np.int64)
        self.spacing = np.full((steps.shape[1], len(ULPS)), np.nan)  # of a token, NaN until it is asked for
        refuse(_begin(steps, word_shift(steps), lattice.spare, lattice.largest, self.broken, self.leading, self.counts))

    def distributions(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """How many elements are in each of 256 cell heights, and have each of 128 leading parts of a mantissa."""
        exponents, mantissas = np.zeros(256, np.int64), np.zeros(128, np.int64)
        _sum_up(self.leading, self.smallest, exponents, mantissas)
        return exponents, mantissas


@compiled
def _sum_up(leading, smallest, exponents, mantissas):
    """Zero and subnormals of the lattice are of height 0, and have no mantissa to speak of."""
    for field in range(_FIELDS):
        if not leading[_WORDS + field]:
            continue
        of_field = leading[128 * field : 128 * (field + 1)]
        total = 0
        for m in range(128):
            total += of_field[m]
        exponent = field % 256
        exponents[max(exponent - smallest + 1, 0)] += total
        if exponent >= smallest:
            for m in range(128):
                mantissas[m] += of_field[m]


def refuse(n_off_grid: int) -> None:
    """Refuse a step with values off the grid."""
    if n_off_grid:
        raise OffGridError(f"{n_off_grid} values of a step are not on the grid")


@compiled
def _begin(steps, shift, spare, largest, broken, leading, counts):
    off = 0
    for n in range(steps.shape[1]):
        for d in range(steps.shape[2]):
            word = float32_word(steps[0, n, d], shift)
            broken[n] += not_finite(word)
            off += off_grid(word, spare, largest)
        if broken[n] == 0:
            _count_row(steps, 0, n, 1, shift, leading, counts)
    return off


@compiled
def recount(steps, t, n, one, two, k, before, after, shift, leading, counts):
    """Count the k words of a token that were ``one`` and are ``two``; all of its row, where it comes or goes because
    elements that are not finite, ``before`` and ``after``, are too many or none."""
    if before == 0 and after == 0:
        _count(one, k, -1, leading, counts)
        _count(two, k, 1, leading, counts)
    elif before == 0:
        _count_row(steps, t, n, -1, shift, leading, counts)
    elif after == 0:
        _count_row(steps, t + 1, n, 1, shift, leading, counts)


@compiled
def _count(words, k, by, leading, counts):
    """Add words to the counts, or take them away."""
    zero = negative = single = 0
    for i in range(k):
        size = words[i] & MAGNITUDE
        zero += size == 0
        negative += words[i] > SIGN
        single += _is_power_of_two(size)
    counts[0] += by * zero
    counts[1] += by * negative
    counts[2] += by * single
    for i in range(k):
        leading[np.uint64(words[i] >> np.uint32(16))] += by
        leading[np.uint64(_WORDS) + np.uint64(words[i] >> np.uint32(23))] = 1


@compiled
def _is_power_of_two(size):
    """A float32 that is subnormal itself is one if it has one bit, any other if it has none in its mantissa."""
    one_bit = (size & (size - np.uint32(1))) == 0
    return (size != 0) & (((size & MANTISSA) == 0) | (one_bit & (size <= MANTISSA)))


@compiled
def _count_row(steps, t, n, by, shift, leading, counts):
    words = np.empty(steps.shape[2], np.uint32)
    for d in range(len(words)):
        words[d] = float32_word(steps[t, n, d], shift)
    _count(words, len(words), by, leading, counts)
