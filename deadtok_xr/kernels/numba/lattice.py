"""Measure elements on the lattice of their number format: distribution and steps. Only changed elements are read.

With W' = W / ULP(W[t-1]), the step of an element is ΔW' = ΔW · 2^(ulp_offset - max(E, smallest)), E the exponent field
of the float32 word of W[t-1]: Goldberg 1991, "What every computer scientist should know about floating-point
arithmetic", for the unit in the last place. The ordinal distance of two numbers is the number of representable numbers
between them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.kernels import Lattice
from deadtok_xr.kernels.numba.bit_words import (
    INFINITY,
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
from deadtok_xr.kernels.numba.incremental_counts import (
    STATES,
    ULPS,
    IncrementalCounts,
    add_distributions,
    recount,
    refuse,
)
from deadtok_xr.kernels.numba.jit import compiled, inlined, inner, inner_finite
from deadtok_xr.kernels.numba.rows import copy_row, copy_to

COUNTS = (
    "n_moved", "n_outward", "n_upward", "n_half", "n_fractional", "n_crossings_up", "n_crossings_down",
    "n_sign_changes", "n_from_zero", "n_to_zero",
)  # fmt: skip
"""Columns of the counts of a transition's elements."""
MOVED, OUTWARD, UPWARD, HALF, FRACTIONAL, CROSS_UP, CROSS_DOWN, SIGN_CHANGE, FROM_ZERO, TO_ZERO = range(len(COUNTS))


class LatticeStates(NamedTuple):
    """The arrays that `lattice_steps` fills for each step."""

    exponent_count: Any
    """(t, e)."""
    mantissa_count: Any
    """(t, 128)."""
    counts: Any
    """(t, 3), see `STATES`."""
    n_invalid_now: Any
    """(t,)."""


class LatticeTransitions(NamedTuple):
    """The arrays that `lattice_steps` fills for each transition."""

    counts: Any
    """(t, 10), see `COUNTS`."""
    n_valid: Any
    """(t,): tokens that are finite at both steps."""
    lattice_sum: Any
    """(t,): Σ |ΔW'|."""
    lattice_max: Any
    """(t,): max |ΔW'|."""
    l2_over_l1: Any
    """(t,): the mean of ‖ΔW'‖₂ / ‖ΔW'‖₁ over tokens that moved; NaN if none did."""
    linf_over_l2: Any
    """(t,): the mean of ‖ΔW'‖∞ / ‖ΔW'‖₂ over these."""
    hops: Any
    """(t, 3, 3): by the ULP of a token (`ULPS`), tokens that rest, hop by at most 8 ULP, and by more."""
    regimes: Any
    """(t, 3): tokens that rest; that are quantized, 0.7·D dims moving by whole cells and ‖ΔW‖ < 10 ULP; the others."""
    ordinal_l1: Any
    """(t, n): the sum of ordinal distances; -1 where a value is not finite, as in the next two."""
    ordinal_linf: Any
    """(t, n): the largest ordinal distance."""
    exponent_crossings: Any
    """(t, n): elements that changed their exponent."""


class _Changed(NamedTuple):
    """The elements of a token that changed, in buffers of D elements: dims, and words before and after."""

    dims: Any
    before: Any
    after: Any


def lattice_steps(
    steps: NDArray[Any],
    changed: NDArray[np.bool_],
    running: IncrementalCounts,
    lattice: Lattice,
    out: dict[str, NDArray[Any]],
) -> None:
    """Fill ``out`` with the distribution at each step and the transitions between them.

    Parameters
    ----------
    steps
        Words (t + 1, n, d).
    changed
        Which rows differ from the step before, (t, n).
    running
        The counts of the first step; updated to those of the last.
    lattice
        The number format's lattice.
    out
        Arrays of zeros. States, (t,) or (t + 1,): see `LatticeStates`, with `STATES` by name. Transitions, (t,): see
        `LatticeTransitions`, with `COUNTS` by name.

    Raises
    ------
    OffGridError
        If a value is not on the lattice.
    """
    counts = {
        "states": np.zeros((len(out["n_zero"]), len(STATES)), np.int64),
        "transitions": np.zeros((len(changed), len(COUNTS)), np.int64),
    }
    states = LatticeStates(*(counts["states"] if name == "counts" else out[name] for name in LatticeStates._fields))
    hops = out["hops"].reshape(len(changed), len(ULPS), 3)
    filled = {**out, "hops": hops, "counts": counts["transitions"]}
    transitions = LatticeTransitions(*(filled[name] for name in LatticeTransitions._fields))
    refuse(_lattice_steps(steps, changed, changed.any(axis=1), lattice, running.step, states, transitions))
    for kind, names in (("states", STATES), ("transitions", COUNTS)):
        for i, name in enumerate(names):
            out[name][:] = counts[kind][:, i]


@compiled
def _lattice_steps(steps, changed, any_changed, lattice, step, states, transitions):
    """Process all steps; stop at the first with values off the grid, and return how many there are."""
    T = len(changed)
    for t in range(T):
        _fill_state(step, states, t, lattice.smallest, t > 0 and not any_changed[t - 1])
        off = _transition(steps, t, changed, lattice, step, transitions)
        if off:
            return off
    if len(states.n_invalid_now) > T:
        _fill_state(step, states, T, lattice.smallest, False)
    return 0


@inner
def _fill_state(step, states, t, smallest, same):
    """Fill in a step from its counts; its distributions are those of the step before if nothing changed."""
    if same:
        copy_row(states.exponent_count, t - 1, states.exponent_count, t)
        copy_row(states.mantissa_count, t - 1, states.mantissa_count, t)
    else:
        exponents, mantissas = np.zeros(256, np.int64), np.zeros(128, np.int64)
        add_distributions(step.leading, smallest, exponents, mantissas)
        copy_to(exponents, states.exponent_count[t])
        copy_to(mantissas, states.mantissa_count[t])
    copy_to(step.counts, states.counts[t])
    n_invalid = 0
    for n in range(len(step.not_finite)):
        n_invalid += step.not_finite[n] > 0
    states.n_invalid_now[t] = n_invalid


@inner
def _transition(steps, t, changed, lattice, step, out):
    """Measure all tokens of one transition and update the counts; return how many values are off the grid."""
    N, D = steps.shape[1:]
    elements = _Changed(np.empty(D, np.int64), np.empty(D, np.uint32), np.empty(D, np.uint32))
    counts = np.zeros(len(COUNTS), np.int64)
    off = n_valid = n_moving = 0
    for n in range(N):
        was_finite = step.not_finite[n] == 0
        k = 0
        if changed[t, n]:
            k = _list_elements(steps, t, n, elements)
            off += _count_off_grid(elements.after, k, lattice.spare, lattice.largest)
            step.not_finite[n] += _more_not_finite(elements, k)
            recount(
                steps, t, n, elements.before, elements.after, k, was_finite, step.not_finite[n] == 0, step
            )  # fmt: skip
        if not was_finite or step.not_finite[n]:
            out.ordinal_l1[t, n] = out.ordinal_linf[t, n] = out.exponent_crossings[t, n] = -1
            step.token_ulp[n, 0] = np.nan
            continue
        n_valid += 1
        if k:
            n_moving += _measure_token(steps, t, n, k, elements, lattice, step.token_ulp, counts, out)
    _finish(t, n_valid, n_moving, counts, out)
    return off


@inner
def _finish(t, n_valid, n_moving, counts, out):
    """Turn the sums of a transition into means, and count the tokens that rest."""
    out.n_valid[t] = n_valid
    out.hops[t, :, 0] = n_valid - n_moving
    out.regimes[t, 0] = n_valid - n_moving
    out.l2_over_l1[t] = out.l2_over_l1[t] / n_moving if n_moving else np.nan
    out.linf_over_l2[t] = out.linf_over_l2[t] / n_moving if n_moving else np.nan
    copy_to(counts, out.counts[t])


@inlined
def _measure_token(steps, t, n, k, elements, lattice, token_ulp, counts, out):
    """Add a finite token with k changed elements to a transition; return whether it moved, which -0 to +0 is not."""
    before, after = elements.before, elements.after
    smallest, ulp_offset = lattice.smallest, lattice.ulp_offset
    l1, l2, linf, length, fractional, half = _cells(before, after, k, smallest, ulp_offset)
    counts[FRACTIONAL] += fractional
    counts[HALF] += half
    out.exponent_crossings[t, n] = _count_kinds(before, after, k, smallest, counts)
    out.ordinal_l1[t, n], out.ordinal_linf[t, n] = _ordinal_distances(before, after, k, smallest, ulp_offset)
    if l1 == 0:
        return False
    out.lattice_sum[t] += l1
    out.lattice_max[t] = max(out.lattice_max[t], linf)
    out.l2_over_l1[t] += l2 / l1
    out.linf_over_l2[t] += linf / l2
    if np.isnan(token_ulp[n, 0]):
        _measure_ulp(steps, t, n, smallest, ulp_offset, token_ulp)
    for i in range(len(ULPS)):
        out.hops[t, i, 1 if length <= 8 * token_ulp[n, i] else 2] += 1
    D = steps.shape[2]
    out.regimes[t, 1 if D - fractional > 0.7 * D and length < 10 * token_ulp[n, 0] else 2] += 1
    if _changes_ulp(before, after, k, smallest):
        token_ulp[n, 0] = np.nan
    return True


@inlined
def _list_elements(steps, t, n, elements):
    """List the elements of a token that change; return how many."""
    k = list_changed(steps, t, n, elements.dims, 0)
    for i in range(k):
        d = elements.dims[i]
        elements.before[i], elements.after[i] = float32_word(steps[t, n, d]), float32_word(steps[t + 1, n, d])
    return k


@inner
def _count_off_grid(words, k, spare, largest):
    off = 0
    for i in range(k):
        off += off_grid(words[i], spare, largest)
    return off


@inlined
def _more_not_finite(elements, k):
    """Count how many more elements are not finite than before."""
    more = 0
    for i in range(k):
        more += np.int64(not_finite(elements.after[i])) - np.int64(not_finite(elements.before[i]))
    return more


@inner_finite
def _cells(before, after, k, smallest, ulp_offset):
    """Return ‖ΔW'‖₁, ‖ΔW'‖₂, ‖ΔW'‖∞, ‖ΔW‖₂, and how many elements move by a fraction of cells, and by n + ½ cells."""
    l1 = l2 = linf = squares = 0.0
    fractional = half = 0
    for i in range(k):
        step = abs(value_of(after[i]) - value_of(before[i]))
        cells = step * power_of_two(ulp_offset - smallest + 1 - max(exponent_of(before[i], smallest), 1))
        l1 += cells
        l2 += cells * cells
        linf = max(linf, cells)
        squares += step * step
        part = cells - np.floor(cells)
        fractional += part != 0
        half += part == 0.5
    return l1, np.sqrt(l2), linf, np.sqrt(squares), fractional, half


@inner
def _count_kinds(before, after, k, smallest, counts):
    """Count elements by how they moved, see `COUNTS`; return how many changed their exponent."""
    moved = outward = upward = up = down = flips = left = came = 0
    for i in range(k):
        a, b = value_of(before[i]), value_of(after[i])
        low, high = exponent_of(before[i], smallest), exponent_of(after[i], smallest)
        up += high > low
        down += high < low
        moved += a != b  # -0 and +0 are the same
        outward += abs(b) > abs(a)
        upward += b > a
        flips += ((before[i] ^ after[i]) >> np.uint32(31) != 0) & (a != 0) & (b != 0)
        left += (a == 0) & (b != 0)
        came += (b == 0) & (a != 0)
    counts[MOVED] += moved
    counts[OUTWARD] += outward
    counts[UPWARD] += upward
    counts[CROSS_UP] += up
    counts[CROSS_DOWN] += down
    counts[SIGN_CHANGE] += flips
    counts[FROM_ZERO] += left
    counts[TO_ZERO] += came
    return up + down


@inner
def _ordinal_distances(before, after, k, smallest, ulp_offset):
    """Return the sum and the largest of the ordinal distances."""
    total = largest = np.int64(0)
    if smallest == 1:  # the exponents of float32: ordinals are the leading bits, without a branch
        shift = np.uint32(150 - ulp_offset)
        for i in range(k):
            distance = abs(_leading_bits(after[i], shift) - _leading_bits(before[i], shift))
            total += distance
            largest = max(largest, distance)
        return total, largest
    for i in range(k):
        distance = abs(ordinal_of(after[i], smallest, ulp_offset) - ordinal_of(before[i], smallest, ulp_offset))
        total += distance
        largest = max(largest, distance)
    return total, largest


@inner
def _leading_bits(word, shift):
    """Return the ordinal of a word in a format with the exponents of float32."""
    size = np.int64((word & MAGNITUDE) >> shift)
    return -size if word >> np.uint32(31) else size


@inner
def _changes_ulp(before, after, k, smallest):
    """Return whether the result of `_measure_ulp` may change for a token."""
    for i in range(k):
        if exponent_of(before[i], smallest) != exponent_of(after[i], smallest):
            return True
        if ((before[i] & MANTISSA) == 0) | ((after[i] & MANTISSA) == 0):
            return True
    return False


@inner_finite
def _measure_ulp(steps, t, n, smallest, ulp_offset, token_ulp):
    """Fill in a token's ULP: the mean over dims, the mean of the gaps towards +∞, and the largest."""
    total = 0.0
    short = 0.0
    top = np.uint32(0)
    least = np.uint32(smallest << 23)
    scale = 2.0 ** (127 - ulp_offset)
    for d in range(steps.shape[2]):
        word = float32_word(steps[t, n, d])
        exponent = max(word & np.uint32(INFINITY), least)
        power = value_of(exponent)
        total += power
        # upwards from a negative power of two the gap is half: towards zero, except at the smallest exponent
        inward = (word >> np.uint32(23)) > np.uint32(256 + smallest) and (word & MANTISSA) == 0
        short += power if inward else 0.0
        top = max(top, exponent)
    mean = total * scale / steps.shape[2]
    token_ulp[n, 0] = mean
    token_ulp[n, 1] = mean - 0.5 * short * scale / steps.shape[2]
    token_ulp[n, 2] = value_of(top) * scale
