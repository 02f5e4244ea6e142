"""Measure the motion of the cloud: temperatures, shear, direction, persistence of velocities, diffusion."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deadtok_xr.analyses.common import checks, coordinates, step_series, summary_text
from deadtok_xr.analyses.common.centre_of_mass import CentreOfMass
from deadtok_xr.analyses.common.centroid_walk import WALK_ATTRS, measure_walk, walk_shapes
from deadtok_xr.analyses.common.token_pieces import pieces, wide
from deadtok_xr.analyses.registry import Finding, KeyFigure, Picture, built_in
from deadtok_xr.engine import (
    AnalysisSpec,
    Batch,
    Cost,
    Output,
    Reduction,
    ReductionResults,
    SingleVariable,
    Sizes,
    StepBlock,
    allocate_outputs,
)
from deadtok_xr.engine.small_results import Arrays, compute_together
from deadtok_xr.errors import InputError

_MOVERS = "over the tokens that moved; NaN if none did. A token at rest has no direction and is left out"
_LAG1 = "cos(ΔW[t-1], ΔW[t]) over tokens that moved at both steps; NaN if none did"
ATTRS: dict[str, dict[str, Any]] = {
    "origin_radius": {
        "long_name": "mean distance from the origin", "units": "1", "formula": "mean_i ‖W[t,i]‖₂",
        "comment": "`radius` of kinematics is the distance from the centroid",
    },
    "origin_radius_max": {"long_name": "largest distance from the origin", "units": "1", "formula": "max_i ‖W[t,i]‖₂"},
    "temperature": {
        "long_name": "temperature in the centre-of-mass frame", "units": "1/step²", "formula": "mean_i ‖ΔW_i - ΔC‖₂²",
    },
    "temperature_effective": {
        "long_name": "effective temperature, drift included", "units": "1/step²", "formula": "mean_i ‖ΔW_i‖₂²",
    },
    "temperature_l2": {"long_name": "mean length of the displacements", "units": "1/step", "formula": "mean_i ‖ΔW_i‖₂"},
    "temperature_linf": {
        "long_name": "mean largest element of the displacements", "units": "1/step", "formula": "mean_i ‖ΔW_i‖∞",
    },
    "bulk_thermal_ratio": {
        "long_name": "ratio of the centroid's speed to the speed within the cloud", "units": "1",
        "formula": "‖ΔC‖₂ / √mean_i ‖ΔW_i - ΔC‖₂²", "comment": "NaN if nothing moved, inf if all moved alike",
    },
    "shear_ratio": {
        "long_name": "ratio of the mean speed within the cloud to the centroid's speed", "units": "1",
        "formula": "mean_i ‖ΔW_i - ΔC‖₂ / ‖ΔC‖₂", "comment": "NaN if nothing moved, inf if the centroid is at rest",
    },
    "n_aligned": {
        "long_name": "tokens that move in the direction of the centroid", "units": "1",
        "formula": "#{i: cos(ΔW_i, ΔC) > 0.9}",
        "comment": "-1 where a token holds NaN or infinity",
    },
    "radial_mean": {
        "long_name": "mean radial part of the displacements", "units": "1",
        "formula": "mean_i cos(ΔW[t,i], W[t-1,i])", "comment": _MOVERS,
    },
    "tangential_mean": {
        "long_name": "mean tangential part of the displacements", "units": "1",
        "formula": "mean_i sin(ΔW[t,i], W[t-1,i])", "comment": _MOVERS,
    },
    "outward_fraction": {
        "long_name": "share of the moved tokens that moved away from the origin", "units": "1",
        "formula": "#{i: ΔW[t,i]·W[t-1,i] > 0} / n_moving", "comment": _MOVERS,
    },
    "inward_fraction": {
        "long_name": "share of the moved tokens that moved towards the origin", "units": "1",
        "formula": "#{i: ΔW[t,i]·W[t-1,i] < 0} / n_moving", "comment": _MOVERS,
    },
    "total_l2": {"long_name": "sum of the lengths of all displacements", "units": "1/step", "formula": "Σ_i ‖ΔW_i‖₂"},
    "total_l1": {"long_name": "sum of the L1 norms of all displacements", "units": "1/step", "formula": "Σ_i ‖ΔW_i‖₁"},
    "kinetic_energy": {
        "long_name": "kinetic energy of tokens of mass 1", "units": "1/step²", "formula": "½ Σ_i ‖ΔW_i‖₂²",
    },
    "displacement_max": {"long_name": "longest displacement", "units": "1/step", "formula": "max_i ‖ΔW_i‖₂"},
    "l2_over_linf": {
        "long_name": "mean ratio of the L2 to the L∞ norm of the displacements", "units": "1",
        "formula": "mean_i ‖ΔW_i‖₂ / ‖ΔW_i‖∞",
        "comment": "1 if one element moves, √D if all move by the same amount; " + _MOVERS,
    },
    "participation": {
        "long_name": "participation: effective share of the tokens that carry the motion", "units": "1",
        "formula": "(Σ_i ‖ΔW_i‖₂)² / (N·Σ_i ‖ΔW_i‖₂²)", "comment": "1 if all move equally far; NaN if none moved",
    },
    "n_moving": {"long_name": "tokens that moved", "units": "1", "formula": "#{i: W[t,i] ≠ W[t-1,i]}"},
    "n_invalid": {"long_name": "tokens with NaN or infinity at t - 1 or t, which are left out", "units": "1"},
    "lag1_mean": {"long_name": "mean persistence of the velocities", "units": "1", "formula": f"mean of {_LAG1}"},
    "lag1_low": {"long_name": "lower quartile of the persistence", "units": "1", "formula": f"25% quantile of {_LAG1}"},
    "lag1_median": {"long_name": "median persistence of the velocities", "units": "1", "formula": f"median of {_LAG1}"},
    "lag1_high": {
        "long_name": "upper quartile of the persistence", "units": "1", "formula": f"75% quantile of {_LAG1}",
    },
    "n_lag1": {"long_name": "tokens that moved at t - 1 and at t", "units": "1"},
    "n_lag1_one_rests": {"long_name": "tokens that moved either at t - 1 or at t", "units": "1"},
    "n_lag1_both_rest": {"long_name": "tokens that moved neither at t - 1 nor at t", "units": "1"},
    "net_displacement": {
        "long_name": "distance from the first step to the last", "units": "1", "formula": "‖W[T] - W[0]‖₂",
    },
    "path_length": {"long_name": "length of the path", "units": "1", "formula": "Σ_t ‖ΔW[t]‖₂"},
    "path_efficiency": {
        "long_name": "net displacement over path length: 1 for a straight line", "units": "1",
        "formula": "‖W[T] - W[0]‖₂ / Σ_t ‖ΔW[t]‖₂", "comment": "NaN for a token that never moved",
    },
    "diffusivity": {
        "long_name": "spread relative to a random walk of the same steps", "units": "1",
        "formula": "‖W[T] - W[0]‖₂² / Σ_t ‖ΔW[t]‖₂² = ‖net‖² / (T·σ²), σ the RMS step",
        "comment": "1 on average for a random walk, T for a straight line; NaN for a token that never moved",
    },
    "diffusivity_class": {
        "long_name": "class of the diffusivity", "units": "1",
        "formula": "subdiffusive < 0.5 <= Brownian <= 2 < superdiffusive; unknown if it never moved, or holds NaN",
        "flag_values": [-1, 0, 1, 2], "flag_meanings": "unknown subdiffusive brownian superdiffusive",
    },
    **WALK_ATTRS,
}  # fmt: skip
_STATES = ("origin_radius", "origin_radius_max")
_LAG = tuple(name for name in ATTRS if "lag1" in name)
_PER_TOKEN = ("net_displacement", "path_length", "path_efficiency", "diffusivity", "diffusivity_class")
_PER_STEP = tuple(ATTRS)[: list(ATTRS).index("lag1_mean")]


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
        **{name: (("step",), (n_steps,), "i8" if name.startswith("n_") else "f8") for name in (*_PER_STEP, *_LAG)},
        **dict.fromkeys(_PER_TOKEN, (("token",), (ds.sizes["token"],), "f8")),
        **walk_shapes(n_steps, n_dims, lags),
    }
    shapes["diffusivity_class"] = (*shapes["diffusivity_class"][:2], "i1")

    def finish(results: ReductionResults) -> xr.Dataset:
        inputs = {
            "series": step_series.collect(results, "motion"),
            "tokens": results.merged("motion", "tokens", _merge),
        }
        inputs["centroid"] = results.array("cloud", "centroid").rechunk(-1)
        values = compute_together(inputs, _measure, shapes, ATTRS, lags=lags)
        coords = {**coordinates.within(ds, "step", "token", "dim"), "lag": np.arange(lags)}
        attrs = checks.result_attrs(ds, variable=variable)
        return xr.Dataset({**values, **checks.with_first_step(extra)}, coords, attrs)

    reductions: dict[str, Reduction] = {"motion": CloudMotion(variable), "cloud": CentreOfMass(variable)}
    return AnalysisSpec({variable: checks.as_dask(x.data)}, reductions, finish)


@dataclass(frozen=True)
class CloudMotion(SingleVariable):
    """The reduction that measures the motion of all tokens."""

    def outputs(self) -> dict[str, Output]:
        """Return a `series` of the outputs per step, and `tokens`, sums per token and the steps at the block's ends.

        Lags across the border of two blocks are added when these are merged.
        """
        return {step_series.SERIES: Output(at="block"), "tokens": Output(at="block")}

    def block_outputs(self) -> dict[str, Output]:
        """Return the outputs in the series."""
        transitions = {
            name: Output("step", dtype="i8" if name.startswith("n_") else "f8", at="transitions")
            for name in (*_PER_STEP, *_LAG, "n_valid", "bulk_speed", "thermal_speed_mean")
        }
        return {**transitions, **dict.fromkeys(_STATES, Output("step"))}

    def start(self, block: StepBlock) -> _Accumulator:
        """Return an accumulator for a block."""
        return _Accumulator(self, block)

    def cost(self, sizes: Sizes) -> Cost:
        """Return what it costs."""
        step = sizes.step * sizes.itemsize
        floats = self.matrices if sizes.is_small else ()
        before = 4 * sizes.step if floats else step
        # of all blocks that are merged the first step and one at the end, of the next one two and one; of one block two
        kept = 5 if sizes.steps > sizes.block else 2
        return Cost(3.8e-9 * sizes.moved, held=3 * step + before, kept=kept * step, floats=floats)


class _Accumulator:
    def __init__(self, reduction: CloudMotion, block: StepBlock) -> None:
        self.name, self.block, self.outputs = reduction.variable, block, reduction.block_outputs()
        self.out = allocate_outputs(self.outputs, block)
        self.before: Any = None
        self.totals = np.zeros((2, block.n_tokens))
        self.ends: dict[str, Any] = {}  # the first two steps, the last but one, and the last of all, as recorded

    def update(self, batch: Batch) -> None:
        from deadtok_xr.kernels.numba import cloud as kernel

        recorded, block = batch.values[self.name], self.block
        if not batch.start:  # the first block has no border before it
            self.ends["first"] = recorded[: 2 if block.first else 1].copy()
        if batch.start + batch.n_transitions == block.n_transitions:
            self.ends["last"] = recorded[-2:-1].copy()
            self.ends["end"] = recorded[-1].copy() if block.n_transitions < block.n_states else None
        steps = batch.floats_if_small(self.name)
        self.before = self.before or kernel.PreviousTransition(steps)
        kernel.cloud_steps(
            steps, batch.changed(self.name), self.before, self.totals, batch.slices(self.out, self.outputs)
        )

    def result(self) -> dict[str, Any]:
        out = self.out
        valid = np.where(out["n_valid"] > 0, out["n_valid"], np.nan)
        out["n_invalid"][:] = self.block.n_tokens - out["n_valid"]
        out["temperature_effective"][:] = 2 * out["kinetic_energy"] / valid
        out["temperature_l2"][:] = out["total_l2"] / valid
        out["bulk_thermal_ratio"][:] = _ratio(out["bulk_speed"], np.sqrt(out["temperature"]))
        out["shear_ratio"][:] = _ratio(out["thermal_speed_mean"], out["bulk_speed"])
        tokens = {
            **self.ends, "totals": self.totals, "at": self.block.first, "n": self.block.n_transitions, "borders": [],
        }  # fmt: skip
        return {step_series.SERIES: (out,), "tokens": tokens}


def _ratio(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a / b; infinite where only b is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return a / b


def _merge(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """Merge two consecutive blocks: sums, ends, and the persistence across their border."""
    if not b["n"]:  # the last block may be a single step, which the block before includes
        return {**a, "totals": a["totals"] + b["totals"], "end": b["end"]}
    border = {"at": b["at"], **_border_lag(a["last"][0], *b["first"])}
    return {
        "first": a["first"], "last": b["last"], "end": b["end"], "at": a["at"], "n": a["n"] + b["n"],
        "totals": a["totals"] + b["totals"], "borders": [*a["borders"], border, *b["borders"]],
    }  # fmt: skip


def _border_lag(*steps: NDArray[Any]) -> dict[str, Any]:
    """Return the persistence of the velocities between three successive steps."""
    from deadtok_xr.kernels.numba import cloud as kernel

    out = {name: np.zeros(1) for name in kernel.LAG}
    cosines, rest = np.empty(len(steps[0])), np.zeros(2, np.int64)
    n = 0
    for tokens in pieces(*steps[0].shape):
        first, second, third = (wide(x[tokens]) for x in steps)
        with np.errstate(invalid="ignore"):  # NaN and infinity in a recording
            lengths = _lengths(second - first), _lengths(third - second)
        found, *resting = kernel.list_cosines(first, second, third, *lengths, cosines[n:])
        n, rest = n + found, rest + resting
    kernel.describe_cosines(cosines[:n], rest, out, 0)
    return {name: x[0] for name, x in out.items()}


def _lengths(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the length of each row; NaN where it is not finite."""
    length = np.sqrt((x * x).sum(axis=1))
    return np.where(np.isfinite(length), length, np.nan)


def _measure(inputs: dict[str, list[Any]], *, lags: int) -> Arrays:
    (tokens,) = inputs["tokens"]
    series = step_series.concatenate(inputs["series"], (*_PER_STEP, *_LAG))
    return {
        **{name: series[name] if name in _STATES else _with_first_step(series[name]) for name in _PER_STEP},
        **_persistence(series, tokens),
        **_paths(tokens),
        **measure_walk(inputs["centroid"][0], lags),
    }


def _with_first_step(values: NDArray[Any]) -> NDArray[Any]:
    """Return a series of transitions over all steps; at the first one NaN, or -1 for counts."""
    return np.concatenate([[_missing(values)], values])


def _missing(values: NDArray[Any]) -> float:
    return -1 if values.dtype == np.int64 else np.nan


def _persistence(series: Arrays, tokens: dict[str, Any]) -> Arrays:
    out = {}
    for name in _LAG:
        values = series[name]
        values[0] = _missing(values)
        for border in tokens["borders"]:
            values[border["at"]] = border[name]
        out[name] = _with_first_step(values)
    return out


def _paths(tokens: dict[str, Any]) -> Arrays:
    path, squares = tokens["totals"]
    first, end = tokens["first"][0], tokens["end"]
    with np.errstate(invalid="ignore"):  # NaN and infinity in a recording
        net = np.concatenate([_lengths(wide(end[i]) - wide(first[i])) for i in pieces(*first.shape)])
    moved = squares > 0
    diffusivity = np.where(moved, net**2 / np.where(moved, squares, 1.0), np.nan)
    kind = np.select([np.isnan(diffusivity), diffusivity < 0.5, diffusivity <= 2], [-1, 0, 1], 2)
    return {
        "net_displacement": np.where(np.isnan(path), np.nan, net),
        "path_length": path,
        "path_efficiency": np.where(moved, net / np.where(moved, path, 1.0), np.nan),
        "diffusivity": diffusivity,
        "diffusivity_class": kind,
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
