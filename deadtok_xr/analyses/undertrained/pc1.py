"""Find the first principal axis of a matrix that is read in blocks of tokens, if it is large without its covariance.

The covariance of D dims costs N·D² operations. A few products of it with 8 vectors cost N·D·8 each, and the space of
these products (block Krylov) soon holds the largest axis. Its residual bounds the error; where it does not vanish,
because the two largest variances are nearly the same, the covariance is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.analyses.common.token_blocks import HeldTokens, TokenBlocks
from deadtok_xr.analyses.undertrained.passes import kernel_values

Floats = NDArray[np.float64]
SLAB = 2**20
"""Elements that are converted to float64 at once."""
FEW_DIMS = 512
"""Up to so many dims the covariance is computed."""
_VECTORS = 8
_SAMPLE = 2048
"""Rows from which the first vectors are found."""
_MOST_READINGS = 10
_ERROR, _ERROR_OF_GAP = 1e-10, 1e-8
"""Of the axis (an angle), and of the second largest variance, relative to the largest."""


def principal_axis(*, blocks: TokenBlocks | HeldTokens) -> dict[str, Any]:
    """Return the first principal axis of the tokens that are finite, and how far its variance is from the next.

    Returns
    -------
    dict
        ``vector`` (d,), None if all tokens are equal or none is finite, and ``gap``, 1 - λ₂/λ₁.
    """
    if blocks.n_dims > FEW_DIMS:
        found = _by_products(blocks)
        if found is not None:
            return found
    return _by_covariance(blocks)


def _rows(blocks: TokenBlocks | HeldTokens) -> Iterator[Floats]:
    """Yield the finite rows in parts, less the first of them: equal rows have exactly no variance.

    Each part is overwritten by the next.
    """
    from deadtok_xr.kernels.numba.covariance import finite_differences

    step = max(1, SLAB // blocks.n_dims)
    first, buffer = np.zeros(blocks.n_dims), np.empty((step, blocks.n_dims))
    n = 0
    for begin, end in blocks.bounds:
        rows = kernel_values(blocks.read(begin, end))
        for i in range(0, len(rows), step):
            before, n = n, finite_differences(rows[i : i + step], n, first, buffer)
            if n > before:
                yield buffer[: n - before]


def _by_covariance(blocks: TokenBlocks | HeldTokens) -> dict[str, Any]:
    """Sum the covariance in one task, block after block: it is as large as many blocks."""
    from scipy.linalg import eigh

    d, n = blocks.n_dims, 0
    total, product = np.zeros(d), np.zeros((d, d))
    for x in _rows(blocks):
        total += x.sum(axis=0)
        product += x.T @ x
        n += len(x)
    if not n:
        return {"vector": None, "gap": np.nan}
    product /= n
    product -= np.outer(total / n, total / n)
    values, vectors = eigh(product, subset_by_index=[max(d - 2, 0), d - 1], overwrite_a=True, check_finite=False)
    if not values[-1] > 0:
        return {"vector": None, "gap": np.nan}
    return {"vector": vectors[:, -1], "gap": 1 - values[0] / values[-1] if d > 1 else 1.0}


def _by_products(blocks: TokenBlocks | HeldTokens) -> dict[str, Any] | None:
    """Return the axis found in a Krylov space; None if it is not accurate enough, or if the rows are all equal."""
    start = np.random.default_rng(0).standard_normal((blocks.n_dims, _VECTORS))
    found = _largest(partial(_product, _sample(blocks)), start, _MOST_READINGS)
    # all rows rarely show an axis that the sample does not; but of many dims, the noise of its few rows may hide one
    if found.accurate or blocks.n_dims > _SAMPLE // 2:
        found = _largest(partial(_product, blocks), found.vectors, _MOST_READINGS)
    if not found.accurate:
        return None
    return {"vector": found.vectors[:, 0], "gap": 1 - found.values[1] / found.values[0]}


def _sample(blocks: TokenBlocks | HeldTokens) -> HeldTokens:
    """Return rows of blocks that are evenly spread."""
    height = max(end - begin for begin, end in blocks.bounds)
    n = max(1, min(len(blocks.bounds), -(-_SAMPLE // height)))
    chosen = [blocks.bounds[i] for i in np.linspace(0, len(blocks.bounds) - 1, n).astype(np.int64)]
    parts = [blocks.read(*bounds) for bounds in chosen]
    return HeldTokens(np.concatenate([rows[:: -(-len(rows) * n // _SAMPLE)] for rows in parts]))


def _product(blocks: TokenBlocks | HeldTokens, vectors: Floats) -> Floats:
    """Return the product of the covariance with vectors (d, m), from one reading of the matrix."""
    from deadtok_xr.kernels.numba import covariance

    first, sums = np.zeros(blocks.n_dims), np.zeros((covariance.VECTORS + 1, blocks.n_dims))
    buffers = np.empty((covariance.ROWS, blocks.n_dims)), np.empty((covariance.ROWS, covariance.VECTORS))
    n, transposed = 0, np.ascontiguousarray(vectors.T)
    for begin, end in blocks.bounds:
        n = covariance.add_products(kernel_values(blocks.read(begin, end)), n, first, transposed, *buffers, sums)
    sums /= max(n, 1)
    mean = sums[-1]
    return np.asarray(sums[:-1].T - np.outer(mean, mean @ vectors))


class _Largest:
    """Ritz vectors (d, m) and values, the largest first, and whether the first two are accurate enough."""

    def __init__(self, vectors: Floats, values: Floats, accurate: bool) -> None:
        self.vectors, self.values, self.accurate = vectors, values, accurate


def _largest(product: Callable[[Floats], Floats], start: Floats, at_most: int) -> _Largest:
    """Find the largest axes of a symmetric matrix in the space of its products with vectors."""
    basis, products = np.empty((len(start), 0)), np.empty((len(start), 0))
    block = np.linalg.qr(start)[0]
    found = _Largest(block, np.zeros(block.shape[1]), accurate=False)
    for _ in range(at_most):
        new = product(block)
        basis, products = np.hstack([basis, block]), np.hstack([products, new])
        inner = basis.T @ products
        values, small = np.linalg.eigh((inner + inner.T) / 2)
        values, small = values[::-1][:_VECTORS], small[:, ::-1][:, :_VECTORS]
        vectors = basis @ small
        residual = np.linalg.norm(products @ small[:, :2] - vectors[:, :2] * values[:2], axis=0)
        angle = residual[0] / (values[0] - values[1]) if values[0] > values[1] else np.inf
        found = _Largest(vectors, values, bool(angle < _ERROR and residual[1] < _ERROR_OF_GAP * values[0]))
        if found.accurate or basis.shape[1] + block.shape[1] > len(start):
            break
        for _ in range(2):  # once leaves rounding
            new = new - basis @ (basis.T @ new)
        block = np.linalg.qr(new)[0]
    return found
