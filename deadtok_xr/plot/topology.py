"""Draw the lattice spacing and the graph of neighbours: do the tokens crystallise or evaporate?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from deadtok_xr.errors import InputError
from deadtok_xr.plot import _style

_COUNTS = {
    "n_components": ("connected components", _style.SKY, {"linewidth": 3.6}),
    "n_singletons": ("tokens without a neighbour", _style.INK, {"linewidth": 1.2}),
    "largest_component": ("tokens in the largest component", _style.VERMILLION, {"linewidth": 1.6}),
}
NEEDED = ("mean_ulp", "density", *_COUNTS)
OPTIONAL = ("verdict", "evaporation_step", "crystallization_step")
_CHANGES = {"evaporation_step": ("gas", _style.ORANGE), "crystallization_step": ("crystal", _style.BLUE)}


@_style.shows(NEEDED, optional=OPTIONAL, layout={"nrows": 3, "sharex": True, "height_ratios": (2, 2, 3)})
def topology(
    topology: xr.Dataset | xr.DataTree, *, axes: Sequence[Axes] | NDArray[Any] | None = None
) -> NDArray[np.object_]:
    """Draw the lattice spacing, the density of the adjacency graph, and its components, against the step.

    Parameters
    ----------
    topology
        From `deadtok_xr.topology`, lazy or computed.
    axes
        Three axes to draw on, from the top; None for a new figure.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes
        Array of three axes, which share the step axis in a new figure: `mean_ulp` (dimensionless, as W); `density`
        (share of pairs, 0 to 1); `largest_component`, `n_singletons`, `n_components` (counts). If the dataset has
        them, lines at the steps from which the cloud is gas and crystal, and the verdict. Steps without a valid value
        (NaN, -1) are gaps.

    Raises
    ------
    InputError
        If the dataset lacks one of these, or there are not three axes.

    Notes
    -----
    The quantities of notebook 14.2b.
    """
    ds = _style.need(topology, NEEDED, "topology", optional=OPTIONAL)
    _style.need_dims(ds, dict.fromkeys(NEEDED, ("step",)), "topology")
    ds = ds.compute()
    panels = _panels(axes)
    steps = ds["step"].values
    spacing, density, *counts = _style.series(ds, *NEEDED)
    _style.line(panels[0], steps, spacing, label="mean ULP", color=_style.BLUE)
    _style.line(panels[1], steps, density, label="density", color=_style.GREEN)
    for (name, color, style), values in zip(_COUNTS.values(), counts, strict=True):
        _style.line(panels[2], steps, values, label=name, color=color, **style)
    _changes(panels, ds)
    _words(panels, ds)
    _style.from_zero(panels[0], spacing)
    _style.from_zero(panels[1], density)
    _style.from_zero(panels[2], *counts)
    return panels


def _panels(axes: Sequence[Axes] | NDArray[Any] | None) -> NDArray[np.object_]:
    if axes is None:
        import matplotlib.pyplot as plt

        return plt.subplots(3, sharex=True, figsize=_style.SIZE, layout="constrained", height_ratios=(2, 2, 3))[1]
    panels = np.empty(len(axes), object)
    panels[:] = list(axes)
    if len(panels) != 3:
        raise InputError(f"axes: found {len(panels)}, expected 3 (lattice spacing, density, counts)")
    return panels


def _changes(panels: NDArray[np.object_], ds: xr.Dataset) -> None:
    changes = [name for name in _CHANGES if name in ds and int(ds[name]) >= 0]
    for line, name in enumerate(changes):  # one line of text each, since the steps may be close
        state, color = _CHANGES[name]
        for panel in panels:
            panel.axvline(int(ds[name]), color=color, linewidth=1.2, linestyle="--")
        panels[0].annotate(
            f"{state} from step {int(ds[name]):,}", (int(ds[name]), 1.0), (3, -3 - 13 * line), color=color, va="top",
            xycoords=("data", "axes fraction"), textcoords="offset points",
        )  # fmt: skip


def _title(ds: xr.Dataset) -> str:
    k, spacing = ds.attrs.get("k", 1.0), ds.attrs.get("spacing", "centroid")
    cells = {"centroid": "mean ULP", "pair": "mean ULP of the coarser", "element": "ULP in every dim"}
    within = f"{'one' if k == 1 else format(k, 'g')} {cells.get(spacing, 'steps in every dim')}"
    held = f", {ds.attrs['held']} held" if "held" in ds.attrs else ""
    verdict = ""
    if "verdict" in ds:
        words = ds["verdict"].attrs["flag_meanings"].split()[int(ds["verdict"])].replace("_", " ")
        verdict = f"\nverdict: {words}"
    return f"Neighbours on the lattice: {_style.tokens_in_words(ds)}, adjacent within {within}{held}{verdict}"


def _words(panels: NDArray[np.object_], ds: xr.Dataset) -> None:
    title = _title(ds)
    labels = ("mean ULP at\nthe centroid\n(dimensionless)", "adjacent pairs\n(share of all pairs)", "count")
    for panel, label, heading in zip(panels, labels, (title, "", ""), strict=True):
        _style.dress(panel, ds, ylabel=label, title=heading)
        panel.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4), useMathText=True)
    panels[2].yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    for panel in panels[:2]:
        panel.set_xlabel("")
    _style.legend_above(panels[2])
    panels[0].figure.align_ylabels(list(panels))
