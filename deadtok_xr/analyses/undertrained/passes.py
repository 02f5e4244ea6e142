"""Read a matrix in blocks of tokens: norms and sums, and distances to a reference."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.analyses.common import equal_rows
from deadtok_xr.bfloat16 import BFLOAT16

Floats = NDArray[np.float64]
SMALLEST = 1e-6
"""A product of two norms below this is replaced by it, as the published formula does."""


def kernel_values(rows: NDArray[Any]) -> NDArray[Any]:
    """Return rows as the kernels take them: float32, float64, or bfloat16 as words of 16 bits, without a copy."""
    rows = np.ascontiguousarray(rows)
    if rows.dtype == BFLOAT16:
        return rows.view(np.uint16)
    if rows.dtype in (np.float32, np.float64):
        return rows
    return rows.astype(np.float32 if rows.dtype == np.float16 else np.float64)


def describe(
    rows: NDArray[Any], begin: int, masks: NDArray[np.bool_], want_samples: bool, eps: float
) -> dict[str, Any]:
    """Return each token's squared norm and whether it has a value above a limit; sums of all tokens and of each mask.

    Tokens with NaN or infinity are in no sum.
    """
    from deadtok_xr.kernels.numba.row_distances import describe_rows

    n, d = rows.shape
    found: dict[str, Any] = {"square": np.empty(n), "above": np.empty(n, bool), "sums": np.zeros((1 + len(masks), d))}
    inside = np.ascontiguousarray(masks[:, begin : begin + n])
    describe_rows(kernel_values(rows), eps, inside, found["square"], found["above"], found["sums"])
    if want_samples:
        found["samples"] = equal_rows.samples(rows)
    return found


def distances(rows: NDArray[Any], begin: int, references: dict[str, Any]) -> dict[str, Floats]:
    """Return the distances of each token to each reference, and to the one that is used."""
    from deadtok_xr.kernels.numba import row_distances

    n, toward, used = len(rows), references["rows"], references["used"]
    if used < 0:
        nothing = np.full(n, np.nan)
        return {"cosine": np.full((n, len(toward)), np.nan), "centered": nothing, "l2": nothing}
    values, u, mean = kernel_values(rows), toward[used], references["mean"]
    square = _nan_if_infinite(references["square"][begin : begin + n])
    from_used = np.empty((4, n))
    row_distances.distances(values, u, mean, from_used)
    from_used[:, np.isnan(square)] = np.nan
    products = np.zeros((len(toward), n))
    for k, row in enumerate(toward):
        if k != used and row.any() and np.isfinite(row).all():
            row_distances.products(values, row, products[k])
    products[used], from_u, centered, from_mean = from_used
    cosine = [_cosine_distance(p, square, row @ row) for p, row in zip(products, toward, strict=True)]
    return {
        "cosine": np.stack(cosine, axis=1),
        "centered": _cosine_distance(centered, from_mean, (u - mean) @ (u - mean)),
        "l2": np.sqrt(from_u),
    }


def without_axis(rows: NDArray[Any], begin: int, references: dict[str, Any], axis: dict[str, Any]) -> Floats:
    """Return the cosine distance of each token to the reference that is used, without the component along an axis."""
    from deadtok_xr.kernels.numba import row_distances

    used, v = references["used"], axis["vector"]
    if used < 0 or v is None:
        return np.full(len(rows), np.nan)
    u = references["rows"][used]
    u = u - (u @ v) * v
    product, square = found = np.empty((2, len(rows)))
    row_distances.without_axis(kernel_values(rows), v, u, found)
    return _cosine_distance(product, _nan_if_infinite(square), u @ u)


def _nan_if_infinite(squares: Floats) -> Floats:
    return np.where(np.isfinite(squares), squares, np.nan)


def _cosine_distance(product: Floats, square: Floats, square_of_u: float) -> Floats:
    """Return 1 - x·u / max(‖x‖‖u‖, 1e-6), given x·u, ‖x‖² and ‖u‖²."""
    return np.asarray(1 - product / np.maximum(np.sqrt(square) * np.sqrt(square_of_u), SMALLEST))
