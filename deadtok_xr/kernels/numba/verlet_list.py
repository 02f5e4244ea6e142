"""What is known of a graph from when all its pairs were measured, and for how long it holds.

Each pair is *certain* to stay adjacent for a while, certain to stay apart, or *open*: within a skin of the threshold.
What can change a distance in a dim is that two tokens move differently there, so at each step the clock of a dim
advances by the range of the displacements in it. While no clock, and no change of the threshold, has used up the skin,
the answer is that of the certain pairs and of the open ones, which are measured exactly; then all are measured anew.
(Molecular dynamics knows this as Verlet's list.)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from deadtok_xr.kernels.numba.bit_words import float32_value
from deadtok_xr.kernels.numba.jit import compiled, compiled_without_nan
from deadtok_xr.kernels.numba.unique_rows import equal_rows


class VerletList(NamedTuple):
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


def empty_verlet_list(n_tokens: int, n_dims: int) -> VerletList:
    """Before any pair has been measured."""
    clock, skin, low, high = np.zeros((4, n_dims))
    place, weight, node, parent, degree = np.zeros((5, n_tokens), np.int64)
    pairs = np.empty((0, 2), np.int32)
    return VerletList(False, 8.0, clock, skin, low, high, place, weight, node, parent, degree, pairs)


@compiled
def invalidated(shell, factor):
    return VerletList(
        False, factor, shell.clock, shell.skin, shell.low, shell.high,
        shell.place, shell.weight, shell.node, shell.parent, shell.degree, shell.pairs,
    )  # fmt: skip


@compiled
def grow(before, now, shift, changed, growth):
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


@compiled_without_nan
def _widen(before, now, n, shift, top, bottom):
    for d in range(len(top)):
        step = float32_value(now[n, d], shift) - float32_value(before[n, d], shift)
        top[d] = step if step > top[d] else top[d]
        bottom[d] = step if step < bottom[d] else bottom[d]


@compiled
def holds(words, shift, changed, low, high, shell):
    """Whether the certain pairs are still certain, and the tokens of each node still together."""
    if not shell.known:
        return False
    for d in range(len(low)):
        # written so that NaN says no
        if not shell.clock[d] + max(high[d] - shell.high[d], shell.low[d] - low[d], 0.0) <= shell.skin[d]:
            return False
    for n in range(len(changed)):
        m = shell.place[shell.node[n]]
        if m != n and (changed[n] or changed[m]) and not equal_rows(words, n, m, shift):
            return False
    return True
