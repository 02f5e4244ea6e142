"""Measure the coherence of displacements with few elements that are not zero, as on a coarse grid.

The moments are those of `coherence`, computed from the elements that moved: if k elements of a unit vector u are not
zero, Σ u uᵀ takes k² products instead of D², and n·μμᵀ is subtracted from the sum. If the directions are so similar
that this would lose digits, they are centred first, in the dims in which any token moved. If many elements move, the
computation over whole rows is faster.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.kernels.numba.bit_words import to_float64
from deadtok_xr.kernels.numba.changes import finite_row, list_changed
from deadtok_xr.kernels.numba.coherence import mean_and_deviation, moments, variance_of
from deadtok_xr.kernels.numba.jit import compiled

_DENSE = 16
"""Products of whole rows use vector units: those of single elements are faster below D²/16 products for a row."""
_ALIKE = 0.01
"""The mean square of d = u - μ below which the subtraction loses more than two of sixteen digits."""


class SparseDirections:
    """The nonzero elements of the displacements of a step, and which rows are finite.

    Parameters
    ----------
    n_tokens, n_dims
        The size of a step.
    """

    def __init__(self, n_tokens: int, n_dims: int) -> None:
        self.dims = np.empty(n_tokens * n_dims, np.int32)  # memory is allocated when it is filled
        self.values = np.empty(n_tokens * n_dims)
        self.ends = np.zeros(n_tokens + 1, np.int64)
        self.finite: NDArray[np.bool_] | None = None

    def directions(
        self, block: NDArray[Any], t: int, changed: NDArray[np.bool_], unit: NDArray[np.float64]
    ) -> dict[str, Any] | None:
        """Return the result of `coherence.directions` for the displacements of one step; None if that is faster.

        Parameters
        ----------
        block
            Floats or bfloat16 words (t, n, d).
        t
            The displacements are those from step t to t + 1. Calls must be made for consecutive steps.
        changed
            Which rows differ from the step before, (t, n).
        unit
            A buffer (n, d), overwritten.
        """
        if self.finite is None:
            self.finite = _finite(block, t)
        mean, direction = np.zeros(block.shape[2]), np.zeros(block.shape[2])
        n_valid, n, length, products = _list_moved(
            block, t, changed, self.finite, self.dims, self.values, self.ends, mean, direction
        )
        if n < 2 or products > n * len(mean) ** 2 // _DENSE:
            return None
        listed = self.dims, self.values, self.ends
        size = direction @ direction
        if size < 1 - _ALIKE and n > len(mean) + 8:  # few rows may have equal cosines, whose differences cancel
            cosine_mean, cosine_std = _moments(*listed, n, direction, 1 - size)
        else:
            used_dims = np.flatnonzero(np.bincount(self.dims[: self.ends[n]]))
            rows = unit.reshape(-1)[: n * len(used_dims)].reshape(n, len(used_dims))
            _write_rows(*listed, used_dims, rows)
            cosine_mean, cosine_std = moments(rows, n, direction[used_dims])
        return {
            "n_valid": n_valid, "mean": mean, "norm_mean": length / n_valid,
            "n_used": n, "direction": direction, "cosine_mean": cosine_mean, "cosine_std": cosine_std,
        }  # fmt: skip


@compiled
def _finite(block, t):
    out = np.empty(block.shape[1], np.bool_)
    for n in range(len(out)):
        out[n] = finite_row(block, t, n)
    return out


@compiled
def _list_moved(block, t, changed, finite, dims, values, ends, mean, direction):
    """List the nonzero elements of the unit vectors of rows that moved; fill in both means."""
    N, D = block.shape[1:]
    most = N * D * D // _DENSE
    n_valid = used = products = 0
    length = 0.0
    for n in range(N):
        before = finite[n]
        if not changed[t, n]:
            n_valid += before
            continue
        if products > most or not before:
            finite[n] = finite_row(block, t + 1, n)
            continue  # too many elements move to be listed, or the row is not finite
        start = ends[used]
        end = list_changed(block, t, n, dims, start)
        squares = 0.0
        for i in range(start, end):
            values[i] = to_float64(block[t + 1, n, dims[i]]) - to_float64(block[t, n, dims[i]])
            squares += values[i] * values[i]
        finite[n] = squares < np.inf or finite_row(block, t + 1, n)
        if not squares < np.inf:
            continue  # also if it is NaN
        n_valid += 1
        if squares == 0.0:
            continue  # the change is from -0 to +0 or back
        norm = np.sqrt(squares)
        length += norm
        for i in range(start, end):
            mean[dims[i]] += values[i]
            values[i] /= norm
            direction[dims[i]] += values[i]
        products += (end - start) ** 2
        used += 1
        ends[used] = end
    for d in range(D):
        mean[d] = mean[d] / n_valid
        direction[d] = direction[d] / used
    return n_valid, used, length, products


@compiled
def _moments(dims, values, ends, n, centre, q):
    """Return mean and deviation of the pairwise cosines of the first n unit vectors."""
    D = len(centre)
    K = np.zeros((D, D))
    size = 1 - q
    spread_a = 0.0
    for m in range(n):
        along = 0.0
        for i in range(ends[m], ends[m + 1]):
            along += values[i] * centre[dims[i]]
            for j in range(ends[m], i + 1):
                K[dims[i], dims[j]] += values[i] * values[j]
        spread_a += (along - size) ** 2
    squares = 0.0
    for i in range(D):
        for j in range(i):
            squares += 2.0 * (K[i, j] - n * centre[i] * centre[j]) ** 2
        squares += (K[i, i] - n * centre[i] ** 2) ** 2
    return mean_and_deviation(n, q, variance_of(n, q, spread_a, squares))


@compiled
def _write_rows(dims, values, ends, used_dims, rows):
    """Write the listed vectors as rows (n, s) of s dims."""
    place = np.zeros(used_dims[-1] + 1, np.int64)
    for i in range(len(used_dims)):
        place[used_dims[i]] = i
    rows[:] = 0.0
    for m in range(len(rows)):
        for i in range(ends[m], ends[m + 1]):
            rows[m, place[dims[i]]] = values[i]
