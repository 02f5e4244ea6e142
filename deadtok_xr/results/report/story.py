"""The story of a report: the findings of each analysis with the pictures that show them, the most important first."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import xarray as xr

from deadtok_xr.analyses.registry import Picture, analysis_of
from deadtok_xr.analyses.runs import COMPARISON
from deadtok_xr.results import side_by_side
from deadtok_xr.results.findings import Groups, findings

MAIN = 0.3
"""The importance from which an analysis is part of the story; the others follow as further pictures."""
NOTHING = 0.2
"""The importance up to which a finding says that something did not happen."""
_DPI = 130


@dataclass
class View:
    """A picture as the page shows it: its title, how to read it, and the address of its data."""

    name: str
    title: str
    read: str
    data: str


@dataclass
class Part:
    """The findings of an analysis, and its pictures.

    Attributes
    ----------
    name, title
        The analysis, and the heading.
    importance
        That of its most important finding.
    sentences
        Its findings.
    pictures
        Its pictures; none where there is nothing to see.
    """

    name: str
    title: str
    importance: float
    sentences: list[str]
    pictures: list[View] = field(default_factory=list)

    @property
    def is_main(self) -> bool:
        """Whether it belongs to the story itself."""
        return self.importance >= MAIN


def of_one_run(tree: xr.DataTree, groups: Groups) -> list[Part]:
    """Return the parts of the story of one run."""
    from deadtok_xr.plot.save import figures

    def visible(group: str, picture: Picture) -> bool:
        return not picture.shows_nothing(groups[group])

    pictures: dict[str, list[View]] = {}
    for group, picture, figure in figures(tree, visible):
        pictures.setdefault(group, []).append(view(picture, figure))
    said = {name: [(f.importance, f.text) for f in findings({name: ds})] for name, ds in groups.items()}
    return parts(said, pictures)


def of_runs(tree: xr.DataTree, groups: Groups, runs: Mapping[Any, Groups]) -> list[Part]:
    """Return the parts of the story of several runs: where they part, then what differs, then what does not."""
    from deadtok_xr.plot.save import figures

    def visible(group: str, picture: Picture) -> bool:
        analysis = analysis_of(group)
        there = [run[group] for run in runs.values() if group in run]
        if analysis is None or not analysis.pictures or not there:
            return True
        return not all(analysis.pictures[0].shows_nothing(ds) for ds in there)

    pictures: dict[str, list[View]] = {}
    for group, picture, figure in figures(tree, visible):
        pictures.setdefault(group, []).append(view(picture, figure))
    said: dict[str, list[tuple[float, str]]] = {}
    if COMPARISON in groups:
        said[COMPARISON] = [(f.importance, f.text) for f in side_by_side.comparison(groups)]
    for finding in side_by_side.shared_findings(runs):
        said.setdefault(finding.group, []).append((finding.importance, finding.text))
    return parts(said, pictures)


def parts(said: Mapping[str, Sequence[tuple[float, str]]], pictures: Mapping[str, list[View]]) -> list[Part]:
    """Return a part for each analysis that has findings or pictures, the most important first."""
    found = []
    for name in dict.fromkeys([*said, *pictures]):
        sentences, views = said.get(name, ()), pictures.get(name, [])
        if sentences or views:
            title = views[0].title if views else _title(name)
            importance = max((importance for importance, _ in sentences), default=0.0)
            found.append(Part(name, title, importance, [text for _, text in sentences], views))
    return sorted(found, key=lambda part: -part.importance)


def _title(name: str) -> str:
    """Return the title of an analysis without a picture on the page."""
    analysis = analysis_of(name)
    own = analysis.pictures if analysis is not None else None
    return own[0].title if own else name.replace("_", " ").capitalize()


def view(picture: Picture, figure: Any) -> View:
    """Draw a figure as an image that is part of the page."""
    return View(picture.name, picture.title, picture.reading, _data(figure))


def _data(figure: Any) -> str:
    """Return a figure as the address of its data: lossless WebP, a third of PNG, if it can be written."""
    from PIL import Image, features

    from deadtok_xr.plot.save import write_png

    image, kind = BytesIO(), "png"
    write_png(figure, image, _DPI)
    if features.check("webp"):
        drawn, image, kind = Image.open(image), BytesIO(), "webp"
        drawn.convert("RGB").save(image, format="webp", lossless=True, quality=50, method=2)
    return f"data:image/{kind};base64,{base64.b64encode(image.getvalue()).decode()}"
