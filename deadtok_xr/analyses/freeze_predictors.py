"""Correlate the step at which tokens freeze with their alignment with h, initial position and grid spacing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deadtok_xr.analyses.common import checks, coordinates
from deadtok_xr.analyses.common.last_motion import INVALID, NEVER, LastMotion
from deadtok_xr.analyses.common.rank_correlation import JACKKNIFE, concordance, interval_attrs, spearman
from deadtok_xr.analyses.common.token_pieces import add_rows, pieces
from deadtok_xr.analyses.common.vectors import unit_vectors
from deadtok_xr.analyses.registry import Finding, KeyFigure, Picture, built_in
from deadtok_xr.bfloat16 import decode, ulp
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
)
from deadtok_xr.engine.series import Series
from deadtok_xr.engine.small_results import Arrays, compute_together
from deadtok_xr.errors import OffGridError
from deadtok_xr.kernels import PIECE

Floats = NDArray[np.float64]
PREDICTORS = {
    "h_alignment": "cos(W[first], mean_t ĥ[t])",
    "initial_norm": "‖W[first]‖₂",
    "initial_distance": "‖W[first] - C[first]‖₂",
    "initial_ulp": "geometric mean over dims of ULP(W[first])",
    "final_ulp": "geometric mean over dims of ULP(W[last])",
    "final_ulp_min": "min over dims of ULP(W[last])",
}
ATTRS: dict[str, dict[str, Any]] = {
    "freeze_step": {
        "long_name": "first step after which the token never moved again", "units": "step",
        "formula": "1 + the last step with W[t] ≠ W[t-1]",
        "comment": "for a censored token, 1 + the last step; -1 if it never moved, or holds NaN or infinity",
    },
    "censored": {"long_name": "whether the token still moved at the last step (1) or not (0)", "units": "1"},
    "value": {
        "long_name": "value of the predictor", "units": "1",
        "formula": "; ".join(f"{name}: {formula}" for name, formula in PREDICTORS.items()),
    },
    "rank_correlation": {
        "long_name": "rank correlation with the freeze step, accounting for censoring", "units": "1",
        "formula": "Somers' D = (concordant - discordant) / pairs of known order in time = 2·C - 1, C Harrell's",
        "comment": "positive: tokens with larger values freeze later. A pair counts if its earlier freeze was observed",
    },
    **interval_attrs("rank_correlation", "the rank correlation", JACKKNIFE),
    "n_pairs": {"long_name": "pairs of tokens of known order of freezing", "units": "1"},
    "spearman": {
        "long_name": "Spearman's rank correlation with the freeze step, over the tokens that froze", "units": "1",
        "comment": "biased if many tokens are censored, since these are left out",
    },
    **interval_attrs(
        "spearman", "Spearman's correlation",
        "Fisher's z, standard error √((1 + ρ²/2)/(n - 3)) (Bonett and Wright 2000)",
    ),
    "n_frozen": {"long_name": "tokens that moved and froze", "units": "1"},
    "n_censored": {"long_name": "tokens that still moved at the last step", "units": "1"},
    "n_never_moved": {"long_name": "tokens that never moved, and are left out", "units": "1"},
    "n_invalid": {"long_name": "tokens with NaN or infinity at any step, which are left out", "units": "1"},
}  # fmt: skip
_PER_PREDICTOR = tuple(ATTRS)[3:10]
_NUMBERS = tuple(ATTRS)[10:]


@built_in
def freeze_predictors(
    ds: xr.Dataset, *, variable: str = "W", precision: str | None = None, allow_gaps: bool = False
) -> AnalysisSpec:
    """Correlate the step at which each token froze for good with properties that may explain it.

    Parameters
    ----------
    ds
        A recording, (step, token, dim); if it has `h_mean`, alignment with the hidden state is a predictor.
    variable, precision, allow_gaps
        As for `motion`.

    Returns
    -------
    xarray.Dataset
        Lazy dataset. Per token: `freeze_step` int64, `censored` int8, and `value` (predictor, token) of each predictor:
        `h_alignment`, `initial_norm`, `initial_distance` from the centroid, `initial_ulp`, `final_ulp`,
        `final_ulp_min`. Per predictor: `rank_correlation` with its 95% interval `_low`, `_high` and `n_pairs`;
        `spearman` likewise, over the tokens that froze. Numbers: `n_frozen`, `n_censored`, `n_never_moved`,
        `n_invalid`.

        A token that still moves at the last step is censored: it freezes at an unknown later step. The rank correlation
        is Harrell's concordance scaled to -1 to 1: a pair of tokens counts if its earlier freeze was observed. The
        correlations describe this one run; the predictors are not independent of each other, and the final ULP is known
        only afterwards.

    Raises
    ------
    InputError, OffGridError
        As for `motion`.
    """
    x = checks.require(ds, variable, "freeze_predictors")
    extra = checks.check_steps(ds, "freeze_predictors", allow_gaps=allow_gaps)
    grid = checks.grid_name(x, precision)
    with_h = "h_mean" in ds and set(ds["h_mean"].dims) == {"step", "dim"}
    names = [name for name in PREDICTORS if with_h or name != "h_alignment"]
    n, end = ds.sizes["token"], int(ds["step"].values[-1])
    shapes: dict[str, Any] = {
        "freeze_step": (("token",), (n,), "i8"),
        "censored": (("token",), (n,), "i1"),
        "value": (("predictor", "token"), (len(names), n), "f8"),
        **{name: (("predictor",), (len(names),), "i8" if name == "n_pairs" else "f8") for name in _PER_PREDICTOR},
        **dict.fromkeys(_NUMBERS, ((), (), "i8")),
    }

    def finish(results: ReductionResults) -> xr.Dataset:
        inputs = {
            "moved": results.merged("moved", "moved", np.maximum),
            "values": results.merged("predictors", "values", _merge),
        }
        values: dict[str, Any] = compute_together(inputs, _measure, shapes, ATTRS, end=end, names=tuple(names))
        coords = {**coordinates.along(ds, "token"), "predictor": names}
        left_out = {} if with_h else {"h_alignment": "the dataset has no h_mean"}
        attrs = checks.result_attrs(ds, variable=variable, precision=grid, left_out=left_out)
        if extra:  # this dataset has no steps
            span = {"long_name": "largest number of optimizer updates that a transition spans", "units": "1"}
            values["step_span_max"] = xr.Variable((), extra["step_span"].values.max(), span)
        return xr.Dataset(values, coords, attrs)

    h_mean = Series(checks.as_series(ds["h_mean"])) if with_h else None
    reductions: dict[str, Reduction] = {
        "moved": LastMotion(variable, ds["step"].values),
        "predictors": Predictors(variable, grid, tuple(names), h_mean),
    }
    return AnalysisSpec({variable: checks.as_dask(x.data)}, reductions, finish)


@dataclass(frozen=True)
class Predictors(SingleVariable):
    """The reduction that measures the predictors of each token at the first step and at the last one.

    Attributes
    ----------
    grid
        The number format.
    names
        The predictors.
    h_mean
        The hidden states that `h_alignment` needs.
    """

    grid: str
    names: tuple[str, ...]
    h_mean: Series | None

    def outputs(self) -> dict[str, Output]:
        """Return `values` per block: those that are known from its steps, by name."""
        return {"values": Output(at="block")}

    def start(self, block: StepBlock) -> _Accumulator:
        """Return an accumulator for a block."""
        return _Accumulator(self)

    def cost(self, sizes: Sizes) -> Cost:
        """Return what it costs."""
        kept = 3 * 8 * sizes.tokens * len(self.names)
        return Cost(20e-9 * sizes.step * len(self.names), temporary=6 * 8 * min(sizes.step, PIECE), kept=kept)


class _Accumulator:
    def __init__(self, reduction: Predictors) -> None:
        self.reduction, self.values = reduction, dict[str, Floats]()

    def update(self, batch: Batch) -> None:
        steps = batch.values[self.reduction.variable]
        if batch.has_first:
            self._measure(steps[0], at_end=False)
        if batch.has_last:
            self._measure(steps[-1], at_end=True)

    def _measure(self, step: NDArray[Any], *, at_end: bool) -> None:
        r = self.reduction
        for name in r.names:
            if name.startswith("final") == at_end:
                self.values[name] = _predictor(name, step, r.h_mean, r.grid)

    def result(self) -> dict[str, Any]:
        return {"values": self.values}


def _merge(a: dict[str, Floats], b: dict[str, Floats]) -> dict[str, Floats]:
    return {**a, **b}


def _measure(inputs: dict[str, list[Any]], *, end: int, names: tuple[str, ...]) -> Arrays:
    (moved,), (values,) = inputs["moved"], inputs["values"]
    invalid, never = moved == INVALID, moved == NEVER
    used = ~invalid & ~never
    censored = used & (moved == end)
    time = np.where(used, np.where(used, moved, 0) + 1, -1)
    value = np.stack([values[name] for name in names])
    value[:, invalid] = np.nan
    rows = [_correlate(time[used], censored[used], v[used]) for v in value]
    numbers = {"n_frozen": used & ~censored, "n_censored": censored, "n_never_moved": never, "n_invalid": invalid}
    return {
        "freeze_step": time,
        "censored": censored,
        "value": value,
        **{name: np.array([row[name] for row in rows]) for name in _PER_PREDICTOR},
        **{name: mask.sum() for name, mask in numbers.items()},
    }


def _predictor(name: str, step: NDArray[Any], h_mean: Series | None, grid: str) -> Floats:
    if name == "h_alignment" and h_mean is not None:
        h = unit_vectors(h_mean.values(slice(1, None)))
        known = h[~np.isnan(h[:, 0])]
        mean = unit_vectors(known.mean(axis=0, keepdims=True))[0] if len(known) else np.full(step.shape[1], np.nan)
        return _by_pieces(step, lambda W: np.clip(unit_vectors(W) @ mean, -1.0, 1.0))
    if name == "initial_norm":
        return _by_pieces(step, lambda W: np.linalg.norm(W, axis=1))
    if name == "initial_distance":
        centroid = _finite_centroid(step)
        return _by_pieces(step, lambda W: np.linalg.norm(W - centroid, axis=1))
    try:
        gaps = (ulp(step[tokens], grid) for tokens in pieces(*step.shape))
        return np.concatenate(
            [x.min(axis=1) if name == "final_ulp_min" else np.exp2(np.log2(x).mean(axis=1)) for x in gaps]
        )
    except OffGridError as error:
        raise OffGridError(f"freeze_predictors: {error}, or say precision=") from None


def _by_pieces(step: Any, measure: Callable[[Floats], Floats]) -> Floats:
    return np.concatenate([measure(decode(step[tokens]).astype(np.float64)) for tokens in pieces(*step.shape)])


def _finite_centroid(step: Any) -> Floats:
    """Return the mean over the tokens without NaN and infinity, summed token after token."""
    total: Any = None
    n = 0
    for tokens in pieces(*step.shape):
        W = decode(step[tokens]).astype(np.float64)
        known = W[np.isfinite(W).all(axis=1)]
        n += len(known)
        total = add_rows(total, known)
    return total / n if n else np.full(step.shape[1], np.nan)


def _correlate(time: NDArray[np.int64], censored: NDArray[np.bool_], value: Floats) -> dict[str, float]:
    known = np.isfinite(value)
    time, censored, value = time[known], censored[known], value[known]
    correlation, low, high, n_pairs = concordance(time, censored, value)
    rho, rho_low, rho_high = spearman(value[~censored], time[~censored])
    return {
        "rank_correlation": correlation, "rank_correlation_low": low, "rank_correlation_high": high,
        "n_pairs": n_pairs, "spearman": rho, "spearman_low": rho_low, "spearman_high": rho_high,
    }  # fmt: skip


@freeze_predictors.summarize
def _summary(ds: xr.Dataset) -> Iterator[str]:
    yield (
        f"Freezing: {int(ds['n_frozen'])} tokens froze, {int(ds['n_censored'])} still moved at the last step, "
        f"{int(ds['n_never_moved'])} never moved"
    )
    low, high = ds["rank_correlation_low"].values, ds["rank_correlation_high"].values
    names = [str(name) for name in ds["predictor"].values]
    rows = sorted(zip(names, ds["rank_correlation"].values, low, high, strict=True), key=lambda row: -abs(row[1]))
    for i in range(0, len(rows), 3):
        parts = (f"{name} {value:+.3f} [{a:+.3f}, {b:+.3f}]" for name, value, a, b in rows[i : i + 3])
        yield f"  {'' if i else 'rank correlation':17s} {', '.join(parts)}"


@freeze_predictors.find
def _findings(ds: xr.Dataset) -> Iterator[Finding]:
    low, high, value = (ds[f"rank_correlation{end}"].values for end in ("_low", "_high", ""))
    sure = np.isfinite(value) & (low * high > 0)
    if sure.any():
        i = int(np.argmax(np.where(sure, np.abs(value), 0)))
        yield Finding(
            0.37, f"Best predictor of when a token freezes: {str(ds['predictor'].values[i]).replace('_', ' ')}, rank "
            f"correlation {value[i]:+.2f} [{low[i]:+.2f}, {high[i]:+.2f}]."
        )  # fmt: skip
    elif np.isfinite(value).any():
        yield Finding(0.1, f"None of {len(value)} properties of a token correlates with when it freezes.")
    else:
        yield Finding(0.1, "No properties of a token can be compared with when it freezes: too few tokens freeze.")


@freeze_predictors.measure
def _key_figure(ds: xr.Dataset) -> KeyFigure:
    value = ds["rank_correlation"].values
    known = value[np.isfinite(value)]
    strongest = f"{known[np.abs(known).argmax()]:+.2f}" if known.size else "none"
    return KeyFigure("strongest rank correlation with freezing", overall=strongest)


freeze_predictors.across_gaps = True
freeze_predictors.pictures = (
    Picture(
        "freeze_predictors",
        "freeze_predictors.freeze_predictors",
        "What correlates with freezing early",
        "Markers to the right of zero: tokens with larger values freeze later. Bars are 95% intervals; one that "
        "crosses zero shows no significant correlation.",
        lambda ds: not np.isfinite(ds["rank_correlation"].values).any(),
    ),
)
