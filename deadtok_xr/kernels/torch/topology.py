"""Measure the graph of tokens that lie within one threshold of each other in every dim, without N x N memory.

Identical rows become one node with a weight. Nodes are sorted along the dim in which they spread most. Pairs within the
threshold in this dim are listed a tile at a time and compared in the other dims, the widest first: a few dims for all
pairs, then twice as many for the remaining pairs, and so on. Components are merged by hooking each root to the lowest
root that is adjacent to it (Shiloach and Vishkin 1982). All figures stay on the device until the last step is done, and
are then copied together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deadtok_xr.kernels.torch.census import first_equal_rows
from deadtok_xr.kernels.torch.parts import (
    TILE,
    bit_words,
    float32_words,
    last_fresh,
    run_in_parts,
    select_steps,
    steps_per_tile,
    unsigned_zeros,
    with_device_lock,
)

INVALID = 5
"""The last of the figures, and the only one that is known if there is no graph."""


@with_device_lock
def topology(
    steps: Tensor,
    changed: NDArray[np.bool_],
    threshold: NDArray[np.float64],
    linked: bool,
    out: dict[str, NDArray[np.int64]],
    *,
    first: int = 0,
) -> None:
    """Fill ``out`` with the graph's figures at each step, as numba's kernel does for the spacing of the centroid.

    Parameters
    ----------
    steps
        bfloat16, float16 or float32 (t, n, d); or (1, n, d), positions that do not move while the threshold does.
    changed
        Which rows differ from the step before, (t - 1, n).
    threshold
        Largest L∞ distance of adjacent tokens, (t,); NaN where it is unknown.
    linked
        Whether equal tokens are adjacent.
    out
        Arrays to fill: figures (t, 6), as numba's `FIGURES` (-1 where a value is not finite); degrees and sizes
        (t, b), how many tokens have no neighbour, 1, 2 to 3, 4 to 7, ..., and how many components have 1, 2 to 3, ...
        tokens.
    first
        The first step to fill; those before it are known.
    """
    held, rows = len(steps) < len(threshold), bit_words(steps)
    fresh = np.append(True, threshold[1:] != threshold[:-1])
    fresh[1:] &= ~np.isnan(threshold[1:]) | ~np.isnan(threshold[:-1])
    if not held:
        fresh[1:] |= changed.any(axis=1)
    at = first + np.flatnonzero(fresh[first:])
    bins = out["degrees"].shape[1]
    limits = 2 ** torch.arange(bins - 1, device=steps.device)
    found = torch.empty((len(at), 6 + 2 * bins), dtype=torch.int64, device=steps.device)

    def work(part: slice) -> None:
        bits = rows if held else select_steps(rows, at[part])
        for t, figures in zip(range(len(at))[part], _graphs(bits, threshold[at[part]], linked, limits), strict=True):
            found[t] = figures

    run_in_parts(len(at), len(at) if held else steps_per_tile(rows), work)
    columns = np.split(found.cpu().numpy(), (6, 6 + bins), axis=1)
    for name, values in zip(("figures", "degrees", "sizes"), columns, strict=True):
        out[name][at] = values
        out[name][first:] = out[name][last_fresh(fresh)[first:]]


def _graphs(bits: Tensor, threshold: NDArray[np.float64], linked: bool, limits: Tensor) -> Iterator[Tensor]:
    """Yield the figures of the graph, its degrees and its sizes, for each threshold."""
    label = first_equal_rows(bits)
    invalid = (label < 0).sum(dim=1).tolist()
    nodes: _Nodes | None = None
    for t, limit in enumerate(threshold.tolist()):
        i = min(t, len(bits) - 1)
        if invalid[i] or np.isnan(limit):
            unknown = torch.full((6 + 2 * (len(limits) + 1),), -1, device=bits.device)
            unknown[INVALID] = invalid[i]
            yield unknown
            continue
        if i == t or nodes is None:
            nodes = _nodes(bits[i], label[i])
        yield _graph(nodes, limit, linked, limits)


@dataclass(frozen=True)
class _Nodes:
    """The distinct rows of a step.

    Attributes
    ----------
    rows
        float32 (p, d): the dim in which they spread most comes first, and they ascend in it.
    weight
        How many tokens are in each, (p,).
    """

    rows: Tensor
    weight: Tensor


def _nodes(bits: Tensor, label: Tensor) -> _Nodes:
    first, weight = torch.unique(label, return_counts=True)
    # by bits, because arithmetic in float32 may flush subnormals
    rows = unsigned_zeros(float32_words(bits[first])).view(torch.float32)
    spread = rows.amax(0).double() - rows.amin(0).double()
    rows = rows[:, spread.argsort(descending=True)]
    order = rows[:, 0].argsort()
    return _Nodes(rows[order], weight[order])


def _graph(nodes: _Nodes, threshold: float, linked: bool, limits: Tensor) -> Tensor:
    weight = nodes.weight
    parent = torch.arange(len(weight), device=weight.device)
    degree = weight - 1 if linked else torch.zeros_like(weight)
    near = _Near(nodes.rows[:, 0].double(), threshold)

    def work(part: slice) -> None:
        nonlocal parent, degree
        a, b = _close(nodes.rows, *near.pairs(part), threshold)
        parent = _joined(parent, a, b)  # repeating it changes nothing
        degree = degree.index_add(0, a, weight[b]).index_add(0, b, weight[a])

    run_in_parts(near.total, TILE, work)
    return _figures(parent, degree, weight, limits)


class _Near:
    """All pairs a < b of ascending numbers that may lie within a threshold, numbered."""

    def __init__(self, along: Tensor, threshold: float) -> None:
        # with a small margin, because this sum may be rounded differently from the difference that decides
        reach = threshold + 2.0**-50 * (along.abs() + threshold)
        end = torch.searchsorted(along, along + reach, right=True)
        count = end - torch.arange(1, len(along) + 1, device=along.device)
        self._before = count.cumsum(0) - count
        self.total = int(count.sum())

    def pairs(self, part: slice) -> tuple[Tensor, Tensor]:
        """Return some of them, as their first and their second members."""
        pair = torch.arange(part.start, part.stop, device=self._before.device)
        a = torch.searchsorted(self._before, pair, right=True) - 1
        return a, a + 1 + pair - self._before[a]


def _close(rows: Tensor, a: Tensor, b: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Return the pairs of rows that are within the threshold in every dim."""
    d = width = 0
    while d < rows.shape[1] and len(a):
        width = max(1, min(2 * width, TILE // len(a)))
        some = rows[:, d : d + width]
        close = ((some[a].double() - some[b].double()).abs() <= threshold).all(dim=1)
        a, b = a[close], b[close]
        d += width
    return a, b


def _joined(parent: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return the root of each node, the lowest of its component, after adding some edges."""
    x, y = parent[a], parent[b]
    while True:
        apart = x != y
        x, y = x[apart], y[apart]
        if not len(x):
            return parent
        parent = parent.scatter_reduce(0, torch.maximum(x, y), torch.minimum(x, y), "amin")
        while not torch.equal(parent, above := parent[parent]):
            parent = above
        x, y = parent[x], parent[y]


def _figures(parent: Tensor, degree: Tensor, weight: Tensor, limits: Tensor) -> Tensor:
    """Count as numba's `count` does; a node without a neighbour is one component for each of its tokens.

    ``limits`` are 1, 2, 4, ...: the least of each bin but the first.
    """
    nothing = torch.zeros(len(limits) + 1, dtype=torch.int64, device=parent.device)
    paired = degree > 0
    alone = (weight * ~paired).sum()
    size = torch.zeros_like(weight).index_add_(0, parent, weight * paired)
    there = (size > 0).long()
    degrees = nothing.index_add(0, torch.bucketize(degree, limits, right=True), weight)
    sizes = nothing.index_add(0, (torch.bucketize(size, limits, right=True) - 1).clamp(0), there)
    sizes[0] = alone
    figures = ((weight * degree).sum() // 2, size.max().clamp(1), alone, there.sum() + alone, degree.max(), nothing[0])
    return torch.cat([torch.stack(figures), degrees, sizes])
