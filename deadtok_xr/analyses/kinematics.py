"""Measure the motion of the tokens in the centre-of-mass frame: the drift of the cloud, and the motion within it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deadtok_xr.analyses.common import checks, summary_text
from deadtok_xr.analyses.common.centre_of_mass import OUTPUTS, CentreOfMass
from deadtok_xr.analyses.registry import Finding, KeyFigure, Picture, built_in
from deadtok_xr.bfloat16 import decode
from deadtok_xr.dask_arrays import empty_meta
from deadtok_xr.engine import (
    AnalysisSpec,
    ReductionResults,
)
from deadtok_xr.engine.block_pass import prepend_first_step, step_before, uniform
from deadtok_xr.engine.scan import scan
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
    "radius_max": {
        "long_name": "largest distance from the centroid", "units": "1", "formula": "max_i ‖W[t,i] - C[t]‖₂",
    },
    "thermal_residual": {
        "long_name": "length of the sum of the thermal velocities: 0 except for rounding",
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
        ``"W"``, or ``"delta"`` for recordings that hold only displacements; by default W if it exists.
    allow_gaps
        Measure velocities that span several updates; adds `step_span`.

    Returns
    -------
    xarray.Dataset
        Lazy dataset over t = 0..T, float64: `centroid`, `bulk_velocity` (step, dim); `bulk_speed`, `thermal_rms`,
        `radius` (mean distance from the centroid), `radius_max`, `thermal_residual` (step); `n_invalid` int64.
        Velocities are NaN at the first step; a NaN in the recording makes its step NaN. `position` and
        `thermal_velocity` (step, token, dim) are lazy, and saved only on request.

        The attribute `origin` is "absolute", or "relative" if positions are sums of recorded displacements in float64.
        These sums include the first step of the dataset, so that positions are relative to those before it; the
        velocity at the first step is NaN as always.

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

    def finish(results: ReductionResults) -> xr.Dataset:
        values = _step_variables(results)
        values["position"] = _positions(x)
        values["thermal_velocity"] = _thermal(x, values["bulk_velocity"].data)
        origin = "relative" if name == "delta" else "absolute"
        attrs = checks.result_attrs(ds, variable=name, origin=origin)
        return xr.Dataset({**values, **checks.with_first_step(extra)}, ds.coords, attrs)

    return AnalysisSpec({key: x}, {"cloud": CentreOfMass(key)}, finish)


def _refuse_missing(ds: xr.Dataset) -> None:
    """Refuse gaps: displacements add up to positions only if none is missing."""
    gaps = np.flatnonzero(np.diff(ds["step"].values) > 1)
    if gaps.size:
        step = int(ds["step"].values[gaps[0]])
        raise InputError(
            f"kinematics: the displacements after step {step} are missing, and {gaps.size - 1} more gaps: later "
            "positions are unknown, with or without allow_gaps; record every step, or the weights"
        )


def _step_variables(results: ReductionResults) -> dict[str, xr.Variable]:
    """Return the outputs of `CentreOfMass` over all steps; at the first one velocities are NaN."""
    variables = results.variables("cloud", ATTRS)
    for name, output in OUTPUTS.items():
        if output.at == "transitions":
            dims, data, attrs = variables[name].dims, variables[name].data, variables[name].attrs
            variables[name] = xr.Variable(dims, prepend_first_step(data, np.nan, results.n_states), attrs)
    return variables


def _cumulative_sum(x: da.Array) -> da.Array:
    """Return the cumulative sum over steps; a block waits for the total of the blocks before it."""
    return scan([x], _cumulate, _last, x.chunks, np.empty((0, 0, 0)))


def _cumulate(before: NDArray[np.float64] | None, block: NDArray[np.float64]) -> NDArray[np.float64]:
    return (0.0 if before is None else before) + np.cumsum(block, axis=0)


def _last(block: NDArray[np.float64]) -> NDArray[np.float64]:
    return block[-1:].copy()


def _positions(x: da.Array) -> xr.Variable:
    x = x if x.dtype == np.float64 else x.map_blocks(decode, dtype=np.float32)
    return xr.Variable(("step", "token", "dim"), uniform(x), ATTRS["position"])


def _thermal(x: da.Array, bulk: da.Array) -> xr.Variable:
    before = step_before(x)
    bulk = bulk.rechunk((x.chunks[0], x.chunks[2]))
    data = da.blockwise(
        _thermal_block,
        "tnd",
        x,
        "tnd",
        before,
        "tnd",
        bulk,
        "td",
        dtype=np.float64,
        align_arrays=False,
        meta=empty_meta(3, np.float64),
    )
    return xr.Variable(("step", "token", "dim"), uniform(data), ATTRS["thermal_velocity"])


def _thermal_block(x: NDArray[Any], before: NDArray[Any], bulk: NDArray[np.float64]) -> NDArray[np.float64]:
    velocity = np.diff(x.astype(np.float64), axis=0, prepend=before.astype(np.float64))
    return velocity - bulk[:, None, :]


@kinematics.summarize
@summary_text.in_one_line
def _summary(ds: xr.Dataset) -> Iterator[str]:
    norm = np.linalg.norm(ds["centroid"].values, axis=1)
    steps, bulk, thermal = ds["step"].values, ds["bulk_speed"].values, ds["thermal_rms"].values
    radius = ds["radius"].values
    yield f"Kinematics, centre-of-mass frame ({ds.attrs.get('origin', 'absolute')} positions)"
    yield f"  centroid norm     {norm[0]:.6f} first, {norm[-1]:.6f} last, {summary_text.largest(norm, steps)}"
    yield f"  cloud radius      {radius[0]:.6f} first, {radius[-1]:.6f} last"
    if len(steps) > 1:
        ratio = bulk[1] / thermal[1] if thermal[1] else np.inf
        yield f"  at step {steps[1]}         bulk {bulk[1]:.4g}, thermal {thermal[1]:.4g}, ratio {ratio:.4g}"
        residual = summary_text.largest_value(ds["thermal_residual"].values)
        yield f"  check             thermal velocities sum to {residual:.2g} at most"


@kinematics.find
def _findings(ds: xr.Dataset) -> Iterator[Finding]:
    steps, radius, centroid = ds["step"].values, ds["radius"].values, ds["centroid"].values
    at = summary_text.ends(radius)
    if at is None or len(steps) < 2:
        return
    drift = summary_text.number(float(np.linalg.norm(centroid[at[1]] - centroid[at[0]])))
    around = " to ".join(summary_text.number(radius[i]) for i in at)
    yield Finding(0.65, f"The centre moved by {drift}; the tokens' mean distance from it went from {around}.")
    bulk, thermal = ds["bulk_speed"].values[1], ds["thermal_rms"].values[1]
    if thermal > 0 and np.isfinite(bulk):
        yield Finding(
            0.45,
            f"At step {steps[1]} the tokens drift {bulk / thermal:.3g} times as fast as they move within the cloud.",
        )


@kinematics.measure
def _key_figure(ds: xr.Dataset) -> KeyFigure:
    return KeyFigure("mean distance from the centre", ds["radius"].values[0], ds["radius"].values[-1])


kinematics.invalid = "which have no centroid"
kinematics.over_runs = "radius"
kinematics.pictures = (
    Picture(
        "speeds",
        "kinematics.speeds",
        "The cloud and the motion within it",
        "The bulk speed is that of the centroid, the thermal speed that of the tokens in its frame. Bulk above thermal "
        "means that the tokens drift together; thermal above bulk, that they move independently.",
    ),
)
