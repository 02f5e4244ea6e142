"""At which threshold do the tokens become one component, and how do they merge on the way there?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from deadtok_xr.analyses.common import checks, summary_text
from deadtok_xr.analyses.common.graph_walk import check_grid
from deadtok_xr.analyses.common.transitions import grid_name
from deadtok_xr.analyses.registry import Picture, built_in
from deadtok_xr.bfloat16 import get_grid, ulp
from deadtok_xr.engine import AnalysisSpec, Batch, Output, ReductionResults, SingleVariable, StepBlock
from deadtok_xr.engine.small_results import Arrays, compute_together
from deadtok_xr.errors import InputError

ATTRS: dict[str, dict[str, Any]] = {
    "connectivity_threshold": {
        "long_name": "smallest L∞ threshold at which all tokens are connected", "units": "1",
        "formula": "longest edge of the minimum spanning tree under max_d |a - b|",
    },
    "connectivity_k": {
        "long_name": "that threshold in mean ULP at the centroid", "units": "mean ULP",
        "formula": "connectivity_threshold / mean_ulp",
    },
    "mean_ulp": {
        "long_name": "mean over dims of the ULP at the centroid", "units": "1",
        "formula": "mean_d ULP(bf16(f32(C[t,d])))",
    },
    "merge_threshold": {
        "long_name": "thresholds at which two components merge", "units": "1",
        "formula": "edges of the minimum spanning tree, ascending",
        "comment": "N - #(merge_threshold <= x) components at x; tokens in the same place count as connected",
    },
    "n_invalid": {"long_name": "tokens with NaN or infinity at t", "units": "1"},
}  # fmt: skip


@built_in
def connectivity(
    ds: xr.Dataset, *, steps: Sequence[int] | None = None, variable: str = "W", precision: str | None = None
) -> AnalysisSpec:
    """The smallest threshold at which the graph of neighbours is connected, and all at which components merge.

    Parameters
    ----------
    ds
        A recording, (step, token, dim); gaps in the steps do not matter.
    steps
        Labels of the steps to look at; by default the first, the last, and the five that lie evenly between them.
    variable, precision
        As for `motion`.

    Returns
    -------
    xarray.Dataset
        Lazy dataset over the chosen steps, float64: `connectivity_threshold`, `connectivity_k` (in mean ULP: the ``k``
        of `topology`, ``coincident="linked"``, at which there is one component), `mean_ulp`, and `merge_threshold`
        (step, edge), N - 1 in ascending order; `n_invalid` int64. A step with NaN or infinity is NaN.

    Raises
    ------
    InputError
        For steps that are not in the recording, or a recording without absolute positions.
    OffGridError
        When computed, if values are not on the grid.

    Notes
    -----
    The bottleneck of the minimum spanning tree. A step takes P²/2·D operations for P distinct places, a tenth of a
    second for 3,700 x 64.
    """
    x = checks.require(ds, variable, "connectivity")
    grid = grid_name(x, precision)
    at = _positions(ds["step"].values, steps)
    n = ds.sizes["token"]
    shapes: dict[str, Any] = {
        name: (("step",), (len(at),), "i8" if name == "n_invalid" else "f8")
        for name in ATTRS
        if name != "merge_threshold"
    }
    shapes["merge_threshold"] = (("step", "edge"), (len(at), n - 1), "f8")

    def finish(found: ReductionResults) -> xr.Dataset:
        trees = found.merged("trees", "trees", _both)
        values = compute_together({"trees": trees}, _table, shapes, ATTRS, n_edges=n - 1)
        attrs = checks.result_attrs(ds, variable=variable, precision=grid)
        return xr.Dataset(values, {"step": ds["step"].variable[list(at)]}, attrs)

    return AnalysisSpec({variable: checks.as_dask(x.data)}, {"trees": Trees(variable, grid, at)}, finish)


def _positions(labels: Any, steps: Sequence[int] | None) -> tuple[int, ...]:
    if steps is None:
        return tuple(int(i) for i in np.unique(np.linspace(0, len(labels) - 1, 7).round()))
    missing = [step for step in steps if step not in labels]
    if missing or not len(steps):
        what = f"step {missing[0]} is not in the recording" if missing else "no step is named"
        raise InputError(f"connectivity: {what}; choose among its {len(labels)} steps, {labels[0]} to {labels[-1]}")
    return tuple(sorted({int(np.flatnonzero(labels == step)[0]) for step in steps}))


@dataclass(frozen=True)
class Trees(SingleVariable):
    """The reduction of spanning trees at some positions in the recording."""

    grid: str
    at: tuple[int, ...]

    def outputs(self) -> dict[str, Output]:
        """One list of trees per row."""
        return {"trees": Output(at="block")}

    def start(self, block: StepBlock) -> _Accumulator:
        """Start with a block."""
        return _Accumulator(self)


class _Accumulator:
    def __init__(self, reduction: Trees) -> None:
        self.reduction, self.trees = reduction, list[dict[str, Any]]()

    def update(self, batch: Batch) -> None:
        begin = batch.block.first + batch.start
        for position in self.reduction.at:
            if begin <= position < begin + batch.n_states:
                self.trees.append(self._tree(batch, position - begin))

    def _tree(self, batch: Batch, t: int) -> dict[str, Any]:
        from deadtok_xr import kernels
        from deadtok_xr.kernels.numba.spanning_tree import spanning_tree
        from deadtok_xr.kernels.numba.topology import centroids, count_not_finite

        values = batch.values[self.reduction.variable][t : t + 1]
        check_grid(self.reduction.variable, values, self.reduction.grid)
        step = kernels.float32_words(values)
        shift = kernels.word_shift(step)
        n_invalid = count_not_finite(step[0], shift)
        if n_invalid:
            return {"n_invalid": n_invalid, "mean_ulp": np.nan, "merge_threshold": np.nan}
        centre = centroids(step, shift, np.zeros((0, step.shape[1]), np.bool_), None)
        rounded = centre.astype(np.float32).astype(get_grid(self.reduction.grid).dtype)
        mean_ulp = float(ulp(rounded, self.reduction.grid).mean())
        return {"n_invalid": 0, "mean_ulp": mean_ulp, "merge_threshold": spanning_tree(step[0], shift)}

    def result(self) -> dict[str, Any]:
        return {"trees": self.trees}


def _both(a: list[Any], b: list[Any]) -> list[Any]:
    return a + b


def _table(inputs: dict[str, list[Any]], *, n_edges: int) -> Arrays:
    trees = inputs["trees"]
    merge = np.stack([np.broadcast_to(tree["merge_threshold"], (n_edges,)) for tree in trees])
    mean_ulp = np.array([tree["mean_ulp"] for tree in trees])
    n_invalid = np.array([tree["n_invalid"] for tree in trees])
    longest = merge.max(axis=1) if n_edges else np.where(n_invalid > 0, np.nan, 0.0)
    return {
        "connectivity_threshold": longest,
        "connectivity_k": longest / mean_ulp,
        "mean_ulp": mean_ulp,
        "merge_threshold": merge,
        "n_invalid": n_invalid,
    }


@connectivity.summarize
def _summary(ds: xr.Dataset) -> Iterator[str]:
    yield "Connectivity, smallest L∞ threshold that connects all tokens"
    said = zip(ds["step"].values, ds["connectivity_threshold"].values, ds["connectivity_k"].values, strict=True)
    shown = [f"step {step}: {x:.4g} ({k:.4g} mean ULP)" for step, x, k in said]
    for i in range(0, len(shown), 3):
        yield f"  {'' if i else 'threshold':17s} {', '.join(shown[i : i + 3])}"
    yield from summary_text.invalid_steps(ds, "which have no graph")


connectivity.pictures = (
    Picture(
        "connectivity",
        "connectivity.connectivity",
        "How close is one component?",
        "The smallest distance at which all tokens hang together, at chosen steps, against the spacing of the "
        "grid. The nearer the two, the closer the cloud is to a crystal.",
    ),
)
