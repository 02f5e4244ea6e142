"""Find all pairs of nodes that are near each other.

Nodes are sorted along the dim in which they spread most, and only pairs that are near in this dim are compared in the
others, the sixteen widest first (sweep and prune).

Limits are the bits of float32 values, which have the order of the values: the sign of a difference of integers tells
which is larger, and the bitwise or of many such differences tells whether any is. Vector units do many at once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from deadtok_xr.kernels.numba.adjacency import AT_ONCE, adjacent
from deadtok_xr.kernels.numba.bit_words import float32_value
from deadtok_xr.kernels.numba.components import Nodes, join, without_edges
from deadtok_xr.kernels.numba.jit import inner, inner_without_nan
from deadtok_xr.kernels.numba.sorting import argsort_keys, float_key
from deadtok_xr.kernels.numba.unique_rows import unique_rows
from deadtok_xr.kernels.numba.verlet_list import VerletList, invalidate, nodes_of

_APART, _OPEN, _CERTAIN = 0, 1, 2
_FRONT = 16
"""How many dims are compared first."""
_TILE = 256
_SAMPLE = 64
"""Nodes whose pairs are compared to estimate the work of a step."""
_MARGIN = 1e-6
"""The relative margin by which the limits of certain pairs are narrowed, larger than the rounding of float32."""
_LARGEST_FLOAT32 = 3.4028234e38
_PAIR_NS, _OPEN_PAIR_NS, _NODE_NS, _FRONT_NS = 100.0, 100.0, 500.0, 3.0
"""Rough costs of comparing a pair, comparing an open pair, preparing a node, and comparing the front dims of a pair."""


class Limits(NamedTuple):
    """Distances in each dim as bits of float32, (d,): see the module."""

    apart: Any
    """A pair beyond it is certain to stay apart."""
    adjacent: Any
    """A pair within it is certain to stay adjacent; -1, which is below all distances, if no pair is certain."""
    distinct: Any
    """A pair beyond it is certain not to become one node."""


class SortedNodes(NamedTuple):
    """Nodes in ascending order along the dim in which they spread most."""

    nodes: Nodes
    dims: Any
    """The widest dims, at most `_FRONT`."""
    front: Any
    """float32 (dims, p): the values of the nodes in these dims."""


@inner
def measure_all(positions, low, high, verlet, motion):
    """Measure all pairs.

    Parameters
    ----------
    positions
        The tokens: `adjacency.Positions`.
    low, high
        The smallest and the largest threshold of any pair in each dim.
    verlet
        The list that is no longer valid.
    motion
        The range of the displacements in each dim since the step before.

    Returns
    -------
    The new list, and the graph at this step.
    """
    nodes = Nodes(*unique_rows(positions.words))
    dims, all_adjacent = _widest_dims(positions.words, nodes, low, high)
    if all_adjacent:
        return _complete_graph(nodes, positions.rule.linked, verlet)
    tokens = _sort(positions.words, nodes, dims)
    factor = verlet.factor
    without = _work_without_skin(tokens, _limits(low, high, np.zeros(len(high))))
    while True:
        skin = _skin(high, motion, factor)
        keep = skin[0] > 0
        most = factor * without if keep else np.inf
        known, pairs, work, certain, now = _measure(positions, _limits(low, high, skin), tokens, keep, most)
        if known or not keep:
            break
        factor /= 4  # the skin is too wide: the many pairs within it cost more than it saves
    factor = _adapt(factor, work, len(pairs), len(tokens.nodes.counts))
    nodes = tokens.nodes
    new = VerletList(
        factor, np.zeros(len(low)), skin, low, high,
        nodes.index, nodes.counts, nodes.inverse, certain.parent, certain.degree, pairs,
    )  # fmt: skip
    if not known:
        invalidate(new)
    return new, now


@inner
def add_open_pairs(positions, verlet, graph):
    """Add the open pairs of a list that are adjacent to a graph."""
    nodes = nodes_of(verlet)
    for i in range(len(verlet.pairs)):
        a, b = verlet.pairs[i, 0], verlet.pairs[i, 1]
        if adjacent(positions, nodes.index[a], nodes.index[b]):
            join(graph, nodes, a, b)


@inner
def _limits(low, high, skin):
    D = len(low)
    out = Limits(np.empty(D, np.int32), np.empty(D, np.int32), np.empty(D, np.int32))
    for d in range(D):
        out.apart[d], out.adjacent[d], out.distinct[d] = _up(high[d] + skin[d]), _down(low[d] - skin[d]), _up(skin[d])
    return out


@inner
def _up(x):
    """Return the bits of a float32 that is certain to be larger."""
    return np.float32(np.nextafter(np.float32(x * (1 + _MARGIN)), np.float32(np.inf))).view(np.int32)


@inner
def _down(x):
    """Return the bits of a float32 that is certain to be smaller, and finite; -1 if there is none."""
    if not x > 0:
        return np.int32(-1)
    below = np.nextafter(np.float32(min(x * (1 - _MARGIN), _LARGEST_FLOAT32)), np.float32(0.0))
    return np.float32(below).view(np.int32)


@inner
def _work_without_skin(tokens, limits):
    """Return about how many nanoseconds it takes to measure all pairs at one step, from the pairs of some nodes."""
    first, P = tokens.front[0], len(tokens.nodes.counts)
    reach = _reach(limits, tokens.dims)
    far = np.empty(_TILE, np.int32)
    n_pairs, n_compared, n_near = 0, 0, 0
    for a in range(P):
        n_pairs += _end_of_reach(first, a, reach[0]) - a - 1
    for a in range(0, P, max(1, P // _SAMPLE)):
        end = _end_of_reach(first, a, reach[0])
        for start in range(a + 1, end, _TILE):
            stop = min(start + _TILE, end)
            _compare_front(tokens.front, a, start, stop, reach, far)
            n_compared += stop - start
            for b in range(stop - start):
                n_near += not far[b]
    return _NODE_NS * P + n_pairs * (_FRONT_NS + _PAIR_NS * n_near / max(n_compared, 1))


@inner
def _reach(limits, dims):
    """Return the distances in some dims beyond which a pair is certain to stay apart, as float32."""
    out = np.empty(len(dims), np.float32)
    for i in range(len(dims)):
        out[i] = np.int32(limits.apart[dims[i]]).view(np.float32)
    return out


@inner
def _end_of_reach(first, a, reach):
    """Return the end of the nodes after a that are within reach, by bisection: compiles faster than np.searchsorted."""
    begin, end = a, len(first)
    while begin < end:
        middle = (begin + end) // 2
        if first[middle] <= first[a] + reach:
            begin = middle + 1
        else:
            end = middle
    return end


@inner
def _measure(positions, limits, tokens, keep, most):
    """Sort all pairs into certain and open ones.

    Returns
    -------
    Whether the open pairs are known (not if ``keep`` is false, or if there are too many to list, or if it would take
    more than ``most`` nanoseconds); these pairs;
    the approximate work in nanoseconds; the graph of the certain pairs; and the graph of this step.
    """
    nodes, linked = tokens.nodes, positions.rule.linked
    P = len(nodes.counts)
    now, certain = without_edges(nodes, linked), without_edges(nodes, linked)
    pairs = np.empty((min(8 * P + 4096, P * (P - 1) // 2) if keep else 0, 2), np.int32)
    reach = _reach(limits, tokens.dims)
    far = np.empty(_TILE, np.int32)
    n_open, work = 0, 0.0
    for a in range(P):
        end = _end_of_reach(tokens.front[0], a, reach[0])
        work += _FRONT_NS * (end - a)
        if work > most:
            return False, pairs[:0], work, certain, now
        for start in range(a + 1, end, _TILE):
            stop = min(start + _TILE, end)
            _compare_front(tokens.front, a, start, stop, reach, far)
            for b in range(start, stop):
                if far[b - start]:
                    continue
                kind = _kind(positions.words, nodes.index[a], nodes.index[b], limits, linked)
                work += _PAIR_NS
                if kind == _CERTAIN:
                    join(certain, nodes, a, b)
                    join(now, nodes, a, b)
                elif kind == _OPEN:
                    if keep:
                        if n_open == len(pairs):
                            return False, pairs[:0], work, certain, now
                        pairs[n_open, 0], pairs[n_open, 1] = a, b
                        n_open += 1
                    if adjacent(positions, nodes.index[a], nodes.index[b]):
                        join(now, nodes, a, b)
    return keep, pairs[:n_open].copy(), work, certain, now


@inner
def _skin(high, motion, factor):
    """Return the width of the skin in thresholds: the motion of ``factor`` steps; 0 if a skin is of no use."""
    largest = 0.0
    for d in range(len(high)):
        largest = max(largest, motion[d] / high[d])
    if not 0 < largest < np.inf:
        largest = 1 / 64  # not known yet
    skin = np.empty(len(high))
    for d in range(len(high)):
        skin[d] = high[d] * (factor * largest if factor >= 2 else 0.0)
    return skin


@inner
def _adapt(factor, work, n_open, n_nodes):
    """Return a factor at which measuring all pairs and measuring the open ones cost about the same.

    With a wider skin, all pairs are measured less often, and more of them are open.
    """
    all_pairs, open_pairs = (work + _NODE_NS * n_nodes) / max(factor, 1.0), _OPEN_PAIR_NS * n_open
    if open_pairs > all_pairs:
        return factor / 1.25
    return factor * 1.25 if factor < 2 or all_pairs > 150.0 * n_nodes else factor


@inner
def _widest_dims(words, nodes, low, high):
    """Return the dims in which nodes spread most, in thresholds; and whether all lie within the threshold."""
    D = len(high)
    bottom, top = np.full(D, np.float32(np.inf)), np.full(D, np.float32(-np.inf))
    for n in nodes.index:
        _widen(words, n, bottom, top)
    spread = np.empty(D, np.uint64)
    all_adjacent = True
    for d in range(D):
        extent = np.float64(top[d]) - np.float64(bottom[d])
        spread[d] = float_key(-extent / high[d])
        all_adjacent &= extent <= low[d]
    return argsort_keys(spread)[: min(D, _FRONT)], all_adjacent


@inner_without_nan
def _widen(words, n, bottom, top):
    """Extend the range of each dim to a token."""
    for d in range(len(bottom)):
        x = float32_value(words[n, d])
        bottom[d] = x if x < bottom[d] else bottom[d]
        top[d] = x if x > top[d] else top[d]


@inner
def _complete_graph(nodes, linked, verlet):
    """Return a list that is not valid, and the complete graph of the nodes, for which no pair must be compared."""
    graph = without_edges(nodes, linked)
    if len(nodes.counts) > 1:
        graph.parent[:] = 0
        n_tokens = len(nodes.inverse)
        for p in range(len(nodes.counts)):
            graph.degree[p] += n_tokens - nodes.counts[p]
    invalidate(verlet)
    new = VerletList(
        verlet.factor, verlet.drift, verlet.skin, verlet.low, verlet.high,
        nodes.index, nodes.counts, nodes.inverse, graph.parent, graph.degree, verlet.pairs,
    )  # fmt: skip
    return new, graph


@inner
def _sort(words, nodes, dims):
    P = len(nodes.index)
    along = np.empty(P, np.uint64)
    for p in range(P):
        along[p] = float_key(float32_value(words[nodes.index[p], dims[0]]))
    order = argsort_keys(along)
    front = np.empty((len(dims), P), np.float32)
    rank = np.empty(P, np.int64)
    for p in range(P):
        rank[order[p]] = p
        for i in range(len(dims)):
            front[i, p] = float32_value(words[nodes.index[order[p]], dims[i]])
    in_order = Nodes(_take(nodes.index, order), _take(nodes.counts, order), _take(rank, nodes.inverse))
    return SortedNodes(in_order, dims, front)


@inner
def _take(values, places):
    """Return values[places], which takes longer to compile."""
    out = np.empty(len(places), values.dtype)
    for i in range(len(places)):
        out[i] = values[places[i]]
    return out


@inner
def _compare_front(front, a, start, stop, reach, far):
    """Find which of the nodes from start to stop are too far from node a, in any of the front dims."""
    far[: stop - start] = 0
    for i in range(len(reach)):
        row, limit = front[i], reach[i]
        x = row[a]
        for j in range(stop - start):
            if abs(row[np.uint64(start + j)] - x) > limit:  # an unsigned index needs no check for negative values
                far[j] = np.int32(1)


@inner
def _kind(words, a, b, limits, linked):
    """Return what is certain about a pair, in float32: rounding is monotone, and the limits have a margin for it."""
    outer, inner, own = limits.apart, limits.adjacent, limits.distinct
    D = len(outer)
    uncertain, apart = np.int32(0), np.int32(0)
    for start in range(0, D, AT_ONCE):
        beyond = np.int32(0)
        for j in range(min(AT_ONCE, D - start)):
            d = np.uint64(start + j)  # an unsigned index: vector units cannot handle negative ones
            gap = np.float32(abs(float32_value(words[a, d]) - float32_value(words[b, d]))).view(np.int32)
            beyond = np.int32(beyond | np.int32(outer[d] - gap))
            uncertain = np.int32(uncertain | np.int32(inner[d] - gap))
            apart = np.int32(apart | np.int32(own[d] - gap))
        if beyond < 0:
            return _APART
    return _CERTAIN if uncertain >= 0 and (linked or apart < 0) else _OPEN
