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

from deadtok_xr.kernels import WIDE
from deadtok_xr.kernels.numba.bit_words import to_float64
from deadtok_xr.kernels.numba.changes import finite_row, list_changed
from deadtok_xr.kernels.numba.coherence import Buffers, Vectors, divide, mean_and_deviation, moments, variance_of
from deadtok_xr.kernels.numba.jit import compiled

_DENSE, _DENSE_WIDE = 16, 80
"""Products of whole rows use vector units: those of single elements are faster below D²/16 products for a row, or D²/80
where BLAS multiplies whole rows."""
_ALIKE = 0.01
"""The mean square of d = u - μ below which the subtraction loses more than two of sixteen digits."""


class SparseDirections:
    """Which rows are finite, and the lengths of the displacements of a step.

    Parameters
    ----------
    n_tokens, n_dims
        The size of a step.
    """

    def __init__(self, n_tokens: int, n_dims: int) -> None:
        self.norms = np.empty(n_tokens)
        self.row = np.empty(n_dims, np.int32), np.empty(n_dims)
        self.finite: NDArray[np.bool_] | None = None

    def directions(
        self, block: NDArray[Any], t: int, changed: NDArray[np.bool_], buffers: Buffers
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
        buffers
            Memory, overwritten.
        """
        if self.finite is None:
            self.finite = _finite(block, t)
        mean, direction, norms = np.zeros(block.shape[2]), np.zeros(block.shape[2]), self.norms
        any_moved = np.zeros(block.shape[2], np.bool_)
        norms[:] = 0.0
        share = _DENSE_WIDE if len(mean) >= WIDE else _DENSE
        most = len(norms) * len(mean) ** 2 // share
        n_valid, n, length, products = _measure_moved(
            block, t, changed, self.finite, *self.row, norms, any_moved, mean, direction, most
        )
        if n < 2 or products > n * len(mean) ** 2 // share:
            return None
        norm_mean = divide(mean, direction, n_valid, n, length)
        tokens = np.flatnonzero(norms)
        size = direction @ direction
        if size < 1 - _ALIKE and n > len(mean) + 8:  # few rows may have equal cosines, whose differences cancel
            cosine_mean, cosine_std = _moments(block, t, tokens, norms, *self.row, direction, 1 - size)
        else:
            dims, vectors = np.flatnonzero(any_moved), Vectors(block, t, displaced=True)
            cosine_mean, cosine_std = moments(vectors, tokens, norms, dims, direction[dims], buffers)
        return {
            "n_valid": n_valid, "mean": mean, "norm_mean": norm_mean,
            "n_used": n, "direction": direction, "cosine_mean": cosine_mean, "cosine_std": cosine_std,
        }  # fmt: skip


@compiled
def _finite(block, t):
    out = np.empty(block.shape[1], np.bool_)
    for n in range(len(out)):
        out[n] = finite_row(block, t, n)
    return out


@compiled
def _measure_moved(block, t, changed, finite, dims, values, norms, any_moved, mean, direction, most):
    """Sum the displacements of rows that moved, and their unit vectors; fill in their lengths, and the dims that moved.

    ``dims`` and ``values`` hold the elements of a row that are not zero. Above ``most`` products whole rows are faster.
    """
    N = block.shape[1]
    n_valid = used = products = 0
    length = 0.0
    for n in range(N):
        before = finite[n]
        if not changed[t, n]:
            n_valid += before
            continue
        if products > most or not before:
            finite[n] = finite_row(block, t + 1, n)
            continue  # so many elements move that whole rows are faster, or the row is not finite
        end = list_changed(block, t, n, dims, 0)
        squares = 0.0
        for i in range(end):
            values[i] = to_float64(block[t + 1, n, dims[i]]) - to_float64(block[t, n, dims[i]])
            squares += values[i] * values[i]
        finite[n] = squares < np.inf or finite_row(block, t + 1, n)
        if not squares < np.inf:
            continue  # also if it is NaN
        n_valid += 1
        if squares == 0.0:
            continue  # the change is from -0 to +0 or back
        norm = np.sqrt(squares)
        norms[n] = norm
        length += norm
        for i in range(end):
            any_moved[dims[i]] = True
            mean[dims[i]] += values[i]
            values[i] /= norm
            direction[dims[i]] += values[i]
        products += end**2
        used += 1
    return n_valid, used, length, products


@compiled
def _moments(block, t, tokens, norms, dims, values, centre, q):
    """Return mean and deviation of the pairwise cosines of the unit vectors of tokens."""
    D = len(centre)
    K = np.zeros((D, D))
    size = 1 - q
    spread_a = 0.0
    n = len(tokens)
    for m in range(n):
        token = tokens[m]
        end = list_changed(block, t, token, dims, 0)
        along = 0.0
        for i in range(end):
            values[i] = to_float64(block[t + 1, token, dims[i]]) - to_float64(block[t, token, dims[i]])
            values[i] /= norms[token]
            along += values[i] * centre[dims[i]]
            for j in range(i + 1):
                K[dims[i], dims[j]] += values[i] * values[j]
        spread_a += (along - size) ** 2
    squares = 0.0
    for i in range(D):
        for j in range(i):
            squares += 2.0 * (K[i, j] - n * centre[i] * centre[j]) ** 2
        squares += (K[i, i] - n * centre[i] ** 2) ** 2
    return mean_and_deviation(n, q, variance_of(n, q, spread_a, squares))
