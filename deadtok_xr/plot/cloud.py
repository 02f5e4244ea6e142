"""Draw the temperature of the cloud, the directions of motion, and the persistence of velocities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from numpy.typing import NDArray

from deadtok_xr.plot import _logzero, _style

PANELS = ("temperature", "directions", "persistence")
LAYOUT: dict[str, Any] = {"nrows": 3, "sharex": True}
_HEAT = {
    "temperature": ("within the cloud", _style.VERMILLION),
    "temperature_effective": ("drift included", _style.BLUE),
}
_SIDES = {"outward_fraction": ("outward", _style.ORANGE), "inward_fraction": ("inward", _style.SKY)}
NEEDED = (*_HEAT, *_SIDES, "lag1_low", "lag1_median", "lag1_high")


@_style.shows(NEEDED, layout=LAYOUT)
def cloud(cloud: xr.Dataset | xr.DataTree, *, axes: Sequence[Axes] | NDArray[Any] | None = None) -> NDArray[np.object_]:
    """Draw temperatures, directions away from and towards the origin, and the persistence of velocities.

    Parameters
    ----------
    cloud
        From `deadtok_xr.cloud`, lazy or computed.
    axes
        Three axes to draw on, from the top; None for a new figure.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes
        Array of three axes against the step: `temperature` and `temperature_effective`, logarithmic with a strip for 0;
        `outward_fraction` and `inward_fraction` of the tokens that moved; `lag1_median` with the quartiles as a band,
        of the tokens that moved twice in a row. Gaps are steps without such tokens.

    Raises
    ------
    InputError
        If the dataset lacks one of these, or there are not three axes.
    """
    words = _style.tokens_in_words(cloud.to_dataset() if isinstance(cloud, xr.DataTree) else cloud)
    ds = _style.need(cloud, NEEDED, "cloud").compute()
    panels = _style.own_panels(axes, PANELS, **LAYOUT)
    _heat(panels[0], ds, f"Temperature, direction and persistence: {words}")
    for name, (label, color) in _SIDES.items():
        _style.line(panels[1], ds["step"].values, ds[name].values, label=label, color=color, linewidth=1.2)
    _style.dress(panels[1], ds, ylabel="share of moving\ntokens (fraction)", pad=_style.LEGEND_PAD)
    panels[1].set_ylim(-0.06, 1.08)
    _persistence(panels[2], ds)
    for ax in panels:
        _style.legend_above(ax)
    for ax in panels[:2]:
        ax.set_xlabel("")
    return panels


def _heat(ax: Axes, ds: xr.Dataset, title: str) -> None:
    values = dict(zip(_HEAT, _style.series(ds, *_HEAT), strict=True))
    has_zero = any((v == 0).any() for v in values.values())
    axis = _logzero.log_axis(*_logzero.positive_range(*values.values()), has_zero)
    _logzero.apply(ax, axis)
    for i, (name, (label, color)) in enumerate(_HEAT.items()):
        _style.line(ax, ds["step"].values, values[name], label=label, color=color, linewidth=1.2)
        lane = (0.55, 0.95) if i == 0 else (0.05, 0.45)
        _logzero.mark_zeros(ax, axis, ds["step"].values, values[name] == 0, color=color, lane=lane)
    _style.dress(ax, ds, ylabel="temperature\n(1/step²)", title=title, pad=_style.LEGEND_PAD)


def _persistence(ax: Axes, ds: xr.Dataset) -> None:
    steps, low, high = ds["step"].values, ds["lag1_low"].values, ds["lag1_high"].values
    ax.axhline(0.0, color=_style.INK, linewidth=0.6)
    ax.fill_between(steps, low, high, color=_style.GREEN, alpha=0.25, linewidth=0, label="quartiles")
    _style.line(ax, steps, ds["lag1_median"].values, label="median", color=_style.GREEN, linewidth=1.2)
    _style.dress(ax, ds, ylabel="cosine to the\nprevious velocity", pad=_style.LEGEND_PAD)
    ax.set_ylim(-1.08, 1.08)
