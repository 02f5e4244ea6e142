"""The graph of tokens that lie within a threshold of each other in every dim, without N x N memory.

Rows of equal values become one node with a weight (`places`). Nodes are sorted along the dim in which they spread most
and only pairs within reach there are compared in the others, the sixteen widest first.

Most pairs need no second look. When all pairs are measured, each is *certain* to stay adjacent for a while, certain to
stay apart, or *open*: within a skin of the threshold. What can change a distance in a dim is that two tokens move
differently there, so at each step the clock of a dim advances by the range of the displacements in it. While no clock,
and no change of the threshold, has used up the skin, the answer is that of the certain pairs and of the open ones,
which are measured exactly; then all are measured anew. (Molecular dynamics knows this as Verlet's list.)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from deadtok_xr.kernels import Lattice
from deadtok_xr.kernels.numba.places import SIGN, places, same_place
from deadtok_xr.kernels.numba.words import INFINITY, compiled

_finite = njit(nogil=True, cache=True, error_model="numpy", fastmath={"nnan", "nsz"})

CENTROID, PAIR, ELEMENT = 0, 1, 2
"""Spacings: one threshold for all pairs; by the coarser token of a pair; by the coarser element in each dim."""

FIGURES = ("n_edges", "largest_component", "n_singletons", "n_components", "degree_max", "n_invalid")
_EDGES, _LARGEST, _SINGLETONS, _COMPONENTS, _TOP, _INVALID = range(6)
_APART, _OPEN, _CERTAIN = 0, 1, 2
_FRONT, _AT_ONCE = 16, 256
"""How many dims are compared first, and then before the next look at the outcome: a look costs as much as 50 dims."""
_TILE = 256
_MARGIN = 1e-6
"""By how much more than float32 rounds the limits of the certain pairs are drawn in, relative."""


class Shell(NamedTuple):
    """The graph as it was when all pairs were measured, and what has happened since."""

    known: bool
    """Whether there is one that can be used."""
    factor: float
    """By how many steps of the present motion the skin is wide: adapted to what it costs."""
    clock: Any
    """(d,): by how much the distance of two tokens can have changed in each dim."""
    skin: Any
    """(d,): by how much it may."""
    low: Any
    """(d,): the smallest threshold of any pair when they were measured."""
    high: Any
    """(d,): the largest."""
    place: Any
    """(p,): a token of each node."""
    weight: Any
    """(p,): its tokens."""
    node: Any
    """(n,): the node of each token."""
    parent: Any
    """(p,): union-find of the certain pairs."""
    degree: Any
    """(p,): to how many tokens each token of a node is certain to be adjacent."""
    pairs: Any
    """(m, 2): the open pairs of nodes."""


class Rule(NamedTuple):
    """Which tokens are adjacent."""

    spacing: int
    k: float
    linked: bool
    smallest: int
    ulp_offset: int


def rule(spacing: int, k: float, linked: bool, lattice: Lattice) -> Rule:
    """Tokens are adjacent within ``k`` spacings in every dim, those in the same place if they are ``linked``."""
    return Rule(spacing, float(k), linked, lattice.smallest, lattice.ulp_offset)


def no_shell(n_tokens: int, n_dims: int) -> Shell:
    """Before any pair has been measured."""
    clock, skin, low, high = np.zeros((4, n_dims))
    place, weight, node, parent, degree = np.zeros((5, n_tokens), np.int64)
    pairs = np.empty((0, 2), np.int32)
    return Shell(False, 8.0, clock, skin, low, high, place, weight, node, parent, degree, pairs)


def topology(
    steps: NDArray[Any],
    shift: int,
    changed: NDArray[np.bool_],
    threshold: NDArray[np.float64],
    rule: Rule,
    shell: Shell,
    out: dict[str, NDArray[Any]],
    *,
    first: int = 0,
) -> Shell:
    """Fill ``out`` with the graph's figures at each step.

    Parameters
    ----------
    steps
        Words (t, n, d); or (1, n, d), positions that do not move while the threshold does.
    shift
        By how many bits a word is shifted to the left to be a float32 word.
    changed
        Which rows differ from the step before, (t - 1, n).
    threshold
        Largest L∞ distance of adjacent tokens, (t,), of the spacing `CENTROID`; NaN where a value is not finite.
    rule
        See `rule`.
    shell
        As an earlier call returned it for the first step, or `no_shell`.
    out
        Arrays to fill: figures (t, 6), see `FIGURES` (-1 where a value is not finite); degrees and sizes (t, b),
        how many tokens have no neighbour, 1, 2 to 3, 4 to 7, ..., and how many components have 1, 2 to 3, ... tokens;
        label (t, n), the first token of each token's component, or (t, 0).
    first
        The first step to fill; those before it are known.

    Returns
    -------
    The shell at the last step.
    """
    filled = (out["figures"], out["degrees"], out["sizes"], out["label"])
    return _graphs(steps, shift, changed, changed.any(axis=1), threshold, rule, shell, first, *filled)


def centroids(
    steps: NDArray[Any], shift: int, changed: NDArray[np.bool_], before: NDArray[np.float64] | None
) -> NDArray[np.float64]:
    """The mean over tokens of words (t, n, d), (t, d); NaN in the dims in which a token is not finite.

    ``before`` is that of the first step, if it is known.
    """
    out = np.empty((steps.shape[0], steps.shape[2]))
    if before is not None:
        out[0] = before
    _centroids(steps, shift, changed.any(axis=1), int(before is not None), out)
    return out


@compiled
def _centroids(words, shift, anything, first, out):
    for t in range(first, len(words)):
        if t > 0 and not anything[t - 1]:
            out[t] = out[t - 1]
        else:
            _mean(words[t], shift, out[t])


@compiled
def _mean(words, shift, out):
    N, D = words.shape
    out[:] = 0.0
    for n in range(N):
        for d in range(D):
            out[d] += np.float64(_value(words, n, d, shift))
    for d in range(D):
        out[d] = out[d] / N if np.isfinite(out[d]) else np.nan


@compiled
def _graphs(words, shift, changed, anything, threshold, rule, shell, first, figures, degrees, sizes, label):
    T = len(figures)
    held = len(words) < T
    cells = np.empty(words.shape[1] if rule.spacing == PAIR else 0)
    growth = np.zeros(words.shape[2])
    nothing = np.zeros(words.shape[1], np.bool_)
    for t in range(first, T):
        at = 0 if held else t
        moved = t > 0 and not held and anything[t - 1]
        if t > 0 and not moved and (threshold[t] == threshold[t - 1] or rule.spacing != CENTROID):
            figures[t], degrees[t], sizes[t], label[t] = figures[t - 1], degrees[t - 1], sizes[t - 1], label[t - 1]
            continue
        if t == first or moved:
            figures[t, _INVALID] = count_not_finite(words[at], shift)
        elif t > 0:
            figures[t, _INVALID] = figures[t - 1, _INVALID]
        growth[:] = 0.0
        if moved:
            _grow(words[t - 1], words[t], shift, changed[t - 1], growth)
        shell.clock[:] += growth
        if figures[t, _INVALID] or np.isnan(threshold[t]):
            figures[t, :_INVALID] = -1
            label[t] = -1
            shell = _forget(shell, shell.factor)
            continue
        low, high = _limits(words[at], shift, threshold[t], rule, cells)
        if _holds(words[at], shift, changed[t - 1] if moved else nothing, low, high, shell):
            parent, degree = shell.parent.copy(), shell.degree.copy()
            _join_open(words[at], shift, threshold[t], rule, cells, shell, parent, degree)
        else:
            shell, parent, degree = _measure(words[at], shift, threshold[t], low, high, rule, cells, shell, growth)
        _count(parent, degree, shell.weight, figures[t], degrees[t], sizes[t])
        if label.shape[1]:
            _name_components(parent, degree, shell.node, label[t])
    return shell


@compiled
def _value(words, n, d, shift):
    return np.uint32(np.uint32(words[n, d]) << np.uint32(shift)).view(np.float32)


@compiled
def count_not_finite(words, shift):
    """How many rows of a step of words (n, d) hold NaN or infinity."""
    count = 0
    for n in range(words.shape[0]):
        top = np.uint32(0)
        for d in range(words.shape[1]):
            top = max(top, np.uint32(np.uint32(words[n, d]) << np.uint32(shift)) & SIGN)
        count += top >= INFINITY
    return count


@compiled
def _forget(shell, factor):
    return Shell(
        False, factor, shell.clock, shell.skin, shell.low, shell.high,
        shell.place, shell.weight, shell.node, shell.parent, shell.degree, shell.pairs,
    )  # fmt: skip


# --- what can have changed -----------------------------------------------------------------------------------


@compiled
def _grow(before, now, shift, changed, growth):
    """The range of the displacements in each dim, and what float32 may have rounded away from it."""
    D = len(growth)
    top, bottom = np.zeros(D, np.float32), np.zeros(D, np.float32)
    if changed.all():
        top[:] = -np.inf
        bottom[:] = np.inf
    for n in range(len(changed)):
        if changed[n]:
            _widen(before, now, n, shift, top, bottom)
    for d in range(D):
        high, low = np.float64(top[d]), np.float64(bottom[d])
        growth[d] = (high - low) + 2.0**-22 * max(abs(high), abs(low))


@_finite
def _widen(before, now, n, shift, top, bottom):
    for d in range(len(top)):
        step = _value(now, n, d, shift) - _value(before, n, d, shift)
        top[d] = step if step > top[d] else top[d]
        bottom[d] = step if step < bottom[d] else bottom[d]


@compiled
def _holds(words, shift, changed, low, high, shell):
    """Whether the certain pairs are still certain, and the tokens of each node still together."""
    if not shell.known:
        return False
    for d in range(len(low)):
        # written so that NaN says no
        if not shell.clock[d] + max(high[d] - shell.high[d], shell.low[d] - low[d], 0.0) <= shell.skin[d]:
            return False
    for n in range(len(changed)):
        m = shell.place[shell.node[n]]
        if m != n and (changed[n] or changed[m]) and not same_place(words, n, m, shift):
            return False
    return True


# --- thresholds ----------------------------------------------------------------------------------------------


@compiled
def _magnitude(x):
    return np.float32(x).view(np.uint32) & SIGN


@compiled
def _ulp(word, rule):
    """The ULP of a float32 word, as a float64 put together from its exponent."""
    exponent = max(np.int64((word >> np.uint32(23)) & np.uint32(0xFF)), rule.smallest)
    return np.uint64((exponent - rule.ulp_offset + 1023) << 52).view(np.float64)


@compiled
def _limits(words, shift, threshold, rule, cells):
    """The smallest and the largest threshold of any pair in each dim; fills the mean ULP of each token."""
    N, D = words.shape
    low, high = np.full(D, threshold), np.full(D, threshold)
    if rule.spacing == PAIR:
        for n in range(N):
            total = 0.0
            for d in range(D):
                total += _ulp(np.uint32(np.uint32(words[n, d]) << np.uint32(shift)), rule)
            cells[n] = rule.k * (total / D)
        low[:], high[:] = cells.min(), cells.max()
    elif rule.spacing == ELEMENT:
        least, most = np.full(D, SIGN), np.zeros(D, np.uint32)
        for n in range(N):
            for d in range(D):
                word = np.uint32(np.uint32(words[n, d]) << np.uint32(shift)) & SIGN
                least[d] = min(least[d], word)
                most[d] = max(most[d], word)
        for d in range(D):
            low[d], high[d] = rule.k * _ulp(least[d], rule), rule.k * _ulp(most[d], rule)
    return low, high


@compiled
def _adjacent(words, a, b, shift, threshold, rule, cells):
    """Whether two tokens are adjacent, in float64. Limits and gaps are compared by their bits, which order alike."""
    D = words.shape[1]
    limit = np.float64(max(cells[a], cells[b]) if rule.spacing == PAIR else threshold).view(np.int64)
    apart = np.int64(0)
    for start in range(0, D, _AT_ONCE):
        beyond = np.int64(0)  # negative if a gap is beyond its limit
        for j in range(min(_AT_ONCE, D - start)):
            d = np.uint64(start + j)
            x, y = _value(words, a, d, shift), _value(words, b, d, shift)
            gap = np.float64(abs(np.float64(x) - np.float64(y))).view(np.int64)
            if rule.spacing == ELEMENT:
                limit = np.float64(rule.k * _ulp(max(_magnitude(x), _magnitude(y)), rule)).view(np.int64)
            beyond |= limit - gap
            apart |= gap
        if beyond < 0:
            return False
    return rule.linked or apart > 0


# --- all pairs -----------------------------------------------------------------------------------------------


# Limits are the bits of float32 values, which order as the values do: a difference of integers says what is larger,
# and the sign of many such differences, or-ed together, whether any is. That is what vector units do at once.


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
def _measure(words, shift, threshold, low, high, rule, cells, shell, growth):
    """Compare all pairs: the new shell, and the graph at this step."""
    place, weight, node = places(words, shift)
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
    new = Shell(
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
def _all_pairs(words, shift, threshold, rule, cells, limits, dims, front, place, weight, keep):
    """Sort all pairs into certain and open ones; the certain graph, and that of now. Gives up if many are open."""
    P = len(place)
    parent, degree = _alone(weight, rule.linked)
    certain, certain_degree = _alone(weight, rule.linked)
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
                    _join(certain, certain_degree, weight, a, b)
                    _join(parent, degree, weight, a, b)
                elif kind == _OPEN:
                    if keep:
                        if n_open == len(pairs):
                            return False, pairs[:0], work, (certain, certain_degree), (parent, degree)
                        pairs[n_open, 0], pairs[n_open, 1] = a, b
                        n_open += 1
                    if _adjacent(words, place[a], place[b], shift, threshold, rule, cells):
                        _join(parent, degree, weight, a, b)
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


@_finite
def _span(words, p, shift, bottom, top):
    for d in range(len(bottom)):
        x = _value(words, p, d, shift)
        bottom[d] = x if x < bottom[d] else bottom[d]
        top[d] = x if x > top[d] else top[d]


@compiled
def _all_adjacent(place, weight, node, rule, shell):
    """The graph of places that are all adjacent to each other, which needs no pairs."""
    parent, degree = _alone(weight, rule.linked)
    if len(place) > 1:
        parent[:] = 0
        degree += weight.sum() - weight
    shell = _forget(shell, shell.factor)
    return Shell(
        False, shell.factor, shell.clock, shell.skin, shell.low, shell.high,
        place, weight, node, parent, degree, shell.pairs,
    ), parent, degree  # fmt: skip


@compiled
def _sorted(words, place, weight, node, shift, dims):
    """Nodes in ascending order along the widest dim, and their values in the widest ones, side by side."""
    P = len(place)
    along = np.empty(P, np.float32)
    for p in range(P):
        along[p] = _value(words, place[p], dims[0], shift)
    order = np.argsort(along)
    front = np.empty((len(dims), P), np.float32)
    rank = np.empty(P, np.int64)
    for p in range(P):
        rank[order[p]] = p
        for i in range(len(dims)):
            front[i, p] = _value(words, place[order[p]], dims[i], shift)
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
    for start in range(0, D, _AT_ONCE):
        beyond = np.int32(0)
        for j in range(min(_AT_ONCE, D - start)):
            d = np.uint64(start + j)  # an index without a sign needs no wrapping around, which vector units cannot do
            gap = np.float32(abs(_value(words, a, d, shift) - _value(words, b, d, shift))).view(np.int32)
            beyond = np.int32(beyond | np.int32(outer[d] - gap))
            uncertain = np.int32(uncertain | np.int32(inner[d] - gap))
            apart = np.int32(apart | np.int32(own[d] - gap))
        if beyond < 0:
            return _APART
    return _CERTAIN if uncertain >= 0 and (linked or apart < 0) else _OPEN


@compiled
def _join_open(words, shift, threshold, rule, cells, shell, parent, degree):
    for i in range(len(shell.pairs)):
        a, b = shell.pairs[i, 0], shell.pairs[i, 1]
        if _adjacent(words, shell.place[a], shell.place[b], shift, threshold, rule, cells):
            _join(parent, degree, shell.weight, a, b)


# --- the graph -----------------------------------------------------------------------------------------------


@compiled
def _alone(weight, linked):
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
def _join(parent, degree, weight, a, b):
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
def _count(parent, degree, weight, figures, degrees, sizes):
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
    figures[_EDGES], figures[_LARGEST], figures[_TOP] = edges // 2, largest, top
    figures[_SINGLETONS], figures[_COMPONENTS] = alone, components + alone


@compiled
def _name_components(parent, degree, node, label):
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
