"""Draw the size of the gradient and of Adam's moments."""

from __future__ import annotations

import dask
import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from deadtok_xr.errors import InputError
from deadtok_xr.plot import _logzero, _style

_LINES = {
    "grad": ("gradient", _style.BLUE, "solid"),
    "exp_avg": ("first moment, exp_avg", _style.ORANGE, "dashed"),
    "exp_avg_sq": ("root of the second moment, exp_avg_sq", _style.VERMILLION, "dashdot"),
}


def gradient_and_moments(recording: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """Draw the root mean square of the gradient and of Adam's moments over all elements, against the step.

    Parameters
    ----------
    recording
        As `deadtok_xr.open_recording` returns it, or a selection; `grad`, `exp_avg` and `exp_avg_sq`, if recorded,
        are read once, chunk by chunk.
    ax
        Axes to draw on; None for a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        The axes, y logarithmic: √⟨g²⟩, √⟨m²⟩ and √⟨v⟩ over tokens and dims, in float64. Values that are not finite are
        left out; each variable begins at the first step at which it is valid.

    Raises
    ------
    InputError
        If the recording has none of the three.
    """
    names = [name for name in _LINES if name in recording.data_vars]
    if not names:
        found = ", ".join(map(str, recording.data_vars))
        raise InputError(
            f"gradient_and_moments needs one of {', '.join(_LINES)} (found: {found}): "
            "record them, dx.Recorder(..., variables=...)"
        )
    (sizes,) = dask.compute({name: _size(recording, name) for name in names})
    ax = _style.own_axes(ax)
    values = {name: size.values for name, size in sizes.items()}
    low_high = _logzero.positive_range(*values.values())
    axis = _logzero.log_axis(*low_high, any(bool((v == 0).any()) for v in values.values()))
    _logzero.apply(ax, axis)
    for name, line in values.items():
        label, color, style = _LINES[name]
        _style.line(ax, recording["step"].values, line, label=label, color=color, linestyle=style)
    title = f"Gradient and moments of {_style.tokens_in_words(recording)}, root mean square"
    label = "root mean square over elements (dimensionless)"
    _style.dress(ax, recording, ylabel=label, title=title, pad=_style.LEGEND_PAD)
    _style.legend_above(ax)
    return ax


def _size(recording: xr.Dataset, name: str) -> xr.DataArray:
    x = recording[name]
    values = x.astype(np.float64)
    squares = values if name == "exp_avg_sq" else values**2
    mean = squares.where(np.isfinite(values)).mean(("token", "dim"))
    return mean.where(recording["step"] >= x.attrs.get("valid_from", 0)) ** 0.5
