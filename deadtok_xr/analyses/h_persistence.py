"""Measure how long the mean hidden state, which pushes the dead tokens, keeps its direction."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deadtok_xr.analyses.common import checks, summary_text
from deadtok_xr.analyses.common.vectors import angles, unit_vectors
from deadtok_xr.analyses.registry import Finding, KeyFigure, Picture, built_in
from deadtok_xr.engine import AnalysisSpec, ReductionResults
from deadtok_xr.engine.small_results import Arrays, compute_together
from deadtok_xr.errors import InputError

Floats = NDArray[np.float64]
ATTRS: dict[str, dict[str, Any]] = {
    "cosine": {
        "long_name": "cosine between successive h_mean", "units": "1", "formula": "cos(h[t], h[t-1])",
        "source": "notebook h_mean_autocorrelation",
    },
    "swing": {"long_name": "angle between successive h_mean", "units": "degree", "formula": "∠(h[t], h[t-1])"},
    "net_angle": {"long_name": "angle to the first h_mean", "units": "degree", "formula": "∠(h[t], h[first])"},
    "mean_direction_cosine": {
        "long_name": "cosine between h_mean and its mean direction", "units": "1", "formula": "cos(h[t], mean_s ĥ[s])",
    },
    "autocorrelation": {
        "long_name": "mean cosine between h_mean at steps a lag apart", "units": "1",
        "formula": "mean_t cos(h[t], h[t+lag])",
    },
    "fluctuation_autocorrelation": {
        "long_name": "autocorrelation of the fluctuation of h_mean's direction about its mean", "units": "1",
        "formula": "⟨v[t]·v[t+lag]⟩ / ⟨v²⟩, v = ĥ - mean ĥ", "source": "notebook 1.14c",
    },
    "n_pairs": {"long_name": "pairs of steps a lag apart", "units": "1"},
    "half_lag": {
        "long_name": "first lag at which the autocorrelation of the fluctuation is at most 1/2; -1 never",
        "units": "step",
    },
    "resultant_length": {
        "long_name": "length of the mean unit vector of h_mean: 1 for a single direction", "units": "1",
        "formula": "‖mean_t ĥ[t]‖₂",
    },
    "straightness": {
        "long_name": "angle between the first and the last h_mean, over the sum of all swings", "units": "1",
        "formula": "∠(h[T], h[first]) / Σ_t ∠(h[t], h[t-1])",
    },
}  # fmt: skip
_PER_STEP = ("cosine", "swing", "net_angle", "mean_direction_cosine")
_PER_LAG = ("autocorrelation", "fluctuation_autocorrelation", "n_pairs")
_SCALARS = ("half_lag", "resultant_length", "straightness")
_COUNTS = ("n_pairs", "half_lag")


@built_in
def h_persistence(ds: xr.Dataset, *, max_lag: int | None = None, allow_gaps: bool = False) -> AnalysisSpec:
    """Measure how long the mean hidden state keeps its direction.

    Parameters
    ----------
    ds
        A recording with `h_mean` (step, dim).
    max_lag
        The largest lag of the autocorrelations, in steps; None for half of the recording.
    allow_gaps
        Compare across missing steps; "successive" then means the next recorded step. Lags are always counted in steps,
        and pairs with a missing step are left out.

    Returns
    -------
    xarray.Dataset
        Lazy dataset. Over t = 1..T, float64: `cosine` and `swing` of successive h_mean (NaN at the first), `net_angle`
        to the first, `mean_direction_cosine`. Over lag = 0..max_lag: `autocorrelation` of the direction, near 1 as long
        as the push keeps its direction; `fluctuation_autocorrelation` about the mean direction; `n_pairs`. Numbers:
        `resultant_length`, `straightness`, and `half_lag`, int64. Steps at which h_mean is NaN or zero are left out.

    Raises
    ------
    InputError
        If h_mean is missing, for fewer than two steps after the initial state, or gaps.
    """
    h = _require_h_mean(ds)
    extra = checks.check_steps(ds, "h_persistence", allow_gaps=allow_gaps)
    span = int(ds["step"].values[-1] - ds["step"].values[1])
    lags = max(1, span // 2) if max_lag is None else max_lag
    if not 0 <= lags <= max(span, 1):
        raise InputError(
            f"h_persistence: max_lag={max_lag}; expected 0 to {span}, the steps between the first and the last"
        )
    later = ds["step"].values[1:]
    shapes: dict[str, Any] = {
        **dict.fromkeys(_PER_STEP, (("step",), later.shape, "f8")),
        **{name: (("lag",), (lags + 1,), "i8" if name in _COUNTS else "f8") for name in _PER_LAG},
        **{name: ((), (), "i8" if name in _COUNTS else "f8") for name in _SCALARS},
    }

    def finish(_: ReductionResults) -> xr.Dataset:  # it reads no matrix
        inputs = {"h": checks.as_series(h)[1:].rechunk(-1)}
        values = compute_together(inputs, _measure, shapes, ATTRS, place=later - later[0], n_lags=lags + 1)
        lag = xr.Variable("lag", np.arange(lags + 1), {"long_name": "lag", "units": "step"})
        coords = {"step": ds["step"].variable[1:], "lag": lag}
        return xr.Dataset({**values, **extra}, coords, checks.result_attrs(ds))

    return AnalysisSpec({}, {}, finish)


def _require_h_mean(ds: xr.Dataset) -> xr.DataArray:
    if not isinstance(ds, xr.Dataset) or "h_mean" not in ds:
        names = ", ".join(map(str, ds.data_vars)) if isinstance(ds, xr.Dataset) else type(ds).__name__
        raise InputError(
            f"h_persistence needs the variable 'h_mean' (found: {names}): log it while training, "
            "recorder.log(h_mean=hidden.mean((0, 1)))"
        )
    if set(ds["h_mean"].dims) != {"step", "dim"}:
        raise InputError(
            f"h_persistence: 'h_mean' has the dimensions {ds['h_mean'].dims}; expected (step, dim), of one run"
        )
    return ds["h_mean"]


def _measure(inputs: dict[str, list[Floats]], *, place: NDArray[np.int64], n_lags: int) -> Arrays:
    unit = unit_vectors(inputs["h"][0])
    valid = ~np.isnan(unit[:, 0])
    cosine, swing = np.full((2, len(unit)), np.nan)
    cosine[1:], swing[1:] = _cosines(unit[1:], unit[:-1]), angles(unit[1:], unit[:-1])
    known = unit[valid]
    first, last = (known[0], known[-1]) if len(known) else np.full((2, unit.shape[1]), np.nan)
    mean = known.mean(axis=0) if len(known) else first
    total = angles(known[1:], known[:-1]).sum()
    plain, fluctuation, n_pairs = autocorrelations(unit, mean, place, n_lags)
    below = np.flatnonzero(fluctuation <= 0.5)
    return {
        "cosine": cosine,
        "swing": swing,
        "net_angle": angles(unit, first),
        "mean_direction_cosine": _cosines(unit, unit_vectors(mean[None])[0]),
        "autocorrelation": plain,
        "fluctuation_autocorrelation": fluctuation,
        "n_pairs": n_pairs,
        "half_lag": np.array(below[0] if below.size else -1),
        "resultant_length": np.array(np.linalg.norm(mean)),
        "straightness": np.array(angles(last, first) / total if total > 0 else np.nan),
    }


def _cosines(a: Floats, b: Floats) -> Floats:
    return np.clip((a * b).sum(axis=-1), -1.0, 1.0)


def autocorrelations(
    unit: Floats, mean: Floats, place: NDArray[np.int64], n_lags: int
) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Return the mean products of unit vectors, and of their deviations from a mean, a lag apart; and the pairs.

    Sums over all pairs by Fourier transform, a few dims at a time. ``place`` is the step of each vector; NaN rows are
    left out.
    """
    valid = ~np.isnan(unit[:, 0])
    size = int(place[-1]) + 1 + n_lags  # padded, so that nothing wraps around
    occupied = np.zeros(size)
    occupied[place[valid]] = 1.0
    n_pairs = np.rint(_lagged_sums(occupied[:, None], n_lags)).astype(np.int64)
    plain, fluctuation = np.zeros((2, n_lags))
    for d in range(0, unit.shape[1], 64):
        rows = np.zeros((size, unit[:, d : d + 64].shape[1]))
        rows[place[valid]] = unit[valid, d : d + 64]
        plain += _lagged_sums(rows, n_lags)
        rows[place[valid]] -= mean[d : d + 64]
        fluctuation += _lagged_sums(rows, n_lags)
    count = np.where(n_pairs > 0, n_pairs, np.nan)
    plain, fluctuation = plain / count, fluctuation / count
    spread = fluctuation[0] if fluctuation[0] > 1e-24 else np.nan  # less is the rounding of a constant direction
    return np.clip(plain, -1.0, 1.0), fluctuation / spread, n_pairs


def _lagged_sums(rows: Floats, n_lags: int) -> Floats:
    """Return the sums of the products of rows a lag apart."""
    power = (np.abs(np.fft.rfft(rows, axis=0)) ** 2).sum(axis=1)
    return np.fft.irfft(power, n=len(rows))[:n_lags]


@h_persistence.summarize
@summary_text.in_one_line
def _summary(ds: xr.Dataset) -> Iterator[str]:
    half = int(ds["half_lag"])
    yield "Persistence of the mean hidden state's direction"
    yield f"  mean direction    the mean unit vector has length {float(ds['resultant_length']):.4f} (1: one direction)"
    yield (
        f"  swing             {summary_text.span(ds['swing'].values)} degrees per step; net angle over "
        f"sum of swings {float(ds['straightness']):.3g}; the fluctuation's autocorrelation falls to half "
        f"{'never' if half < 0 else f'at lag {half}'}"
    )


@h_persistence.find
def _findings(ds: xr.Dataset) -> Iterator[Finding]:
    length = float(ds["resultant_length"])
    if np.isfinite(length):
        yield Finding(
            0.36, f"The mean hidden state's unit vectors have a mean of length {length:.2f} (1: one direction)."
        )


@h_persistence.measure
def _key_figure(ds: xr.Dataset) -> KeyFigure:
    return KeyFigure("constancy of the hidden state's direction", overall=float(ds["resultant_length"]))


h_persistence.over_runs = "cosine"
h_persistence.pictures = (
    Picture(
        "h_persistence",
        "h_persistence.h_persistence",
        "Does the push keep its direction?",
        "Top: the cosine of the mean hidden state to that of the previous step, and to its mean direction. Bottom: the "
        "autocorrelation against the lag; up to the lag at which it falls to half, the push keeps its direction.",
    ),
)
