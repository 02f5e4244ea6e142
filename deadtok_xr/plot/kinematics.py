"""Draw the speed of the cloud, the speed within it, and its size."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from deadtok_xr.plot import _logzero, _style

_SPEEDS = {
    "bulk_speed": ("speed of the centroid", _style.BLUE),
    "thermal_rms": ("speed within the cloud (root mean square)", _style.VERMILLION),
}
_ROUNDING = 1e-12  # relative error of float64 sums over some 10,000 tokens, with a margin
_RADII = {"radius_max": ("largest", _style.ORANGE), "radius": ("mean", _style.BLUE)}


@_style.shows(("bulk_speed", "thermal_rms"))
def speeds(kinematics: xr.Dataset | xr.DataTree, *, ax: Axes | None = None) -> Axes:
    """Draw the speed of the tokens' centroid, and their speed relative to it, against the step.

    Parameters
    ----------
    kinematics
        From `deadtok_xr.kinematics`, lazy or computed.
    ax
        Axes to draw on; None for a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        The axes, y logarithmic, in 1/step: `bulk_speed` and `thermal_rms`. Steps at which one is exactly 0 are marked
        in the strip "0", and so are those at which it is below 1e-12 of the other, which is the rounding of a motion
        common to all tokens. NaN (the first step has no velocity) are gaps.

    Raises
    ------
    InputError
        If the dataset lacks one of these.
    """
    ds, n_tokens = _needed(kinematics, tuple(_SPEEDS))
    steps = ds["step"].values
    bulk, thermal = _style.series(ds, *_SPEEDS)
    values = {"bulk_speed": _without_rounding(bulk, thermal), "thermal_rms": _without_rounding(thermal, bulk)}
    has_zero = any((v == 0).any() for v in values.values())
    axis = _logzero.log_axis(*_logzero.positive_range(*values.values()), has_zero)
    ax = _style.own_axes(ax)
    _logzero.apply(ax, axis)
    for i, (name, (words, color)) in enumerate(_SPEEDS.items()):
        _style.line(ax, steps, values[name], label=words, color=color)
        lane = (0.55, 0.95) if i == 0 else (0.05, 0.45)
        _logzero.mark_zeros(ax, axis, steps, values[name] == 0, color=color, lane=lane)
    unit = ds["bulk_speed"].attrs.get("units", "1/step")
    title = f"Drift of the cloud, and motion within it: {n_tokens}"
    _style.dress(ax, ds, ylabel=f"speed ({unit})", title=title, pad=_style.LEGEND_PAD)
    _style.legend_above(ax)
    return ax


def _without_rounding(speed: _style.Floats, other: _style.Floats) -> _style.Floats:
    """Return a speed, with 0 where it is only the rounding of the other one at the same step."""
    return np.where(speed <= _ROUNDING * other, 0.0, speed)


def radius(kinematics: xr.Dataset | xr.DataTree, *, ax: Axes | None = None) -> Axes:
    """Draw the mean and the largest distance of the tokens from their centroid, against the step.

    Parameters
    ----------
    kinematics
        From `deadtok_xr.kinematics`, lazy or computed.
    ax
        Axes to draw on; None for a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        The axes, y linear from 0, dimensionless as W: `radius` and `radius_max`.

    Raises
    ------
    InputError
        If the dataset lacks one of these.
    """
    ds, n_tokens = _needed(kinematics, tuple(_RADII))
    ax = _style.own_axes(ax)
    values = _style.series(ds, *_RADII)
    for radii, (words, color) in zip(values, _RADII.values(), strict=True):
        _style.line(ax, ds["step"].values, radii, label=words, color=color)
    title = f"Size of the cloud: {n_tokens}"
    if ds.attrs.get("origin") == "relative":
        title += "\npositions are sums of displacements since the first step"
    _style.dress(ax, ds, ylabel="distance from the centroid (dimensionless)", title=title, pad=_style.LEGEND_PAD)
    _style.from_zero(ax, *values)
    _style.legend_above(ax)
    return ax


def _needed(kinematics: xr.Dataset | xr.DataTree, names: tuple[str, ...]) -> tuple[xr.Dataset, str]:
    ds = _style.need(kinematics, names, "kinematics")
    _style.need_dims(ds, dict.fromkeys(names, ("step",)), "kinematics")
    whole = kinematics.to_dataset() if isinstance(kinematics, xr.DataTree) else kinematics
    return ds.compute(), _style.tokens_in_words(whole)
