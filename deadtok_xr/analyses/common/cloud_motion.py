"""Measure the motion of all tokens of a cloud, step by step and token by token: the reduction of `cloud`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.analyses.common import step_series
from deadtok_xr.analyses.common.token_pieces import pieces, wide
from deadtok_xr.bfloat16 import BFLOAT16
from deadtok_xr.engine import Batch, Cost, Output, SingleVariable, Sizes, StepBlock, allocate_outputs
from deadtok_xr.engine.small_results import Arrays
from deadtok_xr.kernels import PIECE
from deadtok_xr.store.stored_array import read_first

_MOVERS = "over the tokens that moved; NaN if none did. A token at rest has no direction and is left out"
_LAG1 = "cos(ΔW[t-1], ΔW[t]) over tokens that moved at both steps; NaN if none did"
MOTION_ATTRS: dict[str, dict[str, Any]] = {
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
}  # fmt: skip
STATES = ("origin_radius", "origin_radius_max")
LAG = tuple(name for name in MOTION_ATTRS if "lag1" in name)
PER_TOKEN = ("net_displacement", "path_length", "path_efficiency", "diffusivity", "diffusivity_class")
PER_STEP = tuple(MOTION_ATTRS)[: list(MOTION_ATTRS).index("lag1_mean")]


@dataclass(frozen=True)
class CloudMotion(SingleVariable):
    """The reduction that measures the motion of all tokens."""

    looks_ahead: ClassVar[bool] = True  # the persistence at the first transition of a block needs the step before it

    def outputs(self) -> dict[str, Output]:
        """Return a `series` of the outputs per step, and `tokens`.

        The latter are sums per token, the persistence at the first transition of the next block, and the distances
        from the first step to the last. The last block computes them, and reads the first step from the store; without
        a store, the blocks that have these steps return them.
        """
        return {step_series.SERIES: Output(at="block"), "tokens": Output(at="block")}

    def block_outputs(self) -> dict[str, Output]:
        """Return the outputs in the series."""
        transitions = {
            name: Output("step", dtype="i8" if name.startswith("n_") else "f8", at="transitions")
            for name in (*PER_STEP, *LAG, "n_valid", "bulk_speed", "thermal_speed_mean")
        }
        return {**transitions, **dict.fromkeys(STATES, Output("step"))}

    def start(self, block: StepBlock) -> _Accumulator:
        """Return an accumulator for a block."""
        return _Accumulator(self, block)

    def cost(self, sizes: Sizes) -> Cost:
        """Return what it costs."""
        step = sizes.step * sizes.itemsize
        floats = self.matrices if sizes.is_small else ()
        before = 4 * sizes.step if floats else step
        border = 6 * 8 * min(sizes.step, PIECE)
        ends = (0 if sizes.stored else 2) if sizes.steps > sizes.block else 1
        kept = step * ends + 3 * 8 * 2 * sizes.tokens
        seconds = 2e-4 * sizes.steps + 2.9e-9 * sizes.moved
        return Cost(seconds, held=before, temporary=border, kept=kept, floats=floats)


class _Accumulator:
    def __init__(self, reduction: CloudMotion, block: StepBlock) -> None:
        self.name, self.block, self.outputs = reduction.variable, block, reduction.block_outputs()
        self.out = allocate_outputs(self.outputs, block)
        self.before: Any = None
        self.totals = np.zeros((2, block.n_tokens))
        self.ends: dict[str, Any] = {"first": None, "last": None, "net": None}  # steps of the recording, as recorded
        self.stored = None if block.is_last and not block.first else block.stored.get(self.name)
        self.borders: list[dict[str, Any]] = []

    def update(self, batch: Batch) -> None:
        from deadtok_xr.kernels.numba import cloud as kernel

        recorded, block = batch.values[self.name], self.block
        if batch.looks_ahead:
            self.borders = [{"at": block.first + block.n_states, **_border_lag(self.before.step, *recorded)}]
            return
        if self.stored is None and batch.has_first:
            self.ends["first"] = recorded[0].copy()
        if batch.has_last:
            self._finish(recorded[-1])
        steps = batch.floats_if_small(self.name)
        self.before = self.before or kernel.PreviousTransition(steps)
        kernel.cloud_steps(
            steps, batch.changed(self.name), self.before, self.totals, batch.slices(self.out, self.outputs)
        )

    def _finish(self, last: NDArray[Any]) -> None:
        """Measure the distances between the ends of the recording, or keep the last step for that."""
        if self.stored is not None:
            of_pieces = [
                _distances(read_first(self.stored.select((slice(None), i, slice(None))))[0], last[i])
                for i in pieces(*last.shape)
            ]
            self.ends["net"] = np.concatenate(of_pieces)
            return
        self.ends = _net_displacement({**self.ends, "last": last})
        if self.ends["last"] is not None:
            self.ends["last"] = last.copy()

    def result(self) -> dict[str, Any]:
        out = self.out
        valid = np.where(out["n_valid"] > 0, out["n_valid"], np.nan)
        out["n_invalid"][:] = self.block.n_tokens - out["n_valid"]
        out["temperature_effective"][:] = 2 * out["kinetic_energy"] / valid
        out["temperature_l2"][:] = out["total_l2"] / valid
        out["bulk_thermal_ratio"][:] = _ratio(out["bulk_speed"], np.sqrt(out["temperature"]))
        out["shear_ratio"][:] = _ratio(out["thermal_speed_mean"], out["bulk_speed"])
        return {step_series.SERIES: (out,), "tokens": {**self.ends, "totals": self.totals, "borders": self.borders}}


def _ratio(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a / b; infinite where only b is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return a / b


def merge_blocks(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """Return the `tokens` of two consecutive blocks as those of one."""
    ends = _net_displacement({"first": a["first"], "last": b["last"], "net": b["net"]})
    return {**ends, "totals": a["totals"] + b["totals"], "borders": [*a["borders"], *b["borders"]]}


def _net_displacement(ends: dict[str, Any]) -> dict[str, Any]:
    """Return the ends of a recording as the distance of each token between them, once both are there."""
    first, last = ends["first"], ends["last"]
    if first is None or last is None:
        return ends
    net = np.concatenate([_distances(first[i], last[i]) for i in pieces(*first.shape)])
    return {"first": None, "last": None, "net": net}


def _distances(first: NDArray[Any], last: NDArray[Any]) -> NDArray[np.float64]:
    """Return the distance of each token between two steps; NaN where it is not finite."""
    with np.errstate(invalid="ignore"):  # NaN and infinity in a recording
        return _lengths(wide(last) - wide(first))


def _border_lag(*steps: NDArray[Any]) -> dict[str, Any]:
    """Return the persistence of the velocities between three successive steps, recorded values or kernels' words."""
    from deadtok_xr.kernels.numba import cloud as kernel

    out = {name: np.zeros(1) for name in kernel.LAG}
    cosines, rest = np.empty(len(steps[0])), np.zeros(2, np.int64)
    n = 0
    for tokens in pieces(*steps[0].shape):
        first, second, third = (wide(x[tokens].view(BFLOAT16) if x.dtype == np.uint16 else x[tokens]) for x in steps)
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


def with_first_step(values: NDArray[Any]) -> NDArray[Any]:
    """Return a series of transitions over all steps; at the first one NaN, or -1 for counts."""
    return np.concatenate([[_missing(values)], values])


def _missing(values: NDArray[Any]) -> float:
    return -1 if values.dtype == np.int64 else np.nan


def persistence(series: Arrays, tokens: dict[str, Any]) -> Arrays:
    """Return the `LAG` variables over all steps: those of `series`, with the transitions between blocks filled in."""
    out = {}
    for name in LAG:
        values = series[name]
        values[0] = _missing(values)
        for border in tokens["borders"]:
            values[border["at"]] = border[name]
        out[name] = with_first_step(values)
    return out


def paths(tokens: dict[str, Any]) -> Arrays:
    """Return the `PER_TOKEN` variables, from the merged `tokens` of all blocks."""
    path, squares = tokens["totals"]
    net = tokens["net"]
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
