"""A list of the pairs that may become adjacent or stop being so, which is valid for some steps (Verlet 1967).

When all pairs are measured, each is *certain* to stay adjacent for some steps, certain to stay apart, or *open*: within
a skin of the threshold. A distance changes in a dim only if two tokens move differently there, so each step adds the
range of its displacements to the *drift* of the dim. As long as the drift and the change of the threshold are smaller
than the skin, the graph consists of the certain pairs and of the open ones, which are measured exactly. After that, all
pairs are measured again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from deadtok_xr.kernels.numba.bit_words import float32_value
from deadtok_xr.kernels.numba.components import Graph, Nodes
from deadtok_xr.kernels.numba.jit import inner, inner_without_nan
from deadtok_xr.kernels.numba.unique_rows import equal_rows

_NOT_VALID = -1.0


class VerletList(NamedTuple):
    """The graph when all pairs were measured, and how far tokens have moved since.

    It is flat, because numba takes half a millisecond to pass a tuple of tuples: see `nodes_of` and `certain_graph`.
    """

    factor: float
    """The width of the skin in steps of the current motion; adapted to the measured cost."""
    drift: Any
    """(d,): the largest possible change of the distance of two tokens in each dim so far."""
    skin: Any
    """(d,): the change for which the list is still valid; negative if the list is not valid."""
    low: Any
    """(d,): the smallest threshold of any pair when they were measured."""
    high: Any
    """(d,): the largest threshold of any pair when they were measured."""
    index: Any
    counts: Any
    inverse: Any
    """The nodes: `components.Nodes`."""
    parent: Any
    degree: Any
    """The graph of the certain pairs: `components.Graph`."""
    pairs: Any
    """(m, 2): the open pairs of nodes."""


def empty_verlet_list(n_tokens: int, n_dims: int) -> VerletList:
    """Return a list that is not valid, so that all pairs are measured."""
    drift, skin, low, high = np.zeros((4, n_dims))
    index, counts, inverse, parent, degree = np.zeros((5, n_tokens), np.int64)
    skin[:] = _NOT_VALID
    pairs = np.empty((0, 2), np.int32)
    return VerletList(8.0, drift, skin, low, high, index, counts, inverse, parent, degree, pairs)


@inner
def nodes_of(verlet):
    """Return the nodes of a list."""
    return Nodes(verlet.index, verlet.counts, verlet.inverse)


@inner
def certain_graph(verlet):
    """Return a copy of the graph of the certain pairs."""
    return Graph(verlet.parent.copy(), verlet.degree.copy())


@inner
def invalidate(verlet):
    """Mark a list as not valid."""
    verlet.skin[:] = _NOT_VALID


@inner
def displacement_ranges(before, now, changed, out):
    """Fill in the range of the displacements in each dim, increased by the largest possible rounding of float32."""
    D = len(out)
    top, bottom = np.zeros(D, np.float32), np.zeros(D, np.float32)
    if changed.all():
        top[:] = -np.inf
        bottom[:] = np.inf
    for n in range(len(changed)):
        if changed[n]:
            _widen(before, now, n, top, bottom)
    for d in range(D):
        high, low = np.float64(top[d]), np.float64(bottom[d])
        out[d] = (high - low) + 2.0**-22 * max(abs(high), abs(low))


@inner_without_nan
def _widen(before, now, n, top, bottom):
    """Extend the ranges to the displacement of a token."""
    for d in range(len(top)):
        step = float32_value(now[n, d]) - float32_value(before[n, d])
        top[d] = step if step > top[d] else top[d]
        bottom[d] = step if step < bottom[d] else bottom[d]


@inner
def is_valid(verlet, words, changed, low, high):
    """Return whether the certain pairs of a list are still certain, and the tokens of each node still equal."""
    for d in range(len(low)):
        # written so that NaN makes the list invalid
        if not verlet.drift[d] + max(high[d] - verlet.high[d], verlet.low[d] - low[d], 0.0) <= verlet.skin[d]:
            return False
    for n in range(len(changed)):
        m = verlet.index[verlet.inverse[n]]
        if m != n and (changed[n] or changed[m]) and not equal_rows(words, n, m):
            return False
    return True
