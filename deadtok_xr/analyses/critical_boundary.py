"""Compare Adam's step with half the gap to the next number, for every element: only a larger step moves it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from deadtok_xr import kernels
from deadtok_xr.analyses.common import checks, coordinates, summary_text
from deadtok_xr.analyses.common.read_updates import read_updates
from deadtok_xr.analyses.registry import Finding, KeyFigure, Picture, built_in
from deadtok_xr.engine import (
    AnalysisSpec,
    Batch,
    BlockResult,
    Cost,
    Output,
    ReductionResults,
    Sizes,
    StepBlock,
    allocate_outputs,
)
from deadtok_xr.engine.series import Series
from deadtok_xr.errors import InputError
from deadtok_xr.replay.settings import Settings

_RATIO = "|η·m̂ / (√v̂ + ε)| / (half the gap from W[t-1] in the direction of the step)"
ATTRS: dict[str, dict[str, Any]] = {
    "critical_ratio": {
        "long_name": "largest step of an element in units of half its gap", "units": "1", "formula": f"max_d {_RATIO}",
        "comment": "an element moves if it is above 1; m̂ = m[t]/(1 - β1ᵗ), v̂ = v[t]/(1 - β2ᵗ); half the gap is ULP/2, "
        "and ULP/4 from a power of two towards zero; NaN where W, m or v is not finite, or t is not a single update",
    },
    "above_fraction": {
        "long_name": "share of the elements above the boundary", "units": "1", "formula": f"{_RATIO} > 1",
    },
    "tokens_above": {"long_name": "share of the tokens with an element above the boundary", "units": "1"},
    "moved_above": {"long_name": "share of the elements above the boundary that moved", "units": "1"},
    "moved_below": {"long_name": "share of the elements at or below the boundary that moved anyway", "units": "1"},
    "n_invalid": {"long_name": "tokens whose ratio is unknown", "units": "1"},
}  # fmt: skip
OUTPUTS = {
    "critical_ratio": Output(("step", "token"), dtype="f4", at="transitions"),
    **{
        name: Output("step", at="transitions")
        for name in ("above_fraction", "tokens_above", "moved_above", "moved_below")
    },
    "n_invalid": Output("step", dtype="i8", at="transitions"),
}


@built_in
def critical_boundary(
    ds: xr.Dataset,
    *,
    hyperparameters: Mapping[str, Any] | None = None,
    lr: float | ArrayLike | None = None,
    variable: str = "W",
    precision: str | None = None,
    updates_before: int = 0,
    allow_gaps: bool = False,
) -> AnalysisSpec:
    """Compare Adam's step with the boundary above which it survives rounding, for every element.

    Parameters
    ----------
    ds
        A recording of W, exp_avg and exp_avg_sq.
    hyperparameters, lr, updates_before
        As for `mechanism`.
    variable, precision
        As for `motion`.
    allow_gaps
        Accept gaps in the steps; transitions across a gap are NaN.

    Returns
    -------
    xarray.Dataset
        Lazy dataset with the label t for the update t-1 → t. Per (step, token): `critical_ratio` float32, above 1 where
        an element can cross. Per step, float64: `above_fraction` of the elements, `tokens_above`, and as a check of the
        boundary `moved_above` and `moved_below`, NaN if there are no such elements; `n_invalid` int64.

    Raises
    ------
    InputError
        For missing tensors, hyperparameters or rates, gaps, and optimizers other than Adam and AdamW.

    Notes
    -----
    The notebook momentum_variance_phase_space has the critical boundary |m| = ULP·(√v + ε)/η. It divides the norm of m
    over all dims by the mean ULP of one, and omits the bias correction, so that all tokens lie above the boundary while
    most are frozen. Here the boundary is per element, corrected, and at half the gap, above which rounding to nearest
    moves an element. Weight decay is not included; `mechanism` replays the whole update.
    """
    checks.require(ds, variable, "critical_boundary")
    extra = checks.check_steps(ds, "critical_boundary", allow_gaps=allow_gaps)
    u = read_updates(
        ds, "critical_boundary", variable=variable, hyperparameters=hyperparameters, lr=lr, precision=precision,
        updates_before=updates_before,
    )  # fmt: skip
    if not u.settings.is_adam:
        raise InputError(
            f"critical_boundary is defined for Adam; this recording's optimizer is {u.settings.optimizer}: use "
            "mechanism, which has the margin of any update"
        )
    u.require("single", "critical_boundary")
    second = "max_exp_avg_sq" if u.settings.amsgrad else "exp_avg_sq"

    def finish(results: ReductionResults) -> xr.Dataset:
        values = {**results.variables("critical", ATTRS), **extra}
        attrs = checks.result_attrs(
            ds, variable=variable, precision=u.grids["W"], optimizer=u.settings.optimizer, **u.notes
        )
        return xr.Dataset(values, coordinates.of_transitions(ds), attrs)

    series = {name: Series(u.arrays[name][:, 0, 0]) for name in ("t", "lr")}
    reduction = StepToGap(u.settings, u.grids["W"], second, series)
    return AnalysisSpec({name: u.arrays[name] for name in reduction.matrices}, {"critical": reduction}, finish)


@dataclass(frozen=True)
class StepToGap:
    """The reduction that compares Adam's step with the gaps of W; see `OUTPUTS`.

    Attributes
    ----------
    settings
        The settings of the optimizer.
    grid
        The number format of W.
    second
        The second moment, by whose root the step is divided.
    series
        Per step, `t`, the optimizer's count of updates, and `lr`.
    """

    settings: Settings
    grid: str
    second: str
    series: dict[str, Series]

    @property
    def matrices(self) -> tuple[str, ...]:
        """W and the moments of Adam."""
        return ("W", "exp_avg", self.second)

    def outputs(self) -> dict[str, Output]:
        """Return `OUTPUTS`."""
        return OUTPUTS

    def start(self, block: StepBlock) -> _Accumulator:
        """Return an accumulator for a block."""
        return _Accumulator(self, block)

    def cost(self, sizes: Sizes) -> Cost:
        """Return what it costs."""
        return Cost(5e-9 * sizes.elements, floats=self.matrices)


class _Accumulator:
    def __init__(self, reduction: StepToGap, block: StepBlock) -> None:
        self.reduction, self.block, self.out = reduction, block, allocate_outputs(OUTPUTS, block)
        self.counts = np.zeros((block.n_transitions, 6), np.int64)
        self.lattice = kernels.lattice(reduction.grid)
        at = slice(block.first, block.later.stop)
        self.t, self.lr = (reduction.series[name].values(at) for name in ("t", "lr"))

    def update(self, batch: Batch) -> None:
        from deadtok_xr.kernels.numba.critical import critical

        W, m, v = (batch.floats(name) for name in self.reduction.matrices)
        for i in range(batch.n_transitions):
            at = batch.start + i
            critical(
                W[i], W[i + 1], m[i + 1], v[i + 1], self._rates(at), self.reduction.settings.eps, self.lattice,
                self.out["critical_ratio"][at], self.counts[at],
            )  # fmt: skip

    def _rates(self, i: int) -> NDArray[np.float64]:
        """Return lr / (1 - β1ᵗ) and 1 / (1 - β2ᵗ) of a transition; NaN if it is not a single update."""
        t, (b1, b2) = self.t[i + 1], self.reduction.settings.betas
        if t != self.t[i] + 1:
            return np.full(2, np.nan)
        return np.array([self.lr[i + 1] / (1 - b1**t), 1 / (1 - b2**t)])

    def result(self) -> BlockResult:
        elements, above, moved, moved_above, tokens, tokens_above = self.counts.T
        return {
            **self.out,
            "above_fraction": _share(above, elements),
            "tokens_above": _share(tokens_above, tokens),
            "moved_above": _share(moved_above, above),
            "moved_below": _share(moved - moved_above, elements - above),
            "n_invalid": self.block.n_tokens - tokens,
        }


def _share(part: Any, whole: Any) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


@critical_boundary.summarize
def _summary(ds: xr.Dataset) -> Iterator[str]:
    above = ds["above_fraction"].values
    moved_above, moved_below = (summary_text.finite_mean(ds[name].values) for name in ("moved_above", "moved_below"))
    yield (
        f"Critical boundary: Adam's step is above half the gap for {above[0]:.1%} of the elements first, "
        f"{above[-1]:.1%} last; {moved_above:.2%} of those above moved, {moved_below:.2%} of the others"
    )


@critical_boundary.find
def _findings(ds: xr.Dataset) -> Iterator[Finding]:
    above, steps = ds["above_fraction"].values, ds["step"].values
    if (at := summary_text.ends(above)) is not None:
        first, last = (f"at step {steps[i]}" for i in at)
        shares = [summary_text.percent(above[i]) for i in at]
        yield Finding(
            0.55,
            f"Adam's step is above half a grid spacing for {shares[0]} of the weights {first}, {shares[1]} {last}.",
        )


@critical_boundary.measure
def _key_figure(ds: xr.Dataset) -> KeyFigure:
    first, last = (summary_text.percent(ds["above_fraction"].values[i]) for i in (0, -1))
    return KeyFigure("weights whose Adam step is above half a gap", first, last)


critical_boundary.over_runs = "above_fraction"
critical_boundary.pictures = (
    Picture(
        "critical_boundary",
        "critical_boundary.critical_boundary",
        "Adam's step against half the gap",
        "Above the boundary, Adam's step is larger than half a gap of the grid, and survives rounding. The lower panel "
        "shows the share of tokens and elements above it, and of elements below it that moved anyway.",
    ),
)
