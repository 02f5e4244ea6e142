"""How far each token moved at each step, in its own units and on the lattice; and how many are in each phase."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.errors import OffGridError
from deadtok_xr.kernels import Lattice, word_shift
from deadtok_xr.kernels.numba.bit_words import INFINITY, float32_word, value_of
from deadtok_xr.kernels.numba.jit import compiled, compiled_finite, inlined, inlined_sums

USABLE, NOT_FINITE, OFF_GRID = 0, 1, 2
"""What a row of a step may be."""
_NO_SUMS = (np.nan, np.nan, np.nan, np.nan, np.nan, -1)
_TINY, _HUGE = 2.0**-80, 2.0**80
_FEW = 1024
"""Dims of which float32 sums have a relative error below 4e-6 at worst, and mostly 1e-7."""


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
        What each row of the first step is, as an earlier call returned it; None to look.
    lattice
        The number format's lattice.
    magnitudes
        Limits of the phases by norm ULP, ascending.
    out
        Arrays of zeros, which stay zero where nothing moves. (t, n): displacement, displacement_ulp, lattice_l1,
        lattice_l2, lattice_linf (NaN where a value is not finite) and moved_dims (-1 there). (t,):
        displacement_ulp_mean, displacement_ulp_std (ddof 1) over valid tokens, n_invalid. (t, 4): lattice and
        magnitude, the tokens in each phase, from coldest to hottest.

    Returns
    -------
    What each row of the last step is.

    Raises
    ------
    OffGridError
        If a value is not on the lattice.
    """
    of_bfloat16 = lattice.smallest == 1 and lattice.ulp_offset == 134
    if of_bfloat16:
        steps = _narrowed(steps)
    shift = word_shift(steps)
    # words of 16 bits are on bfloat16's lattice whatever their bits
    plain = of_bfloat16 and shift == 16 and steps.shape[2] <= _FEW
    format_of = (plain, shift, lattice.smallest, lattice.ulp_offset, lattice.spare, lattice.largest)
    state = _look(steps, *format_of) if state is None else state.copy()
    off_grid = int((state == OFF_GRID).sum()) + _motion(
        steps, changed, state, *format_of, np.array(magnitudes),
        out["displacement"], out["displacement_ulp"], out["lattice_l1"], out["lattice_l2"],
        out["lattice_linf"], out["moved_dims"], out["displacement_ulp_mean"], out["displacement_ulp_std"],
        out["n_invalid"], out["lattice"], out["magnitude"],
    )  # fmt: skip
    if off_grid:
        raise OffGridError(f"{off_grid} rows of a block hold values that are not on the grid")
    return state


def _narrowed(steps: NDArray[Any]) -> NDArray[Any]:
    """Words of 16 bits instead of 32 where none is lost, so that both are measured alike to the last bit."""
    if steps.dtype == np.uint32 and not (steps & np.uint32(0xFFFF)).any():
        return (steps >> np.uint32(16)).astype(np.uint16)
    return steps


@compiled
def _look(steps, plain, shift, smallest, ulp_offset, spare, largest):
    state = np.empty(steps.shape[1], np.uint8)
    for n in range(steps.shape[1]):
        state[n] = _state(steps, 0, n, shift, spare, largest)
    return state


@compiled
def _motion(steps, changed, state, plain, shift, smallest, ulp_offset, spare, largest, limits,
            l2, norm_ulp, w1, w2, winf, moved, mean, std, n_invalid, lattice, magnitude):  # fmt: skip
    T, N = changed.shape
    root = np.sqrt(steps.shape[2])
    off_grid = 0
    for t in range(T):
        for n in range(N):
            if changed[t, n]:
                usable = state[n] == USABLE
                finite = fits = False
                if plain and usable:
                    squares, norm, s1, s2, top, count = _plain_sums(steps, t, n)
                    finite = squares < np.inf
                    fits = _fit(squares, norm, s2, top)
                if not finite:
                    state[n] = _state(steps, t + 1, n, shift, spare, largest)
                    off_grid += state[n] == OFF_GRID
                if not fits:
                    usable = usable and state[n] == USABLE
                    sums = _sums(steps, t, n, shift, smallest, ulp_offset) if usable else _NO_SUMS
                    squares, norm, s1, s2, top, count = sums
                length = np.sqrt(squares)
                l2[t, n] = length
                norm_ulp[t, n] = length / max(np.sqrt(norm) * 2.0**-7, 1e-10)
                w1[t, n] = s1
                w2[t, n] = np.sqrt(s2)
                winf[t, n] = top
                moved[t, n] = count
            elif state[n] != USABLE:
                l2[t, n] = norm_ulp[t, n] = w1[t, n] = w2[t, n] = winf[t, n] = np.nan
                moved[t, n] = -1
        _figures(t, norm_ulp, w1, w2, winf, moved, root, limits, mean, std, n_invalid, lattice, magnitude)
    return off_grid


@inlined
def _fit(squares, norm, s2, top):
    """Whether float32 sums of a row are as good as those in float64.

    Steps of up to 64 ULP are multiples of a half, so that sums of them are exact up to 2^22. What is not finite, or
    over- or underflows, is not within the limits either.
    """
    return _TINY < squares < _HUGE and _TINY < norm < _HUGE and top <= 64 and s2 < 2.0**22


@compiled
def _state(steps, t, n, shift, spare, largest):
    """What a row is, by the union of its float32 words and the largest magnitude among them."""
    union, magnitude = _bits(steps, t, n, shift)
    if magnitude >= INFINITY:
        return np.uint8(NOT_FINITE)
    if magnitude > largest:
        return np.uint8(OFF_GRID)
    if (union & spare[255]) == 0:
        return np.uint8(USABLE)  # no word has a bit that could be off the grid in any binade
    for d in range(steps.shape[2]):
        word = float32_word(steps[t, n, d], shift)
        if word & spare[(word >> np.uint32(23)) & np.uint32(0xFF)]:
            return np.uint8(OFF_GRID)
    return np.uint8(USABLE)


@compiled
def _bits(steps, t, n, shift):
    union = np.uint32(0)
    largest = np.uint32(0)
    for d in range(steps.shape[2]):
        word = float32_word(steps[t, n, d], shift)
        union |= word
        largest = max(largest, word & np.uint32(0x7FFFFFFF))
    return union, largest


@inlined_sums
def _plain_sums(steps, t, n):
    """`_sums` of bfloat16 words in float32."""
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
        exponent = max(before & np.uint32(0x7F800000), least)
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


@compiled_finite
def _sums(steps, t, n, shift, smallest, ulp_offset):
    """Σ ΔW², Σ W², Σ |ΔW'|, Σ ΔW'², max |ΔW'|, and how many dims moved, from t to t + 1."""
    squares = 0.0
    norm = 0.0
    s1 = 0.0
    s2 = 0.0
    largest = np.int64(0)  # the bits of non-negative floats order as the floats do, and vectorise
    count = 0
    least = np.uint32(smallest << 23)
    for d in range(steps.shape[2]):
        word = float32_word(steps[t, n, d], shift)
        # 2^(128 - max(E, smallest)) as a float32 put together from its exponent: 1 / ULP but for a constant
        exponent = max(word & np.uint32(0x7F800000), least)
        scale = np.uint32(np.uint32(255 << 23) - exponent).view(np.float32)
        a = value_of(word)
        b = value_of(float32_word(steps[t + 1, n, d], shift))
        step = b - a
        cells = abs(step) * np.float64(scale)
        squares += step * step
        norm += a * a
        s1 += cells
        s2 += cells * cells
        largest = max(largest, np.float64(cells).view(np.int64))
        count += b != a
    rest = 2.0 ** (ulp_offset - 128)
    return squares, norm, s1 * rest, s2 * rest * rest, np.int64(largest).view(np.float64) * rest, count


@compiled
def _figures(t, norm_ulp, w1, w2, winf, moved, root, limits, mean, std, n_invalid, lattice, magnitude):
    """Of a step: mean and deviation over valid tokens, and the tokens in each phase of each scheme."""
    N = norm_ulp.shape[1]
    total = 0.0
    n_valid = n_moved = n_warm = n_hot = at_least_0 = at_least_1 = at_least_2 = 0
    for n in range(N):
        n_valid += moved[t, n] >= 0
        if moved[t, n] > 0:
            x = norm_ulp[t, n]
            total += x
            n_moved += 1  # counts of what is above each limit need no branch
            warm = winf[t, n] > 1
            n_warm += warm
            n_hot += warm & (w2[t, n] > root)
            at_least_0 += x >= limits[0]
            at_least_1 += x >= limits[1]
            at_least_2 += x >= limits[2]
    _between(lattice[t], n_valid, n_moved, n_warm, n_hot)
    _between(magnitude[t], n_valid, at_least_0, at_least_1, at_least_2)
    n_invalid[t] = N - n_valid
    mean[t] = total / n_valid if n_valid else np.nan
    squares = 0.0
    for n in range(N):
        if moved[t, n] >= 0:
            squares += (norm_ulp[t, n] - mean[t]) ** 2
    std[t] = np.sqrt(squares / (n_valid - 1)) if n_valid > 1 else np.nan


@inlined
def _between(out, a, b, c, d):
    out[0], out[1], out[2], out[3] = a - b, b - c, c - d, d
