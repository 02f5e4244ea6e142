"""Measure how far each token moved at each step, in its own units and on the lattice, and count tokens by phase.

displacement       ‖ΔW‖₂
displacement_ulp   ‖ΔW‖₂ / max(‖W[t-1]‖₂ · 2⁻⁷, 1e-10), the norm ULP of the notebooks
lattice_l1, l2, linf   norms of ΔW' = ΔW / ULP(W[t-1]), element by element

The phases follow from these: frozen by ‖ΔW'‖₁ = 0, then ‖ΔW'‖∞ <= 1, then ‖ΔW'‖₂ <= √D, then all others; or by three
limits of displacement_ulp.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.errors import OffGridError
from deadtok_xr.kernels import Lattice
from deadtok_xr.kernels.numba.bit_words import INFINITY, MAGNITUDE, float32_word, power_of_two, value_of
from deadtok_xr.kernels.numba.jit import compiled, inlined, inlined_sums, inner, inner_finite

USABLE, NOT_FINITE, OFF_GRID = 0, 1, 2
"""The status of a row of a step."""
_NO_SUMS = (np.nan, np.nan, np.nan, np.nan, np.nan, -1)
_TINY, _HUGE = 2.0**-80, 2.0**80
_FEW_DIMS = 1024
"""The largest number of dims whose float32 sums have a relative error below 4e-6 at worst, and usually 1e-7."""


class MotionRows(NamedTuple):
    """The arrays that `motion` fills for each transition and token, (t, n)."""

    displacement: Any
    displacement_ulp: Any
    lattice_l1: Any
    lattice_l2: Any
    lattice_linf: Any
    moved_dims: Any


class MotionSteps(NamedTuple):
    """The arrays that `motion` fills for each transition, (t,); (t, 4) for the tokens in each phase of two schemes."""

    displacement_ulp_mean: Any
    displacement_ulp_std: Any
    n_invalid: Any
    lattice: Any
    magnitude: Any


_N_ROWS = len(MotionRows._fields)


def motion(
    steps: NDArray[Any],
    changed: NDArray[np.bool_],
    state: NDArray[np.uint8] | None,
    lattice: Lattice,
    magnitudes: tuple[float, float, float],
    out: dict[str, NDArray[Any]],
) -> NDArray[np.uint8]:
    """Fill ``out`` with the transitions between steps.

    Parameters
    ----------
    steps
        Words (t + 1, n, d).
    changed
        Which rows differ from the step before, (t, n).
    state
        The status of each row of the first step, as an earlier call returned it; None to find it.
    lattice
        The number format's lattice.
    magnitudes
        Limits of the phases by displacement_ulp, ascending.
    out
        Arrays of zeros, which stay zero where nothing moves. (t, n): displacement, displacement_ulp, lattice_l1,
        lattice_l2, lattice_linf (NaN where a value is not finite) and moved_dims (-1 there). (t,):
        displacement_ulp_mean, displacement_ulp_std (ddof 1) over valid tokens, n_invalid. (t, 4): lattice and
        magnitude, the tokens in each phase, from coldest to hottest.

    Returns
    -------
    The status of each row of the last step.

    Raises
    ------
    OffGridError
        If a value is not on the lattice.
    """
    of_bfloat16 = lattice.smallest == 1 and lattice.ulp_offset == 134
    if of_bfloat16:
        steps = _narrowed(steps)
    # every word of 16 bits is on bfloat16's lattice
    in_float32 = of_bfloat16 and steps.dtype == np.uint16 and steps.shape[2] <= _FEW_DIMS
    status = _status_of_rows(steps, lattice) if state is None else state.copy()
    filled = [out[name] for name in (*MotionRows._fields, *MotionSteps._fields)]
    off_grid = int((status == OFF_GRID).sum())
    off_grid += _motion(steps, changed, status, in_float32, lattice, np.array(magnitudes), *filled)
    if off_grid:
        raise OffGridError(f"{off_grid} rows of a block hold values that are not on the grid")
    return status


def _narrowed(steps: NDArray[Any]) -> NDArray[Any]:
    """Return words of 16 bits instead of 32 if no bit is lost, so that both give the same results to the last bit."""
    if steps.dtype == np.uint32 and not (steps & np.uint32(0xFFFF)).any():
        return (steps >> np.uint32(16)).astype(np.uint16)
    return steps


@compiled
def _status_of_rows(steps, lattice):
    status = np.empty(steps.shape[1], np.uint8)
    for n in range(steps.shape[1]):
        status[n] = _status(steps, 0, n, lattice.spare, lattice.largest)
    return status


@compiled
def _motion(steps, changed, status, in_float32, lattice, limits, *filled):
    """Process all transitions; return how many of the changed rows are off the grid."""
    rows, per_step = MotionRows(*filled[:_N_ROWS]), MotionSteps(*filled[_N_ROWS:])
    off_grid = 0
    for t in range(changed.shape[0]):
        for n in range(changed.shape[1]):
            if changed[t, n]:
                usable = status[n] == USABLE
                sums = _float32_sums(steps, t, n) if in_float32 and usable else _NO_SUMS
                if not sums[0] < np.inf:
                    status[n] = _status(steps, t + 1, n, lattice.spare, lattice.largest)
                    off_grid += status[n] == OFF_GRID
                if not _precise(sums):
                    usable = usable and status[n] == USABLE
                    sums = _sums(steps, t, n, lattice.smallest, lattice.ulp_offset) if usable else _NO_SUMS
                _write(rows, t, n, sums)
            elif status[n] != USABLE:
                _write(rows, t, n, _NO_SUMS)
        _summarize(t, rows, np.sqrt(steps.shape[2]), limits, per_step)
    return off_grid


@inlined
def _write(rows, t, n, sums):
    """Fill in a row from its `_sums`."""
    squares, norm, l1, l2, linf, count = sums
    length = np.sqrt(squares)
    rows.displacement[t, n] = length
    rows.displacement_ulp[t, n] = length / max(np.sqrt(norm) * 2.0**-7, 1e-10)
    rows.lattice_l1[t, n] = l1
    rows.lattice_l2[t, n] = np.sqrt(l2)
    rows.lattice_linf[t, n] = linf
    rows.moved_dims[t, n] = count


@inlined
def _precise(sums):
    """Return whether float32 sums of a row are as good as those in float64.

    Steps of up to 64 ULP are multiples of a half, so that their sums are exact up to 2^22. Sums that are not finite,
    overflow or underflow are outside the limits too.
    """
    squares, norm, _, l2, linf, _ = sums
    return _TINY < squares < _HUGE and _TINY < norm < _HUGE and linf <= 64 and l2 < 2.0**22


@inner
def _status(steps, t, n, spare, largest):
    """Find the status of a row, by the union of its float32 words and the largest magnitude among them."""
    union, magnitude = _union_and_largest(steps, t, n)
    if magnitude >= INFINITY:
        return np.uint8(NOT_FINITE)
    if magnitude > largest:
        return np.uint8(OFF_GRID)
    if (union & spare[255]) == 0:
        return np.uint8(USABLE)  # no word has a bit that could be off the grid in any binade
    for d in range(steps.shape[2]):
        word = float32_word(steps[t, n, d])
        if word & spare[(word >> np.uint32(23)) & np.uint32(0xFF)]:
            return np.uint8(OFF_GRID)
    return np.uint8(USABLE)


@inner
def _union_and_largest(steps, t, n):
    union = np.uint32(0)
    largest = np.uint32(0)
    for d in range(steps.shape[2]):
        word = float32_word(steps[t, n, d])
        union |= word
        largest = max(largest, word & MAGNITUDE)
    return union, largest


@inlined_sums
def _float32_sums(steps, t, n):
    """Return `_sums` of bfloat16 words in float32, which takes half the time."""
    squares = np.float32(0)
    norm = np.float32(0)
    s1 = np.float32(0)
    s2 = np.float32(0)
    largest = np.int32(0)
    count = np.int32(0)
    least = np.uint32(1 << 23)
    for d in range(steps.shape[2]):
        before = np.uint32(np.uint32(steps[t, n, d]) << np.uint32(16))
        after = np.uint32(np.uint32(steps[t + 1, n, d]) << np.uint32(16))
        exponent = max(before & np.uint32(INFINITY), least)
        scale = np.uint32(np.uint32(255 << 23) - exponent).view(np.float32)
        a = before.view(np.float32)
        step = np.float32(after.view(np.float32) - a)
        cells = np.float32(abs(step) * scale)
        squares += step * step
        norm += a * a
        s1 += cells
        s2 += cells * cells
        largest = np.int32(max(largest, cells.view(np.int32)))
        count = np.int32(count + np.int32(step != 0))
    top = np.float64(np.int32(largest).view(np.float32))
    return np.float64(squares), np.float64(norm), s1 * 2.0**6, s2 * 2.0**12, top * 2.0**6, np.int64(count)


@inner_finite
def _sums(steps, t, n, smallest, ulp_offset):
    """Return Σ ΔW², Σ W², Σ |ΔW'|, Σ ΔW'², max |ΔW'|, and how many dims moved, from t to t + 1."""
    squares = 0.0
    norm = 0.0
    s1 = 0.0
    s2 = 0.0
    largest = np.int64(0)  # the bits of non-negative floats have the order of the floats, and integers vectorise
    count = 0
    least = np.uint32(smallest << 23)
    for d in range(steps.shape[2]):
        word = float32_word(steps[t, n, d])
        # 2^(128 - max(E, smallest)) as a float32 made from its exponent field: 1 / ULP except for a constant factor
        exponent = max(word & np.uint32(INFINITY), least)
        scale = np.uint32(np.uint32(255 << 23) - exponent).view(np.float32)
        a = value_of(word)
        b = value_of(float32_word(steps[t + 1, n, d]))
        step = b - a
        cells = abs(step) * np.float64(scale)
        squares += step * step
        norm += a * a
        s1 += cells
        s2 += cells * cells
        largest = max(largest, np.float64(cells).view(np.int64))
        count += b != a
    rest = power_of_two(ulp_offset - 128)
    return squares, norm, s1 * rest, s2 * rest * rest, np.int64(largest).view(np.float64) * rest, count


@inner
def _summarize(t, rows, root, limits, per_step):
    """Fill in a step: mean and deviation over valid tokens, and the tokens in each phase of each scheme."""
    norm_ulp, l2, linf, moved = rows.displacement_ulp, rows.lattice_l2, rows.lattice_linf, rows.moved_dims
    N = norm_ulp.shape[1]
    total = 0.0
    n_valid = n_moved = n_warm = n_hot = at_least_0 = at_least_1 = at_least_2 = 0
    for n in range(N):
        n_valid += moved[t, n] >= 0
        if moved[t, n] > 0:
            x = norm_ulp[t, n]
            total += x
            n_moved += 1  # counting the tokens above each limit needs no branch
            warm = linf[t, n] > 1
            n_warm += warm
            n_hot += warm & (l2[t, n] > root)
            at_least_0 += x >= limits[0]
            at_least_1 += x >= limits[1]
            at_least_2 += x >= limits[2]
    _count_phases(per_step.lattice[t], n_valid, n_moved, n_warm, n_hot)
    _count_phases(per_step.magnitude[t], n_valid, at_least_0, at_least_1, at_least_2)
    mean = total / n_valid if n_valid else np.nan
    squares = 0.0
    for n in range(N):
        if moved[t, n] >= 0:
            squares += (norm_ulp[t, n] - mean) ** 2
    per_step.n_invalid[t] = N - n_valid
    per_step.displacement_ulp_mean[t] = mean
    per_step.displacement_ulp_std[t] = np.sqrt(squares / (n_valid - 1)) if n_valid > 1 else np.nan


@inlined
def _count_phases(out, a, b, c, d):
    """Fill in the tokens in each phase, from those at or above the first, the second, ... phase."""
    out[0], out[1], out[2], out[3] = a - b, b - c, c - d, d
