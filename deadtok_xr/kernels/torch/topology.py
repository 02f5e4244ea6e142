"""The graph of tokens that lie within a threshold of each other in every dim, without N x N memory.

Identical rows become one node with a weight. Nodes are sorted along the dim in which they spread most; pairs within
the threshold there are listed a tile at a time and compared in the other dims, widest first, each dim with the pairs
that the ones before left. What joins components that were apart goes to the host, where there are at most as many
edges as pairs in a tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from deadtok_xr.kernels.torch.census import places
from deadtok_xr.kernels.torch.parts import TILE, latest, over, own_turn

FIGURES = ("density", "largest_component", "n_singletons", "n_components", "n_invalid")


@own_turn
def topology(
    steps: Tensor,
    changed: NDArray[np.bool_],
    threshold: NDArray[np.float64],
    linked: bool,
    out: dict[str, NDArray[Any]],
) -> None:
    """Fill ``out`` with the graph's figures at each step, as numba's kernel does.

    Parameters
    ----------
    steps
        (t, n, d).
    changed
        Which rows differ from the step before, at least (t - 1, n).
    threshold
        Largest L∞ distance of adjacent tokens, (t,).
    linked
        Whether tokens in the very same place are adjacent.
    out
        Arrays (t,) to fill: density (NaN where a value is not finite), largest_component, n_singletons,
        n_components (-1 there) and n_invalid.
    """
    fresh = np.append(True, changed[: len(steps) - 1].any(axis=1))
    found = np.zeros((len(steps), len(FIGURES)))

    def work(part: slice) -> None:
        for t in np.flatnonzero(fresh[part]) + part.start:
            found[t] = _graph(steps[t].float() + 0.0, float(threshold[t]), linked)  # -0 and +0 are the same place

    over(len(steps), len(steps), work)
    found = found[latest(fresh)]
    for i, name in enumerate(FIGURES):
        out[name][:] = found[:, i]


def _graph(rows: Tensor, threshold: float, linked: bool) -> tuple[float, ...]:
    n = len(rows)
    invalid = int((~rows.isfinite().all(dim=1)).sum())
    if invalid:
        return np.nan, -1, -1, -1, invalid
    first, weight = torch.unique(places(rows.view(torch.int32)), return_counts=True)
    nodes = rows[first]
    dims = (nodes.amax(0) - nodes.amin(0)).argsort(descending=True).tolist()
    order = nodes[:, dims[0]].argsort()
    edges, label, paired = _joined(nodes[order], weight[order], dims, threshold)
    weights = weight[order].cpu().numpy()
    if linked:
        edges += int((weights * (weights - 1) // 2).sum())
    density = edges / (n * (n - 1) // 2) if n > 1 else 0.0
    return density, *_components(label, weights, paired | linked), 0


def _components(label: NDArray[Any], weight: NDArray[np.int64], whole: NDArray[np.bool_]) -> tuple[int, int, int]:
    """The largest component, singletons, and components; a node that is not ``whole`` is one for each of its rows."""
    alone = int(weight[~whole].sum())
    sizes = np.bincount(label[whole], weight[whole]).astype(np.int64)
    sizes = sizes[sizes > 0]
    return int(max(1, sizes.max(initial=1))), alone + int((sizes == 1).sum()), alone + len(sizes)


def _joined(
    nodes: Tensor, weight: Tensor, dims: list[int], threshold: float
) -> tuple[int, NDArray[Any], NDArray[np.bool_]]:
    """Edges between the rows of nodes, the component of each node, and which nodes have a neighbour."""
    label = np.arange(len(nodes))
    paired = torch.zeros(len(nodes), dtype=torch.bool, device=nodes.device)
    edges = 0
    for a, b in _near(nodes[:, dims[0]].double(), threshold):
        for d in dims:
            x = nodes[:, d].double()
            close = (x[a] - x[b]).abs() <= threshold
            a, b = a[close], b[close]
            if not len(a):
                break
        edges += int((weight[a] * weight[b]).sum())
        paired[a] = paired[b] = True
        label = _merged(label, a, b)
    return edges, label, paired.cpu().numpy()


def _near(along: Tensor, threshold: float) -> Iterator[tuple[Tensor, Tensor]]:
    """All pairs a < b of ascending numbers that may lie within the threshold, a tile at a time."""
    # a little wide: a sum may round the other way than the difference that decides
    reach = threshold + 2.0**-50 * (along.abs() + threshold)
    end = torch.searchsorted(along, along + reach, right=True)
    count = end - torch.arange(1, len(along) + 1, device=along.device)
    before = count.cumsum(0) - count
    total = int(count.sum())
    for first in range(0, total, TILE):
        pair = torch.arange(first, min(first + TILE, total), device=along.device)
        a = torch.searchsorted(before, pair, right=True) - 1
        yield a, a + 1 + pair - before[a]


def _merged(label: NDArray[Any], a: Tensor, b: Tensor) -> NDArray[Any]:
    """Components of nodes after some more edges."""
    known = torch.from_numpy(label).to(a.device)
    ends = torch.stack([known[a], known[b]])
    ends = torch.unique(ends[:, ends[0] != ends[1]], dim=1).cpu().numpy()
    if not ends.size:
        return label
    graph = coo_array((np.ones(ends.shape[1], np.bool_), tuple(ends)), shape=(len(label),) * 2)
    merged: NDArray[Any] = connected_components(graph, directed=False)[1][label]
    return merged
