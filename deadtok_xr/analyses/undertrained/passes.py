"""Read a matrix in blocks of tokens: norms and sums, distances to a reference, and the first principal axis."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.analyses.common import equal_rows
from deadtok_xr.analyses.common.token_blocks import TokenBlocks
from deadtok_xr.bfloat16 import BFLOAT16

Floats = NDArray[np.float64]
SMALLEST = 1e-6
"""A product of two norms below this is replaced by it, as the published formula does."""
_SLAB = 2**17
"""Elements that are converted to float64 at once: 1 MiB, which stays in the cache."""
_SLAB_OF_AXIS = 2**21


def slabs(rows: NDArray[Any], elements: int = _SLAB) -> Iterator[tuple[int, Floats]]:
    """Yield parts of a block in float64, each with the position of its first row."""
    step = max(1, elements // max(1, rows.shape[1]))
    for i in range(0, len(rows), step):
        part = rows[i : i + step]
        if part.dtype == BFLOAT16:  # several times as fast as its own conversion
            part = (np.ascontiguousarray(part).view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
        with np.errstate(invalid="ignore"):  # signalling NaN
            yield i, part.astype(np.float64)


def squares(x: Floats) -> Floats:
    """Return Σ_d x_d² of each row; not finite where a value of the row is not."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(np.einsum("nd,nd->n", x, x))


def describe(rows: NDArray[Any], begin: int, masks: NDArray[np.bool_], want_digests: bool) -> dict[str, Any]:
    """Return of each token the squared norm and the largest value; the sums of all tokens and of those in each mask.

    Tokens with NaN or infinity are in no sum.
    """
    n, d = rows.shape
    found: dict[str, Any] = {"square": np.empty(n), "high": np.empty(n), "sums": np.zeros((1 + len(masks), d))}
    for i, x in slabs(rows):
        at = slice(i, i + len(x))
        square = found["square"][at] = squares(x)
        found["high"][at] = x.max(axis=1)
        weights = np.ones((1 + len(masks), len(x)))
        weights[1:] = masks[:, begin + i : begin + i + len(x)]
        valid = np.isfinite(square)
        found["sums"] += weights @ x if valid.all() else weights[:, valid] @ x[valid]
    if want_digests:
        found["digests"] = equal_rows.digests(np.ascontiguousarray(rows).view(np.uint8).reshape(n, -1))
    return found


def distances(rows: NDArray[Any], begin: int, references: dict[str, Any]) -> dict[str, Floats]:
    """Return the distances of each token to each reference, and to the one that is used."""
    mean, toward, used = references["mean"], references["rows"], references["used"]
    n = len(rows)
    found = {
        "cosine": np.full((n, len(toward)), np.nan), "centered": np.full(n, np.nan), "l2": np.full(n, np.nan),
    }  # fmt: skip
    if used < 0:
        return found
    norms, one = np.sqrt(squares(toward)), toward[used]
    for i, x in slabs(rows):
        square = squares(x)
        valid = np.isfinite(square)
        if not valid.all():
            x, square = x[valid], square[valid]
        at = i + np.flatnonzero(valid)
        product = np.maximum(np.sqrt(square)[:, None] * norms, SMALLEST)
        found["cosine"][at] = 1 - x @ toward.T / product
        found["l2"][at] = np.sqrt(squares(x - one))
        x -= mean
        found["centered"][at] = cosine_distance(x, one - mean)
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
    for i, x in slabs(rows):
        valid = np.isfinite(squares(x))
        x = x if valid.all() else x[valid]
        x -= np.outer(x @ v, v)
        found[i + np.flatnonzero(valid)] = cosine_distance(x, u)
    return found


def principal_axis(*, blocks: TokenBlocks) -> dict[str, Any]:
    """Return the first principal axis of the tokens that are finite, and how far its variance is from the next.

    The covariance is summed in one task, block after block: it is as large as many blocks.
    """
    from scipy.linalg import eigh

    d, n = blocks.n_dims, 0
    first: Floats | None = None
    total, product = np.zeros(d), np.zeros((d, d))
    for begin, end in blocks.bounds:
        for _, x in slabs(blocks.read(begin, end), _SLAB_OF_AXIS):
            valid = np.isfinite(squares(x))
            x = x if valid.all() else x[valid]
            if first is None and len(x):
                first = x[0].copy()
            if first is not None:
                x -= first  # equal rows have exactly no variance
                total += x.sum(axis=0)
                product += x.T @ x
                n += len(x)
    if first is None:
        return {"vector": None, "gap": np.nan}
    product /= n
    product -= np.outer(total / n, total / n)
    values, vectors = eigh(product, subset_by_index=[max(d - 2, 0), d - 1], overwrite_a=True, check_finite=False)
    if not values[-1] > 0:
        return {"vector": None, "gap": np.nan}
    return {"vector": vectors[:, -1], "gap": 1 - values[0] / values[-1] if d > 1 else 1.0}
