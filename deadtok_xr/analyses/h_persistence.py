"""Does the mean hidden state keep its direction, and so push the dead tokens the same way for long?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deadtok_xr.analyses.common import checks, summary_text
from deadtok_xr.analyses.registry import Picture, built_in
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
    "net_angle": {"long_name": "angle from the first h_mean", "units": "degree", "formula": "∠(h[t], h[first])"},
    "mean_direction_cosine": {
        "long_name": "cosine between h_mean and its mean direction", "units": "1", "formula": "cos(h[t], mean_s ĥ[s])",
    },
    "autocorrelation": {
        "long_name": "mean cosine between h_mean at steps that lie a lag apart", "units": "1",
        "formula": "mean_t cos(h[t], h[t+lag])",
    },
    "fluctuation_autocorrelation": {
        "long_name": "autocorrelation of the direction of h_mean about its mean", "units": "1",
        "formula": "⟨v[t]·v[t+lag]⟩ / ⟨v²⟩, v = ĥ - mean ĥ", "source": "notebook 1.14c",
    },
    "n_pairs": {"long_name": "pairs of steps that lie a lag apart", "units": "1"},
    "half_lag": {
        "long_name": "first lag at which the fluctuation's autocorrelation is at most 1/2; -1 if it never is",
        "units": "step",
    },
    "resultant_length": {
        "long_name": "length of the mean unit vector of h_mean: 1 for one direction, 0 for all", "units": "1",
        "formula": "‖mean_t ĥ[t]‖₂",
    },
    "straightness": {
        "long_name": "angle between the first and the last h_mean over the sum of all swings", "units": "1",
        "formula": "∠(h[T], h[first]) / Σ_t ∠(h[t], h[t-1])",
    },
}  # fmt: skip
_PER_STEP = ("cosine", "swing", "net_angle", "mean_direction_cosine")
_PER_LAG = ("autocorrelation", "fluctuation_autocorrelation", "n_pairs")
_SCALARS = ("half_lag", "resultant_length", "straightness")
_COUNTS = ("n_pairs", "half_lag")


@built_in
def h_persistence(ds: xr.Dataset, *, max_lag: int | None = None, allow_gaps: bool = False) -> AnalysisSpec:
    """How long the mean hidden state keeps its direction.

    Parameters
    ----------
    ds
        A recording with `h_mean` (step, dim).
    max_lag
        The largest lag of the autocorrelations, in steps; None for half of the recording.
    allow_gaps
        Compare across missing steps: successive is then the next that was recorded. Lags are always counted in
        steps, and pairs with a missing step do not count.

    Returns
    -------
    xarray.Dataset
        Lazy dataset. Over t = 1..T, float64: `cosine` and `swing` of successive h_mean (NaN at the first), `net_angle`
        from the first, `mean_direction_cosine`. Over lag = 0..max_lag: `autocorrelation` of the direction, which stays
        near 1 while the push is the same; `fluctuation_autocorrelation` about the mean direction; `n_pairs`. Numbers:
        `resultant_length`, `straightness`, and `half_lag`, int64. Steps at which h_mean is NaN or zero are left out.

    Raises
    ------
    InputError
        Without h_mean, for fewer than two steps after the initial state, or gaps.
    """
    h = _needed(ds)
    extra = checks.check_steps(ds, "h_persistence", allow_gaps=allow_gaps)
    span = int(ds["step"].values[-1] - ds["step"].values[1])
    lags = max(1, span // 2) if max_lag is None else max_lag
    if not 0 <= lags <= max(span, 1):
        raise InputError(f"h_persistence: max_lag={max_lag}; needed: 0 to {span}, the steps between the first and last")
    later = ds["step"].values[1:]
    shapes: dict[str, Any] = {
        **dict.fromkeys(_PER_STEP, (("step",), later.shape, "f8")),
        **{name: (("lag",), (lags + 1,), "i8" if name in _COUNTS else "f8") for name in _PER_LAG},
        **{name: ((), (), "i8" if name in _COUNTS else "f8") for name in _SCALARS},
    }

    def finish(_: ReductionResults) -> xr.Dataset:  # it looks at no matrix
        inputs = {"h": checks.as_series(h)[1:].rechunk(-1)}
        values = compute_together(inputs, _measure, shapes, ATTRS, place=later - later[0], n_lags=lags + 1)
        lag = xr.Variable("lag", np.arange(lags + 1), {"long_name": "lag", "units": "step"})
        coords = {"step": ds["step"].variable[1:], "lag": lag}
        return xr.Dataset({**values, **extra}, coords, checks.result_attrs(ds))

    return AnalysisSpec({}, {}, finish)


def _needed(ds: xr.Dataset) -> xr.DataArray:
    if not isinstance(ds, xr.Dataset) or "h_mean" not in ds:
        found = ", ".join(map(str, ds.data_vars)) if isinstance(ds, xr.Dataset) else type(ds).__name__
        raise InputError(
            f"h_persistence needs the variable 'h_mean' (found: {found}): log it while training, "
            "recorder.log(h_mean=hidden.mean((0, 1)))"
        )
    if set(ds["h_mean"].dims) != {"step", "dim"}:
        raise InputError(
            f"h_persistence: 'h_mean' has the dimensions {ds['h_mean'].dims}; needed: (step, dim), of one run"
        )
    return ds["h_mean"]


def _measure(inputs: dict[str, list[Floats]], *, place: NDArray[np.int64], n_lags: int) -> Arrays:
    unit = directions(inputs["h"][0])
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
        "mean_direction_cosine": _cosines(unit, directions(mean[None])[0]),
        "autocorrelation": plain,
        "fluctuation_autocorrelation": fluctuation,
        "n_pairs": n_pairs,
        "half_lag": np.array(below[0] if below.size else -1),
        "resultant_length": np.array(np.linalg.norm(mean)),
        "straightness": np.array(angles(last, first) / total if total > 0 else np.nan),
    }


def directions(x: NDArray[Any]) -> Floats:
    """Rows as unit vectors in float64; NaN where a row is zero or not finite."""
    x = x.astype(np.float64)
    with np.errstate(invalid="ignore"):
        size = np.linalg.norm(x, axis=1, keepdims=True)
    usable = np.isfinite(size) & (size > 0)
    return np.where(usable, x / np.where(usable, size, 1.0), np.nan)


def _cosines(a: Floats, b: Floats) -> Floats:
    return np.clip((a * b).sum(axis=-1), -1.0, 1.0)


def angles(a: Floats, b: Floats) -> Floats:
    """The angles between unit vectors in degrees, exact for small ones too, where arccos loses half the digits."""
    return np.degrees(2 * np.arctan2(np.linalg.norm(a - b, axis=-1), np.linalg.norm(a + b, axis=-1)))


def autocorrelations(
    unit: Floats, mean: Floats, place: NDArray[np.int64], n_lags: int
) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """The mean products of unit vectors, and of their deviations from a mean, that lie a lag apart.

    Sums over all pairs by Fourier transform, a few dims at a time; ``place`` is the step of each vector, and NaN rows
    do not count.
    """
    valid = ~np.isnan(unit[:, 0])
    size = int(place[-1]) + 1 + n_lags  # room, so that nothing wraps around
    there = np.zeros(size)
    there[place[valid]] = 1.0
    n_pairs = np.rint(_sums(there[:, None], n_lags)).astype(np.int64)
    plain, fluctuation = np.zeros((2, n_lags))
    for d in range(0, unit.shape[1], 64):
        rows = np.zeros((size, unit[:, d : d + 64].shape[1]))
        rows[place[valid]] = unit[valid, d : d + 64]
        plain += _sums(rows, n_lags)
        rows[place[valid]] -= mean[d : d + 64]
        fluctuation += _sums(rows, n_lags)
    count = np.where(n_pairs > 0, n_pairs, np.nan)
    plain, fluctuation = plain / count, fluctuation / count
    spread = fluctuation[0] if fluctuation[0] > 1e-24 else np.nan  # below is the rounding of one direction
    return np.clip(plain, -1.0, 1.0), fluctuation / spread, n_pairs


def _sums(rows: Floats, n_lags: int) -> Floats:
    power = (np.abs(np.fft.rfft(rows, axis=0)) ** 2).sum(axis=1)
    return np.fft.irfft(power, n=len(rows))[:n_lags]


@h_persistence.summarize
@summary_text.in_one_line
def _summary(ds: xr.Dataset) -> Iterator[str]:
    half = int(ds["half_lag"])
    yield "Persistence of the mean hidden state's direction"
    yield f"  mean direction    unit vectors average to length {float(ds['resultant_length']):.4f} (1: one direction)"
    yield (
        f"  swing             {summary_text.span(ds['swing'].values)} degrees a step; net angle over their sum "
        f"{float(ds['straightness']):.3g}; fluctuation halves {'never' if half < 0 else f'at a lag of {half}'}"
    )


h_persistence.pictures = (
    Picture(
        "h_persistence",
        "h_persistence.h_persistence",
        "Does the push keep its direction?",
        "Left of the lag at which the autocorrelation falls to half, the push is still the same. The swing is the "
        "angle by which the mean hidden state turns in one step.",
    ),
)
