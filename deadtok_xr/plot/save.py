"""All pictures that a tree of results allows, as PNG files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from deadtok_xr.plot import _style
from deadtok_xr.plot.kinematics import speeds
from deadtok_xr.plot.mechanism import NEEDED, mechanism
from deadtok_xr.plot.motion import displacement, trajectories
from deadtok_xr.plot.phases import phases
from deadtok_xr.plot.topology import topology

# File, group of the tree, variables, function.
_PICTURES: tuple[tuple[str, str, tuple[str, ...], Callable[..., Any]], ...] = (
    ("displacement.png", "motion", ("displacement_ulp",), displacement),
    ("trajectories.png", "motion", ("displacement_ulp",), trajectories),
    ("phases.png", "phases", ("fraction", "transition_step"), phases),
    ("phases_magnitude.png", "phases_magnitude", ("fraction", "transition_step"), phases),
    (
        "topology.png",
        "topology",
        ("mean_ulp", "density", "largest_component", "n_singletons", "n_components"),
        topology,
    ),
    ("mechanism.png", "mechanism", NEEDED, mechanism),
    ("speeds.png", "kinematics", ("bulk_speed", "thermal_rms"), speeds),
)


def save_figures(tree: xr.DataTree, folder: str | Path, *, dpi: int = 120) -> list[Path]:
    """Write the pictures that the results allow as PNG files.

    Parameters
    ----------
    tree
        Results, lazy or computed, as `deadtok_xr.analyze` makes them: groups motion, phases,
        phases_magnitude, kinematics, topology, mechanism. What is lazy is computed once for all pictures.
    folder
        Where to write; made if it is not there. Files of the same names are replaced.
    dpi
        Dots per inch, of figures of 10 by 5.83 inches: 1200 x 700 pixels at 120.

    Returns
    -------
    The files written: displacement.png and trajectories.png, phases.png, phases_magnitude.png,
    topology.png, mechanism.png, speeds.png, without those whose group is absent.

    Raises
    ------
    InputError
        If a group lacks a variable that its picture needs.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    results = _computed(tree)
    paths = []
    for name, group, _, draw in _PICTURES:
        if group in results:
            figure = _figure(draw, results[group])
            figure.savefig(folder / name, dpi=dpi, metadata={"Software": None})
            paths.append(folder / name)
    return paths


def _computed(tree: xr.DataTree) -> dict[str, xr.Dataset]:
    """What the pictures need of each group, read in one go."""
    needed = {
        group: _style.need(tree.children[group], names, group.removesuffix("_magnitude"))
        for _, group, names, _ in _PICTURES
        if group in tree.children
    }
    known = {key: tree.attrs[key] for key in ("n_tokens", "tokens") if key in tree.attrs}
    (computed,) = dask.compute(needed)
    return {group: ds.assign_attrs({**known, **ds.attrs}) for group, ds in computed.items()}


def _figure(draw: Callable[..., Any], ds: xr.Dataset) -> Figure:
    figure = Figure(figsize=_style.SIZE, layout="constrained")
    FigureCanvasAgg(figure)  # of its own: pyplot and its backend are not touched
    if draw is topology:
        draw(ds, axes=figure.subplots(3, sharex=True, height_ratios=(2, 2, 3)))
    elif draw is mechanism:
        draw(ds, axes=figure.subplots(2, sharex=True, height_ratios=(3, 2)))
    else:
        draw(ds, ax=figure.subplots())
    return figure
