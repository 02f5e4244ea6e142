"""Words and numbers that the summaries of several analyses share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import numpy as np
import xarray as xr


def in_one_line(describe: Callable[[xr.Dataset], Iterator[str]]) -> Callable[[xr.Dataset], Iterator[str]]:
    """Join the lines of a summary, but for its warnings."""

    @functools.wraps(describe)
    def joined(ds: xr.Dataset) -> Iterator[str]:
        lines = list(describe(ds))
        yield "; ".join(" ".join(line.split()) for line in lines if not line.lstrip().startswith("warning:"))
        yield from (line for line in lines if line.lstrip().startswith("warning:"))

    return joined


def span(values: np.ndarray) -> str:
    finite = values[np.isfinite(values)]
    return f"[{finite.min():.4g}, {finite.max():.4g}]" if finite.size else "[nan]"


def invalid_steps(ds: xr.Dataset, consequence: str) -> Iterator[str]:
    n_invalid = ds["n_invalid"].values
    if n_invalid.any():
        yield (
            f"  warning: {(n_invalid > 0).sum()} steps hold NaN or infinity (n_invalid is at most {n_invalid.max()} "
            f"tokens), {consequence}"
        )


def largest(values: np.ndarray, steps: np.ndarray) -> str:
    if not np.isfinite(values).any():
        return "none finite"
    at = int(np.nanargmax(np.where(np.isfinite(values), values, np.nan)))
    return f"{values[at]:.6f} largest (step {steps[at]})"


def largest_value(values: np.ndarray) -> float:
    return float(np.nanmax(values)) if not np.isnan(values).all() else float("nan")


def finite_median(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else float("nan")


def finite_mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def shares(counts: dict[str, int]) -> str:
    total = sum(counts.values())
    return ", ".join(f"{name.replace('_', ' ')} {n / total:.1%}" for name, n in counts.items() if n)


def range_text(values: np.ndarray) -> str:
    words = ("earliest", "median", "latest")
    said = (f"{w} {'not yet' if np.isnan(x) else f'{x:g}'}" for w, x in zip(words, values, strict=True))
    return "never" if np.isnan(values).all() else ", ".join(said)
