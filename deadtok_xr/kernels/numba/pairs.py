"""All pairs of nodes that come near each other.

Nodes are sorted along the dim in which they spread most and only pairs within reach there are compared in the others,
the sixteen widest first.

Limits are the bits of float32 values, which order as the values do: a difference of integers says what is larger, and
the sign of many such differences, or-ed together, whether any is. That is what vector units do at once.
"""

from __future__ import annotations

import numpy as np

from deadtok_xr.kernels.numba.adjacency import AT_ONCE, adjacent
from deadtok_xr.kernels.numba.bit_words import float32_value
from deadtok_xr.kernels.numba.components import alone, join
from deadtok_xr.kernels.numba.jit import compiled, compiled_without_nan
from deadtok_xr.kernels.numba.unique_rows import unique_rows
from deadtok_xr.kernels.numba.verlet_list import VerletList, invalidated

_APART, _OPEN, _CERTAIN = 0, 1, 2
_FRONT = 16
"""How many dims are compared first."""
_TILE = 256
_MARGIN = 1e-6
"""By how much more than float32 rounds the limits of the certain pairs are drawn in, relative."""


@compiled
def measure(words, shift, threshold, low, high, rule, cells, shell, growth):
    """Compare all pairs: the new shell, and the graph at this step."""
    place, weight, node = unique_rows(words, shift)
    dims, clique = _widest(words, place, shift, high, low)
    if clique:
        return _all_adjacent(place, weight, node, rule, shell)
    place, weight, node, front = _sorted(words, place, weight, node, shift, dims)
    factor = shell.factor
    while True:
        skin = _skin(high, growth, factor)
        limits = _bands(low, high, skin)
        known, pairs, work, certain, now = _all_pairs(
            words, shift, threshold, rule, cells, limits, dims, front, place, weight, skin[0] > 0
        )
        if known or not skin[0] > 0:
            break
        factor /= 4  # too wide: more pairs are open than it would spare
    new = VerletList(
        known, _adapt(factor, work, len(pairs), len(place)), np.zeros(len(low)), skin, low, high,
        place, weight, node, certain[0], certain[1], pairs,
    )  # fmt: skip
    return new, now[0], now[1]


@compiled
def _bands(low, high, skin):
    """(3, d), as bits: beyond the first a pair is certain to stay apart, within the second to stay near; beyond the
    last it is certain not to become one place."""
    out = np.empty((3, len(low)), np.int32)
    for d in range(len(low)):
        out[0, d], out[1, d], out[2, d] = _up(high[d] + skin[d]), _down(low[d] - skin[d]), _up(skin[d])
    return out


@compiled
def _up(x):
    """The bits of a float32 that is surely larger."""
    return np.float32(np.nextafter(np.float32(x * (1 + _MARGIN)), np.float32(np.inf))).view(np.int32)


@compiled
def _down(x):
    """The bits of a float32 that is surely smaller, and finite; -1, below all gaps, if none is."""
    if not x > 0:
        return np.int32(-1)
    below = np.nextafter(np.float32(min(x * (1 - _MARGIN), 3.4028234e38)), np.float32(0.0))
    return np.float32(below).view(np.int32)


@compiled
def _all_pairs(words, shift, threshold, rule, cells, limits, dims, front, place, weight, keep):
    """Sort all pairs into certain and open ones; the certain graph, and that of now. Gives up if many are open."""
    P = len(place)
    parent, degree = alone(weight, rule.linked)
    certain, certain_degree = alone(weight, rule.linked)
    pairs = np.empty((min(8 * P + 4096, P * (P - 1) // 2) if keep else 0, 2), np.int32)
    reach = limits[0][dims].view(np.float32)
    far = np.empty(_TILE, np.int32)
    n_open, work = 0, 0.0
    for a in range(P):
        end = np.searchsorted(front[0], front[0, a] + reach[0], side="right")
        work += 3.0 * (end - a)
        for start in range(a + 1, end, _TILE):
            stop = min(start + _TILE, end)
            _compare(front, a, start, stop, reach, far)
            for b in range(start, stop):
                if far[b - start]:
                    continue
                kind = _kind(words, place[a], place[b], shift, limits[0], limits[1], limits[2], rule.linked)
                work += 100.0
                if kind == _CERTAIN:
                    join(certain, certain_degree, weight, a, b)
                    join(parent, degree, weight, a, b)
                elif kind == _OPEN:
                    if keep:
                        if n_open == len(pairs):
                            return False, pairs[:0], work, (certain, certain_degree), (parent, degree)
                        pairs[n_open, 0], pairs[n_open, 1] = a, b
                        n_open += 1
                    if adjacent(words, place[a], place[b], shift, threshold, rule, cells):
                        join(parent, degree, weight, a, b)
    return keep, pairs[:n_open].copy(), work, (certain, certain_degree), (parent, degree)


@compiled
def _skin(high, growth, factor):
    """As wide as the motion of some steps, in thresholds alike for all dims; none if that would not pay."""
    motion = 0.0
    for d in range(len(high)):
        motion = max(motion, growth[d] / high[d])
    if not 0 < motion < np.inf:
        motion = 1 / 64  # not known yet
    return high * (factor * motion if factor >= 2 else 0.0)


@compiled
def _adapt(factor, work, n_open, n_nodes):
    """A wider skin is measured anew more rarely, and has more open pairs: let neither cost much more than the other.

    ``work`` is roughly in nanoseconds.
    """
    measured, opened = (work + 500.0 * n_nodes) / max(factor, 1.0), 100.0 * n_open
    if opened > measured:
        return factor / 1.25
    return factor * 1.25 if factor < 2 or measured > 150.0 * n_nodes else factor


@compiled
def _widest(words, place, shift, high, low):
    """The dims in which the places spread most, in thresholds; and whether all lie within the threshold."""
    D = len(high)
    bottom, top = np.full(D, np.float32(np.inf)), np.full(D, np.float32(-np.inf))
    for p in place:
        _span(words, p, shift, bottom, top)
    spread = np.empty(D)
    clique = True
    for d in range(D):
        extent = np.float64(top[d]) - np.float64(bottom[d])
        spread[d] = -extent / high[d]
        clique &= extent <= low[d]
    return np.argsort(spread)[: min(D, _FRONT)], clique


@compiled_without_nan
def _span(words, p, shift, bottom, top):
    for d in range(len(bottom)):
        x = float32_value(words[p, d], shift)
        bottom[d] = x if x < bottom[d] else bottom[d]
        top[d] = x if x > top[d] else top[d]


@compiled
def _all_adjacent(place, weight, node, rule, shell):
    """The graph of places that are all adjacent to each other, which needs no pairs."""
    parent, degree = alone(weight, rule.linked)
    if len(place) > 1:
        parent[:] = 0
        degree += weight.sum() - weight
    shell = invalidated(shell, shell.factor)
    return VerletList(
        False, shell.factor, shell.clock, shell.skin, shell.low, shell.high,
        place, weight, node, parent, degree, shell.pairs,
    ), parent, degree  # fmt: skip


@compiled
def _sorted(words, place, weight, node, shift, dims):
    """Nodes in ascending order along the widest dim, and their values in the widest ones, side by side."""
    P = len(place)
    along = np.empty(P, np.float32)
    for p in range(P):
        along[p] = float32_value(words[place[p], dims[0]], shift)
    order = np.argsort(along)
    front = np.empty((len(dims), P), np.float32)
    rank = np.empty(P, np.int64)
    for p in range(P):
        rank[order[p]] = p
        for i in range(len(dims)):
            front[i, p] = float32_value(words[place[order[p]], dims[i]], shift)
    return place[order], weight[order], rank[node], front


@compiled
def _compare(front, a, start, stop, reach, far):
    """Which of some nodes are too far from one, in any of the front dims."""
    far[: stop - start] = 0
    for i in range(len(reach)):
        row, limit = front[i], reach[i]
        x = row[a]
        for j in range(stop - start):
            if abs(row[np.uint64(start + j)] - x) > limit:  # an index without a sign needs no wrapping around
                far[j] = np.int32(1)


@compiled
def _kind(words, a, b, shift, outer, inner, own, linked):
    """What is certain about a pair, in float32: its rounding is monotone, and the limits leave room for it."""
    D = len(outer)
    uncertain, apart = np.int32(0), np.int32(0)
    for start in range(0, D, AT_ONCE):
        beyond = np.int32(0)
        for j in range(min(AT_ONCE, D - start)):
            d = np.uint64(start + j)  # an index without a sign needs no wrapping around, which vector units cannot do
            gap = np.float32(abs(float32_value(words[a, d], shift) - float32_value(words[b, d], shift))).view(np.int32)
            beyond = np.int32(beyond | np.int32(outer[d] - gap))
            uncertain = np.int32(uncertain | np.int32(inner[d] - gap))
            apart = np.int32(apart | np.int32(own[d] - gap))
        if beyond < 0:
            return _APART
    return _CERTAIN if uncertain >= 0 and (linked or apart < 0) else _OPEN


@compiled
def join_open(words, shift, threshold, rule, cells, shell, parent, degree):
    for i in range(len(shell.pairs)):
        a, b = shell.pairs[i, 0], shell.pairs[i, 1]
        if adjacent(words, shell.place[a], shell.place[b], shift, threshold, rule, cells):
            join(parent, degree, shell.weight, a, b)
