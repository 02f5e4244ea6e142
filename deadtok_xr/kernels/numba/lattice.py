"""Elements on their lattice: where they are, and how they step. Only what changed its bits is looked at."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.kernels import Lattice, word_shift
from deadtok_xr.kernels.numba.bit_words import (
    MAGNITUDE,
    MANTISSA,
    exponent_of,
    float32_word,
    not_finite,
    off_grid,
    ordinal_of,
    power_of_two,
    value_of,
)
from deadtok_xr.kernels.numba.changes import list_changed
from deadtok_xr.kernels.numba.incremental_counts import STATES, ULPS, IncrementalCounts, recount, refuse
from deadtok_xr.kernels.numba.jit import compiled, compiled_finite

COUNTS = (
    "n_moved", "n_outward", "n_upward", "n_half", "n_fractional", "n_crossings_up", "n_crossings_down",
    "n_sign_changes", "n_from_zero", "n_to_zero",
)  # fmt: skip
"""Columns of the counts of a transition's elements."""
MOVED, OUTWARD, UPWARD, HALF, FRACTIONAL, CROSS_UP, CROSS_DOWN, SIGN_CHANGE, FROM_ZERO, TO_ZERO = range(len(COUNTS))


def lattice_steps(
    steps: NDArray[Any],
    changed: NDArray[np.bool_],
    running: IncrementalCounts,
    lattice: Lattice,
    out: dict[str, NDArray[Any]],
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
        _state(running, out, t, anew=t == 0 or changed[t - 1].any())
        off = _transition(
            steps, t, changed, shift, lattice.smallest, lattice.ulp_offset, lattice.spare, lattice.largest,
            running.broken, running.leading, running.counts, running.spacing, counts,
            out["ordinal_l1"], out["ordinal_linf"], out["exponent_crossings"], out["n_valid"], out["lattice_sum"],
            out["lattice_max"], out["l2_over_l1"], out["linf_over_l2"], hops, out["regimes"],
        )  # fmt: skip
        refuse(off)
    if len(out["n_zero"]) > len(changed):
        _state(running, out, len(changed), anew=True)
    for i, name in enumerate(COUNTS):
        out[name][:] = counts[:, i]


def _state(running: IncrementalCounts, out: dict[str, NDArray[Any]], t: int, *, anew: bool) -> None:
    exponents, mantissas = out["exponent_count"], out["mantissa_count"]
    if anew:
        of_heights, mantissas[t] = running.distributions()
        exponents[t] = of_heights[: exponents.shape[1]]
    else:
        exponents[t], mantissas[t] = exponents[t - 1], mantissas[t - 1]
    for i, name in enumerate(STATES):
        out[name][t] = running.counts[i]
    out["n_invalid_now"][t] = (running.broken > 0).sum()


@compiled
def _transition(
    steps, t, changed, shift, smallest, ulp_offset, spare, largest, broken, leading, counts, spacing, out,
    l1s, linfs, crossings, n_valid, totals, tops, l2_over_l1, linf_over_l2, hops, regimes,
):  # fmt: skip
    """All tokens of one transition; ``broken``, ``spacing`` and the running counts become those of its later step."""
    N, D = steps.shape[1:]
    where = np.empty(D, np.int64)
    one, two = np.empty(D, np.uint32), np.empty(D, np.uint32)
    tally = np.zeros(len(out[0]), np.int64)
    lengths = np.empty(3)
    off = valid = movers = 0
    for n in range(N):
        before = broken[n]
        k = 0
        if changed[t, n]:
            k = _differ(steps, t, n, shift, where, one, two)
            off += _check(two, k, spare, largest)
            broken[n] += _broken(one, two, k)
            recount(steps, t, n, one, two, k, before, broken[n], shift, leading, counts)
        if before or broken[n]:
            l1s[t, n] = linfs[t, n] = crossings[t, n] = -1
            spacing[n, 0] = np.nan
            continue
        valid += 1
        if k == 0:
            continue
        w1, uneven, l1s[t, n], linfs[t, n], crossings[t, n] = _step(one, two, k, smallest, ulp_offset, tally, lengths)
        if w1 == 0:
            continue
        w2, top, length = lengths[0], lengths[1], lengths[2]
        movers += 1
        totals[t] += w1
        tops[t] = max(tops[t], top)
        l2_over_l1[t] += w2 / w1
        linf_over_l2[t] += top / w2
        if np.isnan(spacing[n, 0]):
            _spacing(steps, t, n, shift, smallest, ulp_offset, spacing)
        for i in range(3):
            hops[t, i, 1 if length <= 8 * spacing[n, i] else 2] += 1
        regimes[t, 1 if D - uneven > 0.7 * D and length < 10 * spacing[n, 0] else 2] += 1
        if _spaced_anew(one, two, k, smallest):
            spacing[n, 0] = np.nan
    n_valid[t] = valid
    hops[t, :, 0] = valid - movers
    regimes[t, 0] = valid - movers
    l2_over_l1[t] = l2_over_l1[t] / movers if movers else np.nan
    linf_over_l2[t] = linf_over_l2[t] / movers if movers else np.nan
    out[t] = tally
    return off


@compiled
def _differ(steps, t, n, shift, where, one, two):
    """The words of a token that differ, before and after; how many."""
    k = list_changed(steps, t, n, where, 0)
    for i in range(k):
        one[i], two[i] = float32_word(steps[t, n, where[i]], shift), float32_word(steps[t + 1, n, where[i]], shift)
    return k


@compiled
def _check(words, k, spare, largest):
    """How many words are off the grid."""
    off = 0
    for i in range(k):
        off += off_grid(words[i], spare, largest)
    return off


@compiled
def _broken(one, two, k):
    """How many more elements are not finite than before."""
    more = 0
    for i in range(k):
        more += np.int64(not_finite(two[i])) - np.int64(not_finite(one[i]))
    return more


@compiled
def _step(one, two, k, smallest, ulp_offset, tally, lengths):
    """Measure a token's elements that moved: fill ``lengths``, L2 and L∞ of ΔW' and ‖ΔW‖.

    Returns L1 of ΔW', how many moved by no whole number of cells, the sum and the largest of the ordinal distances, and
    how many crossed an exponent.
    """
    w1, uneven, half = _cells(one, two, k, smallest, ulp_offset, lengths)
    crossings = _kinds(one, two, k, smallest, tally)
    passed, farthest = _distances(one, two, k, smallest, ulp_offset)
    tally[FRACTIONAL] += uneven
    tally[HALF] += half
    return w1, uneven, passed, farthest, crossings


@compiled_finite
def _cells(one, two, k, smallest, ulp_offset, lengths):
    w1 = w2 = top = squares = 0.0
    uneven = half = 0
    for i in range(k):
        step = abs(value_of(two[i]) - value_of(one[i]))
        cells = step * power_of_two(ulp_offset - smallest + 1 - max(exponent_of(one[i], smallest), 1))
        w1 += cells
        w2 += cells * cells
        top = max(top, cells)
        squares += step * step
        part = cells - np.floor(cells)
        uneven += part != 0
        half += part == 0.5
    lengths[0], lengths[1], lengths[2] = np.sqrt(w2), top, np.sqrt(squares)
    return w1, uneven, half


@compiled
def _kinds(one, two, k, smallest, tally):
    """Count what elements did by kinds; returns how many changed their exponent."""
    moved = outward = upward = up = down = flips = left = came = 0
    for i in range(k):
        a, b = value_of(one[i]), value_of(two[i])
        low, high = exponent_of(one[i], smallest), exponent_of(two[i], smallest)
        up += high > low
        down += high < low
        moved += a != b  # -0 and +0 are the same
        outward += abs(b) > abs(a)
        upward += b > a
        flips += ((one[i] ^ two[i]) >> np.uint32(31) != 0) & (a != 0) & (b != 0)
        left += (a == 0) & (b != 0)
        came += (b == 0) & (a != 0)
    tally[MOVED] += moved
    tally[OUTWARD] += outward
    tally[UPWARD] += upward
    tally[CROSS_UP] += up
    tally[CROSS_DOWN] += down
    tally[SIGN_CHANGE] += flips
    tally[FROM_ZERO] += left
    tally[TO_ZERO] += came
    return up + down


@compiled
def _distances(one, two, k, smallest, ulp_offset):
    """The sum and the largest of the ordinal distances."""
    passed = farthest = np.int64(0)
    if smallest == 1:  # the exponents of float32: ordinals are the leading bits, without a branch
        shift = np.uint32(150 - ulp_offset)
        for i in range(k):
            distance = abs(_signed(two[i], shift) - _signed(one[i], shift))
            passed += distance
            farthest = max(farthest, distance)
        return passed, farthest
    for i in range(k):
        distance = abs(ordinal_of(two[i], smallest, ulp_offset) - ordinal_of(one[i], smallest, ulp_offset))
        passed += distance
        farthest = max(farthest, distance)
    return passed, farthest


@compiled
def _signed(word, shift):
    size = np.int64((word & MAGNITUDE) >> shift)
    return -size if word >> np.uint32(31) else size


@compiled
def _spaced_anew(one, two, k, smallest):
    """Whether a token's `_spacing` is another one than before."""
    for i in range(k):
        if exponent_of(one[i], smallest) != exponent_of(two[i], smallest):
            return True
        if ((one[i] & MANTISSA) == 0) | ((two[i] & MANTISSA) == 0):
            return True
    return False


@compiled_finite
def _spacing(steps, t, n, shift, smallest, ulp_offset, spacing):
    """A token's ULP: the mean over dims, the mean of the gaps towards +∞, and the largest."""
    total = 0.0
    short = 0.0
    top = np.uint32(0)
    least = np.uint32(smallest << 23)
    scale = 2.0 ** (127 - ulp_offset)
    for d in range(steps.shape[2]):
        word = float32_word(steps[t, n, d], shift)
        exponent = max(word & np.uint32(0x7F800000), least)
        power = value_of(exponent)
        total += power
        # upwards from a negative power of two the gap is half: towards zero, except at the smallest exponent
        inward = (word >> np.uint32(23)) > np.uint32(256 + smallest) and (word & MANTISSA) == 0
        short += power if inward else 0.0
        top = max(top, exponent)
    mean = total * scale / steps.shape[2]
    spacing[n, 0], spacing[n, 1], spacing[n, 2] = (
        mean,
        mean - 0.5 * short * scale / steps.shape[2],
        value_of(top) * scale,
    )
