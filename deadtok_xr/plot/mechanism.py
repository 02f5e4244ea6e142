"""Draw why tokens move or not, and their largest update in units of half a gap."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from numpy.typing import NDArray

from deadtok_xr.plot import _style

_ELEMENTS = ("n_no_gradient", "n_rounded_to_zero", "n_moved", "n_unknown")
NEEDED = ("cause", "margin", "replay_agreement", "n_missed", "n_compared", *_ELEMENTS)
_COLOURS = {
    "no_gradient": _style.INK,
    "rounded_to_zero": _style.SKY,
    "moved": _style.ORANGE,
    "unknown": _style.PALE,
}
_QUANTILES = (0.05, 0.5, 0.95)


@_style.shows(NEEDED, layout={"nrows": 2, "sharex": True, "height_ratios": (3, 2)})
def mechanism(mechanism: xr.Dataset | xr.DataTree, *, axes: Sequence[Axes] | None = None) -> NDArray[np.object_]:
    """Draw the share of the tokens by cause against the step, and below it their margins.

    Parameters
    ----------
    mechanism
        From `deadtok_xr.mechanism`, lazy or computed.
    axes
        Two axes to draw on; None for a new figure.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes
        The two axes. Above: shares of the tokens, which add up to 1, and as a line the share of single elements that
        did not move; a token moves if any of its elements does. Below: median, 5th and 95th percentile over the tokens
        of the largest |u| in half gaps; above 1, an update can cross to the next number.

    Raises
    ------
    InputError
        If the dataset lacks a variable.
    """
    ds = _style.need(mechanism, NEEDED, "mechanism").compute()
    if axes is None:
        import matplotlib.pyplot as plt

        axes = plt.subplots(2, sharex=True, figsize=_style.SIZE, layout="constrained", height_ratios=(3, 2))[1]
    top, bottom = axes
    _causes(top, ds)
    _margins(bottom, ds)
    top.set_xlabel("")
    return np.array([top, bottom], object)


def _causes(ax: Axes, ds: xr.Dataset) -> None:
    _style.dress(ax, ds, ylabel="share of the tokens (fraction)", title=_title(ds))
    ax.spines[["top", "right"]].set_visible(True)
    names = ds["cause"].attrs["flag_meanings"].split()
    edges = _style.cell_edges(ds["step"].values)
    cause = ds["cause"].transpose("step", "token").values
    bottom = np.zeros(len(cause))
    for k, name in enumerate(names):
        share = (cause == k).mean(axis=1)
        if share.any():
            colour = _COLOURS.get(name, _style.PALE)
            label = name.replace("_", " ")
            _style.stairs(ax, bottom + share, edges, baseline=bottom, fill=True, color=colour, label=label, linewidth=0)
        bottom = bottom + share
    n = np.array([ds[name].values for name in _ELEMENTS], float)
    still = 1 - n[_ELEMENTS.index("n_moved")] / n.sum(axis=0)
    _style.line(ax, ds["step"].values, still, label="single elements:\nnot moved", color=_style.INK)
    ax.set_ylim(0, 1)
    handles, texts = ax.get_legend_handles_labels()
    _style.legend_beside(ax, handles=handles[::-1], labels=texts[::-1], title="cause", alignment="left")


def _title(ds: xr.Dataset) -> str:
    compared, missed = int(ds["n_compared"].sum()), int(ds["n_missed"].sum())
    share = f"{1 - missed / compared:.4%} of {compared:,}" if compared else "none"
    how = f"{ds.attrs.get('optimizer', 'updates')} ({ds.attrs.get('arithmetic', '?')})"
    return f"Why {_style.tokens_in_words(ds)} move or not: {how} replayed, {share} elements to the bit"


def _margins(ax: Axes, ds: xr.Dataset) -> None:
    margin = ds["margin"].transpose("step", "token").values
    steps = ds["step"].values
    known = np.isfinite(margin).any(axis=1)
    low, middle, high = np.full((3, len(steps)), np.nan)
    with np.errstate(invalid="ignore"):
        finite = np.where(np.isfinite(margin), margin, np.nan)
        low[known], middle[known], high[known] = np.nanquantile(finite[known], _QUANTILES, axis=1)
    if (high[known] > 0).any():
        ax.set_yscale("log")
    _style.dress(ax, ds, ylabel="largest |u|\n(half gaps)")
    ax.fill_between(steps, low, high, color=_style.SKY, alpha=0.5, linewidth=0, label="5th to 95th\npercentile")
    _style.line(ax, steps, middle, label="median token", color=_style.BLUE)
    ax.axhline(1.0, color=_style.VERMILLION, linewidth=1.2, label="half the gap")
    _style.legend_beside(ax)
