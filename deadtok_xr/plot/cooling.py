"""Draw how motion decreases: percentiles over the tokens, and a heat map with a row per token."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm

from deadtok_xr.plot import _logzero, _style
from deadtok_xr.plot.motion import measured

PERCENTILES = (50, 90, 95, 99, 100)
_COLOURS = (_style.BLUE, _style.SKY, _style.GREEN, _style.ORANGE, _style.VERMILLION)
_STYLES = ("solid", "dashed", "dashdot", "dotted", "solid")
_ROWS, _COLUMNS = 500, 1000
"""The largest number of cells: beyond it, cells show the maximum over several steps, and every n-th token."""


def cooling(motion: xr.Dataset | xr.DataTree, *, measure: str = "displacement_ulp", ax: Axes | None = None) -> Axes:
    """Draw percentiles over the tokens of how far they moved, against the step.

    Parameters
    ----------
    motion, measure, ax
        As for `displacement`.

    Returns
    -------
    matplotlib.axes.Axes
        The axes, both logarithmic, with the percentiles 50, 90, 95, 99 and the maximum over valid tokens. Where one is
        0, it is marked in the strip "0"; a step without a valid token is a gap.

    Raises
    ------
    InputError
        If the dataset lacks the measure.

    Notes
    -----
    K7 of the notebooks: on double logarithmic axes a power law is a line.
    """
    ds, values = measured(motion, measure)
    values = values.astype(np.float64)  # between two tokens a percentile is interpolated
    with np.errstate(invalid="ignore"):
        valid = np.isfinite(values).any(axis=1)
        found = np.full((len(PERCENTILES), len(values)), np.nan)
        if valid.any():
            found[:, valid] = np.nanpercentile(values[valid], PERCENTILES, axis=1)
    axis = _logzero.log_axis(*_logzero.positive_range(found), bool((found == 0).any()))
    ax = _style.own_axes(ax)
    _logzero.apply(ax, axis)
    steps = ds["step"].values
    for percent, line, color, style in zip(PERCENTILES, found, _COLOURS, _STYLES, strict=True):
        name = "maximum" if percent == 100 else "median" if percent == 50 else f"{percent}%"
        _style.line(ax, steps, line, label=name, color=color, linestyle=style)
    _logzero.mark_zeros(ax, axis, steps, found[-1] == 0, label="no token moved", color=_style.INK)
    title = f"Cooling: percentiles of the movement of {_style.tokens_in_words(ds)}"
    _style.dress(ax, ds, ylabel=_style.axis_label(ds[measure]), title=title, pad=_style.LEGEND_PAD)
    if steps[-1] > max(steps[0], 1):
        ax.set_xscale("log")
        ax.set_xlim(max(steps[0], 1), steps[-1])
    _style.legend_above(ax)
    return ax


def heat_map(motion: xr.Dataset | xr.DataTree, *, measure: str = "lattice_l1", ax: Axes | None = None) -> Axes:
    """Draw how far each token moved at each step, as colours: a row per token, a column per step.

    Parameters
    ----------
    motion, ax
        As for `displacement`.
    measure
        Any variable of `motion` of (step, token).

    Returns
    -------
    matplotlib.axes.Axes
        The axes. Tokens that did not move are grey, colours are logarithmic, invalid values white. For more than 1,000
        steps a cell is the largest value of several; of more than 500 tokens every n-th is shown, as the title says.

    Raises
    ------
    InputError
        If the dataset lacks the measure.
    """
    ds, values = measured(motion, measure)
    stride, width = (-(-n // most) for n, most in zip(values.shape[::-1], (_ROWS, _COLUMNS), strict=True))
    starts = np.arange(0, len(values), width)
    shown = np.fmax.reduceat(values[:, ::stride], starts, axis=0).T
    ax = _style.own_axes(ax)
    low, high = _logzero.positive_range(shown)
    edges = np.append(_style.cell_edges(ds["step"].values)[starts], _style.cell_edges(ds["step"].values)[-1])
    rows = np.arange(len(shown) + 1)
    still = np.ma.masked_where(shown != 0, shown)
    style: dict[str, Any] = {"rasterized": True}
    ax.pcolormesh(edges, rows, still, cmap=ListedColormap([_style.PALE]), **style)
    if (shown > 0).any():
        moving = np.ma.masked_where(~(shown > 0), shown)
        norm = LogNorm(min(low, high / 10), high)
        mesh = ax.pcolormesh(edges, rows, moving, cmap="viridis", norm=norm, gid="moving", **style)
        ax.figure.colorbar(mesh, ax=ax, pad=0.01, label=_style.axis_label(ds[measure]))
    some = "" if stride == 1 else f", one of {stride} shown"
    title = f"Movement by step and token: {_style.tokens_in_words(ds)}{some}; grey: did not move"
    _style.dress(ax, ds, ylabel="tokens, by their id (rank)", title=title)
    ax.grid(visible=False)
    return ax
