"""Dead tokens in the centre-of-mass frame: the cloud's drift, and the motion within it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from numpy.typing import NDArray

from deadtok_xr.analyses.common import checks, summary_text
from deadtok_xr.analyses.registry import Picture, built_in
from deadtok_xr.bfloat16 import decode
from deadtok_xr.dask_arrays import Tasks, from_tasks
from deadtok_xr.engine import (
    AnalysisSpec,
    Batch,
    Output,
    ReductionResults,
    SingleVariable,
    StepBlock,
    allocate_outputs,
)
from deadtok_xr.engine.block_pass import step_before, uniform, with_start
from deadtok_xr.errors import InputError

ATTRS: dict[str, dict[str, Any]] = {
    "centroid": {"long_name": "centroid C of the tokens", "units": "1", "formula": "C[t] = mean_i W[t,i]"},
    "bulk_velocity": {"long_name": "velocity of the centroid", "units": "1/step", "formula": "C[t] - C[t-1]"},
    "bulk_speed": {"long_name": "speed of the centroid", "units": "1/step", "formula": "‖C[t] - C[t-1]‖₂"},
    "thermal_rms": {
        "long_name": "root mean square of the thermal speed",
        "units": "1/step",
        "formula": "√mean_i ‖ΔW[t,i] - ΔC[t]‖₂²",
    },
    "radius": {"long_name": "mean distance from the centroid", "units": "1", "formula": "mean_i ‖W[t,i] - C[t]‖₂"},
    "radius_max": {"long_name": "largest distance from it", "units": "1", "formula": "max_i ‖W[t,i] - C[t]‖₂"},
    "thermal_residual": {
        "long_name": "what the thermal velocities sum to: 0 but for rounding",
        "units": "1/step",
        "formula": "‖Σ_i (ΔW[t,i] - ΔC[t])‖₂",
    },
    "n_invalid": {"long_name": "tokens with NaN or infinity at t", "units": "1"},
    "position": {"long_name": "position of each token", "units": "1"},
    "thermal_velocity": {
        "long_name": "velocity of each token in the centre-of-mass frame",
        "units": "1/step",
        "formula": "ΔW[t,i] - ΔC[t]",
    },
}  # fmt: skip
PER_TOKEN = ("position", "thermal_velocity")


@built_in
def kinematics(ds: xr.Dataset, *, variable: str | None = None, allow_gaps: bool = False) -> AnalysisSpec:
    """Separate the motion of the cloud from the motion within it.

    Parameters
    ----------
    ds
        A recording, (step, token, dim).
    variable
        ``"W"``, or ``"delta"`` for recordings that hold displacements alone; by default W if it is there.
    allow_gaps
        Measure velocities that span several updates; adds `step_span`.

    Returns
    -------
    xarray.Dataset
        Lazy dataset over t = 0..T, float64: `centroid`, `bulk_velocity` (step, dim); `bulk_speed`, `thermal_rms`,
        `radius` (mean distance from the centroid), `radius_max`, `thermal_residual` (step); `n_invalid` int64.
        Velocities are NaN at the first step; a NaN in the recording makes its step NaN. `position` and
        `thermal_velocity` (step, token, dim) are lazy, and saved only on request.

        The attribute `origin` is "absolute", or "relative" where positions are sums of recorded displacements in
        float64: inclusive of the first step of the dataset, so measured from where the tokens were before it, while the
        velocity at that first step is left NaN like everywhere.

    Raises
    ------
    InputError
        For gaps in the steps, or a dataset with neither W nor delta.

    Notes
    -----
    Quantities and checks of notebook 14.2a.
    """
    known = ds if isinstance(ds, xr.Dataset) else ()
    name = variable or ("W" if "W" in known or "delta" not in known else "delta")
    recorded = checks.require(ds, name, "kinematics")
    extra = checks.check_steps(ds, "kinematics", allow_gaps=allow_gaps) if ds.sizes["step"] > 1 else {}
    if name == "delta":
        _refuse_missing(ds)
    x, key = checks.as_dask(recorded.data), name
    if name == "delta":
        x, key = _cumulative_sum(x.astype(np.float64)), "position"

    def finish(found: ReductionResults) -> xr.Dataset:
        values = cloud_variables(found)
        values["position"] = _positions(x)
        values["thermal_velocity"] = _thermal(x, values["bulk_velocity"].data)
        origin = "relative" if name == "delta" else "absolute"
        attrs = checks.result_attrs(ds, variable=name, origin=origin)
        return xr.Dataset({**values, **checks.from_the_first(extra)}, ds.coords, attrs)

    return AnalysisSpec({key: x}, {"cloud": Cloud(key)}, finish)


def _refuse_missing(ds: xr.Dataset) -> None:
    """Displacements add up to positions only if none is missing, whatever gaps are allowed."""
    gaps = np.flatnonzero(np.diff(ds["step"].values) > 1)
    if gaps.size:
        step = int(ds["step"].values[gaps[0]])
        raise InputError(
            f"kinematics: the displacements after step {step} are missing, and {gaps.size - 1} more gaps: the "
            "positions that they lead to are not known, with or without allow_gaps; record every step, or the weights"
        )


OUTPUTS = {
    "centroid": Output(("step", "dim")),
    "bulk_velocity": Output(("step", "dim"), at="transitions"),
    "bulk_speed": Output("step", at="transitions"),
    "thermal_rms": Output("step", at="transitions"),
    "radius": Output("step"),
    "radius_max": Output("step"),
    "thermal_residual": Output("step", at="transitions"),
    "n_invalid": Output("step", dtype="i8"),
}


@dataclass(frozen=True)
class Cloud(SingleVariable):
    """The reduction of the cloud as a whole; `OUTPUTS` says what it finds."""

    def outputs(self) -> dict[str, Output]:
        """See `OUTPUTS`."""
        return OUTPUTS

    def start(self, block: StepBlock) -> _Accumulator:
        """Start with a block."""
        return _Accumulator(self.variable, block)


class _Accumulator:
    def __init__(self, variable: str, block: StepBlock) -> None:
        self.variable, self.out = variable, allocate_outputs(OUTPUTS, block)
        self.centre: NDArray[np.float64] | None = None

    def update(self, batch: Batch) -> None:
        from deadtok_xr import kernels

        on_device = batch.block.device.runs("kinematics")
        steps = batch.tensor(self.variable) if on_device else batch.readable(self.variable)
        kernel = kernels.engine("kinematics", on_device).kinematics
        self.centre = kernel(steps, batch.changed(self.variable), self.centre, batch.slices(self.out, OUTPUTS))

    def result(self) -> dict[str, Any]:
        return self.out


def cloud_variables(found: ReductionResults) -> dict[str, xr.Variable]:
    """The fields of the probe "cloud" over all steps; at the first one there is no velocity."""
    variables = found.variables("cloud", ATTRS)
    for name, output in OUTPUTS.items():
        if output.at == "transitions":
            dims, data, attrs = variables[name].dims, variables[name].data, variables[name].attrs
            variables[name] = xr.Variable(dims, with_start(data, np.nan, found.n_states), attrs)
    return variables


def _cumulative_sum(x: da.Array) -> da.Array:
    """Sum up the steps; a block waits for the total of those before it."""
    name = f"cumulative-{tokenize(x.name)}"

    def tasks(names: list[str]) -> Tasks:
        made: Tasks = {}
        for j in range(x.numblocks[1]):
            total: Any = 0.0
            for i in range(x.numblocks[0]):
                made[name, i, j, 0] = (_summed, (names[0], i, j, 0), total)
                total = (f"{name}-total", i, j)
                made[total] = (_last, (name, i, j, 0))
        return made

    return from_tasks(name, tasks, x.chunks, np.empty((0, 0, 0)), [x])


def _summed(block: NDArray[np.float64], before: Any) -> NDArray[np.float64]:
    return before + np.cumsum(block, axis=0)


def _last(block: NDArray[np.float64]) -> NDArray[np.float64]:
    return block[-1:].copy()


def _positions(x: da.Array) -> xr.Variable:
    x = x if x.dtype == np.float64 else x.map_blocks(decode, dtype=np.float32)
    return xr.Variable(("step", "token", "dim"), uniform(x), ATTRS["position"])


def _thermal(x: da.Array, bulk: da.Array) -> xr.Variable:
    before = step_before(x)
    bulk = bulk.rechunk((x.chunks[0], x.chunks[2]))
    data = da.blockwise(_own_velocity, "tnd", x, "tnd", before, "tnd", bulk, "td", dtype=np.float64, align_arrays=False)
    return xr.Variable(("step", "token", "dim"), uniform(data), ATTRS["thermal_velocity"])


def _own_velocity(x: NDArray[Any], before: NDArray[Any], bulk: NDArray[np.float64]) -> NDArray[np.float64]:
    velocity = np.diff(x.astype(np.float64), axis=0, prepend=before.astype(np.float64))
    return velocity - bulk[:, None, :]


@kinematics.summarize
@summary_text.in_one_line
def _summary(ds: xr.Dataset) -> Iterator[str]:
    norm = np.linalg.norm(ds["centroid"].values, axis=1)
    steps, bulk, heat = ds["step"].values, ds["bulk_speed"].values, ds["thermal_rms"].values
    radius = ds["radius"].values
    yield f"Kinematics, centre-of-mass frame ({ds.attrs.get('origin', 'absolute')} positions)"
    yield f"  centroid norm     {norm[0]:.6f} first, {norm[-1]:.6f} last, {summary_text.largest(norm, steps)}"
    yield f"  cloud radius      {radius[0]:.6f} first, {radius[-1]:.6f} last"
    if len(steps) > 1:
        ratio = bulk[1] / heat[1] if heat[1] else np.inf
        yield f"  at step {steps[1]}         bulk {bulk[1]:.4g}, thermal {heat[1]:.4g}, ratio {ratio:.4g}"
        residual = summary_text.largest_value(ds["thermal_residual"].values)
        yield f"  check             thermal velocities sum to {residual:.2g} at most"
    yield from summary_text.invalid_steps(ds, "which have no centroid")


kinematics.pictures = (
    Picture(
        "speeds",
        "kinematics.speeds",
        "The cloud and the motion within it",
        "Bulk speed is that of the centroid, thermal speed that of the tokens in its frame. Bulk above thermal "
        "means that tokens are carried along; thermal above bulk, that they move on their own.",
    ),
)
