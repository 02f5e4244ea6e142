"""Dead tokens in the centre-of-mass frame: the cloud's drift, and the motion within it."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deadtok_xr import blocks
from deadtok_xr.bfloat16 import decode
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


def kinematics(ds: xr.Dataset, *, variable: str | None = None, allow_gaps: bool = False) -> xr.Dataset:
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
    Lazy dataset over t = 0..T, float64: `centroid`, `bulk_velocity` (step, dim); `bulk_speed`,
    `thermal_rms`, `radius` (mean distance from the centroid), `radius_max`, `thermal_residual`
    (step); `n_invalid` int64. Velocities are NaN at the first step; a NaN in the recording makes its
    step NaN. `position` and `thermal_velocity` (step, token, dim) are lazy, and saved only on request.

    The attribute `origin` is "absolute", or "relative" where positions are sums of recorded
    displacements in float64: inclusive of the first step of the dataset, so measured from where the tokens
    were before it, while the velocity at that first step is left NaN like everywhere.

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
    recorded = blocks.require(ds, name, "kinematics")
    extra = blocks.check_steps(ds, "kinematics", allow_gaps=allow_gaps) if ds.sizes["step"] > 1 else {}
    if name == "delta":
        _refuse_missing(ds)
    x = blocks.as_dask(recorded.data)
    if name == "delta":
        x = da.cumsum(x.astype(np.float64), axis=0)
    result = centroid_layer(x)
    values = blocks.fields(result, ("step",), ATTRS)
    values["position"] = _positions(x)
    values["thermal_velocity"] = _thermal(x, result)
    if extra:
        span = np.concatenate([[0], extra["step_span"].values])
        extra = {"step_span": xr.Variable("step", span, extra["step_span"].attrs)}
    origin = "relative" if name == "delta" else "absolute"
    return xr.Dataset({**values, **extra}, ds.coords, blocks.result_attrs(ds, variable=name, origin=origin))


def _refuse_missing(ds: xr.Dataset) -> None:
    """Displacements add up to positions only if none is missing, whatever gaps are allowed."""
    gaps = np.flatnonzero(np.diff(ds["step"].values) > 1)
    if gaps.size:
        step = int(ds["step"].values[gaps[0]])
        raise InputError(
            f"kinematics: the displacements after step {step} are missing, and {gaps.size - 1} more gaps: the "
            "positions that they lead to are not known, with or without allow_gaps; record every step, or the weights"
        )


def centroid_layer(x: da.Array) -> da.Array:
    """The per-step results, (step,); what needs the centroid alone shares the layer with `kinematics`."""
    return blocks.per_step(x, _kernel, fields_dtype(x.shape[2]), previous=True)


def fields_dtype(n_dims: int) -> np.dtype[Any]:
    """The per-step results for a number of dims."""
    vectors = [(name, "f8", (n_dims,)) for name in ("centroid", "bulk_velocity")]
    scalars = ("bulk_speed", "thermal_rms", "radius", "radius_max", "thermal_residual")
    return np.dtype([*vectors, *((name, "f8") for name in scalars), ("n_invalid", "i8")])


def _kernel(block: list[NDArray[Any]], before: list[NDArray[Any]], out: dict[str, NDArray[Any]]) -> None:
    from deadtok_xr.kernels.numba import kinematics as kernel  # here, so that a graph is built without numba

    kernel([_floats(b) for b in block], [_floats(b) for b in before], out)


def _floats(block: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(block if block.dtype == np.float64 else decode(block))


def _positions(x: da.Array) -> xr.Variable:
    x = x if x.dtype == np.float64 else x.map_blocks(decode, dtype=np.float32)
    return xr.Variable(("step", "token", "dim"), blocks.uniform(x), ATTRS["position"])


def _thermal(x: da.Array, result: da.Array) -> xr.Variable:
    before = blocks.neighbour(x, -1)
    data = da.blockwise(
        _own_velocity, "tnd", x, "tnd", before, "tnd", result, "t", dtype=np.float64, align_arrays=False
    )
    return xr.Variable(("step", "token", "dim"), blocks.uniform(data), ATTRS["thermal_velocity"])


def _own_velocity(x: NDArray[Any], before: NDArray[Any], of_step: dict[str, NDArray[Any]]) -> NDArray[np.float64]:
    velocity = np.diff(x.astype(np.float64), axis=0, prepend=before.astype(np.float64))
    return velocity - of_step["bulk_velocity"][:, None, :]
