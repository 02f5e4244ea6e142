"""What the views share: colours, figures over steps, hover formatters."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING, Any

from bokeh.events import Tap
from bokeh.layouts import row
from bokeh.models import (
    ColumnDataSource,
    CustomJSHover,
    CustomJSTickFormatter,
    DataTable,
    LayoutDOM,
    NumeralTickFormatter,
    Range1d,
    Select,
    Span,
)
from bokeh.plotting import figure

from deadtok_xr.explorer import quantities

if TYPE_CHECKING:
    from deadtok_xr.explorer.page import Page

# As in `plot`, of which importing matplotlib would cost half a second: Okabe and Ito, and cold to hot; the hottest is
# darker than there, because points of it lie on white in the cloud.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8C6D1F", "#555555")
PHASES = {
    4: ("#10214f", "#3a76af", "#f2a65a", "#ecd444"),
    5: ("#10214f", "#2f5f98", "#8b8d9a", "#f2a65a", "#ecd444"),
}
UNKNOWN, MARKER = "#bbbbbb", "#D55E00"


_ROOM = {"phases": 450, "trajectories": 430, "table": 436, "shape": 310, "together": 310, "story": 775}
"""Heights in pixels that the views have when they are drawn."""
_KEY = "white-space: nowrap; margin-right: 10px"


class View:
    """A part of the page.

    Attributes
    ----------
    name
        Its place on the page.
    root
        What is drawn there.
    over_steps
        Whether it shows the visible steps.
    """

    name: str
    root: LayoutDOM
    over_steps = False

    def __init__(self, page: Page) -> None:
        self.page = page

    def refresh(self) -> None:
        """Draw again, because steps were added or others are visible."""

    def show_selection(self) -> None:
        """Draw the selected rows."""

    def show_step(self) -> None:
        """Draw the chosen step."""


def over_steps(page: Page, level: Any = "annotation", **options: Any) -> tuple[Any, Span]:
    """Return a figure over the steps that all views share, in which a click chooses a step, and its marker."""
    plot = base_figure(
        x_range=page.x_range, x_axis_label="step", tools="xpan,xbox_zoom,xwheel_zoom,reset,save",
        active_drag="xbox_zoom", active_scroll=None, **options,
    )  # fmt: skip
    return plot, mark_step(page, plot, level)


def step_marker(plot: Any, step: float, level: Any = "annotation") -> Span:
    """Add a dashed line at a step to a figure, which shows on light and on dark colours; return it."""
    light = Span(location=step, dimension="height", line_color="white", line_width=2, level=level)
    marker = Span(location=step, dimension="height", line_color="black", line_width=2, line_dash=[6, 4], level=level)
    marker.js_link("location", light, "location")
    plot.add_layout(light)
    plot.add_layout(marker)
    return marker


def mark_step(page: Page, plot: Any, level: Any = "annotation") -> Span:
    """Add the marker of the chosen step to a figure, which a click moves."""
    marker = step_marker(plot, page.selection_step, level)
    plot.on_event(Tap, lambda event: page.choose_step(event.x))
    return marker


def base_figure(**options: Any) -> Any:
    """Return a figure in the style of the page, as wide as its place."""
    plot = figure(sizing_mode="stretch_width", output_backend="canvas", toolbar_location="above", **options)
    plot.toolbar.logo = None
    plot.xgrid.grid_line_color = plot.ygrid.grid_line_color = "#e4e4e4"
    plot.outline_line_color = "#cccccc"
    plot.min_border_right = 14
    plot.xaxis.axis_label_text_font_style = plot.yaxis.axis_label_text_font_style = "normal"
    if isinstance(plot.x_range, Range1d):
        plot.xaxis.formatter = NumeralTickFormatter(format="0,0")
        plot.xaxis.ticker.desired_num_ticks = 4  # more would touch each other in a narrow window
    return plot


def offer_quantities(page: Page, choice: Select, first: Iterable[str]) -> None:
    """Offer the quantities that there are now; until a user chooses, choose the first of ``first`` that exists."""
    names = {name: quantities.label(name, x) for name, x in page.quantities.items()}
    if choice.options != list(names.items()):
        choice.options = list(names.items())
    if choice.value not in names or choice.value in choice.tags:
        choice.tags = [next((name for name in first if name in names), "")]
        choice.value = choice.tags[0]


def key(names: Iterable[str], colours: Iterable[str]) -> str:
    """Return names beside their colours as HTML, which wraps in narrow windows."""
    return " ".join(
        f'<span style="{_KEY}"><span style="color:{colour}">■</span> {escape(name)}</span>'
        for name, colour in zip(names, colours, strict=False)
    )


def room(name: str, n_runs: int) -> str:
    """Return the height of the place of a view, so that nothing below moves when it is drawn."""
    several = 63 if name == "phases" and n_runs > 1 else 0  # the choice of the phase
    height = f"{_ROOM.get(name, 24 * n_runs + 60) + several}px"
    return "min(775px, 110vw)" if name == "cloud" else height


def explanation(text: str) -> str:
    """Return words as HTML in the style of the page's explanations."""
    return f'<div style="color: #555; font-size: 13px">{escape(text)}</div>' if text else ""


def averaged(width: int, *, categories: bool = False) -> str:
    """Return a note about bins of ``width`` steps; "" where each step is drawn."""
    drawn = f"the last of every {width} steps" if categories else f"mean over {width} steps"
    return "" if width == 1 else f"{drawn}; zoom in for every step"


def heading(name: str, meaning: str = "") -> str:
    """Return the heading of a column as HTML, of which SlickGrid makes its own; hovering shows the meaning."""
    if not meaning:
        return escape(name)
    return f'<span title="{escape(meaning)}" style="text-decoration: underline dotted">{escape(name)}</span>'


def short_numbers() -> CustomJSTickFormatter:
    """Return a formatter of ticks without digits that say nothing."""
    return CustomJSTickFormatter(code="return String(Number(tick.toPrecision(4)))")


def wrapped(label: str, width: int = 26) -> str:
    """Return the label of an axis on as many lines as the height of a small plot needs."""
    return "\n".join(textwrap.wrap(textwrap.shorten(label, 3 * width, placeholder=" …"), width))


def wrapping(*children: Any) -> LayoutDOM:
    """Return children beside each other, below each other where there is no room."""
    return row(*children, sizing_mode="stretch_width", stylesheets=[":host { flex-wrap: wrap; }"])


def plain_table(**options: Any) -> DataTable:
    """Return a table as wide as its place, whose columns stay where they are."""
    return DataTable(
        **{"columns": [], **options}, sizing_mode="stretch_width", index_position=None, autosize_mode="none",
        reorderable=False,
    )  # fmt: skip


def in_words(words: dict[int, str]) -> CustomJSHover:
    """Return a formatter of hovered values: the words of categories, else four digits."""
    return CustomJSHover(
        args={"words": {str(k): v for k, v in words.items()}},
        code="""
        if (value === null || value === undefined || Number.isNaN(value)) return "none"
        const word = words instanceof Map ? words.get(String(value)) : words[String(value)]
        return word ?? String(Number(Number(value).toPrecision(4)))
        """,
    )


def steps_of_segment(data: ColumnDataSource) -> CustomJSHover:
    """Return a formatter that says which steps the hovered point of one of several lines stands for."""
    return CustomJSHover(
        args={"lines": data},
        code="""
        const {index, segment_index: k} = special_vars
        const [first, last] = [lines.data.first[index][k], lines.data.last[index][k]]
        return first.toLocaleString("en") + (first < last ? ` to ${last.toLocaleString("en")}` : "")
        """,
    )
