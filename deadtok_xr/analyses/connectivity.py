"""Find the smallest threshold at which all tokens are connected, and the thresholds at which components merge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from deadtok_xr.analyses.common import checks, step_selection, summary_text
from deadtok_xr.analyses.common.adjacency import check_grid
from deadtok_xr.analyses.registry import Finding, KeyFigure, Picture, built_in
from deadtok_xr.bfloat16 import get_grid, ulp
from deadtok_xr.engine import AnalysisSpec, Batch, Cost, Output, ReductionResults, SingleVariable, Sizes, StepBlock
from deadtok_xr.engine.small_results import Arrays, compute_together

ATTRS: dict[str, dict[str, Any]] = {
    "connectivity_threshold": {
        "long_name": "smallest L∞ threshold at which all tokens are connected", "units": "1",
        "formula": "longest edge of the minimum spanning tree under max_d |a - b|",
    },
    "connectivity_k": {
        "long_name": "connectivity threshold in mean ULP at the centroid", "units": "mean ULP",
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
_AT_MOST, _AT_LEAST = 7, 3
_OPERATIONS = 1e12
"""N²·D of all steps that are selected by default: some 8 s."""


@built_in
def connectivity(
    ds: xr.Dataset, *, steps: Sequence[int] | None = None, variable: str = "W", precision: str | None = None
) -> AnalysisSpec:
    """Find the smallest threshold at which the graph of neighbours is connected, and those at which components merge.

    Parameters
    ----------
    ds
        A recording, (step, token, dim); gaps in the steps do not matter.
    steps
        Labels of the steps; by default seven at equal distances, the first and the last among them, of many tokens of a
        wide model fewer, at least three, if all would take more than 10¹² operations.
    variable, precision
        As for `motion`.

    Returns
    -------
    xarray.Dataset
        Lazy dataset over the selected steps, float64: `connectivity_threshold`, `connectivity_k` (in mean ULP: the
        ``k`` at which `topology` with ``coincident="linked"`` has one component), `mean_ulp`, and `merge_threshold`
        (step, edge), N - 1 in ascending order; `n_invalid` int64. A step with NaN or infinity is NaN.

    Raises
    ------
    InputError
        For steps that are not in the recording, or a recording without absolute positions.
    OffGridError
        When computed, if values are not on the grid.

    Notes
    -----
    The threshold is the bottleneck of the minimum spanning tree. A step takes some P²/2·D operations on bytes for P
    distinct places: a tenth of a second for 3,700 x 64, and 5 s for 20,000 x 768 that spread equally in all dims.
    """
    x = checks.require(ds, variable, "connectivity")
    grid = checks.grid_name(x, precision)
    n = ds.sizes["token"]
    at_most = step_selection.affordable(_AT_MOST, _AT_LEAST, n**2 * ds.sizes["dim"], _OPERATIONS)
    at = step_selection.select_steps(ds["step"].values, steps, "connectivity", at_most)
    shapes: dict[str, Any] = {
        name: (("step",), (len(at),), "i8" if name == "n_invalid" else "f8")
        for name in ATTRS
        if name != "merge_threshold"
    }
    shapes["merge_threshold"] = (("step", "edge"), (len(at), n - 1), "f8")

    def finish(results: ReductionResults) -> xr.Dataset:
        trees = results.merged("trees", "trees", _append)
        values = compute_together({"trees": trees}, _tabulate, shapes, ATTRS, n_edges=n - 1)
        attrs = checks.result_attrs(ds, variable=variable, precision=grid)
        return xr.Dataset(values, {"step": ds["step"].variable[list(at)]}, attrs)

    return AnalysisSpec({variable: checks.as_dask(x.data)}, {"trees": SpanningTrees(variable, grid, at)}, finish)


@dataclass(frozen=True)
class SpanningTrees(SingleVariable):
    """The reduction that finds minimum spanning trees at selected steps.

    Attributes
    ----------
    grid
        The number format.
    at
        Positions of the steps.
    """

    grid: str
    at: tuple[int, ...]

    def outputs(self) -> dict[str, Output]:
        """Return `trees`, one list per block."""
        return {"trees": Output(at="block")}

    def start(self, block: StepBlock) -> _Accumulator:
        """Return an accumulator for a block."""
        return _Accumulator(self)

    def cost(self, sizes: Sizes) -> Cost:
        """Return what it costs."""
        seconds = (8e-3 + (12e-9 + 0.01e-9 * sizes.dims) * sizes.tokens**2 / 2) * len(self.at)
        rows = 128 * -(-sizes.dims // 128) + 250  # a byte for each element; hashes and near rows
        return Cost(seconds, temporary=rows * sizes.tokens, kept=8 * sizes.tokens * len(self.at))


class _Accumulator:
    def __init__(self, reduction: SpanningTrees) -> None:
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
        n_invalid = count_not_finite(step[0])
        if n_invalid:
            return {"n_invalid": n_invalid, "mean_ulp": np.nan, "merge_threshold": np.nan}
        centre = centroids(step, np.zeros((0, step.shape[1]), np.bool_), None)
        rounded = centre.astype(np.float32).astype(get_grid(self.reduction.grid).dtype)
        mean_ulp = float(ulp(rounded, self.reduction.grid).mean())
        return {"n_invalid": 0, "mean_ulp": mean_ulp, "merge_threshold": spanning_tree(step[0])}

    def result(self) -> dict[str, Any]:
        return {"trees": self.trees}


def _append(a: list[Any], b: list[Any]) -> list[Any]:
    return a + b


def _tabulate(inputs: dict[str, list[Any]], *, n_edges: int) -> Arrays:
    (trees,) = inputs["trees"]
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
    rows = zip(ds["step"].values, ds["connectivity_threshold"].values, ds["connectivity_k"].values, strict=True)
    shown = [f"step {step}: {x:.4g} ({k:.4g} mean ULP)" for step, x, k in rows]
    for i in range(0, len(shown), 3):
        yield f"  {'' if i else 'threshold':17s} {', '.join(shown[i : i + 3])}"


@connectivity.find
def _findings(ds: xr.Dataset) -> Iterator[Finding]:
    threshold, k, steps = (ds[name].values for name in ("connectivity_threshold", "connectivity_k", "step"))
    if (at := summary_text.ends(threshold)) is not None:
        x, spacings = threshold[at[1]], summary_text.number(k[at[1]])
        yield Finding(
            0.3, f"At step {steps[at[1]]} the tokens are one connected group at a distance of {x:.3g}, {spacings} "
            "times the spacing of the grid."
        )  # fmt: skip


@connectivity.measure
def _key_figure(ds: xr.Dataset) -> KeyFigure:
    k = ds["connectivity_k"].values
    return KeyFigure("distance that connects all, in mean ULP", k[0], k[-1])


connectivity.invalid = "which have no graph"
connectivity.over_runs = "connectivity_threshold"
connectivity.pictures = (
    Picture(
        "connectivity",
        "connectivity.connectivity",
        "At which distance are all tokens connected?",
        "The number of components by the distance up to which tokens count as neighbours, at selected steps. A cross "
        "marks the spacing of the grid: the fewer components there, the closer the cloud is to a crystal.",
    ),
)
