"""Draw the numbers of tokens in the same place and of black holes, and their events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from deadtok_xr.plot import _style

PANELS = ("counts", "events")
LAYOUT: dict[str, Any] = {"nrows": 2, "sharex": True, "height_ratios": (3, 2)}
_COUNTS = {
    "n_unique": ("distinct places", _style.INK, {"linewidth": 2.6}),
    "population": ("tokens in black holes", _style.BLUE, {}),
    "largest": ("tokens in the largest", _style.SKY, {}),
    "n_black_holes": ("black holes", _style.VERMILLION, {}),
}
_EVENTS = {
    "fissions": ("black holes broken up", _style.VERMILLION, 1),
    "evaporated": ("tokens left alone", _style.ORANGE, 1),
    "fusions": ("black holes made of\nseveral places", _style.BLUE, -1),
    "accreted": ("tokens that joined one", _style.SKY, -1),
}
NEEDED = (*_COUNTS, *_EVENTS)


@_style.shows(NEEDED, layout=LAYOUT)
def census(
    census: xr.Dataset | xr.DataTree, *, axes: Sequence[Axes] | NDArray[Any] | None = None
) -> NDArray[np.object_]:
    """Draw counts of places and black holes against the step, and below them the events of each step.

    Parameters
    ----------
    census
        From `deadtok_xr.census`, lazy or computed.
    axes
        Two axes to draw on, from the top; None for a new figure.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes
        Array of two axes. Above: `n_unique`, `population`, `largest`, `n_black_holes`. Below: events that
        break black holes, upwards (`fissions`, `evaporated`), and that form them, downwards (`fusions`, `accreted`).

    Raises
    ------
    InputError
        If the dataset lacks one of these, or there are not two axes.
    """
    ds = _style.need(census, NEEDED, "census")
    _style.need_dims(ds, dict.fromkeys(NEEDED, ("step",)), "census")
    ds = ds.compute()
    top, bottom = panels = _style.own_panels(axes, PANELS, **LAYOUT)
    steps = ds["step"].values
    whole = census.to_dataset() if isinstance(census, xr.DataTree) else census
    title = f"Black holes: {_style.tokens_in_words(whole)}, bitwise identical rows"
    _style.dress(top, ds, ylabel="count", title=title)
    counts = _style.series(ds, *_COUNTS)
    for (words, color, style), values in zip(_COUNTS.values(), counts, strict=True):
        _style.line(top, steps, values, label=words, color=color, **style)
    _style.from_zero(top, *counts)
    top.set_xlabel("")
    _style.legend_beside(top)
    _events(bottom, ds)
    for ax in panels:
        ax.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    top.figure.align_ylabels(list(panels))
    return panels


def _events(ax: Axes, ds: xr.Dataset) -> None:
    _style.dress(ax, ds, ylabel="events per step\nmade ↓   ↑ broken")
    edges = _style.cell_edges(ds["step"].values)
    largest = 0.0
    for (name, (words, color, sign)), width in zip(_EVENTS.items(), (2.4, 1.2, 2.4, 1.2), strict=True):
        (values,) = _style.series(ds, name)
        values = np.nan_to_num(values)
        largest = max(largest, float(values.max()))
        _style.stairs(ax, sign * values, edges, color=color, label=words, linewidth=width)
    largest = largest or 1.0
    ax.set_ylim(-1.1 * largest, 1.1 * largest)
    ax.axhline(0.0, color=_style.INK, linewidth=0.6)
    ax.yaxis.set_major_formatter(lambda y, _: f"{abs(y):g}")
    _style.legend_beside(ax)
