"""All pictures that a tree of results allows, as PNG files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from deadtok_xr.plot import _style
from deadtok_xr.plot.census import LAYOUT as CENSUS_LAYOUT
from deadtok_xr.plot.census import NEEDED as CENSUS
from deadtok_xr.plot.census import census
from deadtok_xr.plot.centroid_origin import LAYOUT as ORIGIN_LAYOUT
from deadtok_xr.plot.centroid_origin import NEEDED as ORIGIN
from deadtok_xr.plot.centroid_origin import OPTIONAL as ORIGIN_TOO
from deadtok_xr.plot.centroid_origin import centroid_origin
from deadtok_xr.plot.cloud import LAYOUT as CLOUD_LAYOUT
from deadtok_xr.plot.cloud import NEEDED as CLOUD
from deadtok_xr.plot.cloud import cloud
from deadtok_xr.plot.coherence import LAYOUT as COHERENCE_LAYOUT
from deadtok_xr.plot.coherence import NEEDED as COHERENCE
from deadtok_xr.plot.coherence import OPTIONAL as COHERENCE_TOO
from deadtok_xr.plot.coherence import coherence
from deadtok_xr.plot.connectivity import NEEDED as CONNECTIVITY
from deadtok_xr.plot.connectivity import connectivity
from deadtok_xr.plot.critical_boundary import LAYOUT as CRITICAL_LAYOUT
from deadtok_xr.plot.critical_boundary import NEEDED as CRITICAL
from deadtok_xr.plot.critical_boundary import critical_boundary
from deadtok_xr.plot.epochs import LAYOUT as EPOCHS_LAYOUT
from deadtok_xr.plot.epochs import NEEDED as EPOCHS
from deadtok_xr.plot.epochs import epochs
from deadtok_xr.plot.freeze_predictors import LAYOUT as PREDICTORS_LAYOUT
from deadtok_xr.plot.freeze_predictors import NEEDED as PREDICTORS
from deadtok_xr.plot.freeze_predictors import freeze_predictors
from deadtok_xr.plot.freezing import NEEDED as FREEZING
from deadtok_xr.plot.freezing import freezing
from deadtok_xr.plot.h_persistence import LAYOUT as PERSISTENCE_LAYOUT
from deadtok_xr.plot.h_persistence import NEEDED as PERSISTENCE
from deadtok_xr.plot.h_persistence import h_persistence
from deadtok_xr.plot.kinematics import speeds
from deadtok_xr.plot.lattice import EXPONENTS, exponents, lattice
from deadtok_xr.plot.lattice import LAYOUT as LATTICE_LAYOUT
from deadtok_xr.plot.lattice import NEEDED as LATTICE
from deadtok_xr.plot.lifecycle import NEEDED as LIFE
from deadtok_xr.plot.lifecycle import lifecycle
from deadtok_xr.plot.mechanism import NEEDED as MECHANISM
from deadtok_xr.plot.mechanism import mechanism
from deadtok_xr.plot.motion import displacement, trajectories
from deadtok_xr.plot.phases import phases
from deadtok_xr.plot.spectrum import LAYOUT as SPECTRUM_LAYOUT
from deadtok_xr.plot.spectrum import NEEDED as SPECTRUM
from deadtok_xr.plot.spectrum import spectrum
from deadtok_xr.plot.topology import NEEDED as GRAPH
from deadtok_xr.plot.topology import OPTIONAL as GRAPH_TOO
from deadtok_xr.plot.topology import topology


@dataclass(frozen=True)
class Picture:
    """A file, the group of the tree that it is of, and how it is drawn."""

    file: str
    group: str
    needed: tuple[str, ...]
    draw: Callable[..., Any]
    layout: dict[str, Any] | None = None
    """None for one axes, else what `Figure.subplots` takes."""
    optional: tuple[str, ...] = ()
    over: str = "step"
    """The coordinate that is drawn along."""


_GRAPH_LAYOUT = {"nrows": 3, "sharex": True, "height_ratios": (2, 2, 3)}
_PICTURES = (
    Picture("displacement.png", "motion", ("displacement_ulp",), displacement),
    Picture("trajectories.png", "motion", ("displacement_ulp",), trajectories),
    Picture("phases.png", "phases", ("fraction", "transition_step"), phases),
    Picture("phases_magnitude.png", "phases_magnitude", ("fraction", "transition_step"), phases),
    Picture("phases_cells.png", "phases_cells", ("fraction", "transition_step"), phases),
    Picture("lifecycle.png", "lifecycle", LIFE, lifecycle),
    Picture("freezing.png", "freezing", FREEZING, freezing),
    Picture("epochs.png", "epochs", EPOCHS, epochs, EPOCHS_LAYOUT),
    Picture("census.png", "census", CENSUS, census, CENSUS_LAYOUT),
    Picture("topology.png", "topology", GRAPH, topology, _GRAPH_LAYOUT, GRAPH_TOO),
    Picture("connectivity.png", "connectivity", CONNECTIVITY, connectivity),
    Picture("speeds.png", "kinematics", ("bulk_speed", "thermal_rms"), speeds),
    Picture("lattice.png", "lattice", LATTICE, lattice, LATTICE_LAYOUT),
    Picture("exponents.png", "exponents", EXPONENTS, exponents),
    Picture("cloud.png", "cloud", CLOUD, cloud, CLOUD_LAYOUT),
    Picture("spectrum.png", "spectrum", SPECTRUM, spectrum, SPECTRUM_LAYOUT, over="spectrum_step"),
    Picture("coherence.png", "coherence", COHERENCE, coherence, COHERENCE_LAYOUT, COHERENCE_TOO),
    Picture("h_persistence.png", "h_persistence", PERSISTENCE, h_persistence, PERSISTENCE_LAYOUT),
    Picture("centroid_origin.png", "centroid_origin", ORIGIN, centroid_origin, ORIGIN_LAYOUT, ORIGIN_TOO),
    Picture(
        "freeze_predictors.png", "freeze_predictors", PREDICTORS, freeze_predictors, PREDICTORS_LAYOUT, over="predictor"
    ),
    Picture("mechanism.png", "mechanism", MECHANISM, mechanism, {"nrows": 2, "sharex": True, "height_ratios": (3, 2)}),
    Picture("critical_boundary.png", "critical_boundary", CRITICAL, critical_boundary, CRITICAL_LAYOUT),
)


def save_figures(tree: xr.DataTree, folder: str | Path, *, dpi: int = 120) -> list[Path]:
    """Write the pictures that the results allow as PNG files.

    Parameters
    ----------
    tree
        Results, lazy or computed, as `deadtok_xr.analyze` makes them, with all their groups or some. What is lazy
        is computed once for all pictures.
    folder
        Where to write; made if it is not there. Files of the same names are replaced.
    dpi
        Dots per inch, of figures of 10 by 5.83 inches: 1200 x 700 pixels at 120.

    Returns
    -------
    The files written: displacement.png and trajectories.png, speeds.png of kinematics, and of each other group one
    of its name, without those whose group is absent.

    Raises
    ------
    InputError
        If a group lacks a variable that its picture needs.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for file, figure in figures(tree):
        figure.savefig(folder / file, dpi=dpi, metadata={"Software": None})
        paths.append(folder / file)
    return paths


def figures(tree: xr.DataTree) -> Iterator[tuple[str, Figure]]:
    """The pictures that the results allow, each with the name of its file; see `save_figures`."""
    results = _computed(tree)
    for picture in _PICTURES:
        if picture.group in results:
            yield picture.file, _figure(picture, results[picture.group])


def _computed(tree: xr.DataTree) -> dict[str, xr.Dataset]:
    """What the pictures need of each group, read in one go."""
    needed = {
        p.group: _style.need(
            tree.children[p.group],
            p.needed,
            p.group.removesuffix("_magnitude").removesuffix("_cells"),
            optional=p.optional,
            over=p.over,
        )
        for p in _PICTURES
        if p.group in tree.children
    }
    known = {key: tree.attrs[key] for key in ("n_tokens", "tokens") if key in tree.attrs}
    (computed,) = dask.compute(needed)
    return {group: ds.assign_attrs({**known, **ds.attrs}) for group, ds in computed.items()}


def _figure(picture: Picture, ds: xr.Dataset) -> Figure:
    figure = Figure(figsize=_style.SIZE, layout="constrained")
    FigureCanvasAgg(figure)  # of its own: pyplot and its backend are not touched
    if picture.layout:
        picture.draw(ds, axes=figure.subplots(**picture.layout))
    else:
        picture.draw(ds, ax=figure.subplots())
    return figure
