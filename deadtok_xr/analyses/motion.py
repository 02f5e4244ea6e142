"""Measure how far each token moves at each step: in weight space, in the notebooks' ULP, and on the lattice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deadtok_xr.analyses.common import checks, coordinates, summary_text, transitions
from deadtok_xr.analyses.registry import Finding, KeyFigure, Picture, built_in
from deadtok_xr.engine import AnalysisSpec, ReductionResults

_STEP = "ΔW'[t] = (W[t] - W[t-1]) / ULP(W[t-1])"
ATTRS: dict[str, dict[str, Any]] = {
    "displacement": {
        "long_name": "length of the displacement",
        "units": "1",
        "formula": "‖W[t] - W[t-1]‖₂",
    },
    "displacement_ulp": {
        "long_name": "displacement in norm ULP",
        "units": "norm ULP",
        "formula": "‖W[t] - W[t-1]‖₂ / max(‖W[t-1]‖₂·2⁻⁷, 1e-10)",
        "source": "notebook 1.31b",
    },
    "lattice_l1": {
        "long_name": "L1 norm of the lattice displacement",
        "units": "ULP",
        "formula": f"Σ_d |ΔW'|, {_STEP}",
    },
    "lattice_l2": {
        "long_name": "L2 norm of the lattice displacement",
        "units": "ULP",
        "formula": f"√Σ_d ΔW'², {_STEP}",
    },
    "lattice_linf": {
        "long_name": "largest lattice displacement",
        "units": "ULP",
        "formula": f"max_d |ΔW'|, {_STEP}",
    },
    "moved_dims": {
        "long_name": "dims whose value changed",
        "units": "1",
        "comment": "-1 where W[t] or W[t-1] holds NaN or infinity; -0 and +0 are equal",
    },
    "displacement_ulp_mean": {"long_name": "mean displacement over valid tokens", "units": "norm ULP"},
    "displacement_ulp_std": {
        "long_name": "standard deviation of the displacement over valid tokens (ddof 1)",
        "units": "norm ULP",
    },
    "n_invalid": {"long_name": "tokens with NaN or infinity at t - 1 or t", "units": "1"},
}  # fmt: skip

WITHOUT_LATTICE = ("displacement", "moved_dims", "n_invalid")
"""What is measured of weights whose number format is unknown."""


@built_in
def motion(
    ds: xr.Dataset, *, variable: str = "W", precision: str | None = None, allow_gaps: bool = False
) -> AnalysisSpec:
    """Measure every transition of every token.

    Parameters
    ----------
    ds
        A recording, as `open_recording` returns it or a selection of it; (step, token, dim).
    variable
        The weights to follow.
    precision
        The number format whose grid they are on; by default the variable's attribute `precision`.
    allow_gaps
        Measure transitions that span several updates; adds `step_span`.

    Returns
    -------
    xarray.Dataset
        Lazy dataset with the label t for the transition t-1 → t. Per (step, token): `displacement` ‖ΔW‖₂ and
        `displacement_ulp`, the norm ULP of notebook 1.31b, float32; `lattice_l1`, `lattice_l2`, `lattice_linf` of ΔW' =
        ΔW / ULP(W[t-1]), float64 since |ΔW'| reaches 1e37 at W = 0; `moved_dims`, int64. Per step:
        `displacement_ulp_mean` and `_std` (ddof 1) over valid tokens, `n_invalid`. Tokens with NaN or infinity give
        NaN. `skipped`, if recorded: whether the update skipped the variable. Of weights with unknown precision, which
        have no lattice, only `displacement`, `moved_dims` and `n_invalid`.

    Raises
    ------
    InputError
        For fewer than two steps, gaps, or a recording without absolute positions.
    OffGridError
        When computed, if the values are not on the grid: a derived array is not a recording.
    """
    x = checks.require(ds, variable, "motion")
    extra = checks.check_steps(ds, "motion", allow_gaps=allow_gaps)
    grid = checks.grid_or_none(x, precision)
    attrs = ATTRS if grid != "none" else {name: ATTRS[name] for name in WITHOUT_LATTICE}

    def finish(results: ReductionResults) -> xr.Dataset:
        values = {**results.variables("transitions", attrs), **extra}
        if (skipped := transitions.skipped_updates(ds, variable)) is not None:
            values["skipped"] = skipped
        result_attrs = checks.result_attrs(ds, variable=variable, precision=grid)
        return xr.Dataset(values, coordinates.of_transitions(ds), result_attrs)

    return transitions.specify(x, grid, finish)


@motion.summarize
def _summary(ds: xr.Dataset) -> Iterator[str]:
    measured = _summary_in_ulp(ds) if "displacement_ulp" in ds else _summary_without_lattice(ds)
    moved = np.asarray((ds["moved_dims"].data > 0).sum(axis=1))
    steps = ds["step"].values
    yield from measured
    n_invalid = ds["n_invalid"].values
    skipped = ds["skipped"].values.astype(bool) if "skipped" in ds else np.zeros(len(steps), bool)
    still = steps[(moved == 0) & (n_invalid < ds.sizes["token"]) & ~skipped]
    last = steps[moved > 0]
    yield (
        f"  moving tokens     {moved[0]} at step {steps[0]}, {moved[-1]} at step {steps[-1]}; "
        + (f"no token moved in {len(still)} of {len(steps)} steps; " if len(still) else "")
        + (f"last motion at step {last[-1]}" if len(last) else "no motion")
    )


def _summary_in_ulp(ds: xr.Dataset) -> Iterator[str]:
    mean, std = ds["displacement_ulp_mean"].values, ds["displacement_ulp_std"].values
    yield "Motion, |ΔW| in norm ULP (1.31b)"
    yield f"  mean over tokens  {summary_text.span(mean)}, first {mean[0]:.4g}, last {mean[-1]:.4g}"
    yield f"  std over tokens   {summary_text.span(std)}"


def _summary_without_lattice(ds: xr.Dataset) -> Iterator[str]:
    mean = ds["displacement"].mean("token").values
    yield "Motion, |ΔW| (the precision of the weights is unknown, so they have no ULP)"
    yield f"  mean over tokens  {summary_text.span(mean)}, first {mean[0]:.4g}, last {mean[-1]:.4g}"


@motion.find
def _findings(ds: xr.Dataset) -> Iterator[Finding]:
    steps, moved, valid = _moving(ds)
    if not steps.size:
        return
    if not moved.any():
        yield Finding(0.95, f"No token moves at any of {len(steps):,} steps.")
        return
    first = f"{summary_text.some(moved[0], valid[0], ds)} move at step {steps[0]}"
    stop = steps[moved > 0][-1]
    last = f"{moved[-1]:,} at step {steps[-1]}, the last" if moved[-1] else f"nothing moves after step {stop}"
    yield Finding(0.95, summary_text.sentence(f"{first}, {last}"))
    mean, unit = _mean(ds)
    if (at := summary_text.ends(mean)) is not None:
        values = ", ".join(f"{summary_text.number(mean[i])} at step {ds['step'].values[i]}" for i in at)
        yield Finding(0.5, f"The mean displacement of a token is {values}{unit}.")


@motion.measure
def _key_figure(ds: xr.Dataset) -> KeyFigure:
    mean, unit = _mean(ds)
    return KeyFigure(f"mean displacement{unit}", mean[0], mean[-1])


def _mean(ds: xr.Dataset) -> tuple[NDArray[Any], str]:
    """Return the mean displacement and its unit; weights with unknown precision have no ULP."""
    if "displacement_ulp_mean" in ds:
        return ds["displacement_ulp_mean"].values, ", in norm ULP"
    return ds["displacement"].mean("token").values, ""


def _moving(ds: xr.Dataset) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return the steps at which motion is known, how many tokens moved there, and of how many that is known."""
    moved = np.asarray((ds["moved_dims"].data > 0).sum(axis=ds["moved_dims"].get_axis_num("token")))
    valid = ds.sizes["token"] - ds["n_invalid"].values
    known = valid > 0
    if "skipped" in ds:
        known &= ~ds["skipped"].values.astype(bool)
    return ds["step"].values[known], moved[known], valid[known]


motion.invalid = "which are left out of the means"
motion.across_gaps = True
motion.over_runs = "displacement_ulp_mean"
motion.pictures = (
    Picture(
        "displacement",
        "motion.displacement",
        "How far tokens move",
        "The line is the mean displacement over tokens at each step, the band one standard deviation. The strip at the "
        "bottom marks the steps at which no token moved, which a logarithmic axis cannot show.",
        lambda ds: not _moving(ds)[1].any(),
    ),
    Picture(
        "trajectories",
        "motion.trajectories",
        "Every token's displacement",
        "The darker a cell, the more tokens moved that far at that step; the line is the mean. The strip at the bottom "
        "counts tokens that did not move.",
        lambda ds: not _moving(ds)[1].any(),
    ),
)
