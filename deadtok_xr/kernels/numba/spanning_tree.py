"""Compute the minimum spanning tree of tokens under the L∞ distance, in O(N) memory and a byte for each element.

One pass over all pairs, in tiles that stay in a core's cache, keeps the `KEPT` nearest rows of each row. Then one
component after another is joined to another one by its shortest outgoing edge, which always belongs to a minimum
spanning tree. The edge is taken from the kept rows. Only a row whose kept rows are all in its own component, and that
may have a shorter edge than the best one known, is compared with all rows outside once more.

Nearly all pairs are rejected by *codes*, a byte for each element: the element's place on an even scale around the
centre of its dim, cut off at both ends. If two codes differ by k, the elements differ by more than k - 1 units of the
scale. What passes is screened in float32, several dims at a time, and measured in float64.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.kernels.numba.bit_words import INFINITY, float32_value
from deadtok_xr.kernels.numba.components import root_of
from deadtok_xr.kernels.numba.jit import compiled, inlined, inner
from deadtok_xr.kernels.numba.unique_rows import unique_rows

KEPT = 8
"""Neighbours kept for each row: more take memory and time to sort, fewer let more rows be compared again."""
HEIGHT = 512
"""Rows of a tile: a chunk of two tiles stays in a core's cache."""
CHUNK = 128
"""Dims after which a pair that is too far apart already is given up."""
SAMPLE = 256
"""Rows from whose distances the unit of the codes is chosen."""
UNITS = 96
"""Units of the codes in the distance of near rows, at most: the more, the fewer pairs pass in vain."""
MARGIN = 1 - 2.0**-22
"""A lower bound of a distance is its float32 value times this: rounding makes it longer by one part in 2^24 at most."""


def spanning_tree(step: NDArray[Any]) -> NDArray[np.float64]:
    """Return the lengths of the tree's edges, ascending, (n - 1,).

    Takes some u²/2·D operations on bytes for u distinct rows; equal rows are joined by edges of length 0.

    Parameters
    ----------
    step
        Words (n, d); all values are finite.
    """
    out = np.zeros(max(len(step) - 1, 0))
    index = _distinct_rows(step)
    if len(index) > 1:
        centre, spread, unit = _scale(step, index)
        dims = np.argsort(-spread)  # the widest first, because they decide most pairs
        codes = np.zeros((-(-len(dims) // CHUNK), len(index), CHUNK), np.uint8)
        _encode(step, index, dims, centre, unit, codes)
        K = min(KEPT, len(index) - 1)
        near, length = np.full((len(index), K), -1, np.int32), np.full((len(index), K), np.inf)
        _join(Rows(step, index, codes, unit), near, length, np.arange(len(index)), out)
    out.sort()
    return out


@compiled
def _distinct_rows(words):
    return unique_rows(words)[0]


def _scale(step: NDArray[Any], index: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Return the centre and the spread of each dim, and the unit of the codes, by a sample of the rows."""
    sample = np.empty((min(SAMPLE, len(index)), step.shape[1]))
    _take_rows(step, index[:: -(-len(index) // SAMPLE)][: len(sample)], sample)
    spread = np.ptp(sample, axis=0)
    distances = np.empty((len(sample), len(sample)))
    _distances(sample, distances)
    kept = min(KEPT, len(sample) - 1)
    near = float(np.median(np.partition(distances, kept, axis=1)[:, kept]))
    return np.median(sample, axis=0), spread, max(near / UNITS, float(spread.max()) / 250)


@compiled
def _take_rows(words, index, out):
    for i in range(len(index)):
        for d in range(words.shape[1]):
            out[i, d] = _value(words[index[i], d])


@compiled
def _distances(rows, out):
    """Fill in the L∞ distances of all pairs of rows."""
    for a in range(len(rows)):
        for b in range(len(rows)):
            top = 0.0
            for d in range(rows.shape[1]):
                top = max(top, abs(rows[a, d] - rows[b, d]))
            out[a, b] = top


@compiled
def _encode(words, index, dims, centre, unit, codes):
    for u in range(len(index)):
        for k in range(len(dims)):
            d = dims[k]
            place = np.floor((_value(words[index[u], d]) - centre[d]) / unit) + 128.0
            codes[k // CHUNK, u, k % CHUNK] = np.uint8(min(max(place, 0.0), 255.0))


class Rows(NamedTuple):
    """The distinct rows of a step."""

    words: NDArray[Any]
    """All rows of the step, (n, d)."""
    distinct: NDArray[np.int64]
    """Which of them are the distinct rows, (u,)."""
    codes: NDArray[np.uint8]
    """The codes of the distinct rows, (chunk, u, `CHUNK`)."""
    unit: float
    """The unit of the codes."""


@compiled
def _join(rows, near, length, parent, out):
    """Fill in the lengths of the edges between distinct rows, in the order in which components are joined.

    Parameters
    ----------
    near, length
        Room for the kept rows and their distances, (u, k): -1 and infinity.
    parent
        The union-find of `components`: each row is a component of its own.
    """
    U, K = near.shape
    _find_near(rows, near, length)
    # all edges of a row that are not kept are at least as long as this
    unseen = length[:, K - 1].copy() if K < U - 1 else np.full(U, np.inf)
    following, size = parent.copy(), np.ones(U, np.int64)
    made = 0
    while made < U - 1:
        before = size.copy()
        largest = _largest(parent, size)
        for root in range(U):
            # the largest is not needed, and one that has grown in this round is left to the next
            if parent[root] != root or root == largest or size[root] != before[root]:
                continue
            a, b, edge = _shortest_edge(rows, root, parent, following, near, length, unseen)
            out[made] = edge
            made += 1
            _unite(root_of(parent, a), root_of(parent, b), parent, following, size)


@inner
def _largest(parent, size):
    best = -1
    for u in range(len(parent)):
        if parent[u] == u and (best < 0 or size[u] > size[best]):
            best = u
    return best


@inner
def _unite(a, b, parent, following, size):
    if size[a] < size[b]:
        a, b = b, a
    parent[b] = a
    size[a] += size[b]
    following[a], following[b] = following[b], following[a]  # two rings of members become one


@inner
def _shortest_edge(rows, root, parent, following, near, length, unseen):
    """Return the shortest edge from the component of a root to a row outside, (from, to, length)."""
    a, b, best = -1, -1, np.inf
    u = root
    while True:
        i = _first_outside(near, u, root, parent)
        if i >= 0 and (a < 0 or length[u, i] < best):
            a, b, best = u, near[u, i], length[u, i]
        u = following[u]
        if u == root:
            break
    while True:
        if (a < 0 or unseen[u] < best) and _first_outside(near, u, root, parent) < 0:
            _compare_again(rows, u, root, parent, best, near, length, unseen)
            if near[u, 0] >= 0:
                a, b, best = u, near[u, 0], length[u, 0]
        u = following[u]
        if u == root:
            break
    return a, b, best


@inner
def _first_outside(near, u, root, parent):
    """Return the position of the first kept row that is in another component, or -1."""
    for i in range(near.shape[1]):
        if near[u, i] < 0:
            return -1
        if root_of(parent, near[u, i]) != root:
            return i
    return -1


@inner
def _compare_again(rows, u, root, parent, limit, near, length, unseen):
    """Keep the rows outside of a component that are nearest to a row, if they are nearer than a limit."""
    K = near.shape[1]
    near[u] = -1
    length[u] = limit
    apart = np.zeros(len(rows.distinct), np.uint8)
    found = np.empty(len(rows.distinct), np.int32)
    apart[u] = _apart(limit, rows.unit)
    for begin in range(0, len(apart), HEIGHT):
        for i in range(_find_candidates(rows.codes, u, begin, min(begin + HEIGHT, len(apart)), apart, found)):
            v = found[i]
            if root_of(parent, v) != root:
                _keep(near, length, u, v, _distance(rows, u, v, length[u, K - 1]))
                apart[u] = _apart(length[u, K - 1], rows.unit)
    unseen[u] = length[u, K - 1]


@inner
def _find_near(rows, near, length):
    """Fill in the nearest rows of each, by ascending distance."""
    U, K = near.shape
    apart = np.full(U, 255, np.uint8)
    found = np.empty(HEIGHT, np.int32)
    for begin in range(0, U, HEIGHT):
        for other in range(begin, U, HEIGHT):
            for a in range(begin, min(begin + HEIGHT, U)):
                first, stop = max(other, a + 1), min(other + HEIGHT, U)
                for i in range(_find_candidates(rows.codes, a, first, stop, apart, found)):
                    b = found[i]
                    distance = _distance(rows, a, b, max(length[a, K - 1], length[b, K - 1]))
                    _keep(near, length, a, b, distance)
                    _keep(near, length, b, a, distance)
                    apart[b] = _apart(length[b, K - 1], rows.unit)
                apart[a] = _apart(length[a, K - 1], rows.unit)


@inlined
def _apart(limit, unit):
    """Return by how much the codes of elements may differ that are nearer than a limit."""
    units = limit / unit + 1.000001  # places are rounded down, and have rounding errors
    return np.uint8(units) if units < 255.0 else np.uint8(255)


@inner
def _find_candidates(codes, a, first, stop, apart, found):
    """List the rows from ``first`` to ``stop`` that may be nearer to a row than its limit or their own.

    Nearly half of the rows pass a chunk, at random: counting them takes less time than branches would.

    Parameters
    ----------
    apart
        By how much the codes of each row may differ from those of nearer rows, (u,).
    found
        Room for the list.

    Returns
    -------
    How many rows are listed.
    """
    n = 0
    for b in range(first, stop):
        found[n] = b
        n += _largest_gap(codes, 0, a, b) <= max(apart[a], apart[b])
    for chunk in range(1, len(codes)):
        passed = 0
        for i in range(n):
            b = found[i]
            found[passed] = b
            passed += _largest_gap(codes, chunk, a, b) <= max(apart[a], apart[b])
        n = passed
    return n


@inlined
def _largest_gap(codes, chunk, a, b):
    """Return the largest difference of the codes of two rows in a chunk."""
    top = np.uint8(0)
    for k in range(CHUNK):
        x, y = codes[chunk, a, k], codes[chunk, b, k]
        top = max(top, np.uint8(max(x, y) - min(x, y)))
    return top


@inlined
def _position(chunk, k):
    """Return a position without a sign: numba would ask of others whether they count from the end."""
    return np.uint64(chunk) * np.uint64(CHUNK) + np.uint64(k)


@inner
def _keep(near, length, a, b, distance):
    """Sort a neighbour in, if it is nearer than the last one that is kept."""
    K = near.shape[1]
    if distance >= length[a, K - 1]:
        return
    i = K - 1
    while i > 0 and length[a, i - 1] > distance:
        near[a, i], length[a, i] = near[a, i - 1], length[a, i - 1]
        i -= 1
    near[a, i], length[a, i] = b, distance


@inner
def _distance(rows, a, b, limit):
    """Return the L∞ distance of two rows; infinity if it is not below a limit."""
    words, a, b = rows.words, rows.distinct[a], rows.distinct[b]
    D = words.shape[1]
    top = np.int32(0)
    for chunk in range(-(-D // CHUNK)):
        for k in range(min(CHUNK, D - chunk * CHUNK)):
            # the bits of numbers without a sign have their order, and a maximum of integers uses vector units
            top = np.int32(max(top, _float32_gap(words, a, b, _position(chunk, k))))
        # beyond float32 the difference is infinite, and that in float64 is not
        if top < INFINITY and np.float64(np.int32(top).view(np.float32)) * MARGIN >= limit:
            return np.inf
    # rounding keeps the order: the longest difference is among those that are rounded to the longest
    n = last = np.int32(0)
    for d in range(D):
        longest = _float32_gap(words, a, b, d) == top
        n += np.int32(longest)
        last = np.int32(max(last, np.int32(d) * np.int32(longest)))
    if n == 1:
        return abs(_value(words[a, last]) - _value(words[b, last]))
    found = 0.0
    for d in range(D):
        if _float32_gap(words, a, b, d) == top:
            found = max(found, abs(_value(words[a, d]) - _value(words[b, d])))
    return found


@inlined
def _float32_gap(words, a, b, d):
    """Return the bits of the difference of two elements, rounded to float32, without a sign."""
    return np.float32(abs(float32_value(words[a, d]) - float32_value(words[b, d]))).view(np.int32)


@inlined
def _value(word):
    return np.float64(float32_value(word))
