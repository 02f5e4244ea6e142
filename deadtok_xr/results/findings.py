"""Collect what the analyses of a tree found: findings, warnings, key figures, and what was left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import dask
import numpy as np
import xarray as xr

from deadtok_xr import attributes
from deadtok_xr.analyses.common import summary_text
from deadtok_xr.analyses.registry import ANALYSES, Finding, KeyFigure, analysis_of, load_entry_points

Groups = Mapping[str, xr.Dataset]


def load(tree: xr.DataTree) -> dict[str, xr.Dataset]:
    """Return the groups of a tree in the order of the analyses, those of other packages and users last.

    Variables that do not have both a step and a token are small: they are computed, all together, so that a tree that
    was not saved reads the recording once for them.
    """
    load_entry_points()
    known = [name for name in ANALYSES if name in tree.children]
    groups = {name: tree[name].to_dataset() for name in dict.fromkeys([*known, *tree.children])}
    small = {
        name: ds[[k for k, v in ds.items() if not {"step", "token"} <= set(v.dims)]] for name, ds in groups.items()
    }
    (loaded,) = dask.compute(small)
    return {name: ds.assign(dict(loaded[name].items())) for name, ds in groups.items()}


def findings(groups: Groups) -> list[Finding]:
    """Return the findings of all analyses, the most important first."""
    found = [finding for name, ds in groups.items() for finding in _findings(name, ds)]
    return sorted(found, key=lambda finding: -finding.importance)


def key_figures(groups: Groups) -> dict[str, KeyFigure]:
    """Return the key figure of each analysis."""
    return {name: _key_figure(name, ds) for name, ds in groups.items()}


def warnings(groups: Groups) -> list[str]:
    """Return the warnings of all analyses; NaN and infinity, which all of them meet, in one sentence."""
    sentences = []
    if n_invalid := [ds["n_invalid"].values for name, ds in groups.items() if _known(name, "invalid")]:
        steps, tokens = (max(values) for values in ([(x > 0).sum() for x in n_invalid], [x.max() for x in n_invalid]))
        if steps:
            sentences.append(f"{steps:,} steps hold NaN or infinity, in at most {tokens:,} tokens, which are left out")
    for name, ds in groups.items():
        if (own := _known(name, "warnings")) is not None:
            sentences += own(ds)
    return sentences


def left_out(tree: xr.DataTree) -> Iterator[str]:
    """Yield why analyses were not possible, a line for each reason."""
    reasons: dict[str, list[tuple[str, str]]] = {}
    for name, reason in (attributes.read(tree.attrs, "left_out") or {}).items():
        reasons.setdefault(reason.removeprefix(name), []).append((name, reason))
    for alike in reasons.values():
        yield f"{', '.join(name for name, _ in alike)}: left out. {alike[0][1]}"


def detailed_lines(name: str, ds: xr.Dataset) -> list[str]:
    """Return the lines of one analysis, its own or one for each variable, and its warnings."""
    summary, invalid, warn = (_known(name, key) for key in ("summary", "invalid", "warnings"))
    lines = list(_by_dims(name, ds) if summary is None else summary(ds))
    found = [*(summary_text.invalid_steps(ds, invalid) if invalid else ()), *(warn(ds) if warn else ())]
    return [*lines, *(f"  warning: {text}" for text in found)]


def _known(name: str, attribute: str) -> Any:
    """Return an attribute of the analysis that made a group; None for a group of unknown origin."""
    analysis = analysis_of(name)
    return None if analysis is None else getattr(analysis, attribute)


def _findings(name: str, ds: xr.Dataset) -> Iterator[Finding]:
    own = _known(name, "findings")
    if own is not None:
        yield from own(ds)
    elif not _known(name, "is_built_in"):
        lines = [line.strip() for line in detailed_lines(name, ds)]
        for i, line in enumerate(line for line in lines if line != name):
            yield Finding(0.5 - 0.01 * i, summary_text.sentence(f"{name}: {line}"))


def _key_figure(name: str, ds: xr.Dataset) -> KeyFigure:
    own = _known(name, "key_figure")
    if own is not None:
        return own(ds)
    numbers = {key: x for key, x in ds.data_vars.items() if x.dtype.kind in "biuf" and x.size}
    if not numbers:
        return KeyFigure("no numbers")
    key, x = next(iter(numbers.items()))
    what = str(x.attrs.get("long_name") or key)
    if x.dims == ("step",):
        first, last = x.values[[0, -1]].tolist()
        return KeyFigure(what, first, last)
    finite = x.values[np.isfinite(x.values)]
    ends = list(dict.fromkeys(summary_text.number(v) for v in ([finite.min(), finite.max()] if finite.size else [])))
    return KeyFigure(what, overall=" to ".join(ends) or "none")


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
