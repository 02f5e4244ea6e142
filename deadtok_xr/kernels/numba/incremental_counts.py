"""Count the exponents and mantissas of a step, and update the counts from step to step by the elements that changed.

Exponents and mantissas are counted together, by the leading 16 bits of a float32 word: one addition for each element,
rarely to the same counter as the one before, and no branch. Distributions are summed from these counts when a step
needs them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.errors import OffGridError
from deadtok_xr.kernels import Lattice
from deadtok_xr.kernels.numba.bit_words import MAGNITUDE, MANTISSA, SIGN, float32_word, not_finite, off_grid
from deadtok_xr.kernels.numba.jit import compiled, inner

STATES = ("n_zero", "n_negative", "n_power_of_two")
"""Columns of `StepCounts.counts`."""
ULPS = ("mean", "mean_upward", "largest")
"""Columns of `StepCounts.token_ulp`: the ULP of a whole token."""
_WORDS, _FIELDS = 1 << 16, 1 << 9
"""The number of counters for the leading bits of words, and of flags after them that a sign and exponent occurred."""


class StepCounts(NamedTuple):
    """The counts of the current step, over tokens of which every element is finite."""

    not_finite: NDArray[np.int64]
    """(n,): elements of each token that are not finite."""
    leading: NDArray[np.int64]
    """The number of elements by the leading 16 bits of their word; then 1 for each sign and exponent that occurred."""
    counts: NDArray[np.int64]
    """See `STATES`."""
    token_ulp: NDArray[np.float64]
    """(n, 3), see `ULPS`; NaN until it is needed."""


class IncrementalCounts:
    """The counts of a step, which `lattice.lattice_steps` updates from step to step.

    Parameters
    ----------
    steps
        Words (t, n, d).
    lattice
        The number format's lattice.

    Raises
    ------
    OffGridError
        If a value of the first step is not on the lattice.
    """

    def __init__(self, steps: NDArray[Any], lattice: Lattice) -> None:
        n = steps.shape[1]
        counts, leading = np.zeros(len(STATES), np.int64), np.zeros(_WORDS + _FIELDS, np.int64)
        self.step = StepCounts(np.zeros(n, np.int64), leading, counts, np.full((n, len(ULPS)), np.nan))
        self._smallest = lattice.smallest
        refuse(_count_step(steps, lattice, self.step))

    @property
    def counts(self) -> NDArray[np.int64]:
        """See `STATES`."""
        return self.step.counts

    @property
    def n_invalid(self) -> int:
        """The number of tokens with an element that is not finite."""
        return int((self.step.not_finite > 0).sum())

    @property
    def n_valid(self) -> int:
        """The number of tokens that are finite."""
        return len(self.step.not_finite) - self.n_invalid

    def distributions(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return how many elements have each of 256 exponents, and each of 128 leading parts of a mantissa."""
        exponents, mantissas = np.zeros(256, np.int64), np.zeros(128, np.int64)
        add_distributions(self.step.leading, self._smallest, exponents, mantissas)
        return exponents, mantissas


def refuse(n_off_grid: int) -> None:
    """Refuse a step with values off the grid.

    Raises
    ------
    OffGridError
        If there are any.
    """
    if n_off_grid:
        raise OffGridError(f"{n_off_grid} values of a step are not on the grid")


@compiled
def add_distributions(leading, smallest, exponents, mantissas):
    """Sum counts by exponent and by mantissa; zero and subnormals of the lattice have exponent 0 and no mantissa."""
    for field in range(_FIELDS):
        if not leading[_WORDS + field]:
            continue
        by_mantissa = leading[128 * field : 128 * (field + 1)]
        total = 0
        for m in range(128):
            total += by_mantissa[m]
        exponent = field % 256
        exponents[max(exponent - smallest + 1, 0)] += total
        if exponent >= smallest:
            for m in range(128):
                mantissas[m] += by_mantissa[m]


@compiled
def _count_step(steps, lattice, step):
    """Count the first step; return how many of its values are off the grid."""
    off = 0
    for n in range(steps.shape[1]):
        for d in range(steps.shape[2]):
            word = float32_word(steps[0, n, d])
            step.not_finite[n] += not_finite(word)
            off += off_grid(word, lattice.spare, lattice.largest)
        if step.not_finite[n] == 0:
            _count_row(steps, 0, n, 1, step.leading, step.counts)
    return off


@inner
def recount(steps, t, n, before, after, k, was_finite, is_finite, step):
    """Count the k elements of a token that changed, whose words are in ``before`` and ``after``.

    If the token becomes finite, its whole row is added; if it stops being finite, its whole row is subtracted.
    """
    if was_finite and is_finite:
        _count(before, k, -1, step.leading, step.counts)
        _count(after, k, 1, step.leading, step.counts)
    elif was_finite:
        _count_row(steps, t, n, -1, step.leading, step.counts)
    elif is_finite:
        _count_row(steps, t + 1, n, 1, step.leading, step.counts)


@inner
def _count(words, k, by, leading, counts):
    """Add k words to the counts, or subtract them."""
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


@inner
def _is_power_of_two(size):
    """Return whether a magnitude is a power of two: a subnormal with one bit set, or a zero mantissa."""
    one_bit = (size & (size - np.uint32(1))) == 0
    return (size != 0) & (((size & MANTISSA) == 0) | (one_bit & (size <= MANTISSA)))


@inner
def _count_row(steps, t, n, by, leading, counts):
    words = np.empty(steps.shape[2], np.uint32)
    for d in range(len(words)):
        words[d] = float32_word(steps[t, n, d])
    _count(words, len(words), by, leading, counts)
