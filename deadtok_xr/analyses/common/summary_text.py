"""Format numbers for findings, warnings and the lines of summaries."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import numpy as np
import xarray as xr


def in_one_line(describe: Callable[[xr.Dataset], Iterator[str]]) -> Callable[[xr.Dataset], Iterator[str]]:
    """Join the lines of a summary into one."""

    @functools.wraps(describe)
    def joined(ds: xr.Dataset) -> Iterator[str]:
        yield "; ".join(" ".join(line.split()) for line in describe(ds))

    return joined


def span(values: np.ndarray) -> str:
    """Return the smallest and largest finite value, in brackets."""
    finite = values[np.isfinite(values)]
    return f"[{finite.min():.4g}, {finite.max():.4g}]" if finite.size else "none finite"


def invalid_steps(ds: xr.Dataset, consequence: str = "") -> Iterator[str]:
    """Yield a warning if steps hold NaN or infinity, and its consequence."""
    n_invalid = ds["n_invalid"].values
    n = int((n_invalid > 0).sum())
    if n:
        most = f"at most {n_invalid.max()} tokens"
        yield f"{n} steps hold NaN or infinity (n_invalid is {most}){consequence and ', ' + consequence}"


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


def number(x: float | str | None) -> str:
    """Return a number with three digits, or with all of them if it counts; words as they are."""
    if x is None or isinstance(x, str):
        return x or ""
    if isinstance(x, (int, np.integer)):
        return f"{x:,}"
    if not np.isfinite(x):
        return "none" if np.isnan(x) else "infinite"
    return f"{x:,.0f}" if 1000 <= abs(x) < 1e6 else f"{x:.3g}"


def percent(share: float) -> str:
    """Return a share in percent, where neither a few nor nearly all are rounded to none or all."""
    if np.isnan(share):
        return "none"
    text = f"{100 * share:.1f}%" if abs(share) < 100 else f"{100 * share:.3g}%"
    if share > 0 and text == "0.0%":
        return f"{100 * share:.2g}%" if share > 1e-5 else "under 0.001%"
    if share < 1 and text == "100.0%":
        return f"{100 * share:.2f}%" if share < 0.99995 else "over 99.99%"
    return text.replace(".0%", "%")


def some(n: int, of: int, ds: xr.Dataset) -> str:
    """Return a number of tokens, of all that were analysed, with the verb in the plural: "all 162 dead tokens"."""
    kind = ds.attrs.get("tokens", "all")
    words = "tokens" if kind == "all" else f"{kind} tokens"
    return f"{'none of the' if not n else 'all' if n == of > 1 else f'{n:,} of'} {of:,} {words}"


def sentence(text: str) -> str:
    """Return a text with a capital letter and a full stop."""
    return f"{text[0].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def ends(values: np.ndarray) -> tuple[int, int] | None:
    """Return the positions of the first and the last finite value; None without any."""
    finite = np.flatnonzero(np.isfinite(values))
    return (int(finite[0]), int(finite[-1])) if finite.size else None
