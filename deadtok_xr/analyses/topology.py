"""Measure the graph of tokens that are adjacent on the lattice, and classify the cloud as gas or crystal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deadtok_xr.analyses.common import checks, coordinates, summary_text
from deadtok_xr.analyses.common.adjacency import SPACINGS, Adjacency, AdjacencyTracker, check_options, n_bins
from deadtok_xr.analyses.registry import Finding, KeyFigure, Picture, built_in
from deadtok_xr.bfloat16 import get_grid
from deadtok_xr.engine import AnalysisSpec, Batch, Cost, Output, OutputAccumulator, ReductionResults, Sizes, StepBlock
from deadtok_xr.engine.series import Series
from deadtok_xr.engine.small_results import Arrays, compute_together
from deadtok_xr.errors import InputError
from deadtok_xr.store.stored_array import first_step

STATES = ("gas", "clusters", "crystal")
VERDICTS = ("neither", "stays_gas", "stays_crystal", "evaporates", "crystallizes",
            "evaporates_then_crystallizes", "crystallizes_then_evaporates", "alternates", "unknown")  # fmt: skip
_FLAGS = {"flag_values": [0, 1, 2], "flag_meanings": " ".join(STATES)}
_BINS = "in bins 0, 1, 2 to 3, 4 to 7, ...; the coordinate is the lower end of each"
_STATE = (
    "crystal: more than half of the tokens in one component; gas: more than half without a neighbour; else clusters"
)
ATTRS: dict[str, dict[str, Any]] = {
    "mean_ulp": {
        "long_name": "mean over dims of the ULP at the centroid", "units": "1",
        "formula": "mean_d ULP(bf16(f32(C[t,d])))",
    },
    "density": {"long_name": "share of all pairs that are adjacent", "units": "1", "formula": "edges / (N(N-1)/2)"},
    "largest_component": {"long_name": "tokens in the largest connected component", "units": "1"},
    "n_singletons": {"long_name": "tokens without a neighbour", "units": "1"},
    "n_components": {"long_name": "connected components", "units": "1"},
    "n_invalid": {"long_name": "tokens with NaN or infinity at t", "units": "1"},
    "degree_max": {"long_name": "most neighbours of any token", "units": "1"},
    "degree_tokens": {"long_name": "tokens by the number of their neighbours", "units": "1", "comment": _BINS},
    "size_components": {"long_name": "components by the number of their tokens", "units": "1", "comment": _BINS},
    "state": {"long_name": "state of the cloud", "units": "1", "comment": _STATE + "; -1 unknown", **_FLAGS},
}  # fmt: skip
VERDICT_ATTRS: dict[str, dict[str, Any]] = {
    "verdict": {
        "long_name": "evolution of the cloud", "units": "1", "flag_values": list(range(len(VERDICTS))),
        "flag_meanings": " ".join(VERDICTS),
        "comment": "changes to gas (evaporates) and to crystal (crystallizes), possibly via clusters",
    },
    "evaporation_step": {"long_name": "first step of gas after another state; -1 never", "units": "step"},
    "crystallization_step": {"long_name": "first step of crystal after another state; -1 never", "units": "step"},
    "n_changes": {"long_name": "changes to gas and to crystal", "units": "1"},
}  # fmt: skip
_COUNTS = {"largest_component": 1, "n_singletons": 2, "n_components": 3, "degree_max": 4, "n_invalid": 5}
"""Columns of the kernel's counts; the first is the number of edges."""


@built_in
def topology(
    ds: xr.Dataset,
    *,
    k: float = 1.0,
    spacing: str = "centroid",
    coincident: str = "separate",
    held: str | None = None,
    variable: str = "W",
    precision: str | None = None,
) -> AnalysisSpec:
    """Measure the adjacency graph of the tokens at every step.

    Two tokens are adjacent if they are within ``k`` lattice spacings of each other in every dim, and not in the same
    place. Distances are measured in float64, and N x N is never held in memory.

    Parameters
    ----------
    ds
        A recording, (step, token, dim); gaps in the steps do not matter.
    k
        The threshold in lattice spacings.
    spacing
        What one spacing is. ``"centroid"``: `mean_ulp`, the mean over dims of the ULP at the centroid (notebook 14.2b).
        ``"pair"``: the larger of the two tokens' own mean ULP. ``"element"``: in each dim the larger of the two values'
        ULP, lattice adjacency. ``"ordinal"``: representable steps; these differ from ``"element"`` only around powers
        of two, where the spacing inward is half as large.
    coincident
        Whether tokens in the same place are adjacent: ``"separate"``, they are not (notebook 14.2b); ``"linked"``, they
        are.
    held
        A counterfactual, for the spacing ``"centroid"``: ``"threshold"`` keeps the threshold of the first step while
        the tokens move; ``"positions"`` keeps the positions of the first step while the threshold grows.
    variable, precision
        As for `motion`.

    Returns
    -------
    xarray.Dataset
        Lazy dataset over all steps: `mean_ulp`, `density` float64; `largest_component`, `n_singletons`, `n_components`,
        `degree_max`, `n_invalid` int64; `degree_tokens` (step, degree) and `size_components` (step, component_size)
        int64, in bins 0, 1, 2 to 3, 4 to 7, ...; `state` int8 (gas, clusters, crystal). A step with NaN or infinity has
        NaN and -1. Numbers: `verdict` int8, whether the cloud evaporates, crystallizes, or both in turn, with
        `evaporation_step`, `crystallization_step` and `n_changes`.

    Raises
    ------
    InputError
        For a recording without absolute positions (only displacements), or an unknown option.
    OffGridError
        When computed, if values are not on the grid.

    Notes
    -----
    Quantities of notebook 14.2b, whose own ULP was 0 throughout, so that it printed zeros. The density of a single
    token is 0.

    A step costs the detection of motion, and the measurement of the pairs near the threshold. All pairs are measured
    again when motion has exceeded a margin: only those close along one dim, unless the threshold is about as wide as
    the cloud; then all N²/2, about 2 ns each and 30 to 100 ns for those close in 16 dims. If all tokens are within the
    threshold, or in few places, a step costs N·D.

    ``analyze(device="cuda")`` measures all pairs near the threshold at every step with motion, for the spacing
    ``"centroid"``; the other spacings stay on the CPU. The numbers are identical.
    """
    check_options("topology", k, spacing, coincident, held)
    recorded = checks.require(ds, variable, "topology")
    grid = checks.grid_name(recorded, precision)
    if spacing == "ordinal" and get_grid(grid).width != 16:
        raise InputError(f"topology: spacing='ordinal' is for 16-bit formats, not {grid}; choose 'element'")
    x = checks.as_dask(recorded.data)
    initial = Series(first_step(x)) if held else None
    adjacency = Adjacency(variable, grid, float(k), spacing, coincident == "linked", ds.sizes["token"], held, initial)

    def finish(results: ReductionResults) -> xr.Dataset:
        attrs = checks.result_attrs(
            ds, variable=variable, coincident=coincident, precision=grid, k=float(k), spacing=spacing,
            **({"held": held} if held else {}),
        )  # fmt: skip
        values = results.variables("graph", _attributes(spacing, held))
        values |= verdict(results.array("graph", "state"), ds["step"].values)
        lower = np.concatenate([[0], 2 ** np.arange(n_bins(ds.sizes["token"]) - 1)])
        bins = {"degree": lower, "component_size": 2 ** np.arange(len(lower))}
        return xr.Dataset(values, {**coordinates.along(ds, "step"), **bins}, attrs)

    return AnalysisSpec({variable: x}, {"graph": Graph(adjacency)}, finish)


def _attributes(spacing: str, held: str | None = None) -> dict[str, dict[str, Any]]:
    """Return the attributes of the variables, with the rule of adjacency."""
    rule = (
        SPACINGS[spacing]
        + {None: "", "threshold": ", C at the first step", "positions": ", a, b at the first step"}[held]
    )
    return {n: a if n in ("mean_ulp", "n_invalid") else {**a, "adjacent": rule} for n, a in ATTRS.items()}


@dataclass(frozen=True)
class Graph:
    """The reduction that measures the adjacency graph."""

    adjacency: Adjacency

    @property
    def matrices(self) -> tuple[str, ...]:
        """The variable."""
        return (self.adjacency.variable,)

    def outputs(self) -> dict[str, Output]:
        """Return the variables of `ATTRS`."""
        bins = np.dtype(("i8", (n_bins(self.adjacency.n_tokens),)))
        return {
            "mean_ulp": Output("step"),
            "density": Output("step"),
            **{name: Output("step", dtype="i8") for name in _COUNTS},
            "state": Output("step", dtype="i1"),
            "degree_tokens": Output(("step", "degree"), dtype=bins),
            "size_components": Output(("step", "component_size"), dtype=bins),
        }

    def start(self, block: StepBlock) -> _Accumulator:
        """Return an accumulator for a block."""
        return _Accumulator(self, block)

    def cost(self, sizes: Sizes) -> Cost:
        """Return what it costs."""
        return self.adjacency.cost(sizes)


class _Accumulator(OutputAccumulator[Graph]):
    def __init__(self, reduction: Graph, block: StepBlock) -> None:
        super().__init__(reduction, block)
        self.tracker = AdjacencyTracker(reduction.adjacency, block)

    def update(self, batch: Batch) -> None:
        _describe(self.tracker.update(batch), batch.block.n_tokens, self.slices(batch))


def _describe(measured: dict[str, NDArray[Any]], n_tokens: int, out: dict[str, NDArray[Any]]) -> None:
    """Fill the outputs of `Graph` from what the tracker measured."""
    n = len(out["mean_ulp"])
    figures = measured["figures"][:n]
    for name, column in _COUNTS.items():
        out[name][:] = figures[:, column]
    pairs = n_tokens * (n_tokens - 1) // 2
    unknown = figures[:, 0] < 0
    out["mean_ulp"][:] = measured["mean_ulp"][:n]
    out["density"][:] = np.where(unknown, np.nan, figures[:, 0] / max(pairs, 1))
    out["degree_tokens"][:] = np.where(unknown[:, None], -1, measured["degrees"][:n])
    out["size_components"][:] = np.where(unknown[:, None], -1, measured["sizes"][:n])
    out["state"][:] = _states(out["largest_component"], out["n_singletons"], n_tokens)


def _states(largest: NDArray[np.int64], singletons: NDArray[np.int64], n_tokens: int) -> NDArray[np.int8]:
    """Return positions in `STATES`, -1 for unknown."""
    crystal = (2 * largest > n_tokens) & (largest > 1)
    return np.where(largest < 0, -1, np.where(crystal, 2, np.where(2 * singletons > n_tokens, 0, 1))).astype(np.int8)


def verdict(state: Any, steps: NDArray[Any]) -> dict[str, xr.Variable]:
    """Return the variables of `VERDICT_ATTRS`, lazily, for the states (step,) of the cloud and the step labels."""
    shapes: dict[str, Any] = {name: ((), (), "i1" if name == "verdict" else "i8") for name in VERDICT_ATTRS}
    return compute_together({"state": state}, _find_changes, shapes, VERDICT_ATTRS, steps=steps)


def _find_changes(inputs: dict[str, list[Any]], *, steps: NDArray[Any]) -> Arrays:
    state = np.concatenate(inputs["state"])
    gas, clusters, crystal = range(3)
    known = np.flatnonzero(state >= 0)
    changes: list[tuple[int, int]] = []
    now = int(state[known[0]]) if len(known) else clusters
    begin = now
    for i in known:
        if state[i] != clusters and state[i] != now:
            now = int(state[i])
            changes.append((now, int(steps[i])))
    first = {kind: next((step for to, step in changes if to == kind), -1) for kind in (gas, crystal)}
    return {
        "verdict": np.array(_verdict([to for to, _ in changes], begin) if len(known) else VERDICTS.index("unknown")),
        "evaporation_step": np.array(first[gas]),
        "crystallization_step": np.array(first[crystal]),
        "n_changes": np.array(len(changes)),
    }


def _verdict(changes: list[int], begin: int) -> int:
    """Return the position in `VERDICTS` of a series of changes to gas (0) and crystal (2), from a state."""
    if not changes:
        return VERDICTS.index({0: "stays_gas", 1: "neither", 2: "stays_crystal"}[begin])
    words = ["evaporates" if to == 0 else "crystallizes" for to in changes]
    return VERDICTS.index("_then_".join(words) if len(words) <= 2 else "alternates")


@topology.summarize
def _summary(ds: xr.Dataset) -> Iterator[str]:
    rule = ds["density"].attrs.get("adjacent", "max_d |a - b| <= k·mean_d ULP(C)")
    yield f"Topology, {rule}, k = {ds.attrs.get('k', 1.0):g}, coincident tokens {ds.attrs.get('coincident')}"
    for key, label in (
        ("mean_ulp", "mean ULP"),
        ("density", "density"),
        ("largest_component", "largest component"),
        ("n_singletons", "singletons"),
        ("n_components", "components"),
    ):
        v = np.where(ds["n_invalid"].values > 0, np.nan, ds[key].values)
        yield f"  {label:17s} {v[0]:.4g} first, {v[-1]:.4g} last, {summary_text.span(v)}"
    if "verdict" in ds:
        words = ds["verdict"].attrs["flag_meanings"].split()[int(ds["verdict"])].replace("_", " ")
        gas, crystal = int(ds["evaporation_step"]), int(ds["crystallization_step"])
        when = [f"{name} from step {step}" for name, step in (("gas", gas), ("crystal", crystal)) if step >= 0]
        yield f"  verdict           {words}{': ' if when else ''}{', '.join(when)}"


@topology.find
def _findings(ds: xr.Dataset) -> Iterator[Finding]:
    linked, steps, largest = _linked(ds), ds["step"].values, ds["largest_component"].values
    at = summary_text.ends(linked)
    if at is None:
        return
    if not np.nansum(linked):
        yield Finding(0.2, "No token ever has a neighbour within one spacing of the grid at the centre.")
        return
    counts = ", ".join(f"{linked[i]:.0f} at step {steps[i]}" for i in at)
    sizes = " and ".join(str(largest[i]) for i in at)
    yield Finding(
        0.6, f"Tokens with a neighbour within one spacing of the grid: {counts}; the largest group has {sizes}."
    )


@topology.measure
def _key_figure(ds: xr.Dataset) -> KeyFigure:
    first, last = (int(x) if np.isfinite(x) else None for x in _linked(ds)[[0, -1]])
    return KeyFigure("tokens with a neighbour within one ULP", first, last)


def _linked(ds: xr.Dataset) -> NDArray[Any]:
    """Return how many tokens have a neighbour at each step; NaN without a graph."""
    n = int(ds.attrs.get("n_tokens", ds["n_singletons"].max()))
    return np.where(ds["n_invalid"].values > 0, np.nan, n - ds["n_singletons"].values)


topology.invalid = "which have no graph"
topology.over_runs = "n_components"
topology.pictures = (
    Picture(
        "topology",
        "topology.topology",
        "Neighbours at the spacing of the grid",
        "Top: the spacing of the grid at the centroid. Middle: the share of pairs of tokens within that distance. "
        "Bottom: the connected components that they form; one large component is a crystal, only singletons a gas.",
        lambda ds: not np.nansum(_linked(ds)),
    ),
)
