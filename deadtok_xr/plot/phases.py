"""Draw the share of the tokens in each phase of motion, stacked from the coldest to the hottest."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from numpy.typing import NDArray

from deadtok_xr.plot import _style

_MEANING = {
    "frozen": "L1 = 0",
    "late": "0 < L∞ ≤ 1 ULP",
    "midlife": "1 < L∞, L2 ≤ √D ULP",
    "early": "L2 > √D ULP",
    "fimbulwinter": "< 0.1 norm ULP",
    "thermal_solid": "0.1 to 10 norm ULP",
    "quantum": "10 to 100 norm ULP",
    "classical_gas": "≥ 100 norm ULP",
}
_CELLS_MEANING = {
    "fimbulwinter": "L1 = 0",
    "stumbling": "0 < L1 ≤ 1 ULP",
    "spherical": "1 < L1, L2 ≤ √D ULP",
    "superluminal": "√D < L2 ≤ 1000 ULP",
    "hypernova": "L2 > 1000 ULP",
}
_LEGEND = "phase, and the first step\nwith more than half this\ncold or colder"


@_style.shows(("fraction", "transition_step"))
def phases(phases: xr.Dataset | xr.DataTree, *, ax: Axes | None = None) -> Axes:
    """Draw the share of the tokens in each phase against the step, coldest at the bottom.

    Parameters
    ----------
    phases
        From `deadtok_xr.phases`, of any scheme, lazy or computed.
    ax
        Axes to draw on; None for a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        The axes; y is a fraction of the valid tokens, and steps without any are gaps. The legend defines each phase
        and gives the first step at which more than half of the tokens are in it or a colder one; a line and a point at
        one half mark that step, unless it is the first step. The hottest phase has no such step, because all tokens are
        always in it or a colder one.

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
    first = int(ds["step"].values[0])
    ax = _style.own_axes(ax)
    _style.dress(ax, ds, ylabel=_ylabel(ds), title=_title(ds))
    ax.spines[["top", "right"]].set_visible(True)
    _areas(ax, ds, _labels(ds, first))
    _transitions(ax, ds["transition_step"].values[:-1], first)
    ax.set_ylim(0, 1)
    handles, texts = ax.get_legend_handles_labels()
    _style.legend_beside(
        ax, handles=handles[::-1], labels=texts[::-1], title=_LEGEND, labelspacing=1.0, alignment="left"
    )
    return ax


def _title(ds: xr.Dataset) -> str:
    scheme = f" ({ds.attrs['scheme']} scheme)" if "scheme" in ds.attrs else ""
    return f"Phases of motion{scheme}: shares of {_style.tokens_in_words(ds)}"


def _ylabel(ds: xr.Dataset) -> str:
    return f"{ds['fraction'].attrs.get('long_name', 'share of the tokens')} (fraction)"


def _labels(ds: xr.Dataset, first: int) -> list[str]:
    names = [str(name) for name in ds["phase"].values]
    words = [in_words(name, ds.attrs.get("scheme", "")) for name in names]
    when = [_when(int(step), first) for step in ds["transition_step"].values[:-1]]
    return [f"{word}\n{step}" for word, step in zip(words, when, strict=False)] + words[-1:]


def in_words(name: str, scheme: str = "") -> str:
    """Return a phase and its definition, if known; two schemes share a name."""
    meaning = {**_MEANING, **(_CELLS_MEANING if scheme == "cells" else {})}
    return f"{name.replace('_', ' ')}\n{meaning[name]}" if name in meaning else name


def _when(step: int, first: int) -> str:
    return "never" if step < 0 else f"from the start (step {step:,})" if step == first else f"first at step {step:,}"


def _areas(ax: Axes, ds: xr.Dataset, labels: list[str]) -> None:
    tops = np.cumsum(ds["fraction"].transpose("step", "phase").values, axis=1)
    edges = _style.cell_edges(ds["step"].values)
    bottom = np.where(np.isnan(tops[:, 0]), np.nan, 0.0)
    for k, (label, color) in enumerate(zip(labels, colours(len(labels)), strict=True)):
        _style.stairs(ax, tops[:, k], edges, baseline=bottom, fill=True, color=color, label=label, linewidth=0)
        bottom = tops[:, k]


def colours(n: int) -> list[str]:
    """Return colours from the coldest phase to the hottest."""
    from matplotlib.colors import LinearSegmentedColormap, to_hex

    shades = LinearSegmentedColormap.from_list("cold_to_hot", _style.COLD_TO_HOT)
    return [to_hex(shades(x)) for x in np.linspace(0, 1, n)]


def _transitions(ax: Axes, steps: NDArray[np.int64], first: int) -> None:
    for step, color in zip(steps, colours(len(steps) + 1), strict=False):
        if step > first:
            ax.axvline(step, color="white", linewidth=2.4)
            ax.axvline(step, color=_style.INK, linewidth=1.0)
            ax.plot(step, 0.5, "o", color=color, markersize=8, markeredgecolor="white", markeredgewidth=1.4)
