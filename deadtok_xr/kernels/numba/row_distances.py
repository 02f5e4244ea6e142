"""Measure the rows of a matrix: norms and sums, products with vectors, and distances to rows.

Values are decoded where they are used, and all sums are in float64. The sums over a row are taken in one order wherever
the row lies, so that equal rows have equal results.
"""

from __future__ import annotations

import numpy as np

from deadtok_xr.kernels.numba.bit_words import to_float64
from deadtok_xr.kernels.numba.jit import compiled, inlined_sums, inner


@compiled
def describe_rows(rows, eps, masks, square, above, sums):
    """Measure each row, and sum the rows that are finite.

    Parameters
    ----------
    rows
        Floats or bfloat16 words (n, d).
    eps
        A limit.
    masks
        Members of groups, bool (k, n).
    square, above
        Filled, (n,): Σ_d x_d², which is not finite where a value is not, and whether a value is above ``eps``.
    sums
        Zeros (1 + k, d), filled: the sum of the finite rows, and of those of each group.
    """
    whole = True
    for n in range(rows.shape[0]):
        square[n] = _square_and_sum(rows, n, sums)
        above[n] = _any_above(rows, n, eps)
        whole &= np.isfinite(square[n])
    if not whole:
        sums[0] = 0.0
    for n in range(rows.shape[0]):
        if np.isfinite(square[n]):
            if not whole:
                _add_row(rows, n, sums, 0)
            for k in range(masks.shape[0]):
                if masks[k, n]:
                    _add_row(rows, n, sums, 1 + k)


@inlined_sums
def _square_and_sum(rows, n, sums):
    square = 0.0
    for d in range(rows.shape[1]):
        x = to_float64(rows[n, d])
        square += x * x
        sums[0, d] += x
    return square


@inner
def _any_above(rows, n, eps):
    for d in range(rows.shape[1]):  # the first values of almost all rows answer it
        if to_float64(rows[n, d]) > eps:
            return True
    return False


@inlined_sums
def _add_row(rows, n, sums, k):
    for d in range(rows.shape[1]):
        sums[k, d] += to_float64(rows[n, d])


@compiled
def products(rows, vector, out):
    """Fill ``out`` (n,) with the product of each row (n, d), floats or bfloat16 words, and a vector."""
    for n in range(rows.shape[0]):
        out[n] = _product(rows, n, vector)


@inlined_sums
def _product(rows, n, vector):
    total = 0.0
    for d in range(rows.shape[1]):
        total += to_float64(rows[n, d]) * vector[d]
    return total


@compiled
def distances(rows, u, mean, out):
    """Measure rows x from a row u and from a mean row m.

    Parameters
    ----------
    rows
        Floats or bfloat16 words (n, d).
    u, mean
        (d,).
    out
        Filled, (4, n): x·u, ‖x - u‖², (x - m)·(u - m) and ‖x - m‖².
    """
    for n in range(rows.shape[0]):
        out[0, n], out[1, n], out[2, n], out[3, n] = _distances(rows, n, u, mean)


@inlined_sums
def _distances(rows, n, u, mean):
    product = from_u = centered = from_mean = 0.0
    for d in range(rows.shape[1]):
        x = to_float64(rows[n, d])
        own, other = x - mean[d], u[d] - mean[d]
        product += x * u[d]
        from_u += (x - u[d]) * (x - u[d])
        centered += own * other
        from_mean += own * own
    return product, from_u, centered, from_mean


@compiled
def without_axis(rows, axis, u, out):
    """Measure rows x without their components along an axis.

    Parameters
    ----------
    rows
        Floats or bfloat16 words (n, d).
    axis
        v, (d,), of length 1.
    u
        (d,), without its component along the axis.
    out
        Filled, (2, n): y·u and ‖y‖², y = x - (x·v)v.
    """
    for n in range(rows.shape[0]):
        out[0, n], out[1, n] = _without(rows, n, _product(rows, n, axis), axis, u)


@inlined_sums
def _without(rows, n, component, axis, u):
    product = square = 0.0
    for d in range(rows.shape[1]):
        y = to_float64(rows[n, d]) - component * axis[d]
        product += y * u[d]
        square += y * y
    return product, square
