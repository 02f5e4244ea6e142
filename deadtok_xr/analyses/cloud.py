"""Measure the motion of the cloud: temperatures, shear, direction, persistence of velocities, diffusion."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr

from deadtok_xr.analyses.common import checks, coordinates, step_series, summary_text
from deadtok_xr.analyses.common.centre_of_mass import CentreOfMass
from deadtok_xr.analyses.common.centroid_walk import WALK_ATTRS, measure_walk, walk_shapes
from deadtok_xr.analyses.common.cloud_motion import (
    LAG,
    MOTION_ATTRS,
    PER_STEP,
    PER_TOKEN,
    STATES,
    CloudMotion,
    merge_blocks,
    paths,
    persistence,
    with_first_step,
)
from deadtok_xr.analyses.registry import Finding, KeyFigure, Picture, built_in
from deadtok_xr.engine import AnalysisSpec, Reduction, ReductionResults
from deadtok_xr.engine.small_results import Arrays, compute_together
from deadtok_xr.errors import InputError

ATTRS: dict[str, dict[str, Any]] = {**MOTION_ATTRS, **WALK_ATTRS}


@built_in
def cloud(ds: xr.Dataset, *, variable: str = "W", max_lag: int = 100, allow_gaps: bool = False) -> AnalysisSpec:
    """Measure the motion of the cloud: temperatures, shear, radial motion, persistence, diffusion, centroid walk.

    For centroid, radius and thermal speed see `kinematics`, for drift and path of the centroid `centroid_origin`, for
    the extent along the principal axes `spectrum`, for the distance between dead and live tokens `coherence`. No
    lattice is needed.

    Parameters
    ----------
    ds
        A recording, (step, token, dim).
    variable
        The weights to follow.
    max_lag
        The largest lag of `bulk_autocorrelation`, in transitions.
    allow_gaps
        Measure transitions that span several updates; adds `step_span`. Lags then count transitions.

    Returns
    -------
    xarray.Dataset
        Lazy dataset over t = 0..T; quantities of transitions are NaN (counts: -1) at the first step. float64 (step):
        `origin_radius`, `origin_radius_max`; `temperature`, `temperature_effective`, `temperature_l2`,
        `temperature_linf`; `bulk_thermal_ratio`, `shear_ratio`; `radial_mean`, `tangential_mean`, `outward_fraction`,
        `inward_fraction`; `total_l2`, `total_l1`, `kinetic_energy`, `displacement_max`, `l2_over_linf`,
        `participation`; `lag1_mean`, `lag1_low`, `lag1_median`, `lag1_high` of the cosine between each token's velocity
        and its previous one, NaN at the first two steps; `walk_residual`, `walk_envelope`, `walk_bridge`. int64:
        `n_aligned`, `n_moving`, `n_invalid`, `n_lag1`, `n_lag1_one_rests`, `n_lag1_both_rest`. Per token:
        `net_displacement`, `path_length`, `path_efficiency`, `diffusivity`, and `diffusivity_class` int8. For the
        centroid: `bias` (dim), `bias_to_noise`, `bulk_autocorrelation` (lag), and int64 `half_lag`, `tenth_lag`, -1 for
        never.

    Raises
    ------
    InputError
        For fewer than two steps, gaps, or a recording without absolute positions.

    Notes
    -----
    Tokens with NaN or infinity are left out; quantities that involve the centroid (temperature, ratios, n_aligned, the
    walk) are NaN at their step. Tokens at rest have no direction and are left out of mean cosines: counted as 0, as in
    notebook 1.22a, they would make a frozen cloud look tangential, and the mean of 1.31d .108 instead of .955.

    A random walk whose steps have the variance s² is at the distance s·√n after n steps; s is the length of a step in
    all dims, so D does not enter again. With the mean step removed, the walk ends where it began, and its distance is
    s·√(n·(T - n)/T).
    """
    x = checks.require(ds, variable, "cloud")
    extra = checks.check_steps(ds, "cloud", allow_gaps=allow_gaps)
    n_steps, n_dims = ds.sizes["step"], ds.sizes["dim"]
    if max_lag < 1:
        raise InputError(f"cloud: max_lag={max_lag}; expected at least 1 transition")
    lags = min(max_lag, n_steps - 2) + 1
    shapes: dict[str, Any] = {
        **{name: (("step",), (n_steps,), "i8" if name.startswith("n_") else "f8") for name in (*PER_STEP, *LAG)},
        **dict.fromkeys(PER_TOKEN, (("token",), (ds.sizes["token"],), "f8")),
        **walk_shapes(n_steps, n_dims, lags),
    }
    shapes["diffusivity_class"] = (*shapes["diffusivity_class"][:2], "i1")

    def finish(results: ReductionResults) -> xr.Dataset:
        inputs = {
            "series": step_series.collect(results, "motion"),
            "tokens": results.merged("motion", "tokens", merge_blocks),
        }
        inputs["centroid"] = results.array("cloud", "centroid").rechunk(-1)
        values = compute_together(inputs, _measure, shapes, ATTRS, lags=lags)
        coords = {**coordinates.within(ds, "step", "token", "dim"), "lag": np.arange(lags)}
        attrs = checks.result_attrs(ds, variable=variable)
        return xr.Dataset({**values, **checks.with_first_step(extra)}, coords, attrs)

    reductions: dict[str, Reduction] = {"motion": CloudMotion(variable), "cloud": CentreOfMass(variable)}
    return AnalysisSpec({variable: checks.as_dask(x.data)}, reductions, finish)


def _measure(inputs: dict[str, list[Any]], *, lags: int) -> Arrays:
    (tokens,) = inputs["tokens"]
    series = step_series.concatenate(inputs["series"], (*PER_STEP, *LAG))
    return {
        **{name: series[name] if name in STATES else with_first_step(series[name]) for name in PER_STEP},
        **persistence(series, tokens),
        **paths(tokens),
        **measure_walk(inputs["centroid"][0], lags),
    }


@cloud.summarize
@summary_text.in_one_line
def _summary(ds: xr.Dataset) -> Iterator[str]:
    temperature = ds["temperature"].values[1:]
    outward, lag = (summary_text.finite_mean(ds[name].values) for name in ("outward_fraction", "lag1_mean"))
    yield (
        f"Cloud: temperature {temperature[0]:.4g} first, {temperature[-1]:.4g} last; on average over steps "
        f"{100 * outward:.1f}% of the moving tokens move outwards, cosine to the previous velocity {lag:.3f}"
    )
    kinds, half = [int((ds["diffusivity_class"] == k).sum()) for k in range(3)], int(ds["half_lag"])
    yield (
        f"  tokens            {kinds[0]} subdiffusive, {kinds[1]} Brownian, {kinds[2]} superdiffusive; path "
        f"efficiency {summary_text.finite_mean(ds['path_efficiency'].values):.3f}; the centroid moved "
        f"{float(ds['bias_to_noise']):.4g} times as far as a random walk; its velocity autocorrelation falls to half "
        f"{'never' if half < 0 else f'at lag {half}'}"
    )


@cloud.find
def _findings(ds: xr.Dataset) -> Iterator[Finding]:
    less, same, more = (int((ds["diffusivity_class"] == k).sum()) for k in range(3))
    if less + same + more:
        yield Finding(
            0.4, f"Compared with a random walk of as many steps, {more:,} tokens got farther, {same:,} as far and "
            f"{less:,} less far."
        )  # fmt: skip
    outward = summary_text.finite_mean(ds["outward_fraction"].values)
    if np.isfinite(outward):
        yield Finding(
            0.4, f"On average over steps, {summary_text.percent(outward)} of the moving tokens move outwards."
        )


@cloud.measure
def _key_figure(ds: xr.Dataset) -> KeyFigure:
    temperature = ds["temperature"].values[1:]
    return KeyFigure("temperature: mean square speed in the cloud", temperature[0], temperature[-1])


cloud.invalid = "which are left out; these steps have no temperature"
cloud.over_runs = "temperature"
cloud.pictures = (
    Picture(
        "cloud",
        "cloud.cloud",
        "Temperature, direction and persistence",
        "Top: the mean square speed of the tokens, in the frame of the centroid and with its drift. Below: the share "
        "of moving tokens that move outwards, and how closely each token keeps its previous direction.",
    ),
)
