"""Draw from which step on the signs of under-training show dead tokens, and how they go with freezing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from deadtok_xr.plot import _style

PANELS = ("dead tokens among the lowest values", "correlation with freezing")
LAYOUT: dict[str, Any] = {"nrows": 2, "sharex": True}
_INDICATORS = {
    "norm": ("norm", _style.INK),
    "cosine_distance": ("cosine distance", _style.BLUE),
    "cosine_distance_centered": ("cosine distance from the mean", _style.ORANGE),
    "cosine_distance_without_pc1": ("cosine distance without PC1", _style.GREEN),
    "l2_distance": ("L2 distance", _style.VERMILLION),
}
_WIDTHS = (3.4, 2.8, 2.2, 1.6, 1.0)
"""Lines of equal values are drawn over each other: the first ones are wider."""
NEEDED = ("candidates_kept", "freeze_correlation", "freeze_correlation_low", "freeze_correlation_high")


@_style.shows(NEEDED, optional=("lowest_dead",), layout=LAYOUT, over="checkpoint")
def token_indicators(
    token_indicators: xr.Dataset | xr.DataTree, *, axes: Sequence[Axes] | NDArray[Any] | None = None
) -> NDArray[np.object_]:
    """Draw how well each sign of under-training shows the dead tokens, and its correlation with the freeze step.

    Parameters
    ----------
    token_indicators
        From `deadtok_xr.token_indicators`, lazy or computed.
    axes
        Two axes to draw on, from the top; None for a new figure.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes
        Array of two axes against the step, with a line for each indicator: `lowest_dead` measured from the reference
        that shows itself, dotted from the dead tokens, or, without dead and live tokens, `candidates_kept`; and
        `freeze_correlation` with its interval, measured from the dead tokens where they are known.

    Raises
    ------
    InputError
        If the dataset lacks one of these, or there are not two axes.
    """
    whole = _style.need(
        token_indicators, NEEDED, "token_indicators", optional=("lowest_dead",), over="checkpoint"
    ).compute()
    top, bottom = panels = _style.own_panels(axes, PANELS, **LAYOUT)
    at = whole["checkpoint"].values
    steps = xr.Dataset(coords={"step": ("step", at, whole["checkpoint"].attrs)})
    found, last = whole.isel(reference=0), whole.isel(reference=-1)
    if "lowest_dead" in whole:
        for i, (name, (label, color)) in enumerate(_INDICATORS.items()):
            shown, values = (part["lowest_dead"].sel(indicator=name).values for part in (found, last))
            _line(top, at, shown, i, label=label, color=color)
            if name != "norm":  # which has no reference
                unnamed = {} if np.isfinite(shown).any() else {"label": label}
                top.plot(at, values, ":", color=color, linewidth=_WIDTHS[i], **unnamed)
        top.plot([], [], ":", color=_style.INK, label="from the dead tokens themselves")
        ylabel = "dead among as many\nwith the lowest values"
    else:
        _line(top, at, found["candidates_kept"].values, -1, label="candidates", color=_style.INK)
        ylabel = "of the last candidates,\ncandidates already"
    source = token_indicators
    words = _style.tokens_in_words(source.to_dataset() if isinstance(source, xr.DataTree) else source)
    _style.dress(top, steps, ylabel=ylabel, title=f"From which step on could one have told? {words}")
    top.set_ylim(-0.04, 1.06)
    top.yaxis.set_major_formatter(PercentFormatter(1.0))
    top.set_xlabel("")
    bottom.axhline(0.0, color=_style.INK, linewidth=0.8)
    for i, (name, (label, color)) in enumerate(_INDICATORS.items()):
        one = last.sel(indicator=name)
        value, low, high = (one[f"freeze_correlation{end}"].values for end in ("", "_low", "_high"))
        bottom.fill_between(at, low, high, color=color, alpha=0.12, linewidth=0)
        _line(bottom, at, value, i, label=label, color=color)
    origin = "the dead tokens" if whole.sizes["reference"] > 1 else "what shows itself"
    _style.dress(bottom, steps, ylabel=f"rank correlation with the\nfreeze step, measured\nfrom {origin}")
    bottom.set_ylim(-1.05, 1.05)
    for panel in panels:
        if panel.get_legend_handles_labels()[1]:
            _style.legend_beside(panel)
    if not np.isfinite(found["candidates_kept"].values).any() and "lowest_dead" not in whole:
        _say(top, "no token shows that it was never trained")
    if not np.isfinite(last["freeze_correlation"].values).any():
        _say(bottom, "no two tokens froze in a known order", height=0.6)
    return panels


def _line(ax: Axes, at: NDArray[Any], values: NDArray[Any], i: int, *, label: str, color: str) -> None:
    if np.isfinite(values).any():
        _style.line(ax, at, values, label=label, color=color, linewidth=_WIDTHS[i])


def _say(ax: Axes, text: str, height: float = 0.5) -> None:
    ax.text(0.5, height, text, transform=ax.transAxes, ha="center")
