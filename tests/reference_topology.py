"""A reference of the graph of neighbours, dense, in plain numpy float64 and scipy, without the package."""

from __future__ import annotations

import numpy as np
from scipy.sparse.csgraph import connected_components

from tests.reference import Array, ulp


def ordinal(x: Array) -> Array:
    """How many bfloat16 numbers lie between 0 and x, signed."""
    bits = np.asarray(x, np.float32).view(np.uint32) >> 16
    return np.where(bits & 0x8000, -1.0, 1.0) * (bits & 0x7FFF)


def adjacency(W: Array, threshold: float, *, k: float = 1.0, spacing: str = "centroid", linked: bool = False) -> Array:
    """(n, n) of one step; ``threshold`` is the mean ULP at the centroid."""
    x = W.astype(np.float64)
    gap = np.abs(x[:, None] - x[None])
    if spacing == "centroid":
        near = gap <= k * threshold
    elif spacing == "pair":
        own = ulp(x).mean(-1)
        near = gap <= (k * np.maximum(own[:, None], own[None]))[..., None]
    elif spacing == "element":
        near = gap <= k * np.maximum(ulp(x)[:, None], ulp(x)[None])
    else:
        place = ordinal(W)
        near = np.abs(place[:, None] - place[None]) <= k
    adjacent = near.all(-1) & (linked | (gap > 0).any(-1))
    np.fill_diagonal(adjacent, False)
    return adjacent


def figures(adjacent: Array) -> dict[str, Array]:
    n = len(adjacent)
    count, labels = connected_components(adjacent, directed=False)
    sizes, degree = np.bincount(labels), adjacent.sum(1)
    alone, largest = int((sizes == 1).sum()), int(sizes.max())
    bins = n.bit_length() + 1
    return {
        "density": adjacent.sum() / 2 / (n * (n - 1) / 2) if n > 1 else 0.0,
        "largest_component": largest,
        "n_singletons": alone,
        "n_components": count,
        "degree_max": degree.max(),
        "degree_tokens": np.bincount([int(d).bit_length() for d in degree], minlength=bins),
        "size_components": np.bincount([int(s).bit_length() - 1 for s in sizes], minlength=bins),
        "state": 2 if largest > 1 and 2 * largest > n else 0 if 2 * alone > n else 1,
    }
