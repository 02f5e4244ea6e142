"""Draw the radius of the cloud and its growth, with the epochs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from numpy.typing import NDArray

from deadtok_xr.plot import _style

PANELS = ("radius", "velocity")
LAYOUT: dict[str, Any] = {"nrows": 2, "sharex": True, "height_ratios": (3, 2)}
_MARKS = {
    "inhale_step": ("inhale ends", _style.SKY),
    "sneeze_step": ("fastest growth", _style.VERMILLION),
    "reexpansion_step": ("grows again", _style.GREEN),
    "freeze_step": ("freeze begins", _style.BLUE),
}
NEEDED = ("radius", "velocity", "frozen_fraction", *_MARKS)


@_style.shows(NEEDED, layout=LAYOUT)
def epochs(
    epochs: xr.Dataset | xr.DataTree, *, axes: Sequence[Axes] | NDArray[Any] | None = None
) -> NDArray[np.object_]:
    """Draw the radius with the share of frozen tokens, and its growth, with the steps at which epochs change.

    Parameters
    ----------
    epochs
        From `deadtok_xr.epochs`, lazy or computed.
    axes
        Two axes to draw on, from the top; None for a new figure.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes
        Array of two axes: `radius` (dimensionless, as W) and, in grey on a scale of its own, `frozen_fraction`;
        `velocity` (1/step). Lines mark `inhale_step`, `sneeze_step`, `reexpansion_step` and `freeze_step` if there
        are any.

    Raises
    ------
    InputError
        If the dataset lacks one of these, or there are not two axes.
    """
    ds = _style.need(epochs, NEEDED, "epochs").compute()
    top, bottom = panels = _style.own_panels(axes, PANELS, **LAYOUT)
    whole = epochs.to_dataset() if isinstance(epochs, xr.DataTree) else epochs
    frame = whole.attrs.get("radius", "origin")
    title = f"Epochs of the radius: {_style.tokens_in_words(whole)}, mean distance from the {frame}"
    steps = ds["step"].values
    radius = ds["radius"].values
    _style.dress(top, ds, ylabel=f"distance from the {frame}\n(dimensionless)", title=title)
    _style.line(top, steps, radius, label="radius", color=_style.INK)
    _style.from_zero(top, radius)
    _frozen(top, ds)
    _style.dress(bottom, ds, ylabel="growth of the radius\n(1/step)")
    _style.line(bottom, steps, ds["velocity"].values, label="velocity", color=_style.INK, linewidth=1.0)
    bottom.axhline(0.0, color=_style.INK, linewidth=0.6)
    bottom.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4), useMathText=True)
    for ax in panels:
        _marks(ax, ds)
    top.set_xlabel("")
    _style.legend_beside(top)
    top.figure.align_ylabels(list(panels))
    return panels


def _frozen(ax: Axes, ds: xr.Dataset) -> None:
    """Draw the share of frozen tokens over the whole height."""
    share = np.nan_to_num(ds["frozen_fraction"].values) * ax.get_ylim()[1]
    edges = _style.cell_edges(ds["step"].values)
    label = "share of frozen tokens\n(all: the whole height)"
    _style.stairs(ax, share, edges, fill=True, color=_style.PALE, label=label, zorder=0)


def _marks(ax: Axes, ds: xr.Dataset) -> None:
    for name, (words, color) in _MARKS.items():
        step = int(ds[name])
        if step >= 0:
            ax.axvline(step, color=color, linewidth=1.4, label=f"{words}\nat step {step:,}")
