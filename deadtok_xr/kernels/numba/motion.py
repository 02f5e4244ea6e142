"""How far each token moved at each step, in its own units and on the lattice."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.errors import OffGridError
from deadtok_xr.kernels import Lattice, word_shift
from deadtok_xr.kernels.numba.words import compiled, field, float32_word, row_is_finite, same_row, value


def motion(now: NDArray[Any], after: NDArray[Any], lattice: Lattice, out: NDArray[Any]) -> None:
    """Fill ``out`` with the transitions that begin at each step of a block.

    Parameters
    ----------
    now
        Words (t, n, d) of a block.
    after
        Words (1, n, d) of the step that follows the block.
    lattice
        The number format's lattice.
    out
        Structured (t, n) with the fields displacement, displacement_ulp, lattice_l1, lattice_l2,
        lattice_linf (NaN where a value is not finite) and moved_dims (-1 there).
    """
    off_grid = np.zeros(1, np.int64)
    _motion(
        now, after, word_shift(now), lattice.inverse_ulp, lattice.spare, lattice.largest, off_grid,
        out["displacement"], out["displacement_ulp"], out["lattice_l1"], out["lattice_l2"],
        out["lattice_linf"], out["moved_dims"],
    )  # fmt: skip
    if off_grid[0]:
        raise OffGridError(f"{off_grid[0]} rows of a block hold values that are not on the grid")


@compiled
def _motion(now, after, shift, inverse_ulp, spare, largest, off_grid, l2, norm_ulp, w1, w2, winf, moved):
    T, N, _ = now.shape
    for n in range(N):
        finite = row_is_finite(now[0, n], shift)
        off_grid[0] += not _row_on_grid(now[0, n], shift, spare, largest)
        for t in range(T):
            before = now[t, n]
            row = now[t + 1, n] if t + 1 < T else after[0, n]
            if same_row(before, row):
                _still(t, n, finite, l2, norm_ulp, w1, w2, winf, moved)
                continue
            was_finite = finite
            finite = row_is_finite(row, shift)
            off_grid[0] += not _row_on_grid(row, shift, spare, largest)
            if was_finite and finite:
                _moved(t, n, before, row, shift, inverse_ulp, l2, norm_ulp, w1, w2, winf, moved)
            else:
                _still(t, n, False, l2, norm_ulp, w1, w2, winf, moved)


@compiled
def _still(t, n, finite, l2, norm_ulp, w1, w2, winf, moved):
    result = 0.0 if finite else np.nan
    l2[t, n] = result
    norm_ulp[t, n] = result
    w1[t, n] = result
    w2[t, n] = result
    winf[t, n] = result
    moved[t, n] = 0 if finite else -1


@compiled
def _moved(t, n, before, row, shift, inverse_ulp, l2, norm_ulp, w1, w2, winf, moved):
    squares = 0.0
    norm = 0.0
    s1 = 0.0
    s2 = 0.0
    largest = 0.0
    count = 0
    for d in range(row.shape[0]):
        a = value(before[d], shift)
        step = value(row[d], shift) - a
        cells = abs(step) * inverse_ulp[field(before[d], shift)]
        squares += step * step
        norm += a * a
        s1 += cells
        s2 += cells * cells
        largest = max(largest, cells)
        count += step != 0.0
    l2[t, n] = np.sqrt(squares)
    norm_ulp[t, n] = np.sqrt(squares) / max(np.sqrt(norm) * 2.0**-7, 1e-10)
    w1[t, n] = s1
    w2[t, n] = np.sqrt(s2)
    winf[t, n] = largest
    moved[t, n] = count


@compiled
def _row_on_grid(row, shift, spare, largest):
    for d in range(row.shape[0]):
        word = float32_word(row[d], shift)
        e = (word >> np.uint32(23)) & np.uint32(0xFF)
        if e == 255:
            continue
        magnitude = word & np.uint32(0x7FFFFFFF)
        if magnitude != 0 and ((word & spare[e]) != 0 or magnitude > largest):
            return False
    return True
