"""Draw Adam's step in units of half the gap, below which rounding removes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from numpy.typing import NDArray

from deadtok_xr.plot import _style

PANELS = ("ratio", "shares")
LAYOUT: dict[str, Any] = {"nrows": 2, "sharex": True, "height_ratios": (3, 2)}
_SHARES = {
    "tokens_above": ("tokens with an\nelement above", _style.ORANGE),
    "above_fraction": ("elements above", _style.BLUE),
    "moved_below": ("of those not above,\nmoved anyway", _style.VERMILLION),
}
NEEDED = ("critical_ratio", *_SHARES)
_QUANTILES = (0.05, 0.5, 0.95)


@_style.shows(NEEDED, layout=LAYOUT)
def critical_boundary(
    critical_boundary: xr.Dataset | xr.DataTree, *, axes: Sequence[Axes] | NDArray[Any] | None = None
) -> NDArray[np.object_]:
    """Draw the largest step of each token in units of half its gap, and the shares that are above 1.

    Parameters
    ----------
    critical_boundary
        From `deadtok_xr.critical_boundary`, lazy or computed.
    axes
        Two axes to draw on, from the top; None for a new figure.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes
        Array of two axes: median, 5th and 95th percentile of `critical_ratio` over the tokens, logarithmic; and
        `tokens_above`, `above_fraction`, `moved_below`.

    Raises
    ------
    InputError
        If the dataset lacks one of these, or there are not two axes.
    """
    ds = _style.need(critical_boundary, NEEDED, "critical_boundary").compute()
    top, bottom = panels = _style.own_panels(axes, PANELS, **LAYOUT)
    whole = critical_boundary.to_dataset() if isinstance(critical_boundary, xr.DataTree) else critical_boundary
    _ratios(top, ds, f"Critical boundary: {_style.tokens_in_words(whole)}, Adam's step against half the gap")
    _style.dress(bottom, ds, ylabel="share (fraction)")
    for name, (words, color) in _SHARES.items():
        _style.line(bottom, ds["step"].values, ds[name].values, label=words, color=color)
    bottom.set_ylim(-0.04, 1.04)
    _style.legend_beside(bottom)
    top.set_xlabel("")
    top.figure.align_ylabels(list(panels))
    return panels


def _ratios(ax: Axes, ds: xr.Dataset, title: str) -> None:
    ratio = ds["critical_ratio"].transpose("step", "token").values.astype(np.float64)
    steps = ds["step"].values
    known = np.isfinite(ratio).any(axis=1)
    low, middle, high = np.full((3, len(steps)), np.nan)
    low[known], middle[known], high[known] = np.nanquantile(ratio[known], _QUANTILES, axis=1)
    if (high[known] > 0).any():
        ax.set_yscale("log")
    _style.dress(ax, ds, ylabel="largest step of an element\n(half gaps)", title=title)
    ax.fill_between(steps, low, high, color=_style.SKY, alpha=0.5, linewidth=0, label="5th to 95th\npercentile")
    _style.line(ax, steps, middle, label="median token", color=_style.BLUE)
    ax.axhline(1.0, color=_style.VERMILLION, linewidth=1.2, label="half the gap: above it\nan element can move")
    _style.legend_beside(ax)
