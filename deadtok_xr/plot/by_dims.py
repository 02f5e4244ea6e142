"""Draw any results by the dims of their variables, for analyses without pictures of their own."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from numpy.typing import NDArray

from deadtok_xr.errors import InputError
from deadtok_xr.plot import _style

READING = (
    "A line over steps has one value per step. Of a variable with a second dimension, each of its few places has a "
    "line; where there are many, the line is their median, and the band holds 90% of them. Values without steps are "
    "drawn in ascending order."
)
_MOST = 4
_COLORS = (_style.BLUE, _style.ORANGE, _style.VERMILLION, _style.GREEN, _style.SKY)


def drawable(ds: xr.Dataset) -> list[str]:
    """Return the variables that can be drawn, as many as fit on a page."""
    names = [
        str(name)
        for name, x in ds.data_vars.items()
        if x.dtype.kind in "biuf" and x.size and (x.ndim == 1 or (x.ndim == 2 and x.dims[0] == "step"))
    ]
    return [name for name in names if name != "step_span"][:_MOST]


def by_dims(ds: xr.Dataset | xr.DataTree, *, axes: Sequence[Axes] | NDArray[Any] | None = None) -> NDArray[np.object_]:
    """Draw each variable by its dims: a line or a band over steps, or its values in ascending order.

    Parameters
    ----------
    ds
        Results of an analysis. Variables over (step), over (step, ...) with one dimension more, and over one dimension
        are drawn, the first four of them.
    axes
        One for each variable; None for a new figure.

    Returns
    -------
    numpy.ndarray
        The axes.

    Raises
    ------
    InputError
        If no variable can be drawn.
    """
    ds = ds.to_dataset() if isinstance(ds, xr.DataTree) else ds
    names = drawable(ds)
    panels = _style.own_panels(axes, tuple(names), **layout(ds))
    for ax, name in zip(panels, names, strict=True):
        _draw(ax, ds, ds[name].compute())
    return panels


def layout(ds: xr.Dataset) -> dict[str, Any]:
    """Return the panels as `Figure.subplots` takes them: one below the other."""
    names = drawable(ds)
    if not names:
        raise InputError(f"no variable can be drawn (found: {', '.join(map(str, ds.data_vars)) or 'none'})")
    return {"nrows": len(names)}


def _draw(ax: Axes, ds: xr.Dataset, x: xr.DataArray) -> None:
    numbers = x.values.astype(np.float64)
    values = np.where(np.isfinite(numbers), numbers, np.nan)
    unit = str(x.attrs.get("units", "1"))
    ylabel, title = "" if unit == "1" else unit, str(x.attrs.get("long_name", x.name))
    if "step" not in x.dims:
        values = np.sort(values)
        _style.line(ax, np.arange(1, len(values) + 1), values, label="", color=_style.BLUE)
        ax.set_xlabel(f"{x.dims[0]}s in ascending order of their values")
        ax.set_ylabel(ylabel)
        ax.set_title(title, loc="left")
        ax.grid(True, color=_style.PALE, linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
        return
    _style.dress(ax, ds, ylabel=ylabel, title=title, pad=6.0 if x.ndim == 1 else _style.LEGEND_PAD)
    steps = x["step"].values
    if x.ndim == 1:
        _style.line(ax, steps, values, label="", color=_style.BLUE)
        return
    other = x.dims[1]
    if x.shape[1] <= len(_COLORS):
        names = x[other].values if other in x.coords else range(x.shape[1])
        for name, column, color in zip(names, values.T, _COLORS, strict=False):
            _style.line(ax, steps, column, label=f"{other} {name}", color=color)
    elif x.dtype == bool:
        _style.line(
            ax, steps, values.mean(axis=1), label=f"share of the {other}s for which it is true", color=_style.BLUE
        )
    else:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
            low, median, high = np.nanpercentile(values, (5, 50, 95), axis=1)
        ax.fill_between(steps, low, high, color=_style.SKY, alpha=0.35, linewidth=0, label=f"5% to 95% of the {other}s")
        _style.line(ax, steps, median, label=f"median {other}", color=_style.BLUE)
    _style.legend_above(ax)
