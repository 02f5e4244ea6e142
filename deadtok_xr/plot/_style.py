"""Colours, labels, titles and checks that all pictures share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.patches import StepPatch
from matplotlib.ticker import FixedLocator, MaxNLocator
from numpy.typing import NDArray

from deadtok_xr.errors import InputError

SIZE = (10.0, 35 / 6)  # inches: 1200 x 700 pixels at 120 dpi

# The colours of Okabe and Ito can be distinguished with any colour vision.
BLUE, ORANGE, VERMILLION, GREEN, SKY = "#0072B2", "#E69F00", "#D55E00", "#009E73", "#56B4E9"
INK, PALE = "#222222", "#DDDDDD"
# Coldest to hottest: blue to yellow, with evenly rising lightness, readable in grey too.
COLD_TO_HOT = ("#10214f", "#3a76af", "#f2a65a", "#fdeeb5")

Floats = NDArray[np.float64]
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Shows:
    """The variables that a picture shows, and its layout.

    Attributes
    ----------
    needed, optional
        Names of variables.
    layout
        Arguments of `Figure.subplots`; None for a single axes.
    over
        The coordinate along which it is drawn; "" if there are several.
    """

    needed: tuple[str, ...]
    optional: tuple[str, ...] = ()
    layout: dict[str, Any] | None = None
    over: str = "step"


def shows(needed: tuple[str, ...], **more: Any) -> Callable[[F], F]:
    """Attach what a drawing function shows, as its attribute `shows`; a decorator."""

    def mark(draw: F) -> F:
        draw.shows = Shows(needed, **more)  # type: ignore[attr-defined]
        return draw

    return mark


def own_axes(ax: Axes | None) -> Axes:
    """Return the given axes, or those of a new figure."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=SIZE, layout="constrained")[1]


def own_panels(axes: Sequence[Axes] | NDArray[Any] | None, what: tuple[str, ...], **layout: Any) -> NDArray[np.object_]:
    """Return the given axes, one for each of ``what``, or those of a new figure with a layout of `Figure.subplots`.

    Raises
    ------
    InputError
        If the number of axes is wrong.
    """
    if axes is None:
        import matplotlib.pyplot as plt

        figure = plt.figure(figsize=SIZE, layout="constrained")
        return np.atleast_1d(figure.subplots(**layout))
    panels = np.empty(len(axes), object)
    panels[:] = list(axes)
    if len(panels) != len(what):
        raise InputError(f"axes: found {len(panels)}, expected {len(what)} ({', '.join(what)})")
    return panels


def need(
    results: xr.Dataset | xr.DataTree,
    names: tuple[str, ...],
    maker: str,
    *,
    optional: tuple[str, ...] = (),
    over: str = "step",
) -> xr.Dataset:
    """Return only the variables of a picture, with those ``optional`` ones that exist, still lazy.

    Raises
    ------
    InputError
        If one is missing, or there are no steps.
    """
    ds = results.to_dataset() if isinstance(results, xr.DataTree) else results
    missing = [name for name in names if name not in ds.data_vars]
    if missing:
        raise InputError(
            f"this dataset has no variable {missing[0]!r}, which the picture needs and deadtok_xr.{maker} "
            f"returns (found: {', '.join(map(str, ds.data_vars)) or 'none'})"
        )
    if over and (over not in ds.coords or ds.sizes.get(over, 0) == 0):
        raise InputError(f"this dataset has no {over}s to draw; call deadtok_xr.{maker} with a longer selection")
    return ds[[*names, *(name for name in optional if name in ds.data_vars)]]


def need_dims(ds: xr.Dataset, dims: dict[str, tuple[str, ...]], maker: str) -> None:
    """Check the dimensions of variables.

    Raises
    ------
    InputError
        If a variable has other dimensions.
    """
    for name, wanted in dims.items():
        found = ds[name].dims
        if set(found) != set(wanted):
            raise InputError(
                f"{name!r} has the dimensions ({', '.join(map(str, found))}); the picture needs "
                f"({', '.join(wanted)}), as deadtok_xr.{maker} returns them"
            )


def series(ds: xr.Dataset, *names: str) -> list[Floats]:
    """Return variables as float64, with NaN for -1, which marks a step without a valid value."""
    values = [ds[name].values.astype(np.float64) for name in names]
    return [np.where(v < 0, np.nan, v) for v in values]


def cell_edges(steps: NDArray[Any]) -> Floats:
    """Return the edges of one cell per step, halfway between neighbours: (step + 1,)."""
    x = steps.astype(np.float64)
    if len(x) == 1:
        return np.array([x[0] - 0.5, x[0] + 0.5])
    middle = (x[1:] + x[:-1]) / 2
    return np.concatenate([[2 * x[0] - middle[0]], middle, [2 * x[-1] - middle[-1]]])


def tokens_in_words(ds: xr.Dataset) -> str:
    """Return the number of tokens, and their kind if known: '162 dead tokens'."""
    n = ds.sizes["token"] if "token" in ds.sizes else ds.attrs.get("n_tokens")
    kind = _kind(ds)
    if n is None:
        return f"the {kind}tokens"
    return f"{int(n):,} {kind}{'token' if n == 1 else 'tokens'}"


def _kind(ds: xr.Dataset) -> str:
    if "dead" in ds.coords and ds["dead"].dims == ("token",) and ds["dead"].size:
        dead = ds["dead"].values
        return "dead " if dead.all() else "" if dead.any() else "live "
    kind = ds.attrs.get("tokens")
    return f"{kind} " if kind in ("dead", "live") else ""


def axis_label(variable: xr.DataArray) -> str:
    """Return quantity and unit from the attributes, on two lines if one would be too long."""
    name = str(variable.attrs.get("long_name", variable.name))
    unit = str(variable.attrs.get("units", "1"))
    words = f"({'dimensionless' if unit == '1' else unit})"
    return f"{name}{chr(10) if len(name) + len(words) > 48 else ' '}{words}"


def dress(ax: Axes, ds: xr.Dataset, *, ylabel: str, title: str = "", pad: float = 6.0) -> None:
    """Set labels and limits along the steps, with a faint grid and no box."""
    edges = cell_edges(ds["step"].values)
    ax.set_xlim(edges[0], edges[-1])
    ax.set_xlabel(step_label(ds))
    few = len(edges) <= 4
    steps = ds["step"].values.tolist()
    ax.xaxis.set_major_locator(FixedLocator(steps) if few else MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    ax.set_ylabel(ylabel)
    if title:
        ax.set_title(title, loc="left", pad=pad)
    ax.grid(True, color=PALE, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def step_label(ds: xr.Dataset) -> str:
    """Return the label of the step axis."""
    attrs = ds["step"].attrs
    unit = attrs.get("units", "1")
    return f"training step ({attrs.get('long_name', 'number of optimizer updates') if unit == '1' else unit})"


def legend_beside(ax: Axes, **options: Any) -> None:
    """Draw a legend to the right of the axes, where it hides nothing."""
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0, frameon=False, **options)


LEGEND_PAD = 24.0  # points between axes and title, enough for a legend of one line


def legend_above(ax: Axes) -> None:
    """Draw a legend of one line between the axes and their title."""
    handles, labels = ax.get_legend_handles_labels()
    ax.legend(
        handles, labels, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=max(len(labels), 1),
        frameon=False, borderaxespad=0.1, borderpad=0.2, columnspacing=1.5,
    )  # fmt: skip


def from_zero(ax: Axes, *arrays: Floats, top: float = np.nan) -> None:
    """Set linear limits from 0, with a margin that keeps a line at 0 visible; up to ``top`` if all values are 0."""
    largest = max((float(np.nanmax(a)) for a in arrays if np.isfinite(a).any()), default=0.0)
    largest = largest if largest > 0 else top if np.isfinite(top) else 1.0
    ax.set_ylim(-0.06 * largest, 1.08 * largest)


def stairs(
    ax: Axes,
    values: Floats,
    edges: Floats,
    *,
    color: str,
    baseline: Any = 0.0,
    fill: bool = False,
    **style: Any,
) -> None:
    """Draw steps as `Axes.stairs` does, which finds the limits of each edge as of a curve: 0.5 s for 3,000 steps."""
    colours = {"facecolor": color, "linewidth": 0} if fill else {"edgecolor": color}
    patch = StepPatch(values, edges, baseline=baseline, fill=fill, **{**colours, **style})
    patch.sticky_edges.y.append(np.min(baseline))
    ax.add_artist(patch)
    heights = np.concatenate([np.ravel(values), np.ravel(baseline)])
    heights = heights[np.isfinite(heights)]
    if len(heights):
        ax.update_datalim([(edges[0], heights.min()), (edges[-1], heights.max())])
    ax.autoscale_view()


def line(ax: Axes, steps: NDArray[Any], values: Floats, *, label: str, color: str, **options: Any) -> None:
    """Draw a line, with dots for values without a drawable neighbour, which would be invisible.

    The data of the line are the values themselves.
    """
    drawable = np.isfinite(values) & ((values > 0) | (ax.get_yscale() == "linear"))
    lonely = isolated(drawable)
    style = {"linewidth": 1.6, **options}
    (drawn,) = ax.plot(steps, values, label=label, color=color, **style)
    if lonely.any():
        size = 8 if len(steps) <= 3 else 3
        ax.plot(steps[lonely], values[lonely], ".", color=color, markersize=size, zorder=drawn.get_zorder())


def isolated(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return where, along the first axis, a value is True and both its neighbours are not."""
    edge = np.zeros_like(mask[:1])
    around = np.concatenate([edge, mask, edge])
    return mask & ~around[:-2] & ~around[2:]
