"""Draw the number of components against the threshold."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from deadtok_xr.plot import _style
from deadtok_xr.plot.phases import colours

NEEDED = ("merge_threshold", "connectivity_threshold", "mean_ulp")


@_style.shows(NEEDED)
def connectivity(connectivity: xr.Dataset | xr.DataTree, *, ax: Axes | None = None) -> Axes:
    """Draw the number of components against the threshold, a line for each selected step.

    Parameters
    ----------
    connectivity
        From `deadtok_xr.connectivity`, lazy or computed.
    ax
        Axes to draw on; None for a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        The axes, both logarithmic; x is the L∞ threshold (dimensionless, as W), and a cross on each line marks the mean
        ULP of that step, the threshold of `topology`. Steps without a valid value are left out.

    Raises
    ------
    InputError
        If the dataset lacks one of the variables.
    """
    ds = _style.need(connectivity, NEEDED, "connectivity").compute()
    ax = _style.own_axes(ax)
    shades = colours(ds.sizes["step"] + 1)
    n = ds.sizes["edge"] + 1
    for i, step in enumerate(ds["step"].values):
        merge, own = ds["merge_threshold"].values[i], float(ds["mean_ulp"][i])
        if np.isfinite(merge).all() and n > 1:
            label = f"step {step:,}: connected at {float(ds['connectivity_threshold'][i]):.3g}"
            x = np.concatenate([[min(own, merge[merge > 0].min(initial=own)) / 2], merge[merge > 0], [2 * merge[-1]]])
            y = n - np.searchsorted(merge, x, side="right")
            ax.step(x, y, where="post", color=shades[i], label=label, linewidth=1.6)
            ax.plot(own, n - np.searchsorted(merge, own, side="right"), "x", color=shades[i], markersize=8)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("L∞ threshold (dimensionless); × the mean ULP at the centroid")
    ax.set_ylabel("connected components (count)")
    kind = connectivity.to_dataset() if isinstance(connectivity, xr.DataTree) else connectivity
    ax.set_title(f"Components of {_style.tokens_in_words(kind)} by threshold, at selected steps", loc="left")
    ax.grid(True, color=_style.PALE, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    if ax.lines:
        _style.legend_beside(ax)
    return ax
