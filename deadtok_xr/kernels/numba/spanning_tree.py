"""Compute the minimum spanning tree of tokens under the L∞ distance, in O(N) memory.

One pass over all pairs, in tiles that stay in a core's cache, keeps the `KEPT` nearest rows of each row. Then one
component after another is joined to another one by its shortest outgoing edge, which always belongs to a minimum
spanning tree. The edge is taken from the kept rows. Only a row whose kept rows are all in its own component, and that
may have a shorter edge than the best one known, is compared with all rows outside once more.

Distances are screened in float32, several dims at a time, and computed in float64 where they may count.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.kernels.numba.bit_words import INFINITY, float32_word, unsigned_zero
from deadtok_xr.kernels.numba.components import root_of
from deadtok_xr.kernels.numba.jit import compiled, inlined, inner
from deadtok_xr.kernels.numba.unique_rows import unique_rows

KEPT = 8
"""Neighbours kept for each row: more take memory and time to sort, fewer let more rows be compared again."""
TILE_BYTES = 2**16
"""Bytes of a tile of rows: two of them stay in a core's cache."""
CHUNK = 64
"""Dims after which a distance that is too long already is given up."""
MARGIN = 1 - 2.0**-22
"""A lower bound of a distance is its float32 value times this: rounding makes it longer by one part in 2^24 at most."""


def spanning_tree(step: NDArray[Any]) -> NDArray[np.float64]:
    """Return the lengths of the tree's edges, ascending, (n - 1,).

    Takes some u²/2·D operations for u distinct rows; equal rows are joined by edges of length 0.

    Parameters
    ----------
    step
        Words (n, d); all values are finite.
    """
    out = np.zeros(max(len(step) - 1, 0))
    rows = _distinct_rows(step)
    if len(rows) > 1:
        spread = rows.max(axis=0).astype(np.float64) - rows.min(axis=0)
        wide = np.zeros((len(rows), -(-len(spread) // CHUNK) * CHUNK), np.float32)
        wide[:, : len(spread)] = rows[:, np.argsort(-spread)]  # the widest first, because they decide most pairs
        _join(wide, out)
    out.sort()
    return out


@compiled
def _distinct_rows(words):
    index, _, _ = unique_rows(words)
    rows = np.empty((len(index), words.shape[1]), np.float32)
    for u in range(len(index)):
        for d in range(words.shape[1]):
            rows[u, d] = np.uint32(unsigned_zero(float32_word(words[index[u], d]))).view(np.float32)
    return rows


@compiled
def _join(rows, out):
    """Fill in the lengths of the edges between distinct rows, in the order in which components are joined."""
    U = len(rows)
    K = min(KEPT, U - 1)
    near, length = np.full((U, K), -1, np.int32), np.full((U, K), np.inf)
    _find_near(rows, near, length)
    # all edges of a row that are not kept are at least as long as this
    unseen = length[:, K - 1].copy() if K < U - 1 else np.full(U, np.inf)
    parent, following, size = np.arange(U), np.arange(U), np.ones(U, np.int64)
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
    for v in range(len(rows)):
        if root_of(parent, v) != root and _may_be_nearer(rows, u, v, length[u, K - 1]):
            _keep(near, length, u, v, _distance(rows, u, v))
    unseen[u] = length[u, K - 1]


@inner
def _find_near(rows, near, length):
    """Fill in the nearest rows of each, by ascending distance."""
    U, D = rows.shape
    K = near.shape[1]
    height = max(16, TILE_BYTES // (4 * max(1, D)))
    for begin in range(0, U, height):
        for other in range(begin, U, height):
            for a in range(begin, min(begin + height, U)):
                for b in range(max(other, a + 1), min(other + height, U)):
                    if _may_be_nearer(rows, a, b, max(length[a, K - 1], length[b, K - 1])):
                        distance = _distance(rows, a, b)
                        _keep(near, length, a, b, distance)
                        _keep(near, length, b, a, distance)


@inlined
def _may_be_nearer(rows, a, b, limit):
    """Return whether two rows may be nearer than a limit; false is certain. They have a multiple of `CHUNK` dims."""
    top = np.int32(0)
    for begin in range(0, rows.shape[1], CHUNK):
        for d in range(begin, begin + CHUNK):
            # the bits of numbers without a sign have their order, and a maximum of integers uses vector units
            top = np.int32(max(top, np.float32(abs(rows[a, d] - rows[b, d])).view(np.int32)))
        # beyond float32 the difference is infinite, and that in float64 is not
        if top < INFINITY and np.float64(np.int32(top).view(np.float32)) * MARGIN >= limit:
            return False
    return True


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
def _distance(rows, a, b):
    """Return the L∞ distance in float64, as a maximum of integers: the bits of gaps have the order of the gaps."""
    top = np.int64(0)
    for d in range(rows.shape[1]):
        top = max(top, np.float64(abs(np.float64(rows[a, d]) - np.float64(rows[b, d]))).view(np.int64))
    return np.int64(top).view(np.float64)
