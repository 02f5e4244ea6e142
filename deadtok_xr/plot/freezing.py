"""Draw the share of frozen tokens, and the steps at which all tokens are frozen."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from deadtok_xr.plot import _style

NEEDED = ("frozen_fraction", "freeze_run", "n_runs", "n_global", "longest_run", "permanent_freeze")


@_style.shows(NEEDED)
def freezing(freezing: xr.Dataset | xr.DataTree, *, ax: Axes | None = None) -> Axes:
    """Draw the frozen fraction against the step, with the runs of global freezes.

    Parameters
    ----------
    freezing
        From `deadtok_xr.freezing`, lazy or computed.
    ax
        Axes to draw on; None for a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        The axes: `frozen_fraction`, a share of the valid tokens, and bars over the steps at which all tokens are
        frozen.

    Raises
    ------
    InputError
        If the dataset lacks one of these.
    """
    ds = _style.need(freezing, NEEDED, "freezing").compute()
    ax = _style.own_axes(ax)
    whole = freezing.to_dataset() if isinstance(freezing, xr.DataTree) else freezing
    title = f"Frozen tokens: {_style.tokens_in_words(whole)}, {_definition(whole)}\n{_runs(ds)}"
    _style.dress(ax, ds, ylabel="share of the tokens that stood still (fraction)", title=title, pad=_style.LEGEND_PAD)
    _style.line(ax, ds["step"].values, ds["frozen_fraction"].values, label="frozen fraction", color=_style.BLUE)
    _bars(ax, ds)
    ax.set_ylim(-0.03, 1.06)
    _style.legend_above(ax)
    return ax


def _definition(ds: xr.Dataset) -> str:
    name = str(ds.attrs.get("definition", "value"))
    words = {"value": "no value changed", "bits": "no bit changed"}
    return words.get(name, f"{name} below {ds.attrs.get('threshold')}")


def _runs(ds: xr.Dataset) -> str:
    n, total, longest, end = (int(ds[name]) for name in ("n_runs", "n_global", "longest_run", "permanent_freeze"))
    if not n:
        return "never all of them at once"
    last = f"; frozen for the last {end:,}" if end else ""
    return f"all of them at {total:,} steps, in {n:,} runs of up to {longest:,}{last}"


def _bars(ax: Axes, ds: xr.Dataset) -> None:
    edges, run = _style.cell_edges(ds["step"].values), ds["freeze_run"].values
    begins = np.flatnonzero(run > 0)
    spans = [(edges[i], edges[i + run[i]] - edges[i]) for i in begins]
    if spans:
        ax.broken_barh(spans, (1.015, 0.035), color=_style.INK, linewidth=0.3, label="all tokens stood still")
