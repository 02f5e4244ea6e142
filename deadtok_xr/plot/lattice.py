"""Draw how elements move on their lattice, and the distribution of their exponents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from deadtok_xr.plot import _logzero, _style

PANELS = ("shares of the elements", "shares of the tokens by hop")
LAYOUT: dict[str, Any] = {"nrows": 2, "sharex": True, "height_ratios": (3, 2)}
_SHARES = {
    "moved_fraction": ("moved", _style.BLUE),
    "crossing_fraction": ("changed their exponent", _style.ORANGE),
    "half_fraction": ("of those that moved: by half cells", _style.VERMILLION),
}
NEEDED = (*_SHARES, "hop_fraction")
EXPONENTS = ("exponent_count",)


@_style.shows(NEEDED, layout=LAYOUT)
def lattice(
    lattice: xr.Dataset | xr.DataTree, *, axes: Sequence[Axes] | NDArray[Any] | None = None
) -> NDArray[np.object_]:
    """Draw shares of the elements that moved, changed their exponent or moved by half cells; and of tokens by hop.

    Parameters
    ----------
    lattice
        From `deadtok_xr.lattice`, lazy or computed.
    axes
        Two axes to draw on, from the top; None for a new figure.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes
        Array of two axes against the step: `moved_fraction`, `crossing_fraction` and `half_fraction`, logarithmic with
        a strip for 0; `hop_fraction` by the mean ULP of each token, stacked.

    Raises
    ------
    InputError
        If the dataset lacks one of these, or there are not two axes.
    """
    words = _style.tokens_in_words(lattice.to_dataset() if isinstance(lattice, xr.DataTree) else lattice)
    ds = _style.need(lattice, NEEDED, "lattice").compute()
    panels = _style.own_panels(axes, PANELS, **LAYOUT)
    _shares(panels[0], ds, f"Motion on the lattice: {words}")
    _hops(panels[1], ds)
    return panels


def _shares(ax: Axes, ds: xr.Dataset, title: str) -> None:
    values = dict(zip(_SHARES, _style.series(ds, *_SHARES), strict=True))
    has_zero = any((v == 0).any() for v in values.values())
    axis = _logzero.log_axis(*_logzero.positive_range(*values.values()), has_zero)
    _logzero.apply(ax, axis)
    for i, (name, (words, color)) in enumerate(_SHARES.items()):
        _style.line(ax, ds["step"].values, values[name], label=words, color=color, linewidth=1.2)
        lane = (1 - (i + 1) / 3 + 0.03, 1 - i / 3 - 0.03)
        _logzero.mark_zeros(ax, axis, ds["step"].values, values[name] == 0, color=color, lane=lane)
    _style.dress(ax, ds, ylabel="share of the elements\n(dimensionless)", title=title, pad=_style.LEGEND_PAD)
    ax.set_xlabel("")
    _style.legend_above(ax)


def _hops(ax: Axes, ds: xr.Dataset) -> None:
    shares = ds["hop_fraction"].sel(token_ulp="mean")
    edges, base = _style.cell_edges(ds["step"].values), np.zeros(ds.sizes["step"])
    words = {"frozen": "frozen", "lattice": "up to 8 ULP", "thermal": "beyond"}
    for color, (hop, label) in zip(_style.COLD_TO_HOT, words.items(), strict=False):
        top = base + np.nan_to_num(shares.sel(hop=hop).values)
        _style.stairs(ax, top, edges, baseline=base, fill=True, color=color, label=label)
        base = top
    _style.dress(ax, ds, ylabel="share of the tokens\n(dimensionless)", title="Hops, by the mean ULP of the token",
                 pad=_style.LEGEND_PAD)  # fmt: skip
    ax.set_ylim(0, 1)
    _style.legend_above(ax)


@_style.shows(EXPONENTS)
def exponents(exponents: xr.Dataset | xr.DataTree, *, ax: Axes | None = None) -> Axes:
    """Draw the number of elements with each exponent, against the step.

    Parameters
    ----------
    exponents
        From `deadtok_xr.exponents`, lazy or computed.
    ax
        Axes to draw on; None for a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        The axes: a cell for each step and exponent field, colours logarithmic, white where there is no element.

    Raises
    ------
    InputError
        If the dataset lacks `exponent_count`.
    """
    words = _style.tokens_in_words(exponents.to_dataset() if isinstance(exponents, xr.DataTree) else exponents)
    ds = _style.need(exponents, EXPONENTS, "exponents").compute()
    counts = ds["exponent_count"].values.T
    there = np.flatnonzero(counts.any(axis=1))
    low, high = (int(there[0]), int(there[-1])) if there.size else (0, 0)
    ax = _style.own_axes(ax)
    shown = np.ma.masked_equal(counts[low : high + 1], 0)
    edges = np.arange(low, high + 2) - 0.5
    top = max(int(counts.max(initial=1)), 2)
    mesh = ax.pcolormesh(_style.cell_edges(ds["step"].values), edges, shown, norm=LogNorm(1, top), cmap="viridis")
    ax.figure.colorbar(mesh, ax=ax, label="elements (count)")
    _style.dress(
        ax, ds, ylabel="exponent field E\n(0: zero and subnormals)", title=f"Exponents of the elements: {words}"
    )
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    return ax
