"""Draw the stratigraphy: the phase of every token in retrospect, those that froze first at the bottom."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from deadtok_xr.plot import _style
from deadtok_xr.plot.phases import colours, in_words

NEEDED = ("stratigraphy", "last_motion", "last_step_or_hotter", "n_censored", "n_never_moved")


@_style.shows(NEEDED)
def lifecycle(lifecycle: xr.Dataset | xr.DataTree, *, ax: Axes | None = None) -> Axes:
    """Draw the phase of each token in retrospect against the step, as strata.

    Parameters
    ----------
    lifecycle
        From `deadtok_xr.lifecycle`, lazy or computed.
    ax
        Axes to draw on; None for a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        The axes, with `stratigraphy`: a line of pixels per token, sorted by their last motion (and among equals, by
        the steps at which they left the hotter phases), the earliest at the bottom. The colour is the hottest phase
        that the token is in at this step or later; grey if unknown because of NaN or infinity.

    Raises
    ------
    InputError
        If the dataset lacks one of these.

    Notes
    -----
    The stratigraphy of notebooks Nutcracker 03 and token_lifecycles.
    """
    ds = _style.need(lifecycle, NEEDED, "lifecycle").compute()
    ax = _style.own_axes(ax)
    whole = lifecycle.to_dataset() if isinstance(lifecycle, xr.DataTree) else lifecycle
    scheme = str(whole.attrs.get("scheme", "lattice"))
    title = f"Life cycles ({scheme} scheme) of {_style.tokens_in_words(whole)}: the hottest phase still to come"
    _style.dress(ax, ds, ylabel="tokens, by their last motion (rank)", title=title)
    names = [str(name) for name in ds["phase"].values]
    shades = colours(len(names))
    edges = _style.cell_edges(ds["step"].values)
    strata = ds["stratigraphy"].transpose("token", "step").values[_ranks(ds)]
    norm = BoundaryNorm(np.arange(-1.5, len(names)), len(names) + 1)
    ax.pcolormesh(
        edges, np.arange(len(strata) + 1) + 0.5, strata, cmap=ListedColormap([_style.PALE, *shades]), norm=norm,
        rasterized=True,
    )  # fmt: skip
    ax.grid(False)
    ax.set_ylim(0.5, len(strata) + 0.5)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    unknown = [Patch(color=_style.PALE, label="unknown (NaN)")] if (strata < 0).any() else []
    patches = [Patch(color=c, label=in_words(name, scheme)) for name, c in zip(names, shades, strict=True)]
    _style.legend_beside(
        ax, handles=[*patches[::-1], *unknown], title=_left(ds), labelspacing=1.0, alignment="left"
    )  # fmt: skip
    return ax


def _ranks(ds: xr.Dataset) -> NDArray[np.intp]:
    """Return the order of the tokens by their last motion; equal tokens keep their own order."""
    left = ds["last_step_or_hotter"].transpose("phase", "token").values
    return np.lexsort([*left[:0:-1], ds["last_motion"].values])


def _left(ds: xr.Dataset) -> str:
    going, never = int(ds["n_censored"]), int(ds["n_never_moved"])
    more = f"\n{never:,} never moved" if never else ""
    return f"{going:,} still move at the end{more}\n\nphase in retrospect"
