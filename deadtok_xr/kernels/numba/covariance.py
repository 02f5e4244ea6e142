"""Multiply the covariance of the rows of a matrix by eight vectors, without computing it.

Rows are taken less the first that is finite: equal rows have exactly no variance. Four of them are decoded at a time,
so that each value of the vectors is loaded once for two. BLAS takes longer for so few vectors, and if its threads have
to wait for each other, many times as long.
"""

from __future__ import annotations

import numpy as np

from deadtok_xr.kernels.numba.bit_words import to_float64
from deadtok_xr.kernels.numba.jit import compiled, inlined_sums, inner

VECTORS = 8
ROWS = 4
_TILE = 1024
"""Dims of four rows that stay in the fastest cache."""


@compiled
def finite_differences(rows, count, first, out):
    """Write the finite rows less the first one.

    Parameters
    ----------
    rows
        Floats or bfloat16 words (n, d).
    count
        How many finite rows there were before.
    first
        The first of all finite rows, (d,); zeros, and filled, as long as there was none.
    out
        (n, d); its first rows are filled.

    Returns
    -------
    How many finite rows there were, these included.
    """
    held = 0
    for n in range(rows.shape[0]):
        if _is_written(rows, n, count + held, first, out, held):
            held += 1
    return count + held


@compiled
def add_products(rows, count, first, vectors, buffer, products, sums):
    """Add Σ y·(yᵀV) and Σ y over the finite rows y, less the first one.

    Parameters
    ----------
    rows, count, first
        As for `finite_differences`.
    vectors
        V, (VECTORS, d).
    buffer, products
        (ROWS, d) and (ROWS, VECTORS), overwritten.
    sums
        (VECTORS + 1, d), added to; the last row is Σ y.

    Returns
    -------
    How many finite rows there were, these included.
    """
    held = 0
    for n in range(rows.shape[0]):
        if _is_written(rows, n, count, first, buffer, held):
            held += 1
            count += 1
        if held == ROWS or (held and n == rows.shape[0] - 1):
            buffer[held:] = 0.0
            _add(buffer, vectors, products, sums)
            held = 0
    return count


@inner
def _is_written(rows, n, count, first, out, k):
    """Write a row less the first one, and return whether it is finite."""
    finite = np.isfinite(_write_difference(rows, n, first, out, k))
    if finite and count == 0:
        for d in range(len(first)):
            first[d], out[k, d] = out[k, d], 0.0
    return finite


@inlined_sums
def _write_difference(rows, n, first, out, k):
    """Return the sum of the differences, which is finite if all of them are."""
    total = 0.0
    for d in range(rows.shape[1]):
        out[k, d] = to_float64(rows[n, d]) - first[d]
        total += out[k, d]
    return total


@inner
def _add(x, vectors, products, sums):
    for k in range(0, ROWS, 2):
        for j in range(0, VECTORS, 4):
            _multiply(x, k, vectors, j, products)
    for begin in range(0, x.shape[1], _TILE):
        part = slice(begin, begin + _TILE)
        a, b, c, e = x[0, part], x[1, part], x[2, part], x[3, part]
        for j in range(VECTORS):
            p = products[:, j]
            _combine(a, b, c, e, p[0], p[1], p[2], p[3], sums[j, part])
        _combine(a, b, c, e, 1.0, 1.0, 1.0, 1.0, sums[VECTORS, part])


@inlined_sums
def _multiply(x, k, v, j, out):
    """Fill the products of two rows and four vectors."""
    a = b = c = e = f = g = h = i = 0.0
    for d in range(x.shape[1]):
        y, z = x[k, d], x[k + 1, d]
        a += y * v[j, d]
        b += y * v[j + 1, d]
        c += y * v[j + 2, d]
        e += y * v[j + 3, d]
        f += z * v[j, d]
        g += z * v[j + 1, d]
        h += z * v[j + 2, d]
        i += z * v[j + 3, d]
    out[k, j], out[k, j + 1], out[k, j + 2], out[k, j + 3] = a, b, c, e
    out[k + 1, j], out[k + 1, j + 1], out[k + 1, j + 2], out[k + 1, j + 3] = f, g, h, i


@inlined_sums
def _combine(a, b, c, e, p, q, r, s, out):
    """Add a linear combination of four rows."""
    for d in range(len(out)):
        out[d] += (a[d] * p + b[d] * q) + (c[d] * r + e[d] * s)
