"""Split the final centroid into the initial one and the accumulated drift."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deadtok_xr.analyses.common import checks, coordinates, summary_text
from deadtok_xr.analyses.common.centre_of_mass import CentreOfMass
from deadtok_xr.analyses.common.vectors import cosine
from deadtok_xr.analyses.registry import Finding, KeyFigure, Picture, built_in
from deadtok_xr.engine import AnalysisSpec, ReductionResults
from deadtok_xr.engine.small_results import Arrays, compute_together

Floats = NDArray[np.float64]
ATTRS: dict[str, dict[str, Any]] = {
    "initial": {"long_name": "centroid at the first step", "units": "1", "formula": "C[0]"},
    "drift": {"long_name": "accumulated drift of the centroid", "units": "1", "formula": "C[T] - C[0] = Σ_t ΔC[t]"},
    "final": {"long_name": "centroid at the last step", "units": "1", "formula": "C[T] = C[0] + Σ_t ΔC[t]"},
    "drift_share_dim": {
        "long_name": "share of the drift in a dim of the final centroid", "units": "1",
        "formula": "|drift_d| / (|initial_d| + |drift_d|)",
    },
    "drift_projection": {
        "long_name": "accumulated drift along the final centroid, relative to its length", "units": "1",
        "formula": "(C[t] - C[0])·C[T] / ‖C[T]‖₂²",
        "comment": "at the last step, this and `initial_projection` sum to 1",
    },
    "initial_projection": {
        "long_name": "initial centroid along the final one, relative to its length", "units": "1",
        "formula": "C[0]·C[T] / ‖C[T]‖₂²",
    },
    "cosine_initial": {"long_name": "cosine to the first centroid", "units": "1", "formula": "cos(C[t], C[0])"},
    "cosine_final": {"long_name": "cosine to the last centroid", "units": "1", "formula": "cos(C[t], C[T])"},
    "drift_length": {
        "long_name": "distance from the first centroid", "units": "1", "formula": "‖C[t] - C[0]‖₂",
    },
    "path_length": {"long_name": "length of the centroid's path", "units": "1", "formula": "Σ_(s <= t) ‖ΔC[s]‖₂"},
    "straightness": {
        "long_name": "distance of the centroid from its start over path length: 1 for a straight line", "units": "1",
        "formula": "‖C[t] - C[0]‖₂ / Σ_(s <= t) ‖ΔC[s]‖₂",
    },
    "drift_h_cosine": {
        "long_name": "cosine between the drift and the accumulated -h_mean", "units": "1",
        "formula": "cos(C[t] - C[0], -Σ_(s <= t) lr[s]·h_mean[s]), lr = 1 where it is not recorded",
    },
}  # fmt: skip
_PER_DIM = ("initial", "drift", "final", "drift_share_dim")
_PER_STEP = ("drift_projection", "cosine_initial", "cosine_final", "drift_length", "path_length", "straightness")


@built_in
def centroid_origin(ds: xr.Dataset, *, variable: str = "W", allow_gaps: bool = False) -> AnalysisSpec:
    """Split the last centroid into the first one and the drift.

    Parameters
    ----------
    ds
        A recording, (step, token, dim); if it has `h_mean`, the drift is also compared with the accumulated push of the
        hidden state.
    variable
        The weights to follow.
    allow_gaps
        Follow the centroid across missing steps, which the path then ignores; adds `step_span`.

    Returns
    -------
    xarray.Dataset
        Lazy dataset, float64. Per dim: `initial`, `drift`, `final` = initial + drift, `drift_share_dim`. Over t = 0..T:
        `drift_projection`, which at the last step is 1 - `initial_projection` (a number): the two are the shares of the
        final centroid's length; `cosine_initial`, `cosine_final`, `drift_length`, `path_length`, `straightness`;
        `drift_h_cosine` if h_mean is recorded, else the attribute `left_out` names it. NaN in a token makes the
        centroid of its step NaN, and everything computed from it.

    Raises
    ------
    InputError
        For fewer than two steps, gaps, or a recording without W.
    """
    x = checks.require(ds, variable, "centroid_origin")
    extra = checks.check_steps(ds, "centroid_origin", allow_gaps=allow_gaps)
    with_h = "h_mean" in ds and set(ds["h_mean"].dims) == {"step", "dim"}
    recorded = [name for name in ("h_mean", "lr") if name in ds] if with_h else []
    steps, dims = ds.sizes["step"], ds.sizes["dim"]
    shapes: dict[str, Any] = {
        **dict.fromkeys(_PER_DIM, (("dim",), (dims,), "f8")),
        **dict.fromkeys((*_PER_STEP, *(["drift_h_cosine"] if with_h else [])), (("step",), (steps,), "f8")),
        "initial_projection": ((), (), "f8"),
    }

    def finish(results: ReductionResults) -> xr.Dataset:
        inputs = {"centroid": results.array("cloud", "centroid")}
        inputs |= {name: checks.as_series(ds[name]).rechunk(-1) for name in recorded}
        left_out = {} if with_h else {"drift_h_cosine": "the dataset has no h_mean"}
        values = compute_together(inputs, _measure, shapes, ATTRS)
        attrs = checks.result_attrs(ds, variable=variable, left_out=left_out)
        return xr.Dataset({**values, **checks.with_first_step(extra)}, coordinates.along(ds, "step", "dim"), attrs)

    return AnalysisSpec({variable: checks.as_dask(x.data)}, {"cloud": CentreOfMass(variable)}, finish)


def _measure(inputs: dict[str, list[Any]]) -> Arrays:
    C = np.concatenate(inputs["centroid"])
    first, last = C[0], C[-1]
    drift = C - first
    squares = last @ last
    path = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(C, axis=0), axis=1))])
    length = np.linalg.norm(drift, axis=1)
    parts = np.abs(first) + np.abs(drift[-1])
    out = {
        "initial": first,
        "drift": drift[-1],
        "final": last,
        "drift_share_dim": _ratio(np.abs(drift[-1]), parts),
        "drift_projection": _ratio(drift @ last, squares),
        "initial_projection": _ratio(first @ last, squares),
        "cosine_initial": np.array([cosine(c, first) for c in C]),
        "cosine_final": np.array([cosine(c, last) for c in C]),
        "drift_length": length,
        "path_length": path,
        "straightness": _ratio(length, path),
    }
    if "h_mean" in inputs:
        out["drift_h_cosine"] = _h_cosine(drift, inputs)
    return out


def _ratio(a: Any, b: Any) -> Any:
    """Return a / b; NaN where b is 0."""
    return np.where(b != 0, a / np.where(b != 0, b, 1.0), np.nan)


def _h_cosine(drift: Floats, inputs: dict[str, list[Any]]) -> Floats:
    """Return the cosine between the drift and the accumulated -lr·h_mean at every step."""
    push = -inputs["h_mean"][0][1:].astype(np.float64)
    if "lr" in inputs:
        push *= inputs["lr"][0][1:, None]
    total = np.concatenate([np.zeros((1, push.shape[1])), np.cumsum(push, axis=0)])
    return np.array([cosine(a, b) for a, b in zip(drift, total, strict=True)])


@centroid_origin.summarize
@summary_text.in_one_line
def _summary(ds: xr.Dataset) -> Iterator[str]:
    share, rest = float(ds["drift_projection"][-1]), float(ds["initial_projection"])
    yield "Origin of the final centroid"
    yield f"  of its length     {100 * share:.2f}% is drift, {100 * rest:.2f}% the first centroid"
    if "drift_h_cosine" in ds:
        yield f"  drift             cosine to accumulated -h {float(ds['drift_h_cosine'][-1]):.4f}"


@centroid_origin.find
def _findings(ds: xr.Dataset) -> Iterator[Finding]:
    share = float(ds["drift_projection"][-1])
    if np.isfinite(share):
        yield Finding(
            0.42, f"Drift makes up {summary_text.percent(share)} of the final distance of the centre from the origin."
        )


@centroid_origin.measure
def _key_figure(ds: xr.Dataset) -> KeyFigure:
    return KeyFigure("drift in the final centre", last=summary_text.percent(float(ds["drift_projection"][-1])))


centroid_origin.over_runs = "cosine_initial"
centroid_origin.pictures = (
    Picture(
        "centroid_origin",
        "centroid_origin.centroid_origin",
        "Parts of the final centroid",
        "The shares of drift and initial centroid add up to the length of the final centroid. If the drift is all of "
        "it, nothing is left of the initial position.",
    ),
)
