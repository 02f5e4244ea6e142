"""Draw how long the mean hidden state keeps its direction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from deadtok_xr.plot import _style

PANELS = ("cosines along the steps", "autocorrelation")
LAYOUT: dict[str, Any] = {"nrows": 2}
_STEPS = {
    "cosine": ("to the previous step", _style.SKY, 0.8),
    "mean_direction_cosine": ("to the mean direction", _style.BLUE, 1.2),
}
_LAGS = {
    "autocorrelation": ("direction: mean cosine", _style.BLUE),
    "fluctuation_autocorrelation": ("fluctuation about the mean direction", _style.VERMILLION),
}
NEEDED = (*_STEPS, *_LAGS, "resultant_length", "half_lag", "straightness")


@_style.shows(NEEDED, layout=LAYOUT)
def h_persistence(
    h_persistence: xr.Dataset | xr.DataTree, *, axes: Sequence[Axes] | NDArray[Any] | None = None
) -> NDArray[np.object_]:
    """Draw cosines of successive h_mean against the step, and its autocorrelation against the lag.

    Parameters
    ----------
    h_persistence
        From `deadtok_xr.h_persistence`, lazy or computed.
    axes
        Two axes to draw on, from the top; None for a new figure.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes
        Array of two axes, all dimensionless: `cosine` and `mean_direction_cosine` against the step; `autocorrelation`
        and `fluctuation_autocorrelation` against the lag in steps, with `half_lag` marked. The title has the numbers.

    Raises
    ------
    InputError
        If the dataset lacks one of these, or there are not two axes.
    """
    ds = _style.need(h_persistence, NEEDED, "h_persistence").compute()
    panels = _style.own_panels(axes, PANELS, **LAYOUT)
    top, bottom = panels
    for name, (words, color, width) in _STEPS.items():
        _style.line(top, ds["step"].values, ds[name].values, label=words, color=color, linewidth=width)
    title = (
        f"Direction of the mean hidden state: mean unit vector of length {float(ds['resultant_length']):.3f}, "
        f"net angle / sum of swings {float(ds['straightness']):.3g}"
    )
    _style.dress(top, ds, ylabel="cosine of h_mean\n(dimensionless)", title=title, pad=_style.LEGEND_PAD)
    _style.legend_above(top)
    _lags(bottom, ds)
    return panels


def _lags(ax: Axes, ds: xr.Dataset) -> None:
    lags, half = ds["lag"].values, int(ds["half_lag"])
    ax.axhline(0.0, color=_style.INK, linewidth=0.6)
    for name, (words, color) in _LAGS.items():
        _style.line(ax, lags, ds[name].values, label=words, color=color)
    if half >= 0:
        words = f"half at a lag of {half:,}"
        ax.plot([half], [ds["fluctuation_autocorrelation"].values[half]], "o", color=_style.VERMILLION, label=words)
    ax.set_xlim(-0.5, lags[-1] + 0.5)
    ax.set_xlabel("lag (steps)")
    ax.set_ylabel("autocorrelation\n(dimensionless)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(True, color=_style.PALE, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    _style.legend_above(ax)
