"""Elements on their lattice: where they are, and how they step. Only what changed its bits is looked at.

Elements come as float32 words. An element's *cell height* is its exponent field on the lattice, 0 for zero and
subnormals; its *ordinal* is how many numbers of the format lie between it and zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.errors import OffGridError
from deadtok_xr.kernels import Lattice, word_shift
from deadtok_xr.kernels.numba.words import compiled, compiled_finite

STATES = ("n_zero", "n_negative", "n_power_of_two")
"""Columns of the running counts, beside the exponents."""
COUNTS = (
    "n_moved", "n_outward", "n_upward", "n_half", "n_fractional", "n_crossings_up", "n_crossings_down",
    "n_sign_changes", "n_from_zero", "n_to_zero",
)  # fmt: skip
"""Columns of the counts of a transition's elements."""
MOVED, OUTWARD, UPWARD, HALF, FRACTIONAL, CROSS_UP, CROSS_DOWN, SIGN, FROM_ZERO, TO_ZERO = range(len(COUNTS))
ULPS = ("mean", "mean_upward", "largest")
"""What the spacing of a whole token may be taken for."""
_SIGN, _SIZE = np.uint32(1 << 31), np.uint32((1 << 31) - 1)


class Running:
    """What is known of the step at hand: which tokens are valid, and the counts over these."""

    def __init__(self, steps: NDArray[Any], lattice: Lattice) -> None:
        self.broken = np.zeros(steps.shape[1], np.int64)  # elements that are not finite, by token
        self.exponents = np.zeros(256, np.int64)
        self.mantissas = np.zeros(128, np.int64)
        self.counts = np.zeros(len(STATES), np.int64)
        off = _begin(steps, word_shift(steps), lattice.smallest, lattice.spare, lattice.largest, self.broken,
                     self.exponents, self.mantissas, self.counts)  # fmt: skip
        _refuse(off)


def lattice_steps(
    steps: NDArray[Any], changed: NDArray[np.bool_], running: Running, lattice: Lattice, out: dict[str, NDArray[Any]]
) -> None:
    """Fill ``out`` with what steps are like and the transitions between them, and carry ``running`` to the last.

    Parameters
    ----------
    steps
        Words (t + 1, n, d).
    changed
        Which rows differ from the step before, (t, n).
    running
        Of the first step.
    lattice
        The number format's lattice.
    out
        Arrays of zeros. States (t,) or (t + 1,): exponent_count (t, e),
        mantissa_count (t, 128), `STATES`, n_invalid_now. Transitions (t,):
        `COUNTS`, n_valid, lattice_sum, lattice_max, l2_over_l1, linf_over_l2, hops (t, 3, 3), regimes (t, 3); (t, n):
        ordinal_l1, ordinal_linf, exponent_crossings, -1 where a value is not finite.

    Raises
    ------
    OffGridError
        If a value is not on the lattice.
    """
    shift = word_shift(steps)
    counts = np.zeros((len(changed), len(COUNTS)), np.int64)
    hops = out["hops"].reshape(len(changed), len(ULPS), 3)
    for t in range(len(changed)):
        _state(running, out, t)
        off = _transition(
            steps, t, changed, shift, lattice.smallest, lattice.ulp_offset, lattice.spare, lattice.largest,
            running.broken, running.exponents, running.mantissas, running.counts, counts, out["ordinal_l1"],
            out["ordinal_linf"], out["exponent_crossings"], out["n_valid"], out["lattice_sum"],
            out["lattice_max"], out["l2_over_l1"], out["linf_over_l2"], hops, out["regimes"],
        )  # fmt: skip
        _refuse(off)
    if len(out["n_zero"]) > len(changed):
        _state(running, out, len(changed))
    for i, name in enumerate(COUNTS):
        out[name][:] = counts[:, i]


def _refuse(off_grid: int) -> None:
    if off_grid:
        raise OffGridError(f"{off_grid} values of a step are not on the grid")


def _state(running: Running, out: dict[str, NDArray[Any]], t: int) -> None:
    out["exponent_count"][t] = running.exponents[: out["exponent_count"].shape[1]]
    out["mantissa_count"][t] = running.mantissas
    for i, name in enumerate(STATES):
        out[name][t] = running.counts[i]
    out["n_invalid_now"][t] = (running.broken > 0).sum()


@compiled
def _word(steps, t, n, d, shift):
    return np.uint32(np.uint32(steps[t, n, d]) << np.uint32(shift))


@compiled
def _value(word):
    return np.float64(np.uint32(word).view(np.float32))


@compiled
def _height(word, smallest):
    """The exponent field on the lattice: 0 for zero and subnormals."""
    return max(np.int64((word >> np.uint32(23)) & np.uint32(0xFF)) - smallest + 1, 0)


@compiled
def _ordinal(word, smallest, ulp_offset):
    height = _height(word, smallest)
    if height:
        size = (height << (ulp_offset - 127)) + (np.int64(word & np.uint32(0x7FFFFF)) >> (150 - ulp_offset))
    else:
        size = np.int64(_value(word & _SIZE) * _power(ulp_offset - smallest))
    return -size if word & _SIGN else size


@compiled
def _power(exponent):
    """2^exponent as a float64, put together from its bits."""
    return np.int64((1023 + exponent) << 52).view(np.float64)


@compiled
def _off_grid(word, spare, largest):
    size = np.uint32(word & _SIZE)
    field = size >> np.uint32(23)
    return (field < np.uint32(255)) & ((size > np.uint32(largest)) | ((word & spare[np.uint64(field)]) != 0))


@compiled
def _leading(word):
    """The leading 7 bits of the mantissa."""
    return np.uint64((word >> np.uint32(16)) & np.uint32(0x7F))


@compiled
def _seldom(word, smallest):
    """Whether an element is zero, subnormal or a power of two: one in a hundred is."""
    return (_height(word, smallest) == 0) | ((word & np.uint32(0x7FFFFF)) == 0)


@compiled
def _count(word, by, smallest, exponents, mantissas, counts):
    """Add an element to the running counts, or take it away."""
    height = _height(word, smallest)
    exponents[height] += by
    size = np.uint32(word & _SIZE)
    if size == 0:
        counts[0] += by
        return
    counts[1] += by * np.int64(word >> np.uint32(31))
    if height:
        mantissas[_leading(word)] += by
    rest = np.uint32(word & np.uint32(0x7FFFFF))
    # a float32 that is subnormal itself is a power of two if it has one bit, any other if it has none in its mantissa
    single = size < np.uint32(1 << 23) and (size & (size - np.uint32(1))) == 0
    if rest == 0 or single:
        counts[2] += by


@compiled
def _count_row(steps, t, n, by, shift, smallest, exponents, mantissas, counts):
    for d in range(steps.shape[2]):
        _count(_word(steps, t, n, d, shift), by, smallest, exponents, mantissas, counts)


@compiled
def _not_finite(word):
    return (word & _SIZE) >= np.uint32(0x7F800000)


@compiled
def _begin(steps, shift, smallest, spare, largest, broken, exponents, mantissas, counts):
    off = 0
    for n in range(steps.shape[1]):
        for d in range(steps.shape[2]):
            word = _word(steps, 0, n, d, shift)
            broken[n] += _not_finite(word)
            off += _off_grid(word, spare, largest)
        if broken[n] == 0:
            _count_row(steps, 0, n, 1, shift, smallest, exponents, mantissas, counts)
    return off


@compiled
def _transition(
    steps, t, changed, shift, smallest, ulp_offset, spare, largest, broken, exponents, mantissas, counts, out, l1s,
    linfs, crossings, n_valid, totals, tops, l2_over_l1, linf_over_l2, hops, regimes,
):  # fmt: skip
    """All tokens of one transition; their ``broken`` and the running counts become those of its later step."""
    N, D = steps.shape[1:]
    where = np.empty(D, np.int64)
    tally = np.zeros(len(out[0]), np.int64)
    off = 0
    movers = 0
    for n in range(N):
        before = broken[n]
        k = 0
        if changed[t, n]:
            k = _differ(steps, t, n, where)
            off += _check(steps, t, n, where, k, shift, spare, largest, broken)
            _recount(steps, t, n, where, k, before, broken[n], shift, smallest, exponents, mantissas, counts)
        if before or broken[n]:
            l1s[t, n] = linfs[t, n] = crossings[t, n] = -1
            continue
        n_valid[t] += 1
        w1 = 0.0
        if k:
            w1, w2, top, length, uneven = _step(
                steps, t, n, where, k, shift, smallest, ulp_offset, tally, l1s, linfs, crossings
            )
        if w1 == 0:
            hops[t, :, 0] += 1
            regimes[t, 0] += 1
            continue
        movers += 1
        totals[t] += w1
        tops[t] = max(tops[t], top)
        l2_over_l1[t] += w2 / w1
        linf_over_l2[t] += top / w2
        mean, upward, top_ulp = _spacing(steps, t, n, shift, smallest, ulp_offset)
        hops[t, 0, 1 if length <= 8 * mean else 2] += 1
        hops[t, 1, 1 if length <= 8 * upward else 2] += 1
        hops[t, 2, 1 if length <= 8 * top_ulp else 2] += 1
        regimes[t, 1 if D - uneven > 0.7 * D and length < 10 * mean else 2] += 1
    l2_over_l1[t] = l2_over_l1[t] / movers if movers else np.nan
    linf_over_l2[t] = linf_over_l2[t] / movers if movers else np.nan
    out[t] = tally
    return off


@compiled
def _differ(steps, t, n, where):
    """The dims in which a token's bits differ, without a branch that depends on them; returns how many."""
    k = 0
    for d in range(steps.shape[2]):
        where[k] = d
        k += steps[t, n, d] != steps[t + 1, n, d]
    return k


@compiled
def _check(steps, t, n, where, k, shift, spare, largest, broken):
    """Count a token's elements that are not finite at the later step; returns how many of them are off the grid."""
    off = 0
    difference = 0
    for i in range(k):
        d = where[i]
        word = _word(steps, t + 1, n, d, shift)
        difference += np.int64(_not_finite(word)) - np.int64(_not_finite(_word(steps, t, n, d, shift)))
        off += _off_grid(word, spare, largest)
    broken[n] += difference
    return off


@compiled
def _recount(steps, t, n, where, k, before, after, shift, smallest, exponents, mantissas, counts):
    if before == 0 and after == 0:
        negative = 0
        for i in range(k):
            d = where[i]
            one, two = _word(steps, t, n, d, shift), _word(steps, t + 1, n, d, shift)
            if _seldom(one, smallest) | _seldom(two, smallest):
                _count(one, -1, smallest, exponents, mantissas, counts)
                _count(two, 1, smallest, exponents, mantissas, counts)
                continue
            exponents[np.uint64(_height(one, smallest))] -= 1
            exponents[np.uint64(_height(two, smallest))] += 1
            mantissas[_leading(one)] -= 1
            mantissas[_leading(two)] += 1
            negative += np.int64(two >> np.uint32(31)) - np.int64(one >> np.uint32(31))
        counts[1] += negative
    elif before == 0:
        _count_row(steps, t, n, -1, shift, smallest, exponents, mantissas, counts)
    elif after == 0:
        _count_row(steps, t + 1, n, 1, shift, smallest, exponents, mantissas, counts)


@compiled
def _step(steps, t, n, where, k, shift, smallest, ulp_offset, tally, l1s, linfs, crossings):
    """A token's elements that moved: L1, L2 and L∞ of ΔW', ‖ΔW‖, and those that moved by no whole number of cells."""
    w1 = w2 = top = squares = 0.0
    moved = outward = upward = half = uneven = up = down = flips = left = came = 0
    passed = farthest = 0
    for i in range(k):
        d = where[i]
        one, two = _word(steps, t, n, d, shift), _word(steps, t + 1, n, d, shift)
        a, b = _value(one), _value(two)
        low, high = _height(one, smallest), _height(two, smallest)
        step = abs(b - a)
        cells = step * _power(ulp_offset - smallest + 1 - max(low, 1))
        w1 += cells
        w2 += cells * cells
        top = max(top, cells)
        squares += step * step
        part = cells - np.floor(cells)
        uneven += part != 0
        half += part == 0.5
        distance = abs(_ordinal(two, smallest, ulp_offset) - _ordinal(one, smallest, ulp_offset))
        passed += distance
        farthest = max(farthest, distance)
        up += high > low
        down += high < low
        moved += a != b  # -0 and +0 are the same
        outward += abs(b) > abs(a)
        upward += b > a
        flips += ((one ^ two) >> np.uint32(31) != 0) & (a != 0) & (b != 0)
        left += (a == 0) & (b != 0)
        came += (b == 0) & (a != 0)
    l1s[t, n], linfs[t, n], crossings[t, n] = passed, farthest, up + down
    tally[MOVED] += moved
    tally[OUTWARD] += outward
    tally[UPWARD] += upward
    tally[HALF] += half
    tally[FRACTIONAL] += uneven
    tally[CROSS_UP] += up
    tally[CROSS_DOWN] += down
    tally[SIGN] += flips
    tally[FROM_ZERO] += left
    tally[TO_ZERO] += came
    return w1, np.sqrt(w2), top, np.sqrt(squares), uneven


@compiled_finite
def _spacing(steps, t, n, shift, smallest, ulp_offset):
    """A token's ULP: the mean over dims, the mean of the gaps towards +∞, and the largest."""
    total = 0.0
    short = 0.0
    top = np.uint32(0)
    least = np.uint32(smallest << 23)
    scale = 2.0 ** (127 - ulp_offset)
    for d in range(steps.shape[2]):
        word = np.uint32(np.uint32(steps[t, n, d]) << np.uint32(shift))
        exponent = max(word & np.uint32(0x7F800000), least)
        power = _value(exponent)
        total += power
        # upwards from a negative power of two the gap is half: towards zero, except at the smallest exponent
        inward = (word >> np.uint32(23)) > np.uint32(256 + smallest) and (word & np.uint32(0x7FFFFF)) == 0
        short += power if inward else 0.0
        top = max(top, exponent)
    mean = total * scale / steps.shape[2]
    return mean, mean - 0.5 * short * scale / steps.shape[2], _value(top) * scale
