"""Read a matrix in blocks of tokens: norms and sums, and distances to a reference."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.analyses.common import equal_rows
from deadtok_xr.bfloat16 import BFLOAT16

Floats = NDArray[np.float64]
SMALLEST = 1e-6
"""A product of two norms below this is replaced by it, as the published formula does."""
_SLAB = 2**18
"""Elements that are converted to float64 at once: 2 MiB, which stays in the cache."""
_NEAR = 1e-2
"""Below this share of a squared norm, a squared distance is not computed from products."""


def slabs(rows: NDArray[Any], elements: int = _SLAB) -> Iterator[tuple[slice, Floats]]:
    """Yield parts of a block in float64, each with its place in the block."""
    step = max(1, elements // max(1, rows.shape[1]))
    for i in range(0, len(rows), step):
        part = rows[i : i + step]
        if part.dtype == BFLOAT16:  # several times as fast as its own conversion
            part = (np.ascontiguousarray(part).view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
        with np.errstate(invalid="ignore"):  # signalling NaN
            yield slice(i, i + len(part)), part.astype(np.float64)


def squares(x: Floats) -> Floats:
    """Return Σ_d x_d² of each row; not finite where a value of the row is not."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(np.einsum("nd,nd->n", x, x))


def describe(rows: NDArray[Any], begin: int, masks: NDArray[np.bool_], want_samples: bool) -> dict[str, Any]:
    """Return of each token the squared norm and the largest value; the sums of all tokens and of those in each mask.

    Tokens with NaN or infinity are in no sum.
    """
    n, d = rows.shape
    found: dict[str, Any] = {"square": np.empty(n), "high": np.empty(n), "sums": np.zeros((1 + len(masks), d))}
    for at, x in slabs(rows):
        square = found["square"][at] = squares(x)
        found["high"][at] = x.max(axis=1)
        inside = masks[:, begin + at.start : begin + at.stop]
        if not np.isfinite(square).all():
            valid = np.isfinite(square)
            x, inside = x[valid], inside[:, valid]
        found["sums"][0] += x.sum(axis=0)
        for total, members in zip(found["sums"][1:], inside, strict=True):
            if members.any():
                total += x[members].sum(axis=0)
    if want_samples:
        found["samples"] = equal_rows.samples(rows)
    return found


def distances(rows: NDArray[Any], begin: int, references: dict[str, Any]) -> dict[str, Floats]:
    """Return the distances of each token to each reference, and to the one that is used.

    They follow from products with the references and with the mean row. Where nearly equal numbers would be
    subtracted, they are computed from differences of rows instead.
    """
    mean, toward, used = references["mean"], references["rows"], references["used"]
    n = len(rows)
    found = {
        "cosine": np.full((n, len(toward)), np.nan), "centered": np.full(n, np.nan), "l2": np.full(n, np.nan),
    }  # fmt: skip
    if used < 0:
        return found
    norms, u = np.sqrt(squares(toward)), toward[used]
    for at, x in slabs(rows):
        square = references["square"][begin + at.start : begin + at.stop]
        if not np.isfinite(square).all():
            x, square = x[np.isfinite(square)], square[np.isfinite(square)]
        into = at.start + np.flatnonzero(np.isfinite(references["square"][begin + at.start : begin + at.stop]))
        products = np.stack([x @ row for row in (*toward, mean)], axis=1)  # faster than one product of few columns
        found["cosine"][into] = 1 - products[:, :-1] / np.maximum(np.sqrt(square)[:, None] * norms, SMALLEST)
        found["l2"][into] = np.sqrt(_square_of_difference(x, square, products[:, used], u))
        from_mean = _square_of_difference(x, square, products[:, -1], mean)
        product = products[:, used] - products[:, -1] - u @ mean + mean @ mean
        length = np.sqrt(from_mean) * np.sqrt(squares((u - mean)[None]))
        found["centered"][into] = 1 - product / np.maximum(length, SMALLEST)
        near = from_mean < _NEAR * square
        if near.any():
            found["centered"][into[near]] = cosine_distance(x[near] - mean, u - mean)
    return found


def _square_of_difference(x: Floats, square: Floats, product: Floats, u: Floats) -> Floats:
    """Return ‖x_i - u‖² of rows, given ‖x_i‖² and x_i·u."""
    found = square - 2 * product + u @ u
    near = found < _NEAR * square
    if near.any():
        found[near] = squares(x[near] - u)
    return found


def cosine_distance(x: Floats, u: Floats) -> Floats:
    """Return 1 - x·u / max(‖x‖‖u‖, 1e-6) of each row."""
    product = np.sqrt(squares(x)) * np.sqrt(u @ u)
    return np.asarray(1 - x @ u / np.maximum(product, SMALLEST))


def without_axis(rows: NDArray[Any], begin: int, references: dict[str, Any], axis: dict[str, Any]) -> Floats:
    """Return the cosine distance of each token to the reference that is used, without the component along an axis."""
    found, used, v = np.full(len(rows), np.nan), references["used"], axis["vector"]
    if used < 0 or v is None:
        return found
    u = references["rows"][used]
    u = u - (u @ v) * v
    for at, x in slabs(rows):
        valid = np.isfinite(squares(x))
        x = x if valid.all() else x[valid]
        x -= np.outer(x @ v, v)
        found[at.start + np.flatnonzero(valid)] = cosine_distance(x, u)
    return found
