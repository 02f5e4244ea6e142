"""How far each token moved at each step, in its own units and on the lattice; and how many are in each phase."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.errors import OffGridError
from deadtok_xr.kernels import Lattice, word_shift
from deadtok_xr.kernels.numba.words import INFINITY, compiled, compiled_finite

USABLE, NOT_FINITE, OFF_GRID = 0, 1, 2
"""What a row of a step may be."""


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
    shift = word_shift(steps)
    grid = (lattice.spare, lattice.largest)
    if state is None:
        state = np.empty(steps.shape[1], np.uint8)
        _look(steps, shift, *grid, state)
    else:
        state = state.copy()
    off_grid = int((state == OFF_GRID).sum()) + _motion(
        steps, changed, state, shift, lattice.smallest, lattice.ulp_offset, *grid,
        out["displacement"], out["displacement_ulp"], out["lattice_l1"], out["lattice_l2"],
        out["lattice_linf"], out["moved_dims"],
    )  # fmt: skip
    if off_grid:
        raise OffGridError(f"{off_grid} rows of a block hold values that are not on the grid")
    _figures(
        out["displacement_ulp"], out["lattice_l1"], out["lattice_l2"], out["lattice_linf"], out["moved_dims"],
        np.sqrt(steps.shape[2]), np.array(magnitudes),
        out["displacement_ulp_mean"], out["displacement_ulp_std"], out["n_invalid"], out["lattice"], out["magnitude"],
    )  # fmt: skip
    return state


@compiled
def _look(steps, shift, spare, largest, state):
    for n in range(steps.shape[1]):
        state[n] = _state(steps, 0, n, shift, spare, largest)


@compiled
def _motion(steps, changed, state, shift, smallest, ulp_offset, spare, largest, l2, norm_ulp, w1, w2, winf, moved):
    T, N = changed.shape
    off_grid = 0
    for t in range(T):
        for n in range(N):
            usable = state[n] == USABLE
            if changed[t, n]:
                state[n] = _state(steps, t + 1, n, shift, spare, largest)
                off_grid += state[n] == OFF_GRID
                usable = usable and state[n] == USABLE
                if usable:
                    squares, norm, s1, s2, top, count = _sums(steps, t, n, shift, smallest, ulp_offset)
                    length = np.sqrt(squares)
                    l2[t, n] = length
                    norm_ulp[t, n] = length / max(np.sqrt(norm) * 2.0**-7, 1e-10)
                    w1[t, n] = s1
                    w2[t, n] = np.sqrt(s2)
                    winf[t, n] = top
                    moved[t, n] = count
            if not usable:
                l2[t, n] = norm_ulp[t, n] = w1[t, n] = w2[t, n] = winf[t, n] = np.nan
                moved[t, n] = -1
    return off_grid


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
        word = np.uint32(np.uint32(steps[t, n, d]) << np.uint32(shift))
        if word & spare[(word >> np.uint32(23)) & np.uint32(0xFF)]:
            return np.uint8(OFF_GRID)
    return np.uint8(USABLE)


@compiled
def _bits(steps, t, n, shift):
    union = np.uint32(0)
    largest = np.uint32(0)
    for d in range(steps.shape[2]):
        word = np.uint32(np.uint32(steps[t, n, d]) << np.uint32(shift))
        union |= word
        largest = max(largest, word & np.uint32(0x7FFFFFFF))
    return union, largest


@compiled_finite
def _sums(steps, t, n, shift, smallest, ulp_offset):
    squares = 0.0
    norm = 0.0
    s1 = 0.0
    s2 = 0.0
    largest = np.int64(0)  # the bits of non-negative floats order as the floats do, and vectorise
    count = 0
    least = np.uint32(smallest << 23)
    for d in range(steps.shape[2]):
        word = np.uint32(np.uint32(steps[t, n, d]) << np.uint32(shift))
        # 2^(128 - max(E, smallest)) as a float32 put together from its exponent: 1 / ULP but for a constant
        exponent = max(word & np.uint32(0x7F800000), least)
        scale = np.uint32(np.uint32(255 << 23) - exponent).view(np.float32)
        a = np.float64(word.view(np.float32))
        b = np.float64(np.uint32(np.uint32(steps[t + 1, n, d]) << np.uint32(shift)).view(np.float32))
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
def _figures(norm_ulp, w1, w2, winf, moved, root, limits, mean, std, n_invalid, lattice, magnitude):
    """Per step: mean and deviation over valid tokens, and the tokens in each phase of each scheme."""
    T, N = norm_ulp.shape
    for t in range(T):
        total = 0.0
        valid = 0
        for n in range(N):
            if moved[t, n] < 0:
                continue
            valid += 1
            x = norm_ulp[t, n]
            total += x
            phase = 0 if w1[t, n] <= 0 else 1 if winf[t, n] <= 1 else 2 if w2[t, n] <= root else 3
            lattice[t, phase] += 1
            magnitude[t, 0 if x < limits[0] else 1 if x < limits[1] else 2 if x < limits[2] else 3] += 1
        n_invalid[t] = N - valid
        mean[t] = total / valid if valid else np.nan
        squares = 0.0
        for n in range(N):
            if moved[t, n] >= 0:
                squares += (norm_ulp[t, n] - mean[t]) ** 2
        std[t] = np.sqrt(squares / (valid - 1)) if valid > 1 else np.nan
