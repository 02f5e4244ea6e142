"""Divide the run into the epochs of the cloud's radius: inhale, sneeze, deceleration and freeze."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deadtok_xr.analyses.common import checks, coordinates, summary_text
from deadtok_xr.analyses.common.centre_of_mass import CentreOfMass
from deadtok_xr.analyses.registry import Finding, KeyFigure, Picture, built_in
from deadtok_xr.engine import (
    AnalysisSpec,
    Batch,
    BlockResult,
    Cost,
    Output,
    OutputAccumulator,
    Reduction,
    ReductionResults,
    SingleVariable,
    Sizes,
    StepBlock,
    fold,
)
from deadtok_xr.engine.small_results import Arrays, compute_together
from deadtok_xr.errors import InputError

Floats = NDArray[np.float64]
EPOCHS = ("inhale", "sneeze", "deceleration", "freeze")
CENTRES = ("origin", "centroid")
EARLY = 20
"""The steps within which notebook 1.23a searches for the inhale."""
_WINDOW = 10
ATTRS: dict[str, dict[str, Any]] = {
    "radius": {"long_name": "radius of the cloud", "units": "1"},
    "velocity": {"long_name": "growth of the radius", "units": "1/step", "formula": "(r[t] - r[t-1]) / (step span)"},
    "acceleration": {
        "long_name": "change of the growth of the radius", "units": "1/step",
        "formula": "velocity[t] - velocity[t-1]",
    },
    "frozen_fraction": {
        "long_name": "share of the valid tokens that did not move", "units": "1",
        "comment": "NaN at the first step, and without valid tokens",
    },
    "n_invalid": {"long_name": "tokens with NaN or infinity at t - 1 or t; 0 at the first step", "units": "1"},
    "epoch": {
        "long_name": "epoch of the radius", "units": "1",
        "flag_values": [-1, *range(len(EPOCHS))], "flag_meanings": " ".join(("unknown", *EPOCHS)),
        "formula": "inhale: t <= inhale_step; sneeze: t <= sneeze_step; freeze: t >= freeze_step; else deceleration",
    },
    "inhale_step": {
        "long_name": "step of the smallest radius within 20 steps of the first; -1 if it does not shrink",
        "units": "step", "formula": "argmin r over the first 21 steps, if later than the first and r < r(first)",
    },
    "inhale_depth": {
        "long_name": "relative decrease of the radius until inhale_step", "units": "1",
        "formula": "1 - r(inhale_step) / r(first)",
    },
    "sneeze_step": {"long_name": "step of the fastest growth", "units": "step", "formula": "argmax velocity"},
    "freeze_step": {
        "long_name": "first step at which more than the given share of the tokens is frozen; -1 never",
        "units": "step", "formula": "first t with frozen_fraction > frozen_above",
    },
    "slow_step": {
        "long_name": "first step after the sneeze at which the growth is below 1% of its peak; -1 never",
        "units": "step", "formula": "first t > sneeze_step with |velocity| < 0.01·max velocity",
    },
    "reexpansion_step": {
        "long_name": "step of the deepest local minimum of the velocity between sneeze and freeze; -1 none",
        "units": "step",
        "formula": "argmin velocity over t where it is the minimum of t ± 10, acceleration[t] < 0 < acceleration[t+1]",
    },
}  # fmt: skip
_OVER_STEPS = tuple(ATTRS)[:6]
_FORMULA = {"origin": "r[t] = mean_i ‖W[t,i]‖₂", "centroid": "r[t] = mean_i ‖W[t,i] - C[t]‖₂"}


@built_in
def epochs(
    ds: xr.Dataset,
    *,
    radius: str = "origin",
    smooth: int = 1,
    frozen_above: float = 0.9,
    variable: str = "W",
    allow_gaps: bool = False,
) -> AnalysisSpec:
    """Divide the run into the epochs of the radius curve.

    Parameters
    ----------
    ds
        A recording, (step, token, dim), of any floating-point format.
    radius
        The mean distance of the tokens from the ``"origin"``, as in the notebooks, or from their ``"centroid"``. Only
        the former includes the drift of the cloud.
    smooth
        The number of steps, odd, over which the velocity is averaged before its peak is searched (1.23a: 5); 1 for no
        averaging.
    frozen_above
        The share of frozen tokens above which the freeze begins.
    variable, allow_gaps
        As for `motion`.

    Returns
    -------
    xarray.Dataset
        Lazy dataset over t = 0..T. Per step, float64: `radius`, `velocity` and `acceleration` (NaN where the previous
        step is unknown), `frozen_fraction`; `n_invalid` int64; `epoch` int8, -1 where the radius is unknown. Numbers:
        `inhale_step`, `sneeze_step`, `freeze_step`, `slow_step`, `reexpansion_step` int64, -1 never; `inhale_depth`
        float64. NaN and infinity make the radius of their step NaN.

    Raises
    ------
    InputError
        As for `motion`, and for unknown options.

    Notes
    -----
    Notebooks 1.23a, 1.24b and 1.27a.
    """
    _check(radius, smooth, frozen_above)
    x = checks.require(ds, variable, "epochs")
    extra = checks.check_steps(ds, "epochs", allow_gaps=allow_gaps)
    n = ds.sizes["step"]
    dtypes = {"epoch": "i1", "n_invalid": "i8"}
    shapes: dict[str, Any] = {name: (("step",), (n,), dtypes.get(name, "f8")) for name in _OVER_STEPS}
    shapes |= {name: ((), (), "f8" if name == "inhale_depth" else "i8") for name in ATTRS if name not in shapes}
    reductions: dict[str, Reduction] = {"radius": OriginRadius(variable)}
    reductions |= {"cloud": CentreOfMass(variable)} if radius == "centroid" else {}

    def finish(results: ReductionResults) -> xr.Dataset:
        wanted = {"radius": tuple(OUTPUTS)} if radius == "origin" else {"cloud": ("radius",), "radius": COUNTS}
        inputs = {r: fold(results.per_block(r, _pick, names=names), _append) for r, names in wanted.items()}
        options = {"steps": ds["step"].values, "n_tokens": ds.sizes["token"], "frozen_above": frozen_above}
        attrs = {**ATTRS, "radius": {**ATTRS["radius"], "formula": _FORMULA[radius]}}
        values = compute_together(inputs, _describe, shapes, attrs, smooth=smooth, **options)
        result_attrs = checks.result_attrs(
            ds, variable=variable, radius=radius, smooth=smooth, frozen_above=frozen_above
        )
        return xr.Dataset({**values, **checks.with_first_step(extra)}, coordinates.along(ds, "step"), result_attrs)

    return AnalysisSpec({variable: checks.as_dask(x.data)}, reductions, finish)


def _pick(result: BlockResult, *, names: tuple[str, ...]) -> BlockResult:
    return {name: result[name] for name in names}


def _append(before: BlockResult, block: BlockResult) -> BlockResult:
    return {name: np.concatenate([before[name], block[name]]) for name in block}


def _check(radius: str, smooth: int, frozen_above: float) -> None:
    if radius not in CENTRES:
        raise InputError(f"radius={radius!r}: choose one of {', '.join(CENTRES)}")
    if smooth < 1 or smooth % 2 == 0:
        raise InputError(f"epochs: smooth={smooth}; expected an odd number of steps, 1 for none")
    if not 0 <= frozen_above < 1:
        raise InputError(f"epochs: frozen_above={frozen_above}; expected a share of the tokens, from 0 to below 1")


COUNTS = ("n_moved", "n_valid")
OUTPUTS = {"radius": Output("step"), **{name: Output("step", dtype="i8", at="transitions") for name in COUNTS}}


@dataclass(frozen=True)
class OriginRadius(SingleVariable):
    """The reduction that measures the mean distance from the origin, and counts the tokens that moved."""

    def outputs(self) -> dict[str, Output]:
        """Return `OUTPUTS`."""
        return OUTPUTS

    def start(self, block: StepBlock) -> _Accumulator:
        """Return an accumulator for a block."""
        return _Accumulator(self, block)

    def cost(self, sizes: Sizes) -> Cost:
        """Return what it costs."""
        return Cost(1.3e-9 * sizes.moved, floats=self.matrices if sizes.is_small else ())


class _Accumulator(OutputAccumulator[OriginRadius]):
    def __init__(self, reduction: OriginRadius, block: StepBlock) -> None:
        super().__init__(reduction, block)
        self.norms = np.full(block.n_tokens, -1.0)

    def update(self, batch: Batch) -> None:
        from deadtok_xr.kernels.numba.radius import radius

        out, name = self.slices(batch), self.reduction.variable
        steps, changed = batch.floats_if_small(name), batch.changed(name)
        radius(steps, changed, self.norms, out["radius"], out["n_moved"], out["n_valid"])


def _describe(
    inputs: dict[str, list[Any]], *, steps: NDArray[np.int64], n_tokens: int, smooth: int, frozen_above: float
) -> Arrays:
    series = {name: x for (rows,) in inputs.values() for name, x in rows.items()}
    r, moved, valid = (series[name] for name in ("radius", "n_moved", "n_valid"))
    velocity = np.concatenate([[np.nan], np.diff(r) / np.diff(steps)])
    acceleration = np.concatenate([[np.nan], np.diff(velocity)])
    frozen = np.divide(valid - moved, valid, out=np.full(len(valid), np.nan), where=valid > 0)
    frozen = np.concatenate([[np.nan], frozen])
    at = _turning_points(r, _smoothed(velocity, smooth), frozen, frozen_above)
    labels = {f"{name}_step": steps[i] if i >= 0 else -1 for name, i in at.items()}
    depth = 1 - r[at["inhale"]] / r[0] if at["inhale"] >= 0 else 0.0 if np.isfinite(r[0]) else np.nan
    return {
        "radius": r, "velocity": velocity, "acceleration": acceleration, "frozen_fraction": frozen,
        "n_invalid": np.concatenate([[0], n_tokens - valid]), "epoch": _epochs(r, at), "inhale_depth": depth, **labels,
    }  # fmt: skip


def _smoothed(velocity: Floats, width: int) -> Floats:
    """Return the mean of the finite values over ``width`` steps, fewer at the ends."""
    if width == 1:
        return velocity
    known = np.isfinite(velocity)
    window = np.ones(width)
    total = np.convolve(np.where(known, velocity, 0.0), window)[width // 2 : width // 2 + len(velocity)]
    n = np.convolve(known, window)[width // 2 : width // 2 + len(velocity)]
    return np.where(known, total / np.maximum(n, 1), np.nan)


def _turning_points(r: Floats, velocity: Floats, frozen: Floats, frozen_above: float) -> dict[str, int]:
    """Return the positions at which epochs begin or end, -1 for none."""
    known = np.isfinite(velocity)
    sneeze = int(np.nanargmax(np.where(known, velocity, -np.inf))) if known.any() else -1
    early = r[: EARLY + 1]
    inhale = int(np.nanargmin(early)) if np.isfinite(early).any() else -1
    inhale = inhale if inhale > 0 and early[inhale] < early[0] else -1
    freeze = _first(frozen > frozen_above)
    slow = np.abs(velocity) < 0.01 * velocity[sneeze] if sneeze >= 0 else np.zeros(len(r), bool)
    end = freeze if freeze >= 0 else len(r)
    return {
        "inhale": inhale,
        "sneeze": sneeze,
        "freeze": freeze,
        "slow": _first(slow & (np.arange(len(r)) > sneeze)),
        "reexpansion": _deepest_minimum(velocity, sneeze, end) if sneeze >= 0 else -1,
    }


def _first(mask: NDArray[np.bool_]) -> int:
    return int(mask.argmax()) if mask.any() else -1


def _deepest_minimum(v: Floats, begin: int, end: int) -> int:
    """Return the position of the deepest minimum between two positions, the least of ± 10 steps; -1 for none."""
    best = -1
    for t in range(begin + 1, min(end, len(v) - 1)):
        around = v[max(begin, t - _WINDOW) : min(end, t + _WINDOW + 1)]
        turns = v[t] < v[t - 1] and v[t + 1] > v[t]
        if turns and v[t] <= np.nanmin(around) and (best < 0 or v[t] < v[best]):
            best = t
    return best


def _epochs(r: Floats, at: dict[str, int]) -> NDArray[np.int8]:
    t = np.arange(len(r))
    epoch = np.where(t <= at["sneeze"], 1, 2)
    epoch[t <= at["inhale"]] = 0
    if at["freeze"] >= 0:
        epoch[at["freeze"] :] = 3
    return np.where(np.isfinite(r), epoch, -1).astype(np.int8)


@epochs.summarize
def _summary(ds: xr.Dataset) -> Iterator[str]:
    at = {name: int(ds[f"{name}_step"]) for name in ("inhale", "sneeze", "reexpansion", "freeze")}
    when = {name: f"at step {step}" if step >= 0 else "never" for name, step in at.items()}
    shrinks = (
        f"shrinks by {100 * float(ds['inhale_depth']):.2f}% until step {at['inhale']}, " if at["inhale"] >= 0 else ""
    )
    yield (
        f"Epochs of the radius from the {ds.attrs.get('radius', 'origin')}: {shrinks}grows fastest {when['sneeze']}, "
        f"again {when['reexpansion']}, freeze begins {when['freeze']}"
    )


def _growth(ds: xr.Dataset) -> int:
    """Return the step of the fastest growth; -1 if the cloud never grows."""
    return int(ds["sneeze_step"]) if (ds["velocity"].values > 0).any() else -1


@epochs.find
def _findings(ds: xr.Dataset) -> Iterator[Finding]:
    inhale, freeze = (int(ds[f"{name}_step"]) for name in ("inhale", "freeze"))
    if (sneeze := _growth(ds)) < 0:
        return
    before = f" after it shrank by {summary_text.percent(float(ds['inhale_depth']))} until step {inhale}"
    above = summary_text.percent(ds.attrs.get("frozen_above", 0.9))
    then = f", and more than {above} of the tokens are frozen at step {freeze}" if freeze >= 0 else ""
    yield Finding(0.3, f"The cloud grows fastest at step {sneeze}{before if inhale >= 0 else ''}{then}.")


@epochs.measure
def _key_figure(ds: xr.Dataset) -> KeyFigure:
    sneeze = _growth(ds)
    return KeyFigure("step at which the cloud grows fastest", overall=sneeze if sneeze >= 0 else "none")


epochs.invalid = "which have no radius"
epochs.over_runs = "velocity"
epochs.pictures = (
    Picture(
        "epochs",
        "epochs.epochs",
        "Epochs of the radius",
        "Top: the radius of the cloud, which first shrinks (inhale), then grows fast (sneeze), and the share of frozen "
        "tokens. Bottom: the growth of the radius. Lines mark the steps at which epochs change.",
    ),
)
