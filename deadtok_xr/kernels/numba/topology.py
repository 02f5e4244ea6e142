"""The graph of tokens that lie within a threshold of each other in every dim, without N x N memory.

Identical rows become one node with a weight. Nodes are sorted along the dim in which they spread most, and
only pairs within the threshold there are compared in the other dims, widest first, leaving at the first that
is too far. Components come from union-find. The cost of a step is that of the pairs in the sorted window: a
few per token for a spread-out cloud, all pairs when everything lies within the threshold.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.kernels.numba.words import INFINITY, compiled, compiled_finite


def topology(
    steps: NDArray[np.float32],
    changed: NDArray[np.bool_],
    threshold: NDArray[np.float64],
    linked: bool,
    out: dict[str, NDArray[Any]],
) -> None:
    """Fill ``out`` with the graph's figures at each step.

    Parameters
    ----------
    steps
        (t, n, d).
    changed
        Which rows differ from the step before, at least (t - 1, n).
    threshold
        Largest L∞ distance of adjacent tokens, (t,).
    linked
        Whether tokens in the very same place are adjacent.
    out
        Arrays (t,) to fill: density (NaN where a value is not finite), largest_component, n_singletons,
        n_components (-1 there) and n_invalid.
    """
    rows = steps + np.float32(0)  # -0 and +0 are the same place
    figures = (out[name] for name in _FIGURES)
    _graphs(rows, rows.view(np.uint32), changed.any(axis=1), threshold, linked, *figures)


_FIGURES = ("density", "largest_component", "n_singletons", "n_components", "n_invalid")


@compiled
def _graphs(rows, words, anything, threshold, linked, density, largest, singletons, components, invalid):
    T, N, _ = rows.shape
    for t in range(T):
        if t > 0 and not anything[t - 1]:
            density[t] = density[t - 1]
            largest[t] = largest[t - 1]
            singletons[t] = singletons[t - 1]
            components[t] = components[t - 1]
            invalid[t] = invalid[t - 1]
            continue
        invalid[t] = _count_not_finite(words, t)
        if invalid[t]:
            density[t] = np.nan
            largest[t] = singletons[t] = components[t] = -1
            continue
        place, weight = _places(words[t])
        dims = np.argsort(_extent(rows[t]))
        order = np.argsort(rows[t, :, dims[0]][place])
        figures = _sweep(rows[t], place[order], weight[order], dims, threshold[t], linked)
        edges, largest[t], singletons[t], components[t] = figures
        density[t] = edges / (N * (N - 1) // 2) if N > 1 else 0.0


@compiled
def _count_not_finite(words, t):
    count = 0
    for n in range(words.shape[1]):
        top = np.uint32(0)
        for d in range(words.shape[2]):
            top = max(top, words[t, n, d] & np.uint32(0x7FFFFFFF))
        count += top >= INFINITY
    return count


@compiled_finite
def _extent(rows):
    """The negated extent of the rows in each dim: the widest is the smallest."""
    low, high = rows[0].copy(), rows[0].copy()
    for n in range(rows.shape[0]):
        for d in range(rows.shape[1]):
            x = rows[n, d]
            low[d] = x if x < low[d] else low[d]
            high[d] = x if x > high[d] else high[d]
    return low - high


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


@compiled
def _places(words):
    """One row number for each distinct row, and how many rows are equal to it."""
    hashes = _hashes(words)
    return _group(words, hashes, np.argsort(hashes))


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
def _adjacent(rows, a, b, dims, threshold):
    for k in range(1, len(dims)):
        if abs(np.float64(rows[a, dims[k]]) - np.float64(rows[b, dims[k]])) > threshold:
            return False
    return True


@compiled
def _sweep(rows, place, weight, dims, threshold, linked):
    """Edges, largest component, singletons, components of distinct rows that ascend along the first dim."""
    N = len(place)
    along = rows[:, dims[0]][place].astype(np.float64)
    parent = np.arange(N)
    edges = 0
    neighbours = np.zeros(N, np.bool_)
    for a in range(N):
        for b in range(a + 1, N):
            if along[b] - along[a] > threshold:
                break
            if _adjacent(rows, place[a], place[b], dims, threshold):
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
    largest = np.int64(1)
    singletons = alone
    for a in range(N):
        components += sizes[a] > 0
        singletons += sizes[a] == 1
        largest = max(largest, sizes[a])
    return edges, largest, singletons, components
