"""Draw how far tokens move from step to step: their mean, and every token."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, QuadMesh
from matplotlib.colors import LogNorm
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from deadtok_xr.plot import _logzero, _style
from deadtok_xr.plot._density import Density, density
from deadtok_xr.plot._style import Floats

FEW = 60  # largest number of tokens drawn as lines
Measured = NDArray[np.floating[Any]]


@_style.shows(("displacement_ulp",))
def displacement(
    motion: xr.Dataset | xr.DataTree, *, measure: str = "displacement_ulp", ax: Axes | None = None
) -> Axes:
    """Draw the mean and standard deviation over the tokens of how far they moved, against the step.

    Parameters
    ----------
    motion
        From `deadtok_xr.motion`, lazy or computed.
    measure
        Any of its variables of (step, token): `displacement_ulp` (norm ULP), `displacement`
        (dimensionless), `lattice_l1`, `lattice_l2`, `lattice_linf` (ULP).
    ax
        Axes to draw on; None for a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        The axes, y logarithmic. Mean and standard deviation (ddof 1) are over valid tokens; a step without any is a
        gap. The band goes down to the strip "0" where mean - std is not positive; a step at which no token moved is
        marked in that strip.

    Raises
    ------
    InputError
        If the dataset lacks the measure.

    Notes
    -----
    The first figure of notebook 1.31b.
    """
    ds, values = measured(motion, measure)
    steps = ds["step"].values
    mean, std = _moments(values)
    axis = _limits(mean, std)
    ax = _style.own_axes(ax)
    _logzero.apply(ax, axis)
    _band(ax, axis, steps, mean, std)
    _style.line(ax, steps, mean, label="mean", color=_style.BLUE)
    _logzero.mark_zeros(ax, axis, steps, mean == 0, label="no token moved", color=_style.INK)
    title = f"Movement from step to step: mean and spread over {_style.tokens_in_words(ds)}"
    _finish(ax, ds, measure, title + _left_out(values))
    return ax


@_style.shows(("displacement_ulp",))
def trajectories(
    motion: xr.Dataset | xr.DataTree, *, measure: str = "displacement_ulp", ax: Axes | None = None
) -> Axes:
    """Draw how far each token moved, against the step, with the mean on top.

    Parameters
    ----------
    motion, measure, ax
        As for `displacement`.

    Returns
    -------
    matplotlib.axes.Axes
        The axes, y logarithmic; the mean is over valid tokens. Up to 60 tokens are lines, and the height of the black
        area in the strip "0" is the share of tokens that did not move. More tokens are a density, in the strip too: the
        colour is the number of tokens per step in a cell. Invalid values are left out, and counted in the title.

    Raises
    ------
    InputError
        If the dataset lacks the measure.

    Notes
    -----
    The second figure of notebook 1.31b. Nothing is smoothed.
    """
    ds, values = measured(motion, measure)
    steps = ds["step"].values
    mean, _ = _moments(values)
    axis = _logzero.log_axis(*_logzero.positive_range(values, mean), bool((values == 0).any()))
    ax = _style.own_axes(ax)
    _logzero.apply(ax, axis)
    if values.shape[1] <= FEW:
        _lines(ax, axis, steps, values)
    else:
        _cells(ax, axis, density(values, steps, axis.low, axis.high))
    if values.shape[1] > 1:  # the mean of one token would hide it
        outline = [patheffects.withStroke(linewidth=2.0, foreground="white")]
        style: dict[str, Any] = {"path_effects": outline, "linewidth": 1.1, "zorder": 3}
        _style.line(ax, steps, mean, label="mean", color=_style.VERMILLION, **style)
    title = f"Movement from step to step of each token: {_style.tokens_in_words(ds)}"
    _finish(ax, ds, measure, title + _left_out(values))
    return ax


def measured(motion: xr.Dataset | xr.DataTree, measure: str) -> tuple[xr.Dataset, Measured]:
    """Return the computed dataset, and a measure of motion (step, token) in float32 or float64, NaN where invalid."""
    ds = _style.need(motion, (measure,), "motion")
    _style.need_dims(ds, {measure: ("step", "token")}, "motion")
    ds = ds.transpose("step", "token").compute()
    values = ds[measure].values
    if values.dtype != np.float32:  # the largest results are float32, which is kept
        values = values.astype(np.float64)
    values = np.where(np.isfinite(values) & (values >= 0), values, np.nan)
    return ds, values


def _moments(values: Measured) -> tuple[Floats, Floats]:
    """Return the mean and standard deviation (ddof 1) of the valid tokens, NaN for too few."""
    valid = ~np.isnan(values)
    n = valid.sum(axis=1)
    mean = np.where(n > 0, np.nansum(values, axis=1, dtype=np.float64) / np.maximum(n, 1), np.nan)
    squares = np.array([np.nansum((row.astype(np.float64) - m) ** 2) for row, m in zip(values, mean, strict=True)])
    return mean, np.where(n > 1, np.sqrt(squares / np.maximum(n - 1, 1)), np.nan)


def _limits(mean: Floats, std: Floats) -> _logzero.LogAxis:
    """Return limits that include mean and band, but at most two decades below the smallest mean."""
    least, _ = _logzero.positive_range(mean)
    low, high = _logzero.positive_range(mean, mean - std, mean + std)
    return _logzero.log_axis(max(low, least / 100), high, bool(((mean == 0) | (mean - std <= 0)).any()))


def _band(ax: Axes, axis: _logzero.LogAxis, steps: NDArray[np.int64], mean: Floats, std: Floats) -> None:
    if not (np.isfinite(std) & (mean > 0)).any():
        return  # one token has no spread
    lower = mean - std
    low = np.where(lower > 0, np.maximum(lower, axis.low), axis.bottom)
    label = "mean ± standard deviation"
    spread = np.isfinite(std) & (mean > 0)
    style: dict[str, Any] = {"color": _style.SKY, "alpha": 0.4}
    ax.fill_between(steps, low, mean + std, where=spread.tolist(), linewidth=0, label=label, **style)
    lonely = _style.isolated(spread)  # without a neighbour there is no area
    ax.vlines(steps[lonely], low[lonely], (mean + std)[lonely], linewidth=1.0 if len(steps) > 3 else 8.0, **style)


def _lines(ax: Axes, axis: _logzero.LogAxis, steps: NDArray[np.int64], values: Measured) -> None:
    n = values.shape[1]
    x = np.broadcast_to(steps.astype(np.float64), values.T.shape)
    moving = np.where(values > 0, values, np.nan)
    alpha = float(np.clip(6 / n, 0.25, 0.8))
    paths = np.stack([x, moving.T], axis=-1)
    ax.add_collection(LineCollection(list(paths), colors=_style.BLUE, alpha=alpha, linewidths=0.7))
    ax.plot([], [], color=_style.BLUE, linewidth=1.0, label="each token")  # opaque, for the legend
    lonely = _style.isolated(np.isfinite(moving))
    ax.plot(x.T[lonely], values[lonely], ".", color=_style.BLUE, alpha=alpha, markersize=2.5)
    if axis.has_strip:
        valid = np.maximum((~np.isnan(values)).sum(axis=1), 1)
        share = (values == 0).sum(axis=1) / valid
        top, edges = axis.within_strip(share), _style.cell_edges(steps)
        label = "share of tokens that did not move"
        _style.stairs(ax, top, edges, baseline=axis.bottom, fill=True, color=_style.INK, label=label)


def _cells(ax: Axes, axis: _logzero.LogAxis, cells: Density) -> None:
    per_step = cells.counts / np.maximum(cells.n_steps, 1)[:, None]
    zeros = cells.zeros / np.maximum(cells.n_steps, 1)
    shown = [a[a > 0] for a in (per_step, zeros) if (a > 0).any()]
    low, high = (min(map(np.min, shown)), max(map(np.max, shown))) if shown else (1.0, 10.0)
    norm = LogNorm(min(low, high / 10), high)
    style: dict[str, Any] = {"norm": norm, "cmap": "cividis_r", "rasterized": True}
    mesh = ax.pcolormesh(cells.step_edges, cells.value_edges, np.ma.masked_equal(per_step.T, 0), gid="density", **style)
    if axis.has_strip:
        row = np.ma.masked_equal(zeros[None, :], 0)
        ax.pcolormesh(cells.step_edges, np.array(axis.strip), row, gid="zeros", **style)
    _colour_bar(ax, mesh, norm)


def _colour_bar(ax: Axes, mesh: QuadMesh, norm: LogNorm) -> None:
    assert norm.vmin is not None  # both were given
    assert norm.vmax is not None
    bar = ax.figure.colorbar(mesh, ax=ax, pad=0.01, label="tokens per step in a cell (count)")
    subs = (1.0, 2.0, 5.0) if norm.vmax < 100 * norm.vmin else (1.0,)
    bar.ax.yaxis.set_major_locator(LogLocator(subs=subs))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,g}"))
    bar.ax.yaxis.set_minor_formatter(NullFormatter())


def _finish(ax: Axes, ds: xr.Dataset, measure: str, title: str) -> None:
    _style.dress(ax, ds, ylabel=_style.axis_label(ds[measure]), title=title, pad=_style.LEGEND_PAD)
    _style.legend_above(ax)


def _left_out(values: Measured) -> str:
    n = int(np.isnan(values).sum())
    return f"\n{n:,} of {values.size:,} values are invalid and left out" if n else ""
