"""Label the component of each token at every step, and list the tokens that join and leave components."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deadtok_xr.analyses.common import checks, coordinates
from deadtok_xr.analyses.common.adjacency import Adjacency, AdjacencyTracker, check_options
from deadtok_xr.analyses.registry import built_in
from deadtok_xr.engine import AnalysisSpec, Batch, Cost, Output, OutputAccumulator, ReductionResults, Sizes, StepBlock
from deadtok_xr.engine.block_pass import prepend_first_step
from deadtok_xr.errors import InputError

ATTRS: dict[str, dict[str, Any]] = {
    "component": {
        "long_name": "component of the token, labelled by its first token", "units": "1",
        "comment": "a token id; a token without a neighbour is its own component; -1 at a step with NaN",
    },
    "n_merges": {
        "long_name": "times that two components became one", "units": "1",
        "formula": "parts - components at t; a part: the tokens that share a component both at t - 1 and at t",
    },
    "n_splits": {
        "long_name": "times that one component became two", "units": "1", "formula": "parts - components at t - 1",
    },
}  # fmt: skip
KINDS = ("merge", "split")
EVENT_ATTRS: dict[str, dict[str, Any]] = {
    "kind": {
        "long_name": "kind of the event", "units": "1", "flag_values": [0, 1], "flag_meanings": " ".join(KINDS),
    },
    "part": {"long_name": "component at t - 1 that joined, or at t that left", "units": "1"},
    "whole": {"long_name": "component at t that it joined, or at t - 1 that it left", "units": "1"},
    "n_tokens": {"long_name": "tokens that joined or left", "units": "1"},
}  # fmt: skip


@built_in
def components(
    ds: xr.Dataset,
    *,
    k: float = 1.0,
    spacing: str = "centroid",
    coincident: str = "separate",
    variable: str = "W",
    precision: str | None = None,
) -> AnalysisSpec:
    """Label the connected component of every token at every step, in the graph of `topology`.

    Parameters
    ----------
    ds
        A recording, (step, token, dim); gaps in the steps do not matter.
    k, spacing, coincident, variable, precision
        As for `topology`.

    Returns
    -------
    xarray.Dataset
        Lazy dataset over all steps: `component` (step, token) int64, the id of the first token of each token's
        component; `n_merges` and `n_splits` (step) int64, since the previous step: 0 at the first one, and -1 from or
        to a step with NaN. The number of components grows by `n_splits` - `n_merges`. `component_events` lists the
        events.

    Raises
    ------
    InputError, OffGridError
        As for `topology`.
    """
    check_options("components", k, spacing, coincident)
    x = checks.require(ds, variable, "components")
    grid = checks.grid_name(x, precision)
    ids = checks.token_ids(ds)

    def finish(results: ReductionResults) -> xr.Dataset:
        label = results.array("components", "label").map_blocks(_as_ids, ids, dtype=np.int64)
        values = {"component": xr.Variable(("step", "token"), label, ATTRS["component"])}
        for name in ("n_merges", "n_splits"):
            changes = prepend_first_step(results.array("components", name), 0, label.chunks[0])
            values[name] = xr.Variable("step", changes, ATTRS[name])
        coords = {name: c for name, c in coordinates.within(ds, "step", "token").items() if c.dims}
        attrs = checks.result_attrs(
            ds, variable=variable, k=float(k), spacing=spacing, coincident=coincident, precision=grid
        )
        return xr.Dataset(values, coords, attrs)

    adjacency = Adjacency(variable, grid, float(k), spacing, coincident == "linked", ds.sizes["token"])
    return AnalysisSpec({variable: checks.as_dask(x.data)}, {"components": ComponentLabels(adjacency)}, finish)


def _as_ids(label: NDArray[np.int32], ids: NDArray[Any]) -> NDArray[np.int64]:
    return np.where(label < 0, -1, ids[label])


@dataclass(frozen=True)
class ComponentLabels:
    """The reduction that labels the component of each token."""

    adjacency: Adjacency

    @property
    def matrices(self) -> tuple[str, ...]:
        """The variable."""
        return (self.adjacency.variable,)

    def outputs(self) -> dict[str, Output]:
        """Return the labels, positions of tokens, and the counts of merges and splits."""
        counts = {name: Output("step", dtype="i8", at="transitions") for name in ("n_merges", "n_splits")}
        return {"label": Output(("step", "token"), dtype="i4"), **counts}

    def start(self, block: StepBlock) -> _Accumulator:
        """Return an accumulator for a block."""
        return _Accumulator(self, block)

    def cost(self, sizes: Sizes) -> Cost:
        """Return what it costs."""
        return self.adjacency.cost(sizes)


class _Accumulator(OutputAccumulator[ComponentLabels]):
    def __init__(self, reduction: ComponentLabels, block: StepBlock) -> None:
        super().__init__(reduction, block)
        self.tracker = AdjacencyTracker(reduction.adjacency, block, labels=True)

    def update(self, batch: Batch) -> None:
        label = self.tracker.update(batch)["label"]
        out = self.slices(batch)
        out["label"][:] = label[: batch.n_states]
        for t in range(batch.n_transitions):
            out["n_merges"][t], out["n_splits"][t] = _changes(label[t], label[t + 1])


def _changes(before: NDArray[np.int64], now: NDArray[np.int64]) -> tuple[int, int]:
    """Return the number of merges and of splits between two steps."""
    if before[0] < 0 or now[0] < 0:
        return -1, -1
    if (before == now).all():
        return 0, 0
    parts = len(np.unique(before * len(now) + now))
    return parts - len(np.unique(now)), parts - len(np.unique(before))


def component_events(components: xr.Dataset) -> xr.Dataset:
    """List the tokens that joined or left a component.

    Parameters
    ----------
    components
        From `components`; lazy values are computed.

    Returns
    -------
    xarray.Dataset
        Dataset over `event`, in the order of the steps, in memory: the coordinate `step`; `kind` (merge, split);
        `part`, the component at t - 1 that joined, or the one at t that left; `whole`, the component at t that it
        joined, or the one at t - 1 that it left; `n_tokens`, the number of tokens. The largest part of a component is
        the one that the others join or leave. There are as many events as `n_merges` and `n_splits` count.

    Raises
    ------
    InputError
        If the dataset has no `component`.
    """
    if "component" not in components:
        raise InputError("component_events needs the variable 'component': pass what components returned")
    label, steps = components["component"].transpose("step", "token").values, components["step"].values
    rows = [(steps[t + 1], *event) for t in range(len(label) - 1) for event in _events(label[t], label[t + 1])]
    table = np.array(rows, np.int64).reshape(len(rows), 5)
    values = {name: ("event", table[:, i + 1], attrs) for i, (name, attrs) in enumerate(EVENT_ATTRS.items())}
    return xr.Dataset(values, {"step": ("event", table[:, 0])}, components.attrs)


def _events(before: NDArray[np.int64], now: NDArray[np.int64]) -> list[tuple[int, int, int, int]]:
    """Return kind, part, whole and number of tokens of each event between two steps."""
    if (before == now).all() or before[0] < 0 or now[0] < 0:
        return []
    parts, sizes = np.unique(np.stack([before, now]), axis=1, return_counts=True)
    events = []
    for kind, (part, whole) in enumerate(((parts[0], parts[1]), (parts[1], parts[0]))):
        order = np.lexsort((part, -sizes, whole))  # the largest part of each whole comes first, and is no event
        joins = np.concatenate([[False], whole[order][1:] == whole[order][:-1]])
        events += [(kind, int(part[i]), int(whole[i]), int(sizes[i])) for i in order[joins]]
    return events
