"""The cloud of tokens along two principal axes, coloured by phase, at the chosen step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from bokeh.layouts import column
from bokeh.models import Button, CategoricalColorMapper, ColumnDataSource, DataRange1d, HoverTool

from deadtok_xr.explorer import quantities
from deadtok_xr.explorer.cloud import Axes, Projection, principal_axes
from deadtok_xr.explorer.views.common import PHASES, UNKNOWN, View, base_figure, short_numbers, wrapped, wrapping

if TYPE_CHECKING:
    from deadtok_xr.explorer.page import Page


_ASPECT = 0.93  # as high as the elements of one token beside it
_FEW = 2000  # tokens that are painted large, and with an edge


class Cloud(View):
    """Positions along the principal axes of one step; a box or a lasso selects tokens."""

    name = "cloud"

    def __init__(self, page: Page) -> None:
        super().__init__(page)
        self.plot = base_figure(
            tools="pan,lasso_select,box_select,tap,wheel_zoom,reset,save", active_drag="box_select",
            x_range=DataRange1d(), y_range=DataRange1d(),
        )  # fmt: skip
        self.plot.update(sizing_mode="scale_width", aspect_ratio=_ASPECT)
        self.data = ColumnDataSource({"x": [], "y": [], "name": [], "phase": [], "row": []})
        self.phases = CategoricalColorMapper(factors=[], palette=[*PHASES[4], UNKNOWN])
        few = len(page.names) <= _FEW
        points = self.plot.scatter(
            "x", "y", source=self.data, size=7 if few else 4, line_color="white" if few else None, line_width=0.4,
            legend_field="phase",
            color={"field": "phase", "transform": self.phases}, nonselection_alpha=0.4, selection_line_color="#D55E00",
            selection_line_width=2,
        )  # fmt: skip
        for axis in (self.plot.x_range, self.plot.y_range):
            axis.renderers = [points]  # else the box of a selection counts too, even when it is no longer drawn
        self.plot.add_tools(HoverTool(renderers=[points], tooltips=[("token", "@name"), ("phase", "@phase")]))
        legend = self.plot.legend[0]
        legend.update(orientation="horizontal", border_line_color=None, label_text_font_size="11px", ncols="auto")
        self.plot.add_layout(legend, "below")
        for axis in (self.plot.xaxis, self.plot.yaxis):
            axis.formatter = short_numbers()
            axis.ticker.desired_num_ticks = 5
        self.axes = Button(label="Take the axes of this step", width=190)
        self.axes.on_click(lambda: self._find_axes(page.selection_step))
        self.data.selected.on_change("indices", self._clicked)
        self._telling = False
        self._projection: Projection | None = None
        self._run = page.run
        self.root = column(wrapping(self.axes), self.plot, sizing_mode="stretch_width")

    def refresh(self) -> None:
        """Find the axes once, and draw the chosen step."""
        recording = self.page.source.recording
        if self._run != self.page.run:
            self._run, self._projection = self.page.run, None
        self.axes.disabled = recording is None or "W" not in recording
        if recording is None or self.axes.disabled:
            self.plot.title.text = "the cloud needs the recording, which is not here"
        elif self._projection is None or self.page.source.grows:
            self._find_axes(recording["step"].values[-1] if self._projection is None else self._axes.step)
        else:
            self.show_step()

    def _find_axes(self, step: int) -> None:
        recording = self.page.source.recording
        if recording is None:
            return
        w = recording["W"].transpose("step", "token", "dim")

        def show(axes: Axes) -> None:
            self._axes, self._projection = axes, Projection(w, axes)
            for axis, share, n in zip((self.plot.xaxis, self.plot.yaxis), axes.share, ("1st", "2nd"), strict=True):
                axis.axis_label = wrapped(f"{n} principal axis of step {axes.step:,}: {share:.0%} of the variance", 36)
            self.show_step()

        self.page.later("axes", lambda: principal_axes(w, step), show)

    def show_step(self) -> None:
        """Draw the chosen step."""
        if self._projection is None:
            return
        step, projection = self.page.selection_step, self._projection
        phase = self.page.quantities.get(quantities.PHASE)

        def read() -> tuple[int, Any, Any]:
            drawn, places = projection.at(step)
            if phase is None:
                return drawn, places, np.full(len(places), -1)
            found = self.page.source.blocks.binned(quantities.PHASE, phase, drawn, drawn, max_bins=2**30)
            return drawn, places, found.values[-1] if len(found.values) else np.full(len(places), -1)

        self.page.later("cloud", read, lambda found: self._show(*found))

    def _show(self, step: int, places: Any, phase: Any) -> None:
        from deadtok_xr.analyses.phases import LATTICE  # with all analyses: after the first picture

        words = [*LATTICE, "unknown"]
        self.phases.factors = words
        chosen = self.page.selection_step
        self.plot.title.text = f"step {step:,}" + ("" if step == chosen else f"; step {chosen:,} is not recorded")
        self._telling = True
        self.data.data = {
            "x": places[:, 0], "y": places[:, 1], "name": self.page.names, "row": np.arange(len(places)),
            "phase": [words[int(k)] if np.isfinite(k) else "unknown" for k in phase],
        }  # fmt: skip
        self._telling = False
        self._mark()

    def show_selection(self) -> None:
        """Mark the selected tokens, after the other views: every point is painted again."""
        self.page.soon("cloud selection", self._mark)

    def _mark(self) -> None:
        self._telling = True
        self.data.selected.indices = list(self.page.selected)
        self._telling = False

    def _clicked(self, attr: str, old: Any, new: list[int]) -> None:
        if not self._telling:
            self.page.select(list(new))
