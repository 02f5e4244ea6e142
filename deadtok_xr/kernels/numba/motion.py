"""How far each token moved at each step, in its own units and on the lattice."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.errors import OffGridError
from deadtok_xr.kernels import Lattice, word_shift
from deadtok_xr.kernels.numba.words import INFINITY, compiled, compiled_finite, expand, same_row


def motion(now: NDArray[Any], after: NDArray[Any], lattice: Lattice, out: dict[str, NDArray[Any]]) -> None:
    """Fill ``out`` with the transitions that begin at each step of a block.

    Parameters
    ----------
    now
        Words (t, n, d) of a block.
    after
        Words (1, n, d) of the step that follows the block; (0, n, d) for the last block.
    lattice
        The number format's lattice.
    out
        Arrays (transitions, n) to fill: displacement, displacement_ulp, lattice_l1, lattice_l2,
        lattice_linf (NaN where a value is not finite) and moved_dims (-1 there).

    Raises
    ------
    OffGridError
        If a value is not on the lattice.
    """
    off_grid = _motion(
        now, after, word_shift(now), lattice.smallest, lattice.ulp_offset, lattice.spare, lattice.largest,
        out["displacement"], out["displacement_ulp"], out["lattice_l1"], out["lattice_l2"],
        out["lattice_linf"], out["moved_dims"],
    )  # fmt: skip
    if off_grid:
        raise OffGridError(f"{off_grid} rows of a block hold values that are not on the grid")


@compiled
def _motion(now, after, shift, smallest, ulp_offset, spare, largest, l2, norm_ulp, w1, w2, winf, moved):
    T, N, D = now.shape
    latest = np.empty((N, D), np.uint32)  # each token's row at t as float32 words
    values = latest.view(np.float32)
    row = np.empty(D, np.uint32)
    row_values = row.view(np.float32)
    state = np.empty(N, np.uint8)  # of the row at t: 0 usable, 1 not finite, 2 off the grid
    off_grid = 0
    for n in range(N):
        union, magnitude = expand(now, 0, n, shift, row)
        state[n] = _state(row, union, magnitude, spare, largest)
        off_grid += state[n] == 2
        for d in range(D):
            latest[n, d] = row[d]
    for t in range(l2.shape[0]):
        nxt, u = (now, t + 1) if t + 1 < T else (after, 0)
        for n in range(N):
            ok = state[n] == 0
            if same_row(now, t, nxt, u, n):
                _store(t, n, 0.0, 0.0, 0.0, 0.0, 0.0, 0, ok, l2, norm_ulp, w1, w2, winf, moved)
                continue
            union, magnitude = expand(nxt, u, n, shift, row)
            state[n] = _state(row, union, magnitude, spare, largest)
            off_grid += state[n] == 2
            ok = ok and state[n] == 0
            squares, norm, s1, s2, top, count = _sums(latest, values, n, row_values, smallest, ulp_offset)
            for d in range(D):
                latest[n, d] = row[d]
            length = np.sqrt(squares)
            ulps = length / max(np.sqrt(norm) * 2.0**-7, 1e-10)
            _store(t, n, length, ulps, s1, np.sqrt(s2), top, count, ok, l2, norm_ulp, w1, w2, winf, moved)
    return off_grid


@compiled
def _store(t, n, length, ulps, s1, s2, top, count, ok, l2, norm_ulp, w1, w2, winf, moved):
    l2[t, n] = length if ok else np.nan
    norm_ulp[t, n] = ulps if ok else np.nan
    w1[t, n] = s1 if ok else np.nan
    w2[t, n] = s2 if ok else np.nan
    winf[t, n] = top if ok else np.nan
    moved[t, n] = count if ok else -1


@compiled
def _state(row, union, magnitude, spare, largest):
    """What a row of float32 words is, by the union and the largest magnitude of them: see `_motion`."""
    if magnitude >= INFINITY:
        return np.uint8(1)
    if magnitude > largest:
        return np.uint8(2)
    if (union & spare[255]) == 0:
        return np.uint8(0)  # no word has a bit that could be off the grid in any binade
    for d in range(row.shape[0]):
        if row[d] & spare[(row[d] >> np.uint32(23)) & np.uint32(0xFF)]:
            return np.uint8(2)
    return np.uint8(0)


@compiled_finite
def _sums(words, before, n, after, smallest, ulp_offset):
    squares = 0.0
    norm = 0.0
    s1 = 0.0
    s2 = 0.0
    largest = np.int64(0)  # the bits of non-negative floats order as the floats do, and vectorise
    count = 0
    least = np.uint32(smallest << 23)
    for d in range(after.shape[0]):
        # 2^(128 - max(E, smallest)) as a float32 put together from its exponent: 1 / ULP but for a constant
        exponent = max(words[n, d] & np.uint32(0x7F800000), least)
        scale = np.uint32(np.uint32(255 << 23) - exponent).view(np.float32)
        a = np.float64(before[n, d])
        step = np.float64(after[d]) - a
        cells = abs(step) * np.float64(scale)
        squares += step * step
        norm += a * a
        s1 += cells
        s2 += cells * cells
        largest = max(largest, np.float64(cells).view(np.int64))
        count += after[d] != before[n, d]
    rest = 2.0 ** (ulp_offset - 128)
    return squares, norm, s1 * rest, s2 * rest * rest, np.int64(largest).view(np.float64) * rest, count
