"""Describe the path of the centroid as a random walk: bias, deviation from steady drift, velocity autocorrelation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.engine.small_results import Arrays

Floats = NDArray[np.float64]
_S = "s² = Σ_t ‖ΔC[t] - b‖₂² / (T - 1), b the bias"
WALK_ATTRS: dict[str, dict[str, Any]] = {
    "walk_residual": {
        "long_name": "distance of the centroid from steady drift", "units": "1", "formula": "‖C[t] - C[0] - n·bias‖₂",
        "comment": "n counts the transitions since the first step; 0 at the last step by construction",
    },
    "walk_envelope": {
        "long_name": "root mean square distance of a random walk of the same steps", "units": "1",
        "formula": f"s·√n, {_S}",
    },
    "walk_bridge": {
        "long_name": "root mean square distance of a random walk that ends where steady drift ends", "units": "1",
        "formula": f"s·√(n·(T - n) / T), {_S}", "comment": "compare `walk_residual` with this",
    },
    "bias": {"long_name": "mean velocity of the centroid", "units": "1/step", "formula": "(C[T] - C[0]) / T"},
    "bias_to_noise": {
        "long_name": "drift relative to a random walk of the same steps", "units": "1",
        "formula": f"‖C[T] - C[0]‖₂ / (s·√T), {_S}", "comment": "infinite for perfectly steady drift",
    },
    "bulk_autocorrelation": {
        "long_name": "autocorrelation of the centroid's velocity", "units": "1",
        "formula": "ρ(τ) = mean_t v[t]·v[t+τ] / mean_t ‖v[t]‖₂², v = ΔC",
        "comment": "means over the pairs, and steps, whose velocities are finite; steps at rest count as v = 0",
    },
    "half_lag": {
        "long_name": "first lag at which the autocorrelation is at most 0.5; -1 never", "units": "transitions",
    },
    "tenth_lag": {
        "long_name": "first lag at which the autocorrelation is at most 0.1; -1 never", "units": "transitions",
    },
}  # fmt: skip


def walk_shapes(n_steps: int, n_dims: int, lags: int) -> dict[str, tuple[tuple[str, ...], tuple[int, ...], str]]:
    """Return the dims, shapes and dtypes of the variables of `WALK_ATTRS`, for `compute_together`."""
    return {
        **dict.fromkeys(("walk_residual", "walk_envelope", "walk_bridge"), (("step",), (n_steps,), "f8")),
        "bias": (("dim",), (n_dims,), "f8"),
        "bias_to_noise": ((), (), "f8"),
        "bulk_autocorrelation": (("lag",), (lags,), "f8"),
        "half_lag": ((), (), "i8"),
        "tenth_lag": ((), (), "i8"),
    }


def measure_walk(C: Floats, lags: int) -> Arrays:
    """Return the variables of `WALK_ATTRS` for centroids (step, dim), at least two of them."""
    T = len(C) - 1
    n = np.arange(T + 1)
    v = np.diff(C, axis=0)
    bias = (C[-1] - C[0]) / T
    s = np.sqrt(((v - bias) ** 2).sum() / (T - 1)) if T > 1 else np.nan
    residual = np.linalg.norm(C - C[0] - n[:, None] * bias, axis=1)
    residual[-1] *= 0  # NaN stays NaN
    drift, reach = np.linalg.norm(C[-1] - C[0]), s * np.sqrt(T)
    rho = autocorrelation(v, lags)
    return {
        "walk_residual": residual,
        "walk_envelope": s * np.sqrt(n),
        "walk_bridge": s * np.sqrt(n * (T - n) / T),
        "bias": bias,
        "bias_to_noise": drift / reach if reach > 0 else np.inf if drift > 0 and reach == 0 else np.nan,
        "bulk_autocorrelation": rho,
        "half_lag": _first_at_most(rho, 0.5),
        "tenth_lag": _first_at_most(rho, 0.1),
    }


def autocorrelation(v: Floats, lags: int) -> Floats:
    """Return ρ of velocities (t, d) at the lags 0..lags - 1; NaN where no pair is finite, or all velocities are 0."""
    finite = np.asarray(np.isfinite(v).all(axis=1))
    v = np.where(finite[:, None], v, 0.0)
    square = (v * v).sum() / max(finite.sum(), 1)
    rho = np.full(lags, np.nan)
    for lag in range(lags):
        n_pairs = (finite[: len(v) - lag] & finite[lag:]).sum()
        if n_pairs and square > 0:
            rho[lag] = (v[: len(v) - lag] * v[lag:]).sum() / n_pairs / square
    return rho


def _first_at_most(rho: Floats, limit: float) -> int:
    below = np.flatnonzero(rho <= limit)
    return int(below[0]) if below.size else -1
