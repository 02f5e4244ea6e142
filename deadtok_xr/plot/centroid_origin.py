"""Draw the parts of the final centroid: initial centroid and drift."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from deadtok_xr.plot import _style

PANELS = ("shares along the steps", "dims")
LAYOUT: dict[str, Any] = {"nrows": 2}
_STEPS = {
    "drift_projection": ("drift along the final centroid", _style.BLUE, 2.2),
    "cosine_initial": ("cosine to the first", _style.ORANGE, 1.2),
    "straightness": ("distance / path", _style.GREEN, 1.2),
    "drift_h_cosine": ("cosine of drift and Σ -lr·h", _style.VERMILLION, 1.2),
}
NEEDED = (*tuple(_STEPS)[:3], "initial_projection", "initial", "drift", "final")
OPTIONAL = ("drift_h_cosine",)


@_style.shows(NEEDED, optional=OPTIONAL, layout=LAYOUT)
def centroid_origin(
    centroid_origin: xr.Dataset | xr.DataTree, *, axes: Sequence[Axes] | NDArray[Any] | None = None
) -> NDArray[np.object_]:
    """Draw the share of the drift in the final centroid against the step, and the parts of each of its dims.

    Parameters
    ----------
    centroid_origin
        From `deadtok_xr.centroid_origin`, lazy or computed.
    axes
        Two axes to draw on, from the top; None for a new figure.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes
        Array of two axes, dimensionless: `drift_projection`, `cosine_initial`, `straightness` and, if it exists,
        `drift_h_cosine` against the step; `initial`, `drift` and `final` for each dim, in ascending order of `final`.

    Raises
    ------
    InputError
        If the dataset lacks one of these, or there are not two axes.
    """
    ds = _style.need(centroid_origin, NEEDED, "centroid_origin", optional=OPTIONAL).compute()
    panels = _style.own_panels(axes, PANELS, **LAYOUT)
    top, bottom = panels
    for name, (words, color, width) in _STEPS.items():
        if name in ds:
            _style.line(top, ds["step"].values, ds[name].values, label=words, color=color, linewidth=width)
    whole = centroid_origin.to_dataset() if isinstance(centroid_origin, xr.DataTree) else centroid_origin
    share = 100 * float(ds["drift_projection"].values[-1])
    title = f"Final centroid of {_style.tokens_in_words(whole)}: {share:.4g}% of its length is drift"
    _style.dress(top, ds, ylabel="share or cosine\n(dimensionless)", title=title, pad=_style.LEGEND_PAD)
    _style.legend_above(top)
    _dims(bottom, ds)
    return panels


def _dims(ax: Axes, ds: xr.Dataset) -> None:
    order = np.argsort(ds["final"].values)
    place = np.arange(len(order))
    ax.bar(place - 0.2, ds["drift"].values[order], width=0.4, color=_style.BLUE, label="drift")
    ax.bar(place + 0.2, ds["initial"].values[order], width=0.4, color=_style.ORANGE, label="first centroid")
    style: dict[str, Any] = {"linestyle": "none", "marker": "_", "markersize": 6, "color": _style.INK}
    ax.plot(place, ds["final"].values[order], label="final centroid, their sum", **style)
    ax.set_xlabel("dim, in ascending order of the final centroid (rank)")
    ax.set_ylabel("component\n(dimensionless)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlim(-0.6, len(order) - 0.4)
    ax.grid(True, axis="y", color=_style.PALE, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    _style.legend_above(ax)
