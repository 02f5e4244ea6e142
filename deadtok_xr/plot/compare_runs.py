"""Draw in how many tokens two recordings differ, and how far."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from numpy.typing import NDArray

from deadtok_xr.plot import _logzero, _style
from deadtok_xr.plot.runs import runs

PANELS = ("share of differing tokens", "distances")
LAYOUT: dict[str, Any] = {"nrows": 2, "sharex": True, "height_ratios": (2, 3)}
NEEDED = ("different_fraction", "distance", "first_difference")


@_style.shows(NEEDED, layout=LAYOUT)
def compare_runs(
    compare_runs: xr.Dataset | xr.DataTree, *, axes: Sequence[Axes] | NDArray[Any] | None = None
) -> NDArray[np.object_]:
    """Draw the share of tokens that differ between runs, and the distance between each token in one and the other.

    Parameters
    ----------
    compare_runs
        From `deadtok_xr.compare_runs`, lazy or computed.
    axes
        Two axes to draw on, from the top; None for a new figure.

    Returns
    -------
    ndarray
        Array of two axes against the step: `different_fraction`; the mean and the largest `distance` over the tokens,
        logarithmic with a strip for 0, those that are not finite left out. A line marks `first_difference`. Of more
        than two runs, a colour for each run: its share, and its mean distance from the first run.

    Raises
    ------
    InputError
        If the dataset lacks one of these, or there are not two axes.
    """
    words = _style.tokens_in_words(compare_runs.to_dataset() if isinstance(compare_runs, xr.DataTree) else compare_runs)
    ds = _style.need(compare_runs, NEEDED, "compare_runs").compute()
    panels = _style.own_panels(axes, PANELS, **LAYOUT)
    if "run" in ds.dims:
        return _several(panels, ds, words)
    first = int(ds["first_difference"])
    _share(panels[0], ds, f"{_runs(ds)}, {words}: {_since(first)}")
    _distances(panels[1], ds)
    for ax in panels:
        if first >= 0:
            ax.axvline(first, color=_style.INK, linewidth=0.8, linestyle="--", label="first difference of a bit")
        _style.legend_above(ax)
    panels[0].set_xlabel("")
    return panels


def _several(panels: NDArray[np.object_], ds: xr.Dataset, words: str) -> NDArray[np.object_]:
    """Draw each run against the first."""
    first, reference = ds["first_difference"].values, ds.attrs.get("reference", "the first run")
    when = "" if len(first) > 1 else f": {_since(int(first[0]))}"
    runs(ds, "different_fraction", ax=panels[0])
    panels[0].set_title(f"{len(first) + 1} runs, {words}, against {reference}{when}", loc="left")
    panels[0].set_ylabel("share of the tokens\nthat differ (fraction)")
    panels[0].set_ylim(-0.06, 1.08)
    panels[0].set_xlabel("")
    runs(ds, "distance", ax=panels[1])
    panels[1].set_title("", loc="left")
    panels[1].set_ylabel(f"mean distance from {reference}\n(units of the weights)")
    panels[1].get_legend().remove()
    return panels


def _runs(ds: xr.Dataset) -> str:
    """Return the names of the two stores, if known."""
    names = [Path(str(ds.attrs[which])).name for which in ("a", "b") if which in ds.attrs]
    return f"{names[0]} and {names[1]}" if len(set(names)) == 2 else "Two runs"


def _since(first: int) -> str:
    return "equal to the bit" if first < 0 else f"they differ from step {first:,}"


def _share(ax: Axes, ds: xr.Dataset, title: str) -> None:
    values = ds["different_fraction"].values
    _style.line(ax, ds["step"].values, values, label="tokens that differ in a bit", color=_style.BLUE)
    _style.dress(ax, ds, ylabel="share of the tokens\n(fraction)", title=title, pad=_style.LEGEND_PAD)
    ax.set_ylim(-0.06, 1.08)


def _distances(ax: Axes, ds: xr.Dataset) -> None:
    distance = ds["distance"].astype(np.float64)
    lines = {
        "largest distance of a token": (distance.max("token").values, _style.ORANGE),
        "mean over tokens": (distance.mean("token").values, _style.VERMILLION),
    }
    series = [values for values, _ in lines.values()]
    axis = _logzero.log_axis(*_logzero.positive_range(*series), any((v == 0).any() for v in series))
    _logzero.apply(ax, axis)
    for i, (label, (values, color)) in enumerate(lines.items()):
        _style.line(ax, ds["step"].values, values, label=label, color=color)
        lane = (0.55, 0.95) if i == 0 else (0.05, 0.45)
        _logzero.mark_zeros(ax, axis, ds["step"].values, values == 0, color=color, lane=lane)
    _style.dress(ax, ds, ylabel="distance ‖W_a - W_b‖₂\n(dimensionless)", pad=_style.LEGEND_PAD)
