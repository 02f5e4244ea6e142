"""References in plain numpy float64 for analyses that are not part of `analyze`: lags, gaps, clusters, neighbours."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def lags(W: Array, n_lags: int) -> dict[str, Array]:
    """Autocorrelations of velocities, pair by pair."""
    v = np.diff(W.astype(np.float64), axis=0)
    there = np.isfinite(W).all(2)[1:] & np.isfinite(W).all(2)[:-1]
    T, N = there.shape
    rho, cosines = np.full((N, n_lags), np.nan), [[] for _ in range(n_lags)]
    products: list[list[float]] = [[] for _ in range(n_lags)]
    squares = []
    for i in range(N):
        own = [float(v[t, i] @ v[t, i]) for t in range(T) if there[t, i]]
        squares += own
        for k in range(n_lags):
            pairs = [(v[t, i], v[t + k, i]) for t in range(T - k) if there[t, i] and there[t + k, i]]
            dots = [float(a @ b) for a, b in pairs]
            products[k] += dots
            if pairs and sum(own) > 0:
                rho[i, k] = np.mean(dots) / np.mean(own)
            cosines[k] += [float(a @ b) / math.sqrt((a @ a) * (b @ b)) for a, b in pairs if a.any() and b.any()]
    square = np.mean(squares) if squares else 0.0
    return {
        "autocorrelation": rho,
        "pooled": np.array([np.mean(p) / square if p and square else np.nan for p in products]),
        "cosine": np.array([np.mean(np.clip(c, -1, 1)) if c else np.nan for c in cosines]),
        "n_cosine": np.array([len(c) for c in cosines]),
    }


def mean_ranks(x: Array) -> Array:
    """Ranks from 1, ties at their mean."""
    return np.array([(x < a).sum() + ((x == a).sum() + 1) / 2 for a in x])


def rank_correlation(before: Array, after: Array) -> float:
    ranks = []
    for step in (before.astype(np.float64), after.astype(np.float64)):
        pairs = itertools.combinations(range(len(step)), 2)
        ranks.append(mean_ranks(np.array([math.sqrt(((step[i] - step[j]) ** 2).sum()) for i, j in pairs])))
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.corrcoef(*ranks)[0, 1])


def silhouette(x: Array, cluster: Array) -> float:
    found = []
    for i in range(len(x)):
        far = [math.dist(x[i], other) for other in x]
        own = [far[j] for j in range(len(x)) if cluster[j] == cluster[i] and j != i]
        others = [np.mean([far[j] for j in range(len(x)) if cluster[j] == c]) for c in set(cluster) - {cluster[i]}]
        a, b = np.mean(own) if own else 0.0, min(others)
        found.append((b - a) / max(a, b) if own and max(a, b) > 0 else 0.0)
    return float(np.mean(found))


def least_inertia(x: Array, k: int) -> float:
    """Of all ways to cut few rows into k clusters."""
    best = math.inf
    for cluster in itertools.product(range(k), repeat=len(x)):
        groups = [x[[c == j for c in cluster]] for j in range(k)]
        best = min(best, sum(float(((g - g.mean(0)) ** 2).sum()) for g in groups if len(g)))
    return best


ALL = np.arange(65536, dtype=np.uint32)
with np.errstate(invalid="ignore"):  # signalling NaNs
    _VALUES = (ALL << 16).view(np.float32).astype(np.float64)
NUMBERS = np.unique(_VALUES[np.isfinite(_VALUES)])
"""Every finite bfloat16 number once, ascending."""


def gaps(step: Array) -> dict[str, Array]:
    """Of each dim, with places in the list of all numbers; NaN for -1."""
    rows: list[dict[str, float]] = []
    sizes, powers = np.zeros(17, int), np.zeros(17, int)
    for column in step.T:
        finite = column[np.isfinite(column)].astype(np.float64)
        x = np.array(sorted(set(finite.tolist())))
        at = [int(np.flatnonzero(v == NUMBERS)[0]) for v in x]
        between = [b - a for a, b in itertools.pairwise(at)]
        for gap in between:
            sizes[int(math.log2(gap))] += 1
            powers[int(math.log2(gap))] += gap == 2 ** int(math.log2(gap))
        spacing = [2.0 ** (max(math.frexp(v)[1] - 1, -126) - 7) if v else 2.0**-133 for v in x]
        fractional = [(b - a) / max(u, w) % 1 != 0 for (a, b), (u, w) in zip(
            itertools.pairwise(x), itertools.pairwise(spacing), strict=True)]  # fmt: skip
        words = finite.astype(np.float32).view(np.uint32) >> 16
        fields = [(int(w) >> 7) & 0xFF for w in words]
        texts = [f"{int(w):016b}" for w in words]
        rows.append({
            "n_distinct": len(x), "lowest": x[0], "highest": x[-1], "width": at[-1] - at[0],
            "width_ulp": (x[-1] - x[0]) / max(spacing), "gap_min": min(between, default=-1),
            "gap_median": np.median(between) if between else np.nan, "gap_max": max(between, default=-1),
            "n_fractional": sum(fractional), "exponent_low": min(fields), "exponent_high": max(fields),
            "common_bits": next((i for i in range(16) if len({t[i] for t in texts}) > 1), 16),
            "n_not_finite": len(column) - len(finite),
        })  # fmt: skip
    table = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return {**table, "gap_count": sizes, "power_of_two_count": powers}
