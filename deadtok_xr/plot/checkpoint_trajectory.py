"""Draw what changed from checkpoint to checkpoint, the drift of the centroid, and what was kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from deadtok_xr.plot import _style

PANELS = ("changed values", "drift of the centroid", "what is kept")
LAYOUT: dict[str, Any] = {"nrows": 3, "sharex": True, "height_ratios": (2, 2, 3)}
_KEPT = {"neighbours": ("nearest neighbours", _style.BLUE), "axes": ("principal axes", _style.ORANGE)}
NEEDED = (
    *("unchanged_fraction", "spread", "centroid_shift_total"),
    *(f"{name}_kept{end}" for name in _KEPT for end in ("", "_total")),
)


@_style.shows(NEEDED, layout=LAYOUT, over="checkpoint")
def checkpoint_trajectory(
    trajectory: xr.Dataset | xr.DataTree, *, axes: Sequence[Axes] | NDArray[Any] | None = None
) -> NDArray[np.object_]:
    """Draw the share of values that changed, the shift of the centroid, and the neighbours and axes that were kept.

    Parameters
    ----------
    trajectory
        From `deadtok_xr.trajectory`, lazy or computed.
    axes
        Three axes to draw on, from the top; None for a new figure.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes
        Array of three axes against the step: 1 - `unchanged_fraction`; `centroid_shift_total` and `spread`;
        `neighbours_kept` and `axes_kept` as lines, and dotted `neighbours_kept_total` and `axes_kept_total`.

    Raises
    ------
    InputError
        If the dataset lacks one of these, or there are not three axes.
    """
    words = _style.tokens_in_words(trajectory.to_dataset() if isinstance(trajectory, xr.DataTree) else trajectory)
    ds = _style.need(trajectory, NEEDED, "trajectory", over="checkpoint").compute()
    top, middle, bottom = panels = _style.own_panels(axes, PANELS, **LAYOUT)
    at = ds["checkpoint"].values
    whole = xr.Dataset(coords={"step": ("step", at, ds["checkpoint"].attrs)})
    changed = 1 - ds["unchanged_fraction"].values
    _style.line(top, ds["step"].values, changed, label="changed values", color=_style.BLUE, marker="o", markersize=3)
    _style.dress(top, whole, ylabel="values that\nchanged", title=f"From checkpoint to checkpoint: {words}")
    _style.from_zero(top, changed)
    top.yaxis.set_major_formatter(PercentFormatter(1.0))
    for name, label, color in (
        ("centroid_shift_total", "centroid, since the first checkpoint", _style.BLUE),
        ("spread", "tokens, from the centroid (rms)", _style.ORANGE),
    ):
        _style.line(middle, at, ds[name].values, label=label, color=color)
    _style.dress(middle, whole, ylabel="distance\n(dimensionless)")
    _style.from_zero(middle, ds["centroid_shift_total"].values, ds["spread"].values)
    for name, (label, color) in _KEPT.items():
        _style.line(bottom, at, ds[f"{name}_kept"].values, label=f"{label}, since the one before", color=color)
        _style.line(
            bottom, at, ds[f"{name}_kept_total"].values, label=f"{label}, up to the last", color=color, linestyle=":"
        )
    _style.dress(bottom, whole, ylabel="share that is kept")
    bottom.set_ylim(-0.05, 1.08)
    for panel in (middle, bottom):
        _style.legend_beside(panel)
    for panel in (top, middle):
        panel.set_xlabel("")
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
    return panels
