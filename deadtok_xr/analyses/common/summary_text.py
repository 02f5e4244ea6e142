"""Format numbers for the lines of summaries."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import numpy as np
import xarray as xr


def in_one_line(describe: Callable[[xr.Dataset], Iterator[str]]) -> Callable[[xr.Dataset], Iterator[str]]:
    """Join the lines of a summary into one; its warnings remain lines of their own."""

    @functools.wraps(describe)
    def joined(ds: xr.Dataset) -> Iterator[str]:
        lines = list(describe(ds))
        yield "; ".join(" ".join(line.split()) for line in lines if not line.lstrip().startswith("warning:"))
        yield from (line for line in lines if line.lstrip().startswith("warning:"))

    return joined


def span(values: np.ndarray) -> str:
    """Return the smallest and largest finite value."""
    finite = values[np.isfinite(values)]
    return f"[{finite.min():.4g}, {finite.max():.4g}]" if finite.size else "[nan]"


def invalid_steps(ds: xr.Dataset, consequence: str) -> Iterator[str]:
    """Yield a warning if steps hold NaN or infinity, and its consequence."""
    n_invalid = ds["n_invalid"].values
    if n_invalid.any():
        yield (
            f"  warning: {(n_invalid > 0).sum()} steps hold NaN or infinity (n_invalid is at most {n_invalid.max()} "
            f"tokens), {consequence}"
        )


def largest(values: np.ndarray, steps: np.ndarray) -> str:
    """Return the largest finite value and its step."""
    if not np.isfinite(values).any():
        return "none finite"
    at = int(np.nanargmax(np.where(np.isfinite(values), values, np.nan)))
    return f"{values[at]:.6f} largest (step {steps[at]})"


def largest_value(values: np.ndarray) -> float:
    """Return the largest value, NaN ignored."""
    return float(np.nanmax(values)) if not np.isnan(values).all() else float("nan")


def finite_median(values: np.ndarray) -> float:
    """Return the median of the finite values; NaN without any."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else float("nan")


def finite_mean(values: np.ndarray) -> float:
    """Return the mean of the values that are not NaN; NaN without any finite one."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def shares(counts: dict[str, int]) -> str:
    """Return each count that is not 0 as a share of the total."""
    total = sum(counts.values())
    return ", ".join(f"{name.replace('_', ' ')} {n / total:.1%}" for name, n in counts.items() if n)


def range_text(values: np.ndarray) -> str:
    """Return the earliest, median and latest step; NaN is later than the last step."""
    words = ("earliest", "median", "latest")
    parts = (f"{word} {'not yet' if np.isnan(x) else f'{x:g}'}" for word, x in zip(words, values, strict=True))
    return "never" if np.isnan(values).all() else ", ".join(parts)
