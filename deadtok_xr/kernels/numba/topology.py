"""The graph of tokens that lie within a threshold of each other in every dim, without N x N memory.

Rows of equal values become one node with a weight (`places`). All pairs are measured now and then (`pairs`); at the
steps between, only those that are near the threshold (`shell`); at a step at which nothing moves, none.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.kernels.numba.adjacency import CENTROID, ELEMENT, PAIR, Rule, limits_of, rule
from deadtok_xr.kernels.numba.bit_words import INFINITY, MAGNITUDE, float32_value, float32_word
from deadtok_xr.kernels.numba.components import FIGURES, INVALID, count, name_components
from deadtok_xr.kernels.numba.jit import compiled
from deadtok_xr.kernels.numba.pairs import join_open, measure
from deadtok_xr.kernels.numba.verlet_list import VerletList, empty_verlet_list, grow, holds, invalidated

__all__ = [
    "CENTROID",
    "ELEMENT",
    "FIGURES",
    "PAIR",
    "centroids",
    "count_not_finite",
    "empty_verlet_list",
    "rule",
    "topology",
]


def topology(
    steps: NDArray[Any],
    shift: int,
    changed: NDArray[np.bool_],
    threshold: NDArray[np.float64],
    rule: Rule,
    shell: VerletList,
    out: dict[str, NDArray[Any]],
    *,
    first: int = 0,
) -> VerletList:
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
        As an earlier call returned it for the first step, or `empty_verlet_list`.
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
            out[d] += np.float64(float32_value(words[n, d], shift))
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
            figures[t, INVALID] = count_not_finite(words[at], shift)
        elif t > 0:
            figures[t, INVALID] = figures[t - 1, INVALID]
        growth[:] = 0.0
        if moved:
            grow(words[t - 1], words[t], shift, changed[t - 1], growth)
        shell.clock[:] += growth
        if figures[t, INVALID] or np.isnan(threshold[t]):
            figures[t, :INVALID] = -1
            label[t] = -1
            shell = invalidated(shell, shell.factor)
            continue
        low, high = limits_of(words[at], shift, threshold[t], rule, cells)
        if holds(words[at], shift, changed[t - 1] if moved else nothing, low, high, shell):
            parent, degree = shell.parent.copy(), shell.degree.copy()
            join_open(words[at], shift, threshold[t], rule, cells, shell, parent, degree)
        else:
            shell, parent, degree = measure(words[at], shift, threshold[t], low, high, rule, cells, shell, growth)
        count(parent, degree, shell.weight, figures[t], degrees[t], sizes[t])
        if label.shape[1]:
            name_components(parent, degree, shell.node, label[t])
    return shell


@compiled
def count_not_finite(words, shift):
    """How many rows of a step of words (n, d) hold NaN or infinity."""
    count = 0
    for n in range(words.shape[0]):
        top = np.uint32(0)
        for d in range(words.shape[1]):
            top = max(top, float32_word(words[n, d], shift) & MAGNITUDE)
        count += top >= INFINITY
    return count
