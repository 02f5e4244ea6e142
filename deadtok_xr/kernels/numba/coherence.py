"""Measure the coherence of directions: mean and deviation of the cosines between all pairs of vectors, in O(N·D²).

For N unit vectors x with mean μ, let d = x - μ, s = ‖d‖², q = mean s. Since ‖x‖ = 1, 1 - ‖μ‖² = q and
d·μ = a = (q - s)/2, so that every cosine is 1 - q + a_i + a_j + d_i·d_j. Its mean over pairs is 1 - q·N/(N-1); its
variance follows from Σa² and K = Σ d dᵀ. No difference of numbers near 1 is taken, so that a deviation of 1e-9 keeps
its digits; mean(c²) - mean(c)² would lose all of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.kernels.numba.bit_words import to_float64
from deadtok_xr.kernels.numba.jit import compiled, inlined_sums, inner, inner_finite

Rows = NDArray[np.float64]


@compiled
def spread(block, t, out):
    """Write step t of a block (t, n, d) of floats or bfloat16 words to ``out`` (n, d), float64."""
    for n in range(out.shape[0]):
        for d in range(out.shape[1]):
            out[n, d] = to_float64(block[t, n, d])


@compiled
def differences(block, t, out):
    """Write the displacements from step t to t + 1 of such a block to ``out`` (n, d), float64."""
    for n in range(out.shape[0]):
        for d in range(out.shape[1]):
            out[n, d] = to_float64(block[t + 1, n, d]) - to_float64(block[t, n, d])


def directions(rows: Rows, unit: Rows) -> dict[str, Any]:
    """Measure how similar the directions of rows are.

    Parameters
    ----------
    rows
        The vectors, (n, d).
    unit
        A buffer of the same shape, overwritten.

    Returns
    -------
    ``n_valid``, the number of finite rows, with their ``mean`` (d,) and ``norm_mean``; ``n_used``, the number of finite
    rows that are not zero, with the ``direction`` (d,), the mean of their unit vectors, and ``cosine_mean`` and
    ``cosine_std`` (ddof 0) over all pairs of them. NaN if there are too few.
    """
    mean, direction = np.zeros(rows.shape[1]), np.zeros(rows.shape[1])
    n_valid, n, norm_mean = _unit(rows, unit, mean, direction)
    cosine_mean, cosine_std = moments(unit, n, direction) if n > 1 else (np.nan, np.nan)
    return {
        "n_valid": n_valid, "mean": mean, "norm_mean": norm_mean,
        "n_used": n, "direction": direction, "cosine_mean": cosine_mean, "cosine_std": cosine_std,
    }  # fmt: skip


@inlined_sums
def _squares(rows, n):
    total = 0.0
    for d in range(rows.shape[1]):
        total += rows[n, d] * rows[n, d]
    return total


@compiled
def _unit(rows, unit, mean, direction):
    """Write the unit vectors of usable rows to the front of ``unit``; fill in both means."""
    N, D = rows.shape
    n_valid = 0
    used = 0
    length = 0.0
    for n in range(N):
        squares = _squares(rows, n)
        if not squares < np.inf:
            continue  # also if it is NaN
        n_valid += 1
        if squares == 0.0:
            continue
        length += np.sqrt(squares)
        _put_unit(rows, n, np.sqrt(squares), unit, used, mean, direction)
        used += 1
    for d in range(D):
        mean[d] = mean[d] / n_valid
        direction[d] = direction[d] / used
    return n_valid, used, length / n_valid


@inlined_sums
def _put_unit(rows, n, norm, unit, used, mean, direction):
    for d in range(rows.shape[1]):
        x = rows[n, d]
        y = x / norm
        unit[used, d] = y
        mean[d] += x
        direction[d] += y


@compiled
def moments(unit, n, centre):
    """Return mean and deviation of the pairwise cosines of the first n unit vectors, which are overwritten."""
    D = unit.shape[1]
    s = np.empty(n)
    q = 0.0
    for i in range(n):
        for d in range(D):
            unit[i, d] -= centre[d]
        s[i] = _squares(unit, i)
        q += s[i]
    q /= n
    a = 0.5 * (q - s)
    # for few vectors, computing the pairs is faster, and exact if all cosines are equal
    variance = _by_pairs(unit, n, a, q) if n <= D + 8 else _by_products(unit, n, a, q)
    return mean_and_deviation(n, q, variance)


@inner
def mean_and_deviation(n, q, variance):
    """Return mean and deviation of the pairwise cosines of n unit vectors, within their bounds."""
    mean = 1.0 - q * n / (n - 1)
    return min(max(mean, -1.0), 1.0), np.sqrt(max(variance, 0.0))


@inner
def variance_of(n, q, spread_a, squares):
    """Return the variance of the pairwise cosines, from Σa² and the sum of the squares of K."""
    return (2.0 * n * spread_a + squares - n * q * q) / (n * (n - 1.0)) - (q / (n - 1.0)) ** 2


@inner_finite
def _by_pairs(rows, n, a, q):
    total = 0.0
    for i in range(n):
        for j in range(i):
            off = a[i] + a[j] + q / (n - 1)
            for d in range(rows.shape[1]):
                off += rows[i, d] * rows[j, d]
            total += off * off
    return total / (n * (n - 1) / 2)


@inner_finite
def _by_products(rows, n, a, q):
    K = _products(rows, n)
    squares = 0.0
    for i in range(K.shape[0]):
        for j in range(i):
            squares += 2.0 * K[i, j] * K[i, j]
        squares += K[i, i] * K[i, i]
    spread_a = 0.0
    for i in range(n):
        spread_a += a[i] * a[i]
    return variance_of(n, q, spread_a, squares)


@inner_finite
def _products(rows, n):
    """Return Σ d dᵀ on and below the diagonal (and, in pairs of dims, one element above it)."""
    D = rows.shape[1]
    K = np.zeros((D, D))
    for m in range(0, n - n % 4, 4):  # four tokens by two dims at once: fewer loads and stores for each product
        for i in range(0, D - D % 2, 2):
            a0, b0, c0, e0 = rows[m, i], rows[m + 1, i], rows[m + 2, i], rows[m + 3, i]
            a1, b1, c1, e1 = rows[m, i + 1], rows[m + 1, i + 1], rows[m + 2, i + 1], rows[m + 3, i + 1]
            for j in range(i + 2):
                a, b, c, e = rows[m, j], rows[m + 1, j], rows[m + 2, j], rows[m + 3, j]
                K[i, j] += a0 * a + b0 * b + c0 * c + e0 * e
                K[i + 1, j] += a1 * a + b1 * b + c1 * c + e1 * e
        if D % 2:
            for j in range(D):
                for k in range(4):
                    K[D - 1, j] += rows[m + k, D - 1] * rows[m + k, j]
    for m in range(n - n % 4, n):
        for i in range(D):
            for j in range(i + 1):
                K[i, j] += rows[m, i] * rows[m, j]
    return K


@compiled
def mean_cosine(a, b):
    """Return the mean of cos(a_n, b_n) over the rows in which both are finite and not zero; NaN if there are none."""
    total = 0.0
    count = 0
    for n in range(a.shape[0]):
        both = _squares(a, n), _squares(b, n)
        if not (0.0 < both[0] < np.inf and 0.0 < both[1] < np.inf):
            continue
        product = _product(a, b, n) / (np.sqrt(both[0]) * np.sqrt(both[1]))
        total += min(max(product, -1.0), 1.0)
        count += 1
    return total / count if count else np.nan


@inlined_sums
def _product(a, b, n):
    total = 0.0
    for d in range(a.shape[1]):
        total += a[n, d] * b[n, d]
    return total


@compiled
def means(rows, mask):
    """Return the means of the rows inside and outside a mask, (2, d); NaN where there are none or one is NaN."""
    sums = np.zeros((2, rows.shape[1]))
    counts = np.zeros(2)
    for n in range(rows.shape[0]):
        k = 0 if mask[n] else 1
        counts[k] += 1
        for d in range(rows.shape[1]):
            sums[k, d] += rows[n, d]
    for k in range(2):
        for d in range(rows.shape[1]):
            sums[k, d] = sums[k, d] / counts[k]
    return sums
