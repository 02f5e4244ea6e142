"""Draw one checkpoint: exponents, norms, and the neighbourhood of the largest black hole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from numpy.typing import NDArray

from deadtok_xr.plot import _style

PANELS = ("exponents", "norms", "neighbourhood of the reference")
LAYOUT: dict[str, Any] = {"nrows": 3}
NEEDED = ("exponent_count", "norm_count", "norm_low", "norm_high", "exponent_neighbourhood", "ordinal_neighbourhood")
_COLOURS = {"all": _style.INK, "dead": _style.BLUE, "live": _style.ORANGE}


def checkpoint(
    checkpoint: xr.Dataset | xr.DataTree, *, axes: Sequence[Axes] | NDArray[Any] | None = None
) -> NDArray[np.object_]:
    """Draw histograms of exponents and norms, and the number of tokens near the reference.

    Parameters
    ----------
    checkpoint
        From `deadtok_xr.checkpoint`, lazy or computed.
    axes
        Three axes to draw on, from the top; None for a new figure.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes
        Array of three axes, counts logarithmic: `exponent_count` and `norm_count` of dead and live tokens, or of all
        if it is unknown which are dead; `exponent_neighbourhood` and `ordinal_neighbourhood` by tolerance.

    Raises
    ------
    InputError
        If the dataset lacks one of these, or there are not three axes.
    """
    ds = _style.need(checkpoint, NEEDED, "checkpoint", over="tolerance").compute()
    panels = _style.own_panels(axes, PANELS, **LAYOUT)
    kinds = [k for k in ds["kind"].values.tolist() if k != "all"] or ["all"]
    _exponents(panels[0], ds, kinds)
    _norms(panels[1], ds, kinds)
    _neighbourhood(panels[2], ds)
    panels[0].set_title(
        f"One checkpoint, step {ds.attrs.get('step', '?')}: exponents", loc="left", pad=_style.LEGEND_PAD
    )
    return panels


def _neighbourhood(ax: Axes, ds: xr.Dataset) -> None:
    for name, words, color in (
        ("exponent_neighbourhood", "exponents apart", _style.BLUE),
        ("ordinal_neighbourhood", "representable numbers apart", _style.VERMILLION),
    ):
        counts = np.where(ds[name].values > 0, ds[name].values, np.nan)
        ax.plot(ds["tolerance"].values, counts, "o-", color=color, label=f"at most k {words}", markersize=3)
    _dress(ax, "k, in every dim", "tokens (count)", "Around the reference")
    if not (ds["exponent_neighbourhood"].values > 0).any():
        ax.text(0.5, 0.5, "no two tokens are equal: there is no reference", transform=ax.transAxes, ha="center")


def _exponents(ax: Axes, ds: xr.Dataset, kinds: list[str]) -> None:
    counts = ds["exponent_count"]
    there = np.flatnonzero(counts.sel(kind="all").values)
    low, high = (int(there[0]), int(there[-1])) if there.size else (0, 0)
    edges = np.arange(low, high + 2) - 0.5
    for kind in kinds:
        values = counts.sel(kind=kind).values[low : high + 1]
        ax.stairs(
            np.where(values > 0, values, np.nan), edges, baseline=0.8, color=_COLOURS[kind], label=kind, linewidth=1.4
        )
    _dress(ax, "exponent field E (0: zero and subnormals)", "elements (count)", "Exponents")


def _norms(ax: Axes, ds: xr.Dataset, kinds: list[str]) -> None:
    edges = np.append(ds["norm_low"].values, ds["norm_high"].values[-1:])
    for kind in kinds:
        values = ds["norm_count"].sel(kind=kind).values.astype(np.float64)
        shown = np.where(values > 0, values, np.nan)
        ax.stairs(shown, edges, baseline=0.8, color=_COLOURS[kind], label=kind, linewidth=1.4)
    _dress(ax, "norm of a token (dimensionless)", "tokens (count)", "Norms")


def _dress(ax: Axes, xlabel: str, ylabel: str, title: str) -> None:
    ax.set_yscale("log", nonpositive="mask")
    top = max(ax.dataLim.y1, 1.0) if np.isfinite(ax.dataLim.y1) else 1.0
    ax.set_ylim(0.8, 2.0 * top)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.set_title(title, loc="left", pad=_style.LEGEND_PAD)
    ax.grid(True, color=_style.PALE, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    _style.legend_above(ax)
