"""The graph of tokens that lie within a threshold of each other in every dim, without N x N memory.

Identical rows become one node with a weight. Nodes are sorted along the dim in which they spread most, and
only pairs within the threshold there are compared in the other dims, widest first, leaving at the first that
is too far. Components come from union-find. The cost of a step is that of the pairs in the sorted window: a
few per token for a spread-out cloud, all pairs when everything lies within the threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.kernels.numba.words import compiled


def topology(
    blocks: Sequence[NDArray[np.float32]], threshold: NDArray[np.float64], linked: bool, out: dict[str, NDArray[Any]]
) -> None:
    """Fill ``out`` with the graph's figures at each step.

    Parameters
    ----------
    blocks
        The token blocks of the same steps, (t, n, d) each.
    threshold
        Largest L∞ distance of adjacent tokens, (t,).
    linked
        Whether tokens in the very same place are adjacent.
    out
        Arrays (t,) to fill: density (NaN where a value is not finite), largest_component,
        n_singletons, n_components (-1 there) and n_invalid.
    """
    names = ("density", "largest_component", "n_singletons", "n_components", "n_invalid")
    for t in range(len(threshold)):
        if t and all(np.array_equal(b[t].view(np.uint32), b[t - 1].view(np.uint32)) for b in blocks):
            for name in names:
                out[name][t] = out[name][t - 1]
            continue
        rows = np.concatenate([b[t] for b in blocks])
        rows += np.float32(0)  # -0 and +0 are the same place
        invalid = int((~np.isfinite(rows)).any(axis=1).sum())
        figures = (np.nan, -1, -1, -1) if invalid else _graph(rows, threshold[t], linked)
        for name, figure in zip(names, (*figures, invalid), strict=True):
            out[name][t] = figure


def _graph(rows: NDArray[np.float32], threshold: float, linked: bool) -> tuple[float, int, int, int]:
    place, weight = _places(rows)
    n_tokens = len(rows)
    nodes = rows[place]
    widest = np.argsort(nodes.min(axis=0) - nodes.max(axis=0), kind="stable")
    nodes = nodes[:, widest]
    order = np.argsort(nodes[:, 0], kind="stable")
    edges, largest, singletons, components = _sweep(nodes[order], weight[order], threshold, linked)
    pairs = n_tokens * (n_tokens - 1) // 2
    return (edges / pairs if pairs else 0.0), largest, singletons, components


@compiled
def _hashes(words):
    N, D = words.shape
    out = np.empty(N, np.uint64)
    for n in range(N):
        h = np.uint64(0xCBF29CE484222325)
        for d in range(D):
            h = (h ^ np.uint64(words[n, d])) * np.uint64(0x9E3779B97F4A7C15)
            h ^= h >> np.uint64(29)
        out[n] = h
    return out


def _places(rows: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """One row number for each distinct row, and how many rows are equal to it."""
    words = rows.view(np.uint32)
    hashes = _hashes(words)
    return _group(words, hashes, np.argsort(hashes, kind="stable"))


@compiled
def _group(words, hashes, order):
    N, D = words.shape
    place = np.empty(N, np.int64)
    weight = np.zeros(N, np.int64)
    n_places = 0
    run = 0  # the first place that has the hash at hand: equal hashes may be of different rows
    for i in range(N):
        n = order[i]
        if i == 0 or hashes[n] != hashes[order[i - 1]]:
            run = n_places
        found = -1
        for p in range(run, n_places):
            same = True
            for d in range(D):
                if words[n, d] != words[place[p], d]:
                    same = False
                    break
            if same:
                found = p
                break
        if found < 0:
            found = n_places
            place[found] = n
            n_places += 1
        weight[found] += 1
    return place[:n_places], weight[:n_places]


@compiled
def _root(parent, a):
    while parent[a] != a:
        parent[a] = parent[parent[a]]
        a = parent[a]
    return a


@compiled
def _adjacent(a, b, threshold):
    for d in range(1, a.shape[0]):
        if abs(np.float64(a[d]) - np.float64(b[d])) > threshold:
            return False
    return True


@compiled
def _sweep(nodes, weight, threshold, linked):
    N = nodes.shape[0]
    parent = np.arange(N)
    edges = 0
    neighbours = np.zeros(N, np.bool_)
    for a in range(N):
        for b in range(a + 1, N):
            if np.float64(nodes[b, 0]) - np.float64(nodes[a, 0]) > threshold:
                break
            if _adjacent(nodes[a], nodes[b], threshold):
                edges += weight[a] * weight[b]
                neighbours[a] = True
                neighbours[b] = True
                parent[_root(parent, b)] = _root(parent, a)
    sizes = np.zeros(N, np.int64)
    alone = 0
    for a in range(N):
        if linked:
            edges += weight[a] * (weight[a] - 1) // 2
        if neighbours[a] or linked:
            sizes[_root(parent, a)] += weight[a]
        else:
            alone += weight[a]
    components = alone
    largest = 1
    singletons = alone
    for a in range(N):
        components += sizes[a] > 0
        singletons += sizes[a] == 1
        largest = max(largest, sizes[a])
    return edges, largest, singletons, components
