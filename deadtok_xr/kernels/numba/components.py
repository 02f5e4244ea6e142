"""Connected components by union-find, over nodes that stand for one or more tokens, and their figures."""

from __future__ import annotations

import numpy as np

from deadtok_xr.kernels.numba.jit import compiled

FIGURES = ("n_edges", "largest_component", "n_singletons", "n_components", "degree_max", "n_invalid")
EDGES, LARGEST, SINGLETONS, COMPONENTS, TOP, INVALID = range(6)


@compiled
def alone(weight, linked):
    """A graph without an edge, but for those within a node."""
    parent = np.arange(len(weight))
    return parent, weight - 1 if linked else np.zeros(len(weight), np.int64)


@compiled
def _root(parent, a):
    while parent[a] != a:
        parent[a] = parent[parent[a]]
        a = parent[a]
    return a


@compiled
def join(parent, degree, weight, a, b):
    degree[a] += weight[b]
    degree[b] += weight[a]
    x, y = _root(parent, a), _root(parent, b)
    parent[max(x, y)] = min(x, y)


@compiled
def _bin(x):
    """0 for 0, and the number of binary digits of others: 1, 2 to 3, 4 to 7, ..."""
    digits = 0
    while x:
        digits += 1
        x >>= 1
    return digits


@compiled
def count(parent, degree, weight, figures, degrees, sizes):
    P = len(parent)
    size = np.zeros(P, np.int64)
    degrees[:] = 0
    sizes[:] = 0
    edges, alone, components, largest, top = 0, 0, 0, 1, 0
    for a in range(P):
        edges += weight[a] * degree[a]
        degrees[_bin(degree[a])] += weight[a]
        top = max(top, degree[a])
        if degree[a]:
            size[_root(parent, a)] += weight[a]
        else:
            alone += weight[a]
    sizes[0] = alone
    for a in range(P):
        if size[a]:
            components += 1
            largest = max(largest, size[a])
            sizes[_bin(size[a]) - 1] += 1
    figures[EDGES], figures[LARGEST], figures[TOP] = edges // 2, largest, top
    figures[SINGLETONS], figures[COMPONENTS] = alone, components + alone


@compiled
def name_components(parent, degree, node, label):
    """The first token of each token's component."""
    first = np.full(len(parent), -1)
    for n in range(len(node)):
        a = node[n]
        if not degree[a]:
            label[n] = n
            continue
        root = _root(parent, a)
        if first[root] < 0:
            first[root] = n
        label[n] = first[root]
