"""The heat map of any quantity over steps and rows."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from bokeh.events import Reset, SelectionGeometry, Tap
from bokeh.layouts import column
from bokeh.models import (
    BasicTicker,
    BoxSelectTool,
    ColorBar,
    ColumnDataSource,
    CustomJS,
    CustomJSHover,
    CustomJSTickFormatter,
    Div,
    FixedTicker,
    HoverTool,
    LinearAxis,
    LinearColorMapper,
    LogColorMapper,
    LogTicker,
    Range1d,
    Select,
)
from bokeh.palettes import Viridis256
from numpy.typing import NDArray

from deadtok_xr.explorer import quantities
from deadtok_xr.explorer.binned import MAX_BINS, Binned, bins_of_columns, is_category, picture, rows_of_pixels
from deadtok_xr.explorer.rows import IDS
from deadtok_xr.explorer.scale import Scale, logarithmic, scale_of
from deadtok_xr.explorer.views.common import (
    MARKER,
    PHASES,
    UNKNOWN,
    View,
    averaged,
    base_figure,
    in_words,
    mark_step,
    offer_quantities,
    short_numbers,
    wrapping,
)
from deadtok_xr.text import counted

if TYPE_CHECKING:
    from deadtok_xr.explorer.page import Page

PIXELS = (500, MAX_BINS)
"""Rows and columns of the picture at most."""
_CAUSE = "mechanism/cause"
_ZERO, _ABOVE_ZERO = "black", Viridis256[24:]  # of logarithmic scales: without the colours that are almost black
_STRIP = 10  # pixels, of the marks of selected rows beside the map
_NAMED = 30  # rows that have room for a name each
_AT = {"x": "x", "y": "y", "dw": "dw", "dh": "dh"}
_PIXEL = """
const {i, j} = special_vars.image_index, {first, last, cause_step, row} = image.data
const from = row[0][j], several = row[0][j + 1] - from, names = rows.data.name
if (!(several > 0) || !(i < first[0].length)) return ""
const a = first[0][i].toLocaleString("en"), b = last[0][i].toLocaleString("en")
"""
_ROW_OF_PIXEL = """
return several > 1 && mean ? `mean of ${several} ${kind}s: ${names[from]} to ${names[from + several - 1]}` : names[from]
"""
_STEP_OF_PIXEL = """
return a == b ? a : mean ? `mean of ${a} to ${b}` : `${b} (the last of ${a} to ${b})`
"""
_CAUSE_OF_PIXEL = """
const word = (words instanceof Map ? words.get(String(value)) : words[String(value)]) ?? "none"
if (a == b && several == 1 || value < 0) return word
return `${word} (${several > 1 ? names[from] : "at"} step ${cause_step[0][i].toLocaleString("en")})`
"""
_NOTHING: dict[str, Any] = {
    "image": [np.zeros((1, 1), "f4")], "cause": [np.full((1, 1), -1, "i1")], "x": [0], "y": [0], "dw": [1], "dh": [1],
    "first": [np.zeros(1)], "last": [np.zeros(1)], "cause_step": [np.zeros(1)], "row": [np.zeros(2)],
}  # fmt: skip


class HeatMap(View):
    """Steps from left to right, rows in the order of the page from the bottom up; a box selects rows."""

    name, over_steps = "heat_map", True

    def __init__(self, page: Page) -> None:
        super().__init__(page)
        self.y_range = Range1d(0, max(len(page.frame), 1), bounds=(0, max(len(page.frame), 1)))
        self.plot = base_figure(
            x_range=page.x_range,
            y_range=self.y_range,
            height=420,
            x_axis_label="step",
            tools="xpan,box_zoom,reset,save",
        )
        self.plot.update(min_border_left=56, min_border_right=72)  # room for labels and colours that come later
        box = BoxSelectTool()
        self.plot.add_tools(box)
        self.plot.toolbar.active_drag = box
        self.data = ColumnDataSource(_NOTHING)
        self.linear = LinearColorMapper(palette="Viridis256", nan_color=UNKNOWN)
        self.log = LogColorMapper(palette="Viridis256", nan_color=UNKNOWN, low=1e-9, high=1, low_color=_ZERO)
        self.images = [  # one for each mapper: BokehJS goes on with the mapper that an image had at first
            self.plot.image("image", source=self.data, x="x", y="y", dw="dw", dh="dh", color_mapper=mapper)
            for mapper in (self.linear, self.log)
        ]
        self.images[1].visible = False
        self.marks = _strip(self.plot)
        self.marker = mark_step(page, self.plot)
        self.hover, self.row_names = HoverTool(renderers=self.images), ColumnDataSource({"name": []})
        self.plot.add_tools(self.hover)
        self.plot.on_event(SelectionGeometry, self._boxed)
        self.plot.on_event(Tap, self._tapped)
        self.plot.on_event(Reset, lambda event: page.show_everything())
        self.y_range.on_change("start", lambda attr, old, new: self._draw_soon())
        self.choice = Select(title="Heat map shows", sizing_mode="stretch_width", min_width=260, max_width=520)
        self.choice.on_change("value", lambda attr, old, new: page.show_quantity(new))
        self.sorting = Select(title=f"{page.source.rows.capitalize()}s sorted by", width=210)
        self.sorting.on_change("value", lambda attr, old, new: self._sorted(new))
        self.words = Div(sizing_mode="stretch_width")
        self.root = column(wrapping(self.choice, self.sorting), self.words, self.plot, sizing_mode="stretch_width")
        self._binned: Binned | None = None
        self._scales: dict[tuple[str, str], tuple[int, Scale]] = {}

    def refresh(self) -> None:
        """Read the visible steps of the quantity, and draw them."""
        page = self.page
        offer_quantities(page, self.choice, [page.first_quantity()])
        page.quantity = self.choice.value
        if page.quantity not in page.quantities:
            page.show_rest("the heat map")
            return
        key, span = page.quantity, page.visible_steps
        self.words.text = f"reading {quantities.label(key, page.quantities[key])} …"
        x, cause = page.quantities[key], page.quantities.get(_CAUSE)
        blocks, run, version = page.source.blocks, page.run, page.source.version

        def read() -> tuple[Binned, Binned | None, Scale]:
            found = blocks.binned(key, x, *span)
            small = cause is not None and (found.width == 1 or cause.nbytes <= 2**26)
            causes = blocks.binned(_CAUSE, cause, *span) if small and cause is not None else None
            # of all steps, whichever are visible: a colour means the same in each part of them
            known, scale = self._scales.get((run, key), (-1, None))
            if scale is None or known != version:
                scale = scale_of((found if span == page.steps else blocks.binned(key, x)).values)
                self._scales[run, key] = version, scale
            return found, causes, scale

        page.later("heat map", read, lambda found: self._show(key, *found))

    def _show(self, key: str, found: Binned, cause: Binned | None, scale: Scale) -> None:
        x = self.page.quantities[key]
        self._binned, self._cause, self._key = found, cause, key
        words, name = quantities.words_of(x), quantities.label(key, x)
        if words:
            self._colour_words(words)
        else:
            self._colour(found, scale)
        over = averaged(found.width, categories=is_category(x))
        black = "black: exactly 0" if self.images[1].visible else ""
        run = f"{self.page.run}: " if len(self.page.runs) > 1 else ""
        self.words.text = escape(run + "; ".join(filter(None, [name, over, black, quantities.explained(x)])))
        self._explain(words, self.page.words_of_cause if cause is not None else None, mean=not is_category(x))
        self.draw()
        self.page.show_rest("the heat map")

    def _colour(self, found: Binned, scale: Scale) -> None:
        mapper: Any = self.linear
        if scale.log:
            mapper = self.log
            averaged = -(-found.values.shape[1] // PIXELS[0])
            mapper.update(**logarithmic(found.values, scale, _ABOVE_ZERO, averaged))
        else:
            middle = 0.0 if scale.high > scale.low else 0.5
            mapper.update(palette="Viridis256", low=scale.low - middle, high=scale.high + middle, low_color=None)
        ticker = LogTicker() if mapper is self.log else BasicTicker()
        self._show_bar(
            mapper,
            title=quantities.unit(self.page.quantities[self._key]),
            ticker=ticker,
            formatter=short_numbers(),
            display_low=scale.low if scale.log else None,
        )

    def _colour_words(self, words: dict[int, str]) -> None:
        n, low = max(len(words), 2), min(words)
        palette = PHASES.get(n) or [PHASES[5][round(i * 4 / (n - 1))] for i in range(n)]
        self.linear.update(palette=list(palette), low=low - 0.5, high=low + n - 0.5, low_color=UNKNOWN)
        self._show_bar(self.linear, ticker=FixedTicker(ticks=list(words)), major_label_overrides=words)

    def _show_bar(self, mapper: Any, **options: Any) -> None:
        for image in self.images:
            image.visible = image.glyph.color_mapper is mapper
        self.plot.right = [ColorBar(color_mapper=mapper, width=12, padding=6, **options)]

    def _explain(self, words: dict[int, str], causes: dict[int, str] | None, *, mean: bool) -> None:
        """Let the tooltip name exactly those rows and steps whose value and cause are drawn."""
        args = {"image": self.data, "rows": self.row_names, "mean": mean, "kind": self.page.source.rows}
        row, step = (CustomJSHover(args=args, code=_PIXEL + code) for code in (_ROW_OF_PIXEL, _STEP_OF_PIXEL))
        unit = quantities.unit(self.page.quantities[self._key])
        tooltips = [
            (self.page.source.rows, "$y{custom}"),
            ("step", "$x{custom}"),
            ("value", f"@image{{custom}} {unit}"),
        ]
        formatters: dict[str, Any] = {"$y": row, "$x": step, "@image": in_words(words)}
        if causes is not None and self._key != _CAUSE:
            tooltips.append(("cause", "@cause{custom}"))
            formatters["@cause"] = CustomJSHover(
                args={**args, "words": {str(k): v for k, v in causes.items()}}, code=_PIXEL + _CAUSE_OF_PIXEL
            )
        shown = [image for image in self.images if image.visible]  # a tooltip of the other would stay
        self.hover.update(renderers=shown, tooltips=tooltips, formatters=formatters)

    def _sorted(self, by: str) -> None:
        if by != self.page.sorted_by:
            self.page.sort(by)

    def _offer_orders(self) -> None:
        self.sorting.update(options=self.page.orders, value=self.page.sorted_by)

    def draw(self) -> None:
        """Draw the rows that are visible, from what was read."""
        self._offer_orders()
        if self._binned is None:
            return
        found, order = self._binned, self.page.row_order
        if self.y_range.bounds != (0, max(len(order), 1)):  # another run has more rows, or fewer
            self.y_range.update(start=0, end=max(len(order), 1), bounds=(0, max(len(order), 1)))
        low, high = max(int(self.y_range.start), 0), min(int(np.ceil(self.y_range.end)), len(order))
        rows = order[low:high] if high > low else order
        span = (float(found.first[0]) - 0.5, float(found.last[-1]) + 0.5) if len(found.first) else (0.0, 1.0)
        x = self.page.quantities[self._key]
        image = picture(found, rows, span, PIXELS, mean=not is_category(x))
        columns, row = bins_of_columns(found, span, PIXELS[1]), low + rows_of_pixels(len(rows), PIXELS[0])
        first, last = found.first[columns], found.last[columns]
        cause, cause_step = np.full(image.shape, -1, np.int8), last
        if self._cause is not None and len(self._cause.last) and len(columns):
            at, there = self._cause.value_within(first, last)
            cause_step = self._cause.last[at]
            cause[:, there] = np.nan_to_num(self._cause.values[at[there]][:, order[row]].T, nan=-1)
        self.row_names.data = {"name": [self.page.names[i] for i in order]}
        self.data.data = {
            "image": [image], "cause": [cause], "x": [span[0]], "y": [low], "dw": [span[1] - span[0]],
            "dh": [len(rows)], "first": [first.astype(float)], "last": [last.astype(float)],
            "cause_step": [cause_step.astype(float)], "row": [np.append(row, low + len(rows)).astype(float)],
        }  # fmt: skip
        self._name_rows(order, low, high)
        self.show_selection()

    def _name_rows(self, order: NDArray[np.intp], low: int, high: int) -> None:
        """Say how many rows there are and how they are sorted; label those that are visible if they are few."""
        axis, kind, by = self.plot.yaxis[-1], self.page.source.rows, self.page.sorted_by
        axis.axis_label = counted(len(order), kind) + ("" if by == IDS else f", by {by}")
        visible = range(low, high) if high - low <= _NAMED else range(0)  # a row's number could be taken for an id
        names = {k + 0.5: _cut(self.page.names[order[k]]) for k in visible}
        if names != axis.major_label_overrides or not isinstance(axis.ticker, FixedTicker):
            axis.update(ticker=FixedTicker(ticks=list(names)), major_label_overrides=names)
        self.marks.minor_ticks = list(names)  # not drawn: they keep the room of the strip

    def show_selection(self) -> None:
        """Mark the selected rows."""
        place = np.argsort(self.page.row_order)
        chosen = place[list(self.page.selected)] if self.page.selected else np.empty(0, np.intp)
        self.marks.ticks = np.sort(chosen + 0.5).tolist()

    def show_step(self) -> None:
        """Move the marker."""
        self.marker.location = self.page.selection_step

    def show_all_rows(self) -> None:
        """Make all rows visible."""
        self.y_range.update(start=0, end=max(len(self.page.row_order), 1))

    def _draw_soon(self) -> None:
        self.page.soon("heat map rows", self.draw)

    def _boxed(self, event: Any) -> None:
        geometry = event.geometry
        if event.final and geometry.get("type") == "rect":
            order = self.page.row_order
            low, high = max(int(geometry["y0"]), 0), min(int(np.ceil(geometry["y1"])), len(order))
            self.page.select(order[low:high].tolist())

    def _tapped(self, event: Any) -> None:
        if event.y is not None and 0 <= event.y < len(self.page.row_order):
            self.page.select([int(self.page.row_order[int(event.y)])])


def _cut(name: str) -> str:
    return name if len(name) <= 14 else f"{name[:13]}…"


def _strip(plot: Any) -> FixedTicker:
    """Add a strip between the rows and their labels, in which each tick is as thick as a row; return its ticker."""
    ticker = FixedTicker()
    strip = LinearAxis(
        ticker=ticker, formatter=CustomJSTickFormatter(code="return ''"), axis_line_color=None, major_tick_in=0,
        major_tick_out=_STRIP, major_tick_line_color=MARKER, major_label_text_font_size="0px", major_label_standoff=0,
        minor_tick_in=0, minor_tick_out=_STRIP, minor_tick_line_color=None,
    )  # fmt: skip
    plot.left.insert(0, strip)
    thickness = CustomJS(args={"strip": strip, "rows": plot.y_range, "plot": plot}, code="""
        strip.major_tick_line_width = Math.max(2, plot.inner_height / (rows.end - rows.start) + 0.5) // no seams
    """)  # fmt: skip
    plot.y_range.js_on_change("start", thickness)
    plot.y_range.js_on_change("end", thickness)
    plot.js_on_change("inner_height", thickness)
    return ticker
