"""Find connected components by union-find with path halving (Tarjan and van Leeuwen 1984), and the graph's figures.

A node stands for one or more equal tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from deadtok_xr.kernels.numba.jit import inner

FIGURES = ("n_edges", "largest_component", "n_singletons", "n_components", "degree_max", "n_invalid")
"""The figures of a graph of tokens, which `count` computes."""
EDGES, LARGEST, SINGLETONS, COMPONENTS, TOP, INVALID = range(6)


class Nodes(NamedTuple):
    """Distinct rows: see `unique_rows.unique_rows`."""

    index: Any
    """(p,): a token of each node."""
    counts: Any
    """(p,): its tokens."""
    inverse: Any
    """(n,): the node of each token."""


class Graph(NamedTuple):
    """Edges between nodes, as far as components and degrees need them."""

    parent: Any
    """(p,): union-find; the root is the lowest node of a component."""
    degree: Any
    """(p,): to how many tokens each token of a node is adjacent."""


@inner
def without_edges(nodes, linked):
    """Return a graph without edges, except those within a node if equal tokens are ``linked``."""
    P = len(nodes.counts)
    graph = Graph(np.empty(P, np.int64), np.empty(P, np.int64))
    for a in range(P):
        graph.parent[a], graph.degree[a] = a, nodes.counts[a] - 1 if linked else 0
    return graph


@inner
def root_of(parent, a):
    """Return the root of a node's component, and shorten the way to it."""
    while parent[a] != a:
        parent[a] = parent[parent[a]]
        a = parent[a]
    return a


@inner
def join(graph, nodes, a, b):
    """Add the edges between the tokens of two nodes."""
    graph.degree[a] += nodes.counts[b]
    graph.degree[b] += nodes.counts[a]
    x, y = root_of(graph.parent, a), root_of(graph.parent, b)
    graph.parent[max(x, y)] = min(x, y)


@inner
def _bin(x):
    """Return the bin of a count: 0 for 0, else the number of its binary digits (bins 1, 2 to 3, 4 to 7, ...)."""
    digits = 0
    while x:
        digits += 1
        x >>= 1
    return digits


@inner
def count(graph, nodes, figures, degrees, sizes):
    """Fill in `FIGURES` except the last, and the histograms of degrees and of component sizes, see `topology`."""
    counts, degree = nodes.counts, graph.degree
    P = len(counts)
    size = np.zeros(P, np.int64)
    degrees[:] = 0
    sizes[:] = 0
    edges, alone, components, largest, top = 0, 0, 0, 1, 0
    for a in range(P):
        edges += counts[a] * degree[a]
        degrees[_bin(degree[a])] += counts[a]
        top = max(top, degree[a])
        if degree[a]:
            size[root_of(graph.parent, a)] += counts[a]
        else:
            alone += counts[a]
    sizes[0] = alone
    for a in range(P):
        if size[a]:
            components += 1
            largest = max(largest, size[a])
            sizes[_bin(size[a]) - 1] += 1
    figures[EDGES], figures[LARGEST], figures[TOP] = edges // 2, largest, top
    figures[SINGLETONS], figures[COMPONENTS] = alone, components + alone


@inner
def name_components(graph, nodes, label):
    """Fill in the first token of each token's component, (n,)."""
    first = np.full(len(graph.parent), -1)
    for n in range(len(label)):
        a = nodes.inverse[n]
        if not graph.degree[a]:
            label[n] = n
            continue
        root = root_of(graph.parent, a)
        if first[root] < 0:
            first[root] = n
        label[n] = first[root]
