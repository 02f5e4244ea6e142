"""Measure the coherence of directions: mean and deviation of the cosines between all pairs of vectors, in O(N·D²).

For N unit vectors x with mean μ, let d = x - μ, s = ‖d‖², q = mean s. Since ‖x‖ = 1, 1 - ‖μ‖² = q and
d·μ = a = (q - s)/2, so that every cosine is 1 - q + a_i + a_j + d_i·d_j. Its mean over pairs is 1 - q·N/(N-1); its
variance follows from Σa² and K = Σ d dᵀ. No difference of numbers near 1 is taken, so that a deviation of 1e-9 keeps
its digits; mean(c²) - mean(c)² would lose all of them.

From `kernels.WIDE` dims on nearly all of the time is that of K. Its products are then BLAS's in float32, of a d that is
rounded once it is centred: of K only the sum of the squares is used, in which the roundings of D² elements average out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.kernels import CACHED, PIECE, WIDE
from deadtok_xr.kernels.numba.bit_words import to_float64
from deadtok_xr.kernels.numba.jit import compiled, compiled_finite, inlined_sums, inner, inner_finite

Rows = NDArray[np.float64]


class Buffers:
    """Memory for a piece of the tokens.

    Attributes
    ----------
    rows
        Vectors, (n, d).
    unit
        Room for more unit vectors, a multiple of 4, and for as many as are compared in pairs.
    """

    def __init__(self, n_tokens: int, n_dims: int) -> None:
        height = max(1, min(n_tokens, PIECE // max(1, n_dims)))
        self.rows = np.empty((max(1, min(n_tokens, CACHED // max(1, n_dims))), n_dims))
        self.unit = np.empty((max(height + -height % 4, n_dims + 8 + -n_dims % 4), n_dims))


class Vectors:
    """The vectors of the tokens at a step: their values at step t, or their displacements from t to t + 1.

    Parameters
    ----------
    block
        Floats or bfloat16 words (t, n, d).
    t
        The step.
    displaced
        Whether they are the displacements.
    """

    def __init__(self, block: NDArray[Any], t: int, *, displaced: bool = False) -> None:
        self._block, self._t, self._displaced, self.shape = block, t, displaced, block.shape[1:]

    def pieces(self, buffer: Rows) -> Iterator[tuple[slice, Rows]]:
        """Yield pieces of the tokens with their vectors in a buffer (n, d), which the next piece overwrites."""
        for start in range(0, self.shape[0], len(buffer)):
            tokens = slice(start, min(start + len(buffer), self.shape[0]))
            rows = buffer[: tokens.stop - start]
            (_differences if self._displaced else _spread)(self._block, self._t, start, rows)
            yield tokens, rows

    def units(self, tokens: NDArray[np.int64], norms: Rows, dims: NDArray[np.int64] | None, out: Rows) -> None:
        """Write the unit vectors of some tokens, of known norms, to ``out``; all of their dims or some."""
        write = _write_all if dims is None else _write_some
        write(self._block, self._t, int(self._displaced), tokens, norms, *(() if dims is None else (dims,)), out)


@compiled
def _spread(block, t, start, out):
    for n in range(out.shape[0]):
        for d in range(out.shape[1]):
            out[n, d] = to_float64(block[t, start + n, d])


@compiled
def _differences(block, t, start, out):
    for n in range(out.shape[0]):
        for d in range(out.shape[1]):
            out[n, d] = to_float64(block[t + 1, start + n, d]) - to_float64(block[t, start + n, d])


@compiled
def _write_all(block, t, displaced, tokens, norms, out):
    for i in range(len(out)):
        n = tokens[i]
        for d in range(out.shape[1]):
            x = to_float64(block[t, n, d])
            out[i, d] = (to_float64(block[t + 1, n, d]) - x if displaced else x) / norms[n]


@compiled
def _write_some(block, t, displaced, tokens, norms, dims, out):
    for i in range(len(out)):
        n = tokens[i]
        for k in range(len(dims)):
            x = to_float64(block[t, n, dims[k]])
            out[i, k] = (to_float64(block[t + 1, n, dims[k]]) - x if displaced else x) / norms[n]


def directions(vectors: Vectors, buffers: Buffers) -> dict[str, Any]:
    """Measure how similar the directions of vectors are.

    Returns
    -------
    ``n_valid``, the number of finite rows, with their ``mean`` (d,) and ``norm_mean``; ``n_used``, the number of finite
    rows that are not zero, with the ``direction`` (d,), the mean of their unit vectors, and ``cosine_mean`` and
    ``cosine_std`` (ddof 0) over all pairs of them. NaN if there are too few.
    """
    n_tokens, n_dims = vectors.shape
    mean, direction, norms = np.zeros(n_dims), np.zeros(n_dims), np.zeros(n_tokens)
    n_valid, n, length = 0, 0, 0.0
    for tokens, rows in vectors.pieces(buffers.rows):
        valid, used, length = _add_units(rows, norms[tokens], mean, direction, length)
        n_valid, n = n_valid + valid, n + used
    norm_mean = divide(mean, direction, n_valid, n, length)
    few = n < 2
    cosine_mean, cosine_std = (
        (np.nan, np.nan) if few else moments(vectors, np.flatnonzero(norms), norms, None, direction, buffers)
    )
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
def _add_units(rows, norms, mean, direction, length):
    """Add rows and their unit vectors to sums; fill in the norms of those with a direction."""
    n_valid = 0
    used = 0
    for n in range(len(rows)):
        squares = _squares(rows, n)
        if not squares < np.inf:
            continue  # also if it is NaN
        n_valid += 1
        if squares == 0.0:
            continue
        norms[n] = np.sqrt(squares)
        length += norms[n]
        _add_unit(rows, n, np.sqrt(squares), mean, direction)
        used += 1
    return n_valid, used, length


@inlined_sums
def _add_unit(rows, n, norm, mean, direction):
    for d in range(rows.shape[1]):
        x = rows[n, d]
        mean[d] += x
        direction[d] += x / norm


@compiled
def divide(mean, direction, n_valid, used, length):
    """Divide sums over tokens by their numbers, in place; return the mean length. NaN if there are none."""
    for d in range(len(mean)):
        mean[d] = mean[d] / n_valid
        direction[d] = direction[d] / used
    return length / n_valid


def moments(
    vectors: Vectors, tokens: NDArray[np.int64], norms: Rows, dims: NDArray[np.int64] | None, centre: Rows,
    buffers: Buffers,
) -> tuple[float, float]:  # fmt: skip
    """Return mean and deviation of the pairwise cosines of tokens.

    Parameters
    ----------
    vectors, tokens, norms
        The vectors, those that have a direction, and the lengths of all.
    dims
        The dims in which any vector is not zero; None for all.
    centre
        The mean of the unit vectors in these dims.
    buffers
        Memory, overwritten.
    """
    n, width = len(tokens), len(centre)
    in_pairs = n <= width + 8  # for few vectors, this is faster, and exact if all cosines are equal
    if width >= WIDE and not in_pairs:
        return _wide_moments(vectors, tokens, norms, dims, centre, buffers)
    rows = buffers.unit.reshape(-1)[: buffers.unit.size // width * width].reshape(-1, width)
    height = n if in_pairs else len(rows) - len(rows) % 4
    s, K, q = np.empty(n), np.zeros((0, 0) if in_pairs else (width, width)), 0.0
    for start in range(0, n, height):
        part = rows[: min(height, n - start)]
        vectors.units(tokens[start : start + len(part)], norms, dims, part)
        q = _subtract(part, centre, s[start:], q)
        if not in_pairs:
            _add_products(part, K)
    return _mean_and_deviation(rows[:n] if in_pairs else K, in_pairs, n, q, s)  # type: ignore[no-any-return]


def _wide_moments(
    vectors: Vectors, tokens: NDArray[np.int64], norms: Rows, dims: NDArray[np.int64] | None, centre: Rows,
    buffers: Buffers,
) -> tuple[float, float]:  # fmt: skip
    """Return the same with products in float32: unit vectors are made in a cached part of the memory, and rounded."""
    n, width = len(tokens), len(centre)
    memory = buffers.unit.reshape(-1)
    cached = max(1, min(CACHED, memory.size // 2) // width)
    unit = memory[: cached * width].reshape(cached, width)
    rounded = memory[cached * width :].view(np.float32)
    rounded = rounded[: rounded.size // width * width].reshape(-1, width)
    s, K, q = np.empty(n), np.zeros((width, width)), 0.0
    for begin in range(0, n, len(rounded)):
        part = rounded[: min(len(rounded), n - begin)]
        for i in range(0, len(part), cached):
            rows, first = unit[: min(cached, len(part) - i)], begin + i
            vectors.units(tokens[first : first + len(rows)], norms, dims, rows)
            q = _subtract(rows, centre, s[first:], q)
            part[i : i + len(rows)] = rows
        K += part.T @ part
    return _mean_and_deviation(K, False, n, q, s)  # type: ignore[no-any-return]


@compiled
def _subtract(unit, centre, s, q):
    """Subtract the centre from unit vectors; fill in the squares of what is left, and add them to a sum."""
    D = unit.shape[1]
    for i in range(len(unit)):
        for d in range(D):
            unit[i, d] -= centre[d]
        s[i] = _squares(unit, i)
        q += s[i]
    return q


@compiled
def _mean_and_deviation(rows, in_pairs, n, q, s):
    q /= n
    a = 0.5 * (q - s)
    variance = _by_pairs(rows, n, a, q) if in_pairs else _by_products(rows, n, a, q)
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
def _by_products(K, n, a, q):
    squares = 0.0
    for i in range(K.shape[0]):
        for j in range(i):
            squares += 2.0 * K[i, j] * K[i, j]
        squares += K[i, i] * K[i, i]
    spread_a = 0.0
    for i in range(n):
        spread_a += a[i] * a[i]
    return variance_of(n, q, spread_a, squares)


@compiled_finite
def _add_products(rows, K):
    """Add Σ d dᵀ, on and below the diagonal (and, in pairs of dims, one element above it)."""
    n, D = rows.shape
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


def mean_cosine(a: Vectors, b: Vectors, buffers: Buffers) -> float:
    """Return the mean of cos(a_n, b_n) over the rows in which both are finite and not zero; NaN if there are none."""
    total, count = 0.0, 0
    for (_, rows), (_, others) in zip(a.pieces(buffers.rows), b.pieces(buffers.unit[: len(buffers.rows)]), strict=True):
        total, found = _add_cosines(rows, others, total)
        count += found
    return total / count if count else np.nan


@compiled
def _add_cosines(a, b, total):
    count = 0
    for n in range(a.shape[0]):
        both = _squares(a, n), _squares(b, n)
        if not (0.0 < both[0] < np.inf and 0.0 < both[1] < np.inf):
            continue
        product = _product(a, b, n) / (np.sqrt(both[0]) * np.sqrt(both[1]))
        total += min(max(product, -1.0), 1.0)
        count += 1
    return total, count


@inlined_sums
def _product(a, b, n):
    total = 0.0
    for d in range(a.shape[1]):
        total += a[n, d] * b[n, d]
    return total


def means(vectors: Vectors, mask: NDArray[np.bool_], buffers: Buffers) -> Rows:
    """Return the means of the rows inside and outside a mask, (2, d); NaN where there are none or one is NaN."""
    sums = np.zeros((2, vectors.shape[1]))
    for tokens, rows in vectors.pieces(buffers.rows):
        _add_to_sums(rows, mask[tokens], sums)
    counts = np.array([mask.sum(), (~mask).sum()], np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums / counts[:, None]


@compiled
def _add_to_sums(rows, mask, sums):
    for n in range(rows.shape[0]):
        k = 0 if mask[n] else 1
        for d in range(rows.shape[1]):
            sums[k, d] += rows[n, d]
