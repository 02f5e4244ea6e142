"""Draw the correlations of predictors with freezing early or late."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from deadtok_xr.plot import _style

PANELS = ("rank correlations", "the strongest predictor")
LAYOUT: dict[str, Any] = {"ncols": 2, "width_ratios": (5, 4)}
WORDS = {
    "h_alignment": "alignment of the initial\nposition with mean h",
    "initial_norm": "initial norm",
    "initial_distance": "initial distance\nfrom the centroid",
    "initial_ulp": "initial ULP",
    "final_ulp": "final ULP",
    "final_ulp_min": "smallest final ULP",
}
_LOG = ("initial_ulp", "final_ulp", "final_ulp_min")
_PAD = 42.0  # points between axes and title, enough for a legend of two lines
_KINDS = {
    "rank_correlation": ("all pairs of known order (Somers' D)", _style.BLUE, "o", -0.12),
    "spearman": ("frozen tokens only (Spearman)", _style.ORANGE, "s", 0.12),
}
NEEDED = (
    *(f"{kind}{end}" for kind in _KINDS for end in ("", "_low", "_high")),
    *("freeze_step", "censored", "value", "n_frozen", "n_censored"),
)


@_style.shows(NEEDED, layout=LAYOUT, over="predictor")
def freeze_predictors(
    freeze_predictors: xr.Dataset | xr.DataTree, *, axes: Sequence[Axes] | NDArray[Any] | None = None
) -> NDArray[np.object_]:
    """Draw the rank correlation of each predictor with the freeze step, and the strongest predictor per token.

    Parameters
    ----------
    freeze_predictors
        From `deadtok_xr.freeze_predictors`, lazy or computed.
    axes
        Two axes to draw on, from the left; None for a new figure.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes
        Array of two axes: `rank_correlation` (accounts for censoring) and `spearman` with their 95% intervals, positive
        where tokens with larger values freeze later; and `freeze_step` against the value of the predictor whose
        `rank_correlation` is largest, with censored tokens, which freeze later than drawn, as triangles.

    Raises
    ------
    InputError
        If the dataset lacks one of these, or there are not two axes.
    """
    ds = _style.need(freeze_predictors, NEEDED, "freeze_predictors", over="predictor").compute()
    panels = _style.own_panels(axes, PANELS, **LAYOUT)
    _intervals(panels[0], ds)
    _tokens(panels[1], ds)
    whole = freeze_predictors.to_dataset() if isinstance(freeze_predictors, xr.DataTree) else freeze_predictors
    frozen, going = int(ds["n_frozen"]), int(ds["n_censored"])
    panels[0].set_title(
        f"Which tokens freeze late? {_style.tokens_in_words(whole)}:\n"
        f"{frozen:,} froze, {going:,} still moved at the last step",
        loc="left",
        pad=_PAD,
    )
    for panel in panels:
        panel.grid(True, color=_style.PALE, linewidth=0.6)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    return panels


def _intervals(ax: Axes, ds: xr.Dataset) -> None:
    names = [str(name) for name in ds["predictor"].values]
    place = np.arange(len(names))
    ax.axvline(0.0, color=_style.INK, linewidth=0.8)
    for kind, (words, color, marker, shift) in _KINDS.items():
        middle = ds[kind].values
        ends = np.nan_to_num(np.stack([middle - ds[f"{kind}_low"].values, ds[f"{kind}_high"].values - middle]))
        style: dict[str, Any] = {"fmt": marker, "capsize": 3, "color": color, "label": words}
        ax.errorbar(middle, place + shift, xerr=np.maximum(ends, 0.0), **style)
    ax.set_yticks(place, [WORDS.get(name, name) for name in names])
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xlim(-1.05, 1.05)
    ax.set_xlabel("rank correlation with the freeze step (95% intervals)\nlarger values: froze earlier ← → froze later")
    ax.set_ylabel("predictor")
    _legend(ax)


def _legend(ax: Axes) -> None:
    """Draw a legend of one column between the axes and their title; one line would be too wide."""
    ax.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), frameon=False, borderaxespad=0.1, borderpad=0.2)


def _tokens(ax: Axes, ds: xr.Dataset) -> None:
    strength = np.abs(np.nan_to_num(ds["rank_correlation"].values))
    best = str(ds["predictor"].values[int(strength.argmax())])
    value, step = ds["value"].sel(predictor=best).values, ds["freeze_step"].values
    censored = ds["censored"].values > 0
    frozen = (step >= 0) & ~censored
    ax.plot(value[frozen], step[frozen], "o", color=_style.BLUE, markersize=3, alpha=0.6, label="froze")
    if censored.any():
        label = "still moved"
        ax.plot(value[censored], step[censored], "^", color=_style.VERMILLION, markersize=4, label=label)
        _legend(ax)
    if best in _LOG:
        ax.set_xscale("log", base=2)
    ax.set_xlabel(f"{WORDS.get(best, best).replace(chr(10), ' ')}\n(dimensionless)")
    ax.set_ylabel("freeze step (training step)")
    ax.set_title("The strongest predictor", loc="left", fontsize="medium", pad=_PAD)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
