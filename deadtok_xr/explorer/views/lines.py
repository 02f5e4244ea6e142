"""The views over steps alone: shares of phases, series of the whole cloud, trajectories of selected rows."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from bokeh.layouts import column
from bokeh.models import ColumnDataSource, DataRange1d, Div, HoverTool, NumeralTickFormatter, Range1d, Select

from deadtok_xr.explorer import quantities
from deadtok_xr.explorer.views.common import COLOURS, PHASES, View, key, offer_quantities, over_steps

if TYPE_CHECKING:
    import xarray as xr

    from deadtok_xr.explorer.page import Page

_SMALL = 2**29  # bytes of weights that are read fast enough for an answer
DRAWN = 16
"""Trajectories that are drawn at most."""


class Phases(View):
    """The shares of the rows in each phase, stacked from the coldest up."""

    name = "phases"

    def __init__(self, page: Page) -> None:
        super().__init__(page)
        schemes = [name for name, ds in page.source.groups.items() if name.startswith("phases") and "fraction" in ds]
        self.scheme = schemes[0] if schemes else ""
        self.plot, self.marker = over_steps(page, height=360, y_range=Range1d(0, 1))
        self.plot.yaxis.formatter = NumeralTickFormatter(format="0%")
        if not schemes:
            words = Div(text="phases were not analysed: <code>deadtok analyze … --only phases</code>")
            self.root = column(words, self.plot, sizing_mode="stretch_width")
            return
        names = [str(name) for name in page.source.groups[self.scheme]["phase"].values]
        self.data = ColumnDataSource({"step": [], **{name: [] for name in names}})
        palette = PHASES.get(len(names), COLOURS)
        self.plot.varea_stack(names, x="step", color=list(palette[: len(names)]), source=self.data)
        labels = [name.replace("_", " ") for name in names]
        line = self.plot.line("step", names[0], source=self.data, line_alpha=0)
        shares = [(label, f"@{{{name}}}{{0.0%}}") for name, label in zip(names, labels, strict=True)]
        self.plot.add_tools(HoverTool(renderers=[line], mode="vline", tooltips=[("step", "@step{0,0}"), *shares[::-1]]))
        self.root = column(self.plot, Div(text=key(labels, palette)), sizing_mode="stretch_width")
        self._names = names

    def refresh(self) -> None:
        """Draw the visible steps."""
        if not self.scheme:
            return
        x = self.page.source.groups[self.scheme]["fraction"].transpose("step", "phase")
        binned, span = self.page.source.blocks.binned, self.page.visible_steps
        self.page.later("phases", lambda: binned(self.scheme, x, *span), self._show)

    def _show(self, found: Any) -> None:
        values = np.nan_to_num(found.values)
        self.data.data = {"step": found.middle, **{name: values[:, k] for k, name in enumerate(self._names)}}

    def show_step(self) -> None:
        """Move the marker."""
        self.marker.location = self.page.selection_step


class Series(View):
    """One quantity of the whole cloud per step, chosen from a list."""

    def __init__(self, page: Page, name: str, first: tuple[str, ...], colour: str) -> None:
        super().__init__(page)
        self.name = name
        self.found: dict[str, xr.DataArray] = {}
        self.plot, self.marker = over_steps(page, height=220, y_range=DataRange1d(only_visible=True))
        self.data = ColumnDataSource({"step": [], "value": []})
        line = self.plot.line("step", "value", source=self.data, line_color=colour, line_width=1.5)
        self.plot.add_tools(
            HoverTool(renderers=[line], mode="vline", tooltips=[("step", "@step{0,0}"), ("value", "@value{0.0000a}")])
        )
        self.choice = Select(title="Plot shows", width=330)
        self._first = first
        self.choice.on_change("value", lambda attr, old, new: self.refresh())
        self.root = column(self.choice, self.plot, sizing_mode="stretch_width")

    def _offer(self, chosen: str) -> None:
        options = [(name, f"{name.partition('/')[0]}: {quantities.label(name, x)}") for name, x in self.found.items()]
        self.choice.options = [*([] if chosen else [("", "(choose)")]), *options]
        self.choice.value = chosen

    def refresh(self) -> None:
        """Draw the visible steps of the chosen quantity."""
        self.found = quantities.of_steps(self.page.source)
        self._offer(self.choice.value or next((name for name in self._first if name in self.found), ""))
        chosen = self.choice.value
        if chosen not in self.found:
            return
        x = self.found[chosen].expand_dims(row=1, axis=1)
        binned, span = self.page.source.blocks.binned, self.page.visible_steps
        self.page.later(self.name, lambda: binned(chosen, x, *span), lambda found: self._show(chosen, found))

    def _show(self, name: str, found: Any) -> None:
        values = found.values[:, 0].astype(np.float64)
        if self.found[name].dtype.kind == "i":
            values = np.where(values < 0, np.nan, values)  # -1: without a valid value
        self.data.data = {"step": found.middle, "value": values}
        self.plot.yaxis.axis_label = quantities.label(name, self.found[name])[:30]

    def show_step(self) -> None:
        """Move the marker."""
        self.marker.location = self.page.selection_step


class Trajectories(View):
    """A quantity of each selected row over the steps, with its name."""

    name = "trajectories"

    def __init__(self, page: Page) -> None:
        super().__init__(page)
        self.choice = Select(title="Trajectories show", width=330)
        self.choice.on_change("value", lambda attr, old, new: self.refresh())
        self.plot, self.marker = over_steps(page, height=300, y_range=DataRange1d(only_visible=True))
        self.data = ColumnDataSource({"xs": [], "ys": [], "name": [], "colour": []})
        self.lines = self.plot.multi_line("xs", "ys", source=self.data, line_color="colour", line_width=1.5)
        self.legend = Div(sizing_mode="stretch_width")
        self.plot.add_tools(
            HoverTool(renderers=[self.lines], line_policy="nearest",
                      tooltips=[(page.source.rows, "@name"), ("step", "$x{0,0}"), ("value", "$y{0.0000a}")])
        )  # fmt: skip
        self.root = column(self.choice, self.plot, self.legend, sizing_mode="stretch_width")

    def refresh(self) -> None:
        """Read the selected rows, as far as the cache does not hold them, and draw them."""
        page = self.page
        recording = page.source.recording
        small = recording is not None and "W" in recording and recording["W"].nbytes <= _SMALL
        offer_quantities(page, self.choice, [*([quantities.DISTANCE] if small else []), page.quantity])
        quantity = self.choice.value
        chosen = list(page.selected)[:DRAWN]
        more = len(page.selected) - len(chosen)
        rows = f"{page.source.rows}s"
        self.said = (
            f"select {rows} in the heat map, the table or the cloud" if not chosen
            else f"the first {DRAWN} of {len(page.selected):,} selected {rows}" if more > 0 else ""
        )  # fmt: skip
        if quantity not in page.quantities or not chosen:
            self._show([], [], None)
            return
        x = page.quantities[quantity]
        span = page.visible_steps
        page.later(
            "trajectories", lambda: self._read(quantity, x, chosen, span), lambda found: self._show(chosen, *found)
        )

    def _read(self, quantity: str, x: xr.DataArray, chosen: list[int], span: tuple[int, int]) -> tuple[Any, Any]:
        blocks = self.page.source.blocks
        if quantity == self.page.quantity:  # the heat map has read it
            found = blocks.binned(quantity, x, *span)
            return found.middle, found.values[:, chosen]
        found = blocks.binned(f"{quantity} of {chosen}", x.isel({self.page.source.rows: chosen}), *span)
        return found.middle, found.values

    def _show(self, chosen: list[int], steps: Any, values: Any) -> None:
        n = len(chosen)
        names = [self.page.names[i] for i in chosen]
        colours = [COLOURS[i % len(COLOURS)] for i in range(n)]
        self.data.data = {
            "xs": [steps] * n, "ys": [values[:, k] for k in range(n)], "name": names, "colour": colours,
        }  # fmt: skip
        self.legend.text = " ".join([key(names, colours), escape(self.said)])

    def show_selection(self) -> None:
        """Draw the selected rows."""
        self.refresh()

    def show_step(self) -> None:
        """Move the marker."""
        self.marker.location = self.page.selection_step
