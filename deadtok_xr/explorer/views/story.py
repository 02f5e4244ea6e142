"""One token: where its elements are on the grid, what moved them at the chosen step, and by what margin."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from bokeh.layouts import column
from bokeh.models import (
    ColorBar,
    ColumnDataSource,
    Div,
    HoverTool,
    HTMLTemplateFormatter,
    LinearColorMapper,
    NumberFormatter,
    Range1d,
    ScientificFormatter,
    Span,
    StringFormatter,
    TableColumn,
)

from deadtok_xr.errors import InputError
from deadtok_xr.explorer import story
from deadtok_xr.explorer.views.common import (
    COLOURS,
    MARKER,
    UNKNOWN,
    View,
    base_figure,
    heading,
    plain_table,
    step_marker,
)

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from deadtok_xr.explorer.page import Page

_DIVERGING = ("#2166ac", "#67a9cf", "#d1e5f0", "#f2f2f2", "#fddbc7", "#ef8a62", "#b2182b")
_CAUSES = {"moved": COLOURS[2], "rounded to zero": COLOURS[0], "no gradient": COLOURS[7], "unknown": UNKNOWN}
_MARGINS, _GRID = 220, 240  # heights
_WIDTHS = {
    "dim": 46, "before": 84, "after": 84, "gap": 80, "moved by, in gaps": 90, "gradient": 84, "margin": 66,
    "cause": 112,
}  # fmt: skip
_HEADINGS = {"moved by, in gaps": "moved, gaps"}
_MEANINGS = {
    "gap": "distance to the next number of the weights' format, before the step",
    "moved by, in gaps": "by how many of these gaps it moved",
    "margin": "the update in half gaps: below 1 it is rounded away",
}


class Story(View):
    """The first selected token around the chosen step."""

    name = "story"

    def __init__(self, page: Page) -> None:
        super().__init__(page)
        self.words = Div(text="select a token", sizing_mode="stretch_width")
        self.map = base_figure(
            height=260, tools="hover,reset,save", x_range=Range1d(0, 1), y_range=Range1d(0, 1), x_axis_label="step",
            y_axis_label="dim",
        )  # fmt: skip
        self.moves = ColumnDataSource({"image": [np.zeros((1, 1), "f4")], "x": [0], "y": [0], "dw": [1], "dh": [1]})
        mapper = LinearColorMapper(palette=list(_DIVERGING), low=-3.5, high=3.5, nan_color=UNKNOWN)
        self.map.image("image", source=self.moves, x="x", y="y", dw="dw", dh="dh", color_mapper=mapper)
        ends = {3: "3 or more", -3: "−3 or less"}
        bar = ColorBar(color_mapper=mapper, width=12, padding=6, title="gaps", major_label_overrides=ends)
        self.map.add_layout(bar, "right")
        self.map.select_one(HoverTool).tooltips = [("dim", "$y{0}"), ("step", "$x{0,0}"), ("gaps", "@image{0.0}")]
        self.marker = step_marker(self.map, 0)
        self.elements = ColumnDataSource({"dim": [], "margin": [], "colour": [], "cause": []})
        self.margins = base_figure(
            height=_MARGINS,
            tools="hover,reset,save",
            y_axis_type="log",
            x_axis_label="dim",
            y_axis_label="update, in half gaps",
            x_range=Range1d(0, 1),
        )
        self.margins.scatter("dim", "margin", source=self.elements, color="colour", size=7, legend_field="cause")
        self.margins.add_layout(Span(location=1, dimension="width", line_color=MARKER, line_dash="dashed"))
        legend = self.margins.legend[0]
        legend.update(orientation="horizontal", border_line_color=None, label_text_font_size="11px")
        self.margins.add_layout(legend, "below")
        self.margins.select_one(HoverTool).tooltips = [
            ("dim", "@dim"),
            ("margin", "@margin{0.000}"),
            ("cause", "@cause"),
        ]
        self.grid = plain_table(source=self.elements, height=_GRID)
        self.root = column(self.words, self.map, self.margins, self.grid, sizing_mode="stretch_width")
        self._show_parts(visible=False, margins=False)

    def _show_parts(self, *, visible: bool, margins: bool) -> None:
        self.map.visible = self.grid.visible = visible
        self.grid.height = _GRID if margins else _GRID + _MARGINS  # as high with margins as without
        self.margins.visible = margins

    def refresh(self) -> None:
        """Draw the first selected token at the chosen step."""
        recording, selected = self.page.source.recording, self.page.selected
        if recording is None or "W" not in recording:
            self.words.text = "The elements of a token need the recording, which is not here."
            return
        if not selected:
            self.words.text = "Select a token to see its elements."
            self._show_parts(visible=False, margins=False)
            return
        token, step = int(self.page.source.labels[selected[0]]), self.page.selection_step

        def read() -> tuple[xr.Dataset, xr.Dataset]:
            part = story.around(recording, token, step)
            return part, story.elements_of(part)

        self.page.later("story", read, lambda found: self._show(selected[0], *found))

    def _show(self, row: int, part: xr.Dataset, found: xr.Dataset) -> None:
        step, steps, n = found.attrs["chosen"], found["step"].values, found.sizes["dim"]
        moved = int((np.abs(found["lattice_displacement"].sel(step=step)) > 0).sum())
        if step == steps[0]:
            said = "the first recorded step, of which no motion is known (grey)"
        else:
            said, steps = f"{moved} of {n} elements moved", steps[1:]  # of the first, the step before was not read
        self.words.text = f"<b>{escape(self.page.names[row])}</b> at step {step:,}: {said}. "
        self.words.text += "The map shows by how many gaps of the grid each element moved"
        self._digits = story.digits(part["W"])
        self._show_parts(visible=True, margins=self.margins.visible)
        self.map.x_range.update(start=float(steps[0]) - 0.5, end=float(steps[-1]) + 0.5)
        self.map.y_range.update(start=-0.5, end=n - 0.5)
        self.margins.x_range.update(start=-1, end=n)
        self.marker.location = step
        moves = np.ascontiguousarray(found["lattice_displacement"].sel(step=steps).values.T.astype(np.float32))
        self.moves.data = {
            "image": [moves], "x": [float(steps[0]) - 0.5], "y": [-0.5], "dw": [float(steps[-1] - steps[0]) + 1],
            "dh": [n],
        }  # fmt: skip
        self._show_elements(story.at_step(found, step))
        self.page.later(
            "margins", lambda: _updates(part), lambda updates: self._show_margins(found, updates)
        )  # the first time this imports torch

    def _show_margins(self, found: xr.Dataset, updates: xr.Dataset | str) -> None:
        known = not isinstance(updates, str) and bool(
            updates["margin"].notnull().sel(step=[found.attrs["chosen"]]).any()
        )
        self._show_parts(visible=True, margins=known)
        if isinstance(updates, str):
            self.words.text += f". Margins and causes are not known: {escape(updates)}"
        else:
            self._show_elements(story.at_step(found.merge(updates, join="left"), found.attrs["chosen"]))

    def _show_elements(self, frame: pd.DataFrame) -> None:
        n = len(frame)
        cause = frame["cause"].tolist() if "cause" in frame else [""] * n
        margin = frame["margin"].where(frame["margin"] > 0).to_numpy() if "margin" in frame else np.full(n, np.nan)
        self.elements.data = {
            **{name: frame[name].to_numpy() for name in frame.columns}, "margin": margin, "cause": cause,
            "colour": [_CAUSES.get(word, UNKNOWN) for word in cause],
        }  # fmt: skip
        if [c.field for c in self.grid.columns] != list(frame.columns):
            self.grid.columns = [
                TableColumn(
                    field=name, title=heading(_HEADINGS.get(name, name), _MEANINGS.get(name, "")), width=_WIDTHS[name],
                    formatter=_formatter(name, self._digits),
                )
                for name in frame.columns
            ]  # fmt: skip

    def show_selection(self) -> None:
        """Draw the first selected token."""
        self.refresh()

    def show_step(self) -> None:
        """Draw the chosen step."""
        self.page.soon("story", self.refresh)


def _updates(part: xr.Dataset) -> xr.Dataset | str:
    """Return the updates of a token, or why they are not known."""
    try:
        return story.updates_of(part)
    except InputError as error:
        return str(error)


def _formatter(name: str, digits: int) -> Any:
    if name in ("before", "after"):
        number = f'<%= Number.isFinite(value) ? value.toPrecision({digits}) : "–" %>'
        return HTMLTemplateFormatter(template=f'<div style="text-align: right">{number}</div>')
    if name == "dim":
        return NumberFormatter(format="0", text_align="right")
    if name == "cause":
        return StringFormatter()
    return ScientificFormatter(precision=3, power_limit_low=-1, power_limit_high=4, text_align="right")
