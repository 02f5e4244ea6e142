"""Summarise results as text."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr

from deadtok_xr.analyses.registry import ANALYSES, load_entry_points


def summary(tree: xr.DataTree) -> str:
    """Return the main findings of a tree of results, as text for one screen.

    Parameters
    ----------
    tree
        From `open_results`, `save_results` or `analyze` (which is computed, as far as needed). Analyses without a
        summary of their own get a line for each variable.
    """
    load_entry_points()
    lines = [_heading(tree)]
    for name in ordered(tree):
        lines += lines_of(name, tree[name].to_dataset())
    left_out = tree.attrs.get("left_out", {})
    for reason in dict.fromkeys(left_out.values()):
        names = ", ".join(name for name in left_out if left_out[name] == reason)
        lines.append(f"{names}: left out. {reason}")
    return "\n".join(lines)


def lines_of(name: str, ds: xr.Dataset) -> list[str]:
    """Return the lines of one analysis: its own, or one for each variable."""
    own = ANALYSES[name].summary if name in ANALYSES else None
    return list(_by_dims(name, ds) if own is None else own(ds))


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
        if x.dtype.kind in "biuf":
            yield f"  {x.attrs.get('long_name') or key}: {_range(x)}"


def _range(x: xr.DataArray) -> str:
    values = np.asarray(x.values)
    if values.dtype == bool:
        return str(bool(values)) if not x.dims else f"true for {values.mean():.2%} of {values.size:,} values"
    finite = np.isfinite(values)
    if not finite.any():
        return "no finite value"
    smallest = np.unravel_index(np.where(finite, values, np.inf).argmin(), values.shape)
    largest = np.unravel_index(np.where(finite, values, -np.inf).argmax(), values.shape)
    if values[smallest] == values[largest]:
        return _number(x, smallest) + (
            "" if values.size == 1 else " everywhere" if finite.all() else " where it is finite"
        )
    return " to ".join(f"{_number(x, at)} at {_labels(x, at)}" for at in (smallest, largest))


def _number(x: xr.DataArray, at: tuple[np.intp, ...]) -> str:
    units = x.attrs.get("units", "1")
    number = f"{x.values[at]:,}" if x.dtype.kind in "iu" else f"{x.values[at]:.4g}"
    return number if units == "1" else f"{number} {units}"


def _labels(x: xr.DataArray, at: tuple[np.intp, ...]) -> str:
    return ", ".join(f"{d} {x[d].values[i] if d in x.coords else i}" for d, i in zip(x.dims, at, strict=True))
