"""Draw how similar the directions of tokens are, their alignment with h, and how the gradient fades."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from numpy.typing import NDArray

from deadtok_xr.plot import _style

PANELS = ("cosines of pairs", "alignments", "sizes")
LAYOUT: dict[str, Any] = {"nrows": 3, "sharex": True}
_COSINES = {
    "displacement": ("displacements ΔW", _style.BLUE),
    "update": ("intended updates", _style.GREEN),
    "gradient": ("gradients", _style.ORANGE),
}
_ALIGNMENTS = {
    "gradient_p_h_alignment": ("mean gradient to Σ p·h", _style.ORANGE, {"linewidth": 3.0}),
    "gradient_h_alignment": ("mean gradient to h", _style.INK, {"linewidth": 1.0}),
    "h_alignment": ("ΔC to -h", _style.VERMILLION, {"linewidth": 0.9}),
    "gradient_update_cosine": ("ΔW to -gradient", _style.SKY, {"linewidth": 0.9}),
}
_SIZES = {
    "gradient_norm_mean": ("mean length of a token's gradient", _style.ORANGE),
    "p_dead": ("mean probability of a dead token", _style.INK),
}
NEEDED = ("displacement_cosine_mean", "displacement_cosine_std", "bulk_alignment", "n_used")
OPTIONAL = (
    *(f"{name}_cosine_{moment}" for name in ("gradient", "update") for moment in ("mean", "std")),
    *_ALIGNMENTS,
    *_SIZES,
)


@_style.shows(NEEDED, optional=OPTIONAL, layout=LAYOUT)
def coherence(
    coherence: xr.Dataset | xr.DataTree, *, axes: Sequence[Axes] | NDArray[Any] | None = None
) -> NDArray[np.object_]:
    """Draw the similarity of directions, their alignments, and the size of the gradient, against the step.

    Parameters
    ----------
    coherence
        From `deadtok_xr.coherence`, lazy or computed.
    axes
        Three axes to draw on, from the top; None for a new figure.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes
        Array of three axes: mean and standard deviation of the cosine over pairs of tokens, of displacements and, if
        they exist, intended updates and gradients; the alignments that the recording allows, or that with the
        centroid's displacement; gradient length and probability of a dead token (y logarithmic), or the number of
        tokens that moved. Steps without a valid value are gaps.

    Raises
    ------
    InputError
        If the dataset lacks what every recording has, or there are not three axes.
    """
    ds = _style.need(coherence, NEEDED, "coherence", optional=OPTIONAL).compute()
    panels = _style.own_panels(axes, PANELS, **LAYOUT)
    steps = ds["step"].values
    _pairs(panels[0], ds, steps)
    _alignments(panels[1], ds, steps)
    size_label = _sizes(panels[2], ds, steps)
    whole = coherence.to_dataset() if isinstance(coherence, xr.DataTree) else coherence
    title = f"Coherence of {_style.tokens_in_words(whole)}: cosines of all pairs, mean ± standard deviation"
    labels = ("cosine of pairs\n(dimensionless)", "alignment\n(dimensionless)", size_label)
    for panel, words, heading in zip(panels, labels, (title, "", ""), strict=True):
        _style.dress(panel, ds, ylabel=words, title=heading, pad=_style.LEGEND_PAD)
        if panel is not panels[2]:
            panel.set_xlabel("")
        _style.legend_above(panel)
    panels[0].figure.align_ylabels(list(panels))
    return panels


def _pairs(ax: Axes, ds: xr.Dataset, steps: NDArray[Any]) -> None:
    for name, (words, color) in _COSINES.items():
        if f"{name}_cosine_mean" not in ds:
            continue
        mean, std = ds[f"{name}_cosine_mean"].values, ds[f"{name}_cosine_std"].values
        ax.fill_between(steps, mean - std, np.minimum(mean + std, 1.0), color=color, alpha=0.2, linewidth=0)
        _style.line(ax, steps, mean, label=words, color=color, linewidth=1.2)
    ax.set_ylim(_lowest(ax), 1.05)


def _alignments(ax: Axes, ds: xr.Dataset, steps: NDArray[Any]) -> None:
    there = [name for name in _ALIGNMENTS if name in ds]
    for name in there:
        words, color, style = _ALIGNMENTS[name]
        _style.line(ax, steps, ds[name].values, label=words, color=color, **style)
    if not there:
        _style.line(ax, steps, ds["bulk_alignment"].values, label="ΔW to ΔC", color=_style.BLUE)
    ax.set_ylim(_lowest(ax), 1.05)


def _lowest(ax: Axes) -> float:
    """Return the lower limit of an axis of cosines: a round number below all lines."""
    lowest = [np.nanmin(y) for line in ax.lines if np.isfinite(y := np.asarray(line.get_ydata(), float)).any()]
    return max(-1.05, np.floor(min([0.0, *lowest]) * 4) / 4 - 0.05)


def _sizes(ax: Axes, ds: xr.Dataset, steps: NDArray[Any]) -> str:
    there = [name for name in _SIZES if name in ds and (ds[name].values > 0).any()]
    if not there:
        _style.line(ax, steps, ds["n_used"].values.astype(float), label="tokens that moved", color=_style.BLUE)
        _style.from_zero(ax, ds["n_used"].values.astype(float))
        return "count"
    ax.set_yscale("log")
    for name in there:
        words, color = _SIZES[name]
        _style.line(ax, steps, ds[name].values, label=words, color=color, linewidth=1.2)
    return "size\n(dimensionless)"
