"""Draw a quantity of several runs over steps: a colour for each run, or a band over the runs of each setting."""

from __future__ import annotations

import textwrap
import warnings
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from numpy.typing import NDArray

from deadtok_xr.errors import InputError
from deadtok_xr.plot import _logzero, _style

COLORS = (_style.BLUE, _style.ORANGE, _style.VERMILLION, _style.GREEN, _style.SKY, "#CC79A7", _style.INK)
_LOGARITHMIC = 100.0
"""The ratio of the largest to the smallest positive value from which the axis is logarithmic."""


def runs(results: xr.Dataset | xr.DataTree, variable: str, *, by: str | None = None, ax: Axes | None = None) -> Axes:
    """Draw a variable of several runs against the step, a colour for each run or for each value of a coordinate.

    Parameters
    ----------
    results
        A group of results of several runs, from `analyze` or `compare_runs`, lazy or computed.
    variable
        A variable over (run, step), or with tokens, over which it is averaged; of any other dimension the first place
        is drawn, such as the coldest phase. Select another one first: ``tree["phases"].to_dataset().sel(phase=...)``.
    by
        A coordinate along `run`, such as a learning rate: runs that have the same value, for instance those of several
        seeds, become one line, their mean, and a band from the smallest to the largest. None: a line for each run, or,
        for more than seven, one mean and one band of all.
    ax
        Axes to draw on; None for a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        The axes. The scale is logarithmic, with a strip for 0, if no value is negative and the positive ones span more
        than two powers of ten.

    Raises
    ------
    InputError
        If the variable does not exist or has no runs and steps, or there is no coordinate of this name along `run`.
    """
    ds = _style.need(results, (variable,), "analyze")
    x, place = _over_steps(ds[variable])
    x = x.compute()
    ax = _style.own_axes(ax)
    groups = _groups(x, by)
    values = x.values.astype(np.float64)
    steps = ds["step"].values
    _style.dress(ax, ds, ylabel=_ylabel(ds[variable]), title=_title(x, place, by))
    axis = _log_axis(x)
    if axis is not None:
        _logzero.apply(ax, axis)
    elif _is_share(x):
        ax.set_ylim(-0.06, 1.08)
    elif not (values < 0).any():
        _style.from_zero(ax, values)
    for k, (label, positions) in enumerate(groups):
        color = COLORS[k % len(COLORS)]
        lines = values[positions]
        mean = lines[0] if len(lines) == 1 else _spread(ax, steps, lines, color)
        style = "-" if k < len(COLORS) else "--"
        _style.line(ax, steps, mean, label=label, color=color, linestyle=style)
        if axis is not None:
            lane = (k / len(groups) + 0.02, (k + 1) / len(groups) - 0.02)
            _logzero.mark_zeros(ax, axis, steps, mean == 0, color=color, lane=lane)
    _style.legend_beside(ax, title=by or "run", alignment="left")
    return ax


def _over_steps(x: xr.DataArray) -> tuple[xr.DataArray, str]:
    """Return a variable over runs and steps alone, and what was selected from other dimensions."""
    if not {"run", "step"} <= set(x.dims):
        raise InputError(
            f"{x.name!r} has the dimensions ({', '.join(map(str, x.dims))}); expected several runs over steps: "
            "(run, step)"
        )
    if "token" in x.dims:
        x = x.mean("token", keep_attrs=True)
    words = []
    for dim in [d for d in x.dims if d not in ("run", "step")]:
        x = x.isel({dim: 0})
        words.append(str(x[dim].values).replace("_", " ") if dim in x.coords else f"{dim} 0")
    words += [] if words else [str(c.values) for name, c in x.coords.items() if name == "phase"]
    return x.transpose("run", "step"), ", ".join(words)


def _groups(x: xr.DataArray, by: str | None) -> list[tuple[str, list[int]]]:
    """Return the label of each line, and the positions of its runs."""
    if by is None and x.sizes["run"] > len(COLORS):
        return [(f"mean of {x.sizes['run']} runs", list(range(x.sizes["run"])))]
    if by is None:
        names = x["run"].values if "run" in x.coords else range(x.sizes["run"])
        return [(str(name), [i]) for i, name in enumerate(names)]
    if by not in x.coords or x[by].dims != ("run",):
        there = [str(name) for name, c in x.coords.items() if c.dims == ("run",)]
        raise InputError(f"by={by!r}: expected a coordinate along run; choose from {', '.join(there) or 'none'}")
    found: dict[Any, list[int]] = {}
    for i, value in enumerate(x[by].values.tolist()):
        found.setdefault(value, []).append(i)
    runs_of = [f"{value}{f' ({len(at)} runs)' if len(at) > 1 else ''}" for value, at in found.items()]
    return list(zip(runs_of, found.values(), strict=True))


def _spread(ax: Axes, steps: NDArray[Any], lines: NDArray[np.float64], color: str) -> NDArray[np.float64]:
    """Draw a band over runs, and return their mean."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(Mean of empty|All-NaN)", RuntimeWarning)
        low, mean, high = np.nanmin(lines, axis=0), np.nanmean(lines, axis=0), np.nanmax(lines, axis=0)
    bottom = np.where(low > 0, low, ax.get_ylim()[0]) if ax.get_yscale() == "log" else low
    ax.fill_between(steps, bottom, high, color=color, alpha=0.2, linewidth=0)
    return np.asarray(mean)


def _log_axis(x: xr.DataArray) -> _logzero.LogAxis | None:
    """Return a logarithmic axis if the values, no counts and no shares, span powers of ten; else None."""
    values = x.values.astype(np.float64)
    low, high = _logzero.positive_range(values)
    if x.dtype.kind != "f" or _is_share(x) or (values < 0).any() or not high > _LOGARITHMIC * low:
        return None
    return _logzero.log_axis(low, high, bool((values == 0).any()))


def _is_share(x: xr.DataArray) -> bool:
    """Return whether a variable is a share of a whole, between 0 and 1."""
    return "fraction" in str(x.name) or str(x.attrs.get("long_name", "")).startswith("share ")


def _ylabel(x: xr.DataArray) -> str:
    """Return quantity and unit, in lines that are not longer than the axis."""
    words = str(x.attrs.get("long_name", x.name))
    unit = str(x.attrs.get("units", "1"))
    kind = "fraction" if _is_share(x) else "count" if x.dtype.kind in "iu" else "no unit"
    return "\n".join([*textwrap.wrap(words, 44), f"({kind if unit == '1' else unit})"])


def _title(x: xr.DataArray, place: str, by: str | None) -> str:
    name = str(x.attrs.get("long_name", x.name))
    what = f"{name[0].upper()}{name[1:]}{f', {place}' if place else ''}"
    return f"{what}: {x.sizes['run']} runs{f' by {by}' if by else ''}"
