"""Measure the graph of tokens that lie within a threshold of each other in every dim, without N x N memory.

Equal tokens become one node (`unique_rows`). All pairs are measured at some steps (`pairs`); at the steps between, only
the pairs near the threshold (`verlet_list`); and no pairs at a step at which nothing moves.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.kernels.numba.adjacency import CENTROID, ELEMENT, PAIR, Positions, Rule, limits_of, rule
from deadtok_xr.kernels.numba.bit_words import INFINITY, MAGNITUDE, float32_value, float32_word
from deadtok_xr.kernels.numba.components import FIGURES, INVALID, count, name_components
from deadtok_xr.kernels.numba.jit import compiled, inner
from deadtok_xr.kernels.numba.pairs import add_open_pairs, measure_all
from deadtok_xr.kernels.numba.rows import copy_row
from deadtok_xr.kernels.numba.verlet_list import (
    VerletList,
    certain_graph,
    displacement_ranges,
    empty_verlet_list,
    invalidate,
    is_valid,
    nodes_of,
)

__all__ = [
    "CENTROID", "ELEMENT", "FIGURES", "PAIR", "centroids", "count_not_finite", "empty_verlet_list", "rule", "topology",
]  # fmt: skip


class TopologyOutputs(NamedTuple):
    """The arrays that `topology` fills."""

    figures: Any
    degrees: Any
    sizes: Any
    label: Any


def topology(
    steps: NDArray[Any],
    changed: NDArray[np.bool_],
    threshold: NDArray[np.float64],
    rule: Rule,
    verlet: VerletList,
    out: dict[str, NDArray[Any]],
    *,
    first: int = 0,
) -> VerletList:
    """Fill ``out`` with the graph's figures at each step.

    Parameters
    ----------
    steps
        Words (t, n, d); or (1, n, d), positions that do not move while the threshold does.
    changed
        Which rows differ from the step before, (t - 1, n).
    threshold
        Largest L∞ distance of adjacent tokens, (t,), of the spacing `CENTROID`; NaN where a value is not finite.
    rule
        See `rule`.
    verlet
        The list that an earlier call returned for the first step, or `empty_verlet_list`; updated.
    out
        Arrays to fill: figures (t, 6), see `FIGURES` (-1 where a value is not finite); degrees and sizes (t, b),
        how many tokens have no neighbour, 1, 2 to 3, 4 to 7, ..., and how many components have 1, 2 to 3, ... tokens;
        label (t, n), the first token of each token's component, or (t, 0).
    first
        The first step to fill; those before it are known.

    Returns
    -------
    The list at the last step.
    """
    outputs = TopologyOutputs(*(out[name] for name in TopologyOutputs._fields))
    return _topology(steps, changed, changed.any(axis=1), threshold, rule, verlet, first, outputs)


def centroids(
    steps: NDArray[Any], changed: NDArray[np.bool_], before: NDArray[np.float64] | None
) -> NDArray[np.float64]:
    """Return the mean over tokens, (t, d); NaN in the dims in which a token is not finite.

    Parameters
    ----------
    steps
        Words (t, n, d).
    changed
        Which rows differ from the step before, (t - 1, n).
    before
        The centroid of the first step, if it is known.
    """
    out = np.empty((steps.shape[0], steps.shape[2]))
    if before is not None:
        out[0] = before
    _centroids(steps, changed.any(axis=1), int(before is not None), out)
    return out


@compiled
def _centroids(words, any_changed, first, out):
    for t in range(first, len(words)):
        if t > 0 and not any_changed[t - 1]:
            copy_row(out, t - 1, out, t)
        else:
            _mean(words[t], out[t])


@inner
def _mean(words, out):
    N, D = words.shape
    out[:] = 0.0
    for n in range(N):
        for d in range(D):
            out[d] += np.float64(float32_value(words[n, d]))
    for d in range(D):
        out[d] = out[d] / N if np.isfinite(out[d]) else np.nan


@compiled
def _topology(words, changed, any_changed, threshold, rule, verlet, first, out):
    held = len(words) < len(threshold)  # positions that do not move
    token_thresholds = np.empty(words.shape[1] if rule.spacing == PAIR else 0)
    none_changed = np.zeros(words.shape[1], np.bool_)
    for t in range(first, len(threshold)):
        step = words[0 if held else t]
        moved = t > 0 and not held and any_changed[t - 1]
        if t > 0 and not moved and (threshold[t] == threshold[t - 1] or rule.spacing != CENTROID):
            _repeat(out, t)
            continue
        if t == first or moved:
            out.figures[t, INVALID] = count_not_finite(step)
        elif t > 0:
            out.figures[t, INVALID] = out.figures[t - 1, INVALID]
        motion = np.zeros(words.shape[2])
        if moved:
            displacement_ranges(words[t - 1], step, changed[t - 1], motion)
        for d in range(len(motion)):
            verlet.drift[d] += motion[d]
        if out.figures[t, INVALID] or np.isnan(threshold[t]):
            out.figures[t, :INVALID] = -1
            out.label[t] = -1
            invalidate(verlet)
            continue
        positions = Positions(step, threshold[t], token_thresholds, rule)
        verlet, graph = _graph(positions, changed[t - 1] if moved else none_changed, verlet, motion)
        count(graph, nodes_of(verlet), out.figures[t], out.degrees[t], out.sizes[t])
        if out.label.shape[1]:
            name_components(graph, nodes_of(verlet), out.label[t])
    return verlet


@inner
def _repeat(out, t):
    """Fill in a step that has the graph of the step before."""
    copy_row(out.figures, t - 1, out.figures, t)
    copy_row(out.degrees, t - 1, out.degrees, t)
    copy_row(out.sizes, t - 1, out.sizes, t)
    copy_row(out.label, t - 1, out.label, t)


@inner
def _graph(positions, changed, verlet, motion):
    """Return the list at a step, and its graph."""
    low, high = limits_of(positions)
    if not is_valid(verlet, positions.words, changed, low, high):
        return measure_all(positions, low, high, verlet, motion)
    graph = certain_graph(verlet)
    add_open_pairs(positions, verlet, graph)
    return verlet, graph


@compiled
def count_not_finite(words):
    """Count the rows of a step of words (n, d) that hold NaN or infinity."""
    count = 0
    for n in range(words.shape[0]):
        top = np.uint32(0)
        for d in range(words.shape[1]):
            top = max(top, float32_word(words[n, d]) & MAGNITUDE)
        count += top >= INFINITY
    return count
