"""Draw all pictures of a tree of results, and save them as PNG files."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import dask
import numpy as np
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from deadtok_xr.analyses import ANALYSES
from deadtok_xr.analyses.registry import Picture, analysis_of
from deadtok_xr.analyses.runs import COMPARISON, labels_of
from deadtok_xr.plot import _style
from deadtok_xr.plot.by_dims import READING, drawable, layout

Wanted = Callable[[str, Picture], bool]
_BY_DIMS = "by_dims.by_dims"


def save_figures(tree: xr.DataTree, folder: str | Path, *, dpi: int = 120) -> list[Path]:
    """Write the pictures that the results allow as PNG files.

    Parameters
    ----------
    tree
        Results of `deadtok_xr.analyze`, lazy or computed, with all groups or some. Lazy variables are computed once for
        all pictures.
    folder
        Where to write; it is created if necessary. Files of the same names are replaced.
    dpi
        Dots per inch, of figures of 10 by 5.83 inches: 1200 x 700 pixels at 120.

    Returns
    -------
    list[Path]
        The files written, for the groups that exist: displacement.png and trajectories.png for motion, speeds.png
        for kinematics, and for each other group one with its name.

    Raises
    ------
    InputError
        If a group lacks a variable that its picture needs.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for _, picture, figure in figures(tree):
        path = folder / f"{picture.name}.png"
        write_png(figure, path, dpi)
        paths.append(path)
    return paths


def figures(tree: xr.DataTree, wanted: Wanted = lambda group, picture: True) -> Iterator[tuple[str, Picture, Figure]]:
    """Yield the pictures that the results allow, or the ``wanted`` of them, with their groups; see `save_figures`."""
    if labels_of(tree):
        yield from figures_of_runs(tree, wanted)
        return
    every = [(group, picture) for group in tree.children for picture in pictures_of(group, tree[group].to_dataset())]
    drawn = [(group, picture) for group, picture in every if wanted(group, picture)]
    results = _computed(tree, drawn)
    for group, picture in drawn:
        yield group, picture, _figure(picture, results[group])


READING_RUNS = (
    "One colour for each run. A strip at the bottom, if there is one, marks the steps at which the value is 0."
)
READING_BANDS = (
    "One colour for each {by}: the line is the mean of its runs, the band reaches from the smallest to the largest. A "
    "strip at the bottom, if there is one, marks the steps at which the value is 0."
)


def figures_of_runs(tree: xr.DataTree, wanted: Wanted) -> Iterator[tuple[str, Picture, Figure]]:
    """Yield a picture for each group of a tree of several runs: how its main quantity differs between them."""
    from deadtok_xr.plot.runs import runs

    results = {name: node.to_dataset() for name, node in tree.children.items()}
    variables = {name: variable for name, ds in results.items() if (variable := _over_runs(name, ds))}
    (computed,) = dask.compute({name: results[name][[variable]] for name, variable in variables.items()})
    for name, variable in variables.items():
        own = pictures_of(name, results[name])
        by = _repeated(computed[name])
        reading = READING_BANDS.format(by=by) if by else READING_RUNS
        picture = Picture(name, "runs.runs", own[0].title if own else name, reading)
        if wanted(name, picture):
            figure = _new_figure()
            runs(computed[name], variable, by=by, ax=figure.subplots())
            _show_dollars(figure)
            yield name, picture, figure
    for picture in pictures_of(COMPARISON, results[COMPARISON]) if COMPARISON in results else ():
        needed = {COMPARISON: results[COMPARISON][list(_shows(picture, results[COMPARISON]).needed)]}
        yield COMPARISON, picture, _figure(picture, dask.compute(needed)[0][COMPARISON])


def _over_runs(group: str, ds: xr.Dataset) -> str:
    """Return the variable of a group that is drawn for several runs; "" for none."""
    analysis = analysis_of(group)
    chosen = "" if analysis is None else analysis.over_runs
    if group == COMPARISON or chosen in ds:
        return "" if group == COMPARISON else chosen
    return next((str(k) for k, x in ds.items() if x.dims == ("run", "step") and x.dtype.kind in "iuf"), "")


def _repeated(ds: xr.Dataset) -> str | None:
    """Return the coordinate along `run` by which runs are repetitions of each other, such as a learning rate."""
    for name, c in ds.coords.items():
        if c.dims == ("run",) and name != "run":
            _, counts = np.unique(c.values.astype(str), return_counts=True)
            if len(counts) > 1 and counts.min() > 1:
                return str(name)
    return None


def pictures_of(group: str, ds: xr.Dataset) -> tuple[Picture, ...]:
    """Return the pictures of a group of results: its own, or one by the dims of its variables."""
    analysis = analysis_of(group)
    own = None if analysis is None else analysis.pictures
    if own is not None and ds.attrs.get("precision") == "none":  # without a lattice some variables do not exist
        own = tuple(picture for picture in own if {*_shows(picture, ds).needed} <= {*ds.data_vars}) or None
    if own is not None:
        return own
    taken = {picture.name for analysis in ANALYSES.values() for picture in analysis.pictures or ()}
    name = f"{group}_variables" if group in taken else group
    return (Picture(name, _BY_DIMS, group, READING),) if drawable(ds) else ()


def _drawing(picture: Picture) -> Any:
    """Return the function that draws a picture."""
    module, _, name = picture.draw.partition(".")
    return getattr(importlib.import_module(f"deadtok_xr.plot.{module}"), name)


def _shows(picture: Picture, ds: xr.Dataset) -> _style.Shows:
    if picture.draw != _BY_DIMS:
        return _drawing(picture).shows  # type: ignore[no-any-return]
    return _style.Shows(tuple(drawable(ds)), layout=layout(ds), over="")


def write_png(figure: Figure, target: Path | BinaryIO, dpi: int) -> None:
    """Write a figure as PNG, drawing it once; `Figure.savefig` draws it twice with a layout engine."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    Image.fromarray(np.asarray(canvas.buffer_rgba())).save(target, format="png", dpi=(dpi, dpi))


def _computed(tree: xr.DataTree, drawn: list[tuple[str, Picture]]) -> dict[str, xr.Dataset]:
    """Return the variables of each group that the pictures need, computed together."""
    needed: dict[str, xr.Dataset] = {}
    for group, picture in drawn:
        shows = _shows(picture, tree[group].to_dataset())
        name = group.removesuffix("_magnitude").removesuffix("_cells")
        ds = _style.need(tree.children[group], shows.needed, name, optional=shows.optional, over=shows.over)
        needed[group] = needed[group].merge(ds, compat="override") if group in needed else ds
    known = {key: tree.attrs[key] for key in ("n_tokens", "tokens") if key in tree.attrs}
    (computed,) = dask.compute(needed)
    return {group: ds.assign_attrs({**known, **ds.attrs}) for group, ds in computed.items()}


def _new_figure() -> Figure:
    figure = Figure(figsize=_style.SIZE, layout="constrained")
    FigureCanvasAgg(figure)  # its own canvas: pyplot and its backend are not used
    return figure


def _figure(picture: Picture, ds: xr.Dataset) -> Figure:
    figure = _new_figure()
    layout = _shows(picture, ds).layout
    draw = _drawing(picture)
    if layout:
        draw(ds, axes=np.ravel(figure.subplots(**layout)))
    else:
        draw(ds, ax=figure.subplots())
    _show_dollars(figure)
    return figure


def _show_dollars(figure: Figure) -> None:
    """Let all texts but the labels of ticks be text, not formulas: names and attributes may be anybody's."""
    axes = [axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)]
    ticks = {label for axis in axes for tick in axis.get_major_ticks() for label in (tick.label1, tick.label2)}
    ticks |= {label for axis in axes for tick in axis.get_minor_ticks() for label in (tick.label1, tick.label2)}
    for text in figure.findobj(Text):
        if text not in ticks:
            text.set_parse_math("$" not in text.get_text())  # type: ignore[attr-defined]
