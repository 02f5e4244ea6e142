"""A picture of any results by the dims of their variables, for analyses that have none of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from numpy.typing import NDArray

from deadtok_xr.plot import _style

_MOST = 4
_DIMS = (("step",), ("token",), ("step", "token"))


def drawable(ds: xr.Dataset) -> list[str]:
    """Return the variables that can be drawn, no more than a page has room for."""
    names = [str(name) for name, x in ds.data_vars.items() if x.dims in _DIMS and x.dtype.kind in "biuf"]
    return [name for name in names if name != "step_span"][:_MOST]


def by_dims(ds: xr.Dataset | xr.DataTree, *, axes: Sequence[Axes] | NDArray[Any] | None = None) -> NDArray[np.object_]:
    """Draw each variable by its dims: a line over steps, tokens in the order of their values, a band over both.

    Parameters
    ----------
    ds
        Results of an analysis; variables over step, token, or both.
    axes
        One for each variable; None for a new figure.

    Returns
    -------
    numpy.ndarray
        The axes.

    Raises
    ------
    InputError
        If no variable can be drawn.
    """
    ds = ds.to_dataset() if isinstance(ds, xr.DataTree) else ds
    names = drawable(ds)
    panels = _style.own_panels(axes, tuple(names), nrows=max(1, len(names)))
    for ax, name in zip(panels, names, strict=True):
        _draw(ax, ds[name].compute())
    return panels


def _draw(ax: Axes, x: xr.DataArray) -> None:
    values = np.asarray(x.values, np.float64)
    if x.dims == ("token",):
        ax.plot(np.sort(values), color=_style.BLUE)
        ax.set_xlabel("tokens, in the order of their values")
    else:
        steps = x["step"].values
        if x.dims == ("step", "token"):
            low, median, high = np.nanpercentile(values, (5, 50, 95), axis=1)
            ax.fill_between(steps, low, high, color=_style.PALE, label="5% to 95% of the tokens")
            ax.plot(steps, median, color=_style.BLUE, label="median token")
            ax.legend(frameon=False)
        else:
            ax.plot(steps, values, color=_style.BLUE)
        ax.set_xlabel("step")
    ax.set_title(str(x.attrs.get("long_name", x.name)), loc="left", fontsize="medium")
    ax.set_ylabel("" if x.attrs.get("units", "1") == "1" else str(x.attrs["units"]))
    ax.spines[["top", "right"]].set_visible(False)
