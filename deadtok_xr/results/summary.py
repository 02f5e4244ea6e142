"""Summarise results as text."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr

from deadtok_xr.analyses.registry import ANALYSES


def summary(tree: xr.DataTree) -> str:
    """Return the main findings of a tree of results, as text for one screen.

    Parameters
    ----------
    tree
        From `open_results`, `save_results` or `analyze` (which is computed, as far as needed). Analyses without a
        summary of their own get a line for each variable.
    """
    lines = [_heading(tree)]
    for name in ordered(tree):
        own = ANALYSES[name].summary if name in ANALYSES else None
        ds = tree[name].to_dataset()
        lines += list(_by_dims(name, ds) if own is None else own(ds))
    left_out = tree.attrs.get("left_out", {})
    for reason in dict.fromkeys(left_out.values()):
        names = ", ".join(name for name in left_out if left_out[name] == reason)
        lines.append(f"{names}: left out. {reason}")
    return "\n".join(lines)


def ordered(tree: xr.DataTree) -> list[str]:
    """Return the groups of a tree in the order of the analyses, those of other packages and users last."""
    known = [name for name in ANALYSES if name in tree.children]
    return [*known, *(name for name in tree.children if name not in known)]


def _heading(tree: xr.DataTree) -> str:
    kind = tree.attrs.get("tokens", "all")
    n = tree.attrs.get("n_tokens", "?")
    return f"{tree.attrs.get('source', 'recording')}: {n} {'' if kind == 'all' else kind + ' '}tokens"


def _by_dims(name: str, ds: xr.Dataset) -> Iterator[str]:
    """Yield a line for each variable: its value, or its smallest and largest value and their labels."""
    yield name
    for key, x in ds.data_vars.items():
        units = "" if x.attrs.get("units", "1") == "1" else f" {x.attrs['units']}"
        what = x.attrs.get("long_name") or key
        if x.dtype.kind in "biuf":
            yield f"  {what}: {_range(x, units)}"


def _range(x: xr.DataArray, units: str) -> str:
    values = np.asarray(x.values, np.float64)
    if not x.dims:
        return f"{values:.4g}{units}"
    finite = np.isfinite(values)
    if not finite.any():
        return "no finite value"
    smallest = np.unravel_index(np.where(finite, values, np.inf).argmin(), values.shape)
    largest = np.unravel_index(np.where(finite, values, -np.inf).argmax(), values.shape)
    ends = (f"{values[at]:.4g}{units} at {_labels(x, at)}" for at in (smallest, largest))
    return " to ".join(ends)


def _labels(x: xr.DataArray, at: tuple[np.intp, ...]) -> str:
    return ", ".join(f"{d} {x[d].values[i] if d in x.coords else i}" for d, i in zip(x.dims, at, strict=True))
