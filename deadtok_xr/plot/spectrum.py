"""Draw the shape of the cloud along its principal axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from deadtok_xr.plot import _logzero, _style

PANELS = ("variances along the principal axes", "effective number of axes")
LAYOUT: dict[str, Any] = {"nrows": 2, "sharex": True, "height_ratios": (3, 2)}
NEEDED = ("eigenvalue", "participation_ratio")


@_style.shows(NEEDED, layout=LAYOUT, over="spectrum_step")
def spectrum(
    spectrum: xr.Dataset | xr.DataTree, *, axes: Sequence[Axes] | NDArray[Any] | None = None
) -> NDArray[np.object_]:
    """Draw the variances along the principal axes, and their effective number, at the selected steps.

    Parameters
    ----------
    spectrum
        From `deadtok_xr.spectrum`, lazy or computed.
    axes
        Two axes to draw on, from the top; None for a new figure.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes
        Array of two axes against the step: `eigenvalue`, a line for each axis, from the largest (dark) to the smallest
        (pale), logarithmic and without those that are 0; `participation_ratio` from 0 to the number of dims.

    Raises
    ------
    InputError
        If the dataset lacks one of these, or there are not two axes.
    """
    words = _style.tokens_in_words(spectrum.to_dataset() if isinstance(spectrum, xr.DataTree) else spectrum)
    ds = _style.need(spectrum, NEEDED, "spectrum", over="spectrum_step").compute()
    ds = ds.rename(spectrum_step="step")
    top, bottom = panels = _style.own_panels(axes, PANELS, **LAYOUT)
    steps, values = ds["step"].values, ds["eigenvalue"].values
    axis = _logzero.log_axis(*_logzero.positive_range(values), has_strip=False)
    _logzero.apply(top, axis)
    shades = np.linspace(0.0, 0.75, values.shape[1])[:, None] * np.ones(3)
    lines = [np.column_stack([steps, np.where(v > 0, v, np.nan)]) for v in values.T]
    top.add_collection(LineCollection(lines, colors=shades, linewidths=1.0))
    _style.dress(top, ds, ylabel="variance\n(dimensionless)", title=f"Shape of the cloud: {words}, {len(lines)} axes")
    top.set_xlabel("")
    _style.line(bottom, steps, ds["participation_ratio"].values, label="participation ratio", color=_style.BLUE)
    _style.dress(bottom, ds, ylabel="effective axes\n(count)")
    bottom.set_ylim(0, 1.05 * values.shape[1])
    bottom.yaxis.set_major_locator(MaxNLocator(integer=True))
    return panels
