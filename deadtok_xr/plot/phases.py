"""Which share of the tokens is in which phase of motion, stacked from the coldest to the hottest."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from numpy.typing import NDArray

from deadtok_xr.plot import _style

_MEANING = {
    "frozen": "L1 = 0",
    "late": "L∞ ≤ 1 ULP",
    "midlife": "L2 ≤ √D ULP",
    "early": "all others",
    "fimbulwinter": "< 0.1 norm ULP",
    "thermal_solid": "0.1 to 10 norm ULP",
    "quantum": "10 to 100 norm ULP",
    "classical_gas": "≥ 100 norm ULP",
}


def phases(phases: xr.Dataset | xr.DataTree, *, ax: Axes | None = None) -> Axes:
    """The share of the tokens in each phase against the step, coldest at the bottom.

    Parameters
    ----------
    phases
        From `deadtok_xr.phases`, of either scheme, lazy or computed.
    ax
        Axes to draw on; None for a new figure.

    Returns
    -------
    The axes; y is a fraction of the valid tokens, and steps without any are gaps. The legend says what
    each phase is and from which step more than half of the tokens are in it or a colder one; a line and
    a point at one half mark that step. The hottest has none: all tokens are in it or a colder one.

    Raises
    ------
    InputError
        If the dataset lacks `fraction` or `transition_step`.

    Notes
    -----
    The third figure of notebook 1.31b.
    """
    ds = _style.need(phases, ("fraction", "transition_step"), "phases")
    _style.need_dims(ds, {"fraction": ("step", "phase"), "transition_step": ("phase",)}, "phases")
    ds = ds.compute()
    names = [str(name) for name in ds["phase"].values]
    ax = _style.own_axes(ax)
    _style.dress(ax, ds, ylabel=_style.axis_label(ds["fraction"]), title=_title(ds))
    labels = [
        _label(name, int(ds["transition_step"][k]), k + 1 == len(names)) for k, name in enumerate(names)
    ]
    _areas(ax, ds, labels)
    _transitions(ax, ds["transition_step"].values[:-1])
    ax.set_ylim(0, 1)
    handles, texts = ax.get_legend_handles_labels()
    _style.legend(ax, handles=handles[::-1], labels=texts[::-1], title="phase", labelspacing=1.0)
    return ax


def _title(ds: xr.Dataset) -> str:
    words = _style.tokens_in_words(ds)
    return f"Which share of {words} is in which phase of motion"


def _label(name: str, transition: int, hottest: bool) -> str:
    words = f"{name.replace('_', ' ')}: {_MEANING[name]}" if name in _MEANING else name
    if hottest:
        return words
    return f"{words}\n" + ("never a majority" if transition < 0 else f"majority from step {transition:,}")


def _areas(ax: Axes, ds: xr.Dataset, labels: list[str]) -> None:
    tops = np.cumsum(ds["fraction"].transpose("step", "phase").values, axis=1)
    edges = _style.cell_edges(ds["step"].values)
    bottom = np.where(np.isnan(tops[:, 0]), np.nan, 0.0)
    for k, (label, color) in enumerate(zip(labels, colours(len(labels)), strict=True)):
        ax.stairs(tops[:, k], edges, baseline=bottom, fill=True, color=color, label=label, linewidth=0)
        bottom = tops[:, k]


def colours(n: int) -> list[str]:
    """Colours from the coldest phase to the hottest."""
    from matplotlib.colors import LinearSegmentedColormap, to_hex

    shades = LinearSegmentedColormap.from_list("cold_to_hot", _style.COLD_TO_HOT)
    return [to_hex(shades(x)) for x in np.linspace(0, 1, n)]


def _transitions(ax: Axes, steps: NDArray[np.int64]) -> None:
    for step, color in zip(steps, colours(len(steps) + 1), strict=False):
        if step >= 0:
            ax.axvline(step, color="white", linewidth=2.2, alpha=0.8)
            ax.axvline(step, color=_style.INK, linewidth=0.9, linestyle=(0, (4, 2)))
            ax.plot(step, 0.5, "o", color=color, markersize=8, markeredgecolor="white", markeredgewidth=1.4)
