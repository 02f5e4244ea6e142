"""One page of a browser: the selection, the views, and the work that runs beside them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from bokeh.document import Document
from bokeh.layouts import column
from bokeh.models import Button, CustomJS, Div, Range1d, Slider, TextInput, Toggle
from jinja2 import Template

from deadtok_xr.explorer import quantities, rows
from deadtok_xr.explorer.selection import Selection, from_query
from deadtok_xr.explorer.source import Source
from deadtok_xr.explorer.views.cloud import Cloud
from deadtok_xr.explorer.views.common import View, wrapping
from deadtok_xr.explorer.views.heat_map import HeatMap
from deadtok_xr.explorer.views.lines import Phases, Series, Trajectories
from deadtok_xr.explorer.views.story import Story
from deadtok_xr.explorer.views.table import Table

_LOOK, _PLAY, _SETTLED = 2000, 150, 60  # milliseconds between looks at a growing store, frames, and of rest
_FRAMES = 200  # of the cloud, from the first step to the last
_FIRST_ORDER = "last motion"
_SHAPE = ("topology/n_components", "topology/largest_component", "census/n_black_holes", "recording/loss",
          "monitor/moved of all")  # fmt: skip
_TOGETHER = ("coherence/displacement_cosine_mean", "motion/displacement_ulp_mean", "monitor/rounded_to_zero of all")
_COPY = """
navigator.clipboard.writeText(field.value).then(
  () => { button.label = "Copied" }, () => { button.label = "Not allowed" })
setTimeout(() => { button.label = label }, 1500)
"""


class Page:
    """The state of one page, and its views.

    Attributes
    ----------
    source
        What is explored.
    quantities
        The quantities per step and row.
    frame, names
        The table of the rows, and a short name for each.
    row_order
        The positions of the rows, as they are sorted.
    selected
        The positions of the selected rows.
    selection_step
        The chosen step.
    """

    MOST = 2000
    """Rows that are selected at most."""

    def __init__(self, source: Source, document: Document) -> None:
        self.source, self._document = source, document
        self._pool = ThreadPoolExecutor(2)
        self._asked: dict[str, int] = {}
        self._waiting: dict[str, Any] = {}
        self._version = source.version
        context = document.session_context
        given = from_query(context.request.arguments) if context else Selection()
        self.quantities = quantities.of_rows(source)
        self.frame, self.names = rows.labels(source), rows.names(source)
        self.row_order = np.arange(len(self.frame))
        self.order, self._wanted_order = rows.IDS, given.order or _FIRST_ORDER
        self._wanted_quantity = given.quantity
        self.quantity = self.first_quantity()
        chosen = np.isin(source.labels, list(given.tokens)) if given.tokens else np.zeros(0, bool)
        self.selected: tuple[int, ...] = tuple(np.flatnonzero(chosen).tolist())
        first, last = source.steps
        self._steps = first, last
        self.visible_steps = given.steps or (first, last)
        self.x_range = Range1d(*self.visible_steps, bounds=(first, max(last, first + 1)), min_interval=1)
        self.selection_step = given.step if given.step is not None else last
        self.views = self._make_views()
        self._controls = self._make_controls()
        for end in ("start", "end"):
            self.x_range.on_change(end, lambda attr, old, new: self.soon("steps", self._steps_changed))

    def first_quantity(self) -> str:
        """Return the quantity that the heat map shows first."""
        shown = [self._wanted_quantity, *quantities.FIRST_SHOWN, *self.quantities]
        return next((key for key in shown if key in self.quantities), "")

    @property
    def orders(self) -> list[str]:
        """What the rows can be sorted by."""
        return rows.orders(self.frame)

    @property
    def words_of_cause(self) -> dict[int, str]:
        """The words for the causes of motion and rest."""
        return quantities.words_of(self.quantities["mechanism/cause"])

    def _make_views(self) -> list[View]:
        tokens = self.source.rows == "token"
        return [
            HeatMap(self), Phases(self), Table(self), Trajectories(self),
            Series(self, "shape", _SHAPE, "#0072B2"), Series(self, "together", _TOGETHER, "#009E73"),
            *([Cloud(self), Story(self)] if tokens else []),
        ]  # fmt: skip

    def _make_controls(self) -> Any:
        first, last = self.source.steps
        self.slider = Slider(title="Step", start=first, end=max(last, first + 1), value=self.selection_step, step=1,
                             sizing_mode="stretch_width", min_width=200)  # fmt: skip
        self.slider.on_change("value", lambda attr, old, new: self.choose_step(new))
        play = Toggle(label="Play", width=70)
        play.on_change("active", lambda attr, old, new: self._play(new))
        everything = Button(label="All steps", width=90)
        everything.on_click(self.show_all_steps)
        self._chosen = Div(sizing_mode="stretch_width")
        self._python = TextInput(title="Selection in Python (rec: the recording, or a group)",
                                 sizing_mode="stretch_width", min_width=200)  # fmt: skip
        self._link = TextInput(visible=False)
        copies = []
        for label, field in (("Copy Python", self._python), ("Copy link", self._link)):
            button = Button(label=label, width=110, styles={"align-self": "end"})
            button.js_on_click(CustomJS(args={"field": field, "button": button, "label": label}, code=_COPY))
            copies.append(button)
        self._status = Div(text="", sizing_mode="stretch_width", css_classes=["status"])
        return column(
            wrapping(self.slider, play, everything), self._chosen, wrapping(self._python, *copies, self._link),
            self._status, sizing_mode="stretch_width", name="controls",
        )  # fmt: skip

    def show(self) -> None:
        """Put everything on the page, and begin to read."""
        document, source = self._document, self.source
        document.title = f"{Path(source.name).name} – deadtok explore"
        document.template = Template(Path(__file__).with_name("page.html").read_text("utf-8"))
        document.template_variables.update(
            name=escape(source.name), rows=source.rows, findings=not source.live, meanings=rows.MEANINGS
        )
        document.add_root(self._controls)
        for view in self.views:
            view.root.name = view.name
            document.add_root(view.root)
        self._findings, self._notes = (Div(sizing_mode="stretch_width", name=name) for name in ("findings", "notes"))
        if not source.live:
            document.add_root(self._findings)
        document.add_root(self._notes)
        self._notes.text = self.notes()
        for view in self.views:
            view.refresh()
        self._describe()
        self._summarise()
        if source.live:
            document.add_periodic_callback(self._look, _LOOK)
        elif source.grows:  # the rest of the results, once the browser has drawn the first picture
            document.on_event("document_ready", lambda event: self._look())
        document.on_session_destroyed(lambda context: self._pool.shutdown(wait=False, cancel_futures=True))

    def _look(self) -> None:
        self.later("opening", self.source.refresh, lambda done: self._grown())

    # work beside the page

    def later(self, key: str, compute: Callable[[], Any], show: Callable[[Any], None]) -> None:
        """Compute in another thread, then show; a later request with the same key replaces an earlier one."""
        number = self._asked[key] = self._asked.get(key, 0) + 1

        def work() -> Any:
            return compute() if self._asked[key] == number else None

        def arrived(future: Future[Any]) -> None:
            if self._asked[key] != number or future.cancelled():
                return
            error = future.exception()
            if error is None:
                show(future.result())
            else:
                self.say(f"{key}: {' '.join(str(error).split()) or type(error).__name__}")

        future = self._pool.submit(work)
        future.add_done_callback(lambda done: self._document.add_next_tick_callback(partial(arrived, done)))

    def soon(self, key: str, act: Callable[[], None]) -> None:
        """Act when requests with the same key have rested for a moment."""
        if key in self._waiting:
            self._document.remove_timeout_callback(self._waiting.pop(key))

        def now() -> None:
            self._waiting.pop(key, None)
            act()

        self._waiting[key] = self._document.add_timeout_callback(now, _SETTLED)

    def say(self, text: str) -> None:
        """Show a sentence about the page."""
        self._status.text = escape(text)

    # what users do

    def select(self, positions: list[int]) -> None:
        """Select rows by their positions."""
        chosen = tuple(positions[: self.MOST])
        if chosen == self.selected:
            return
        self.selected = chosen
        more = len(positions) - len(chosen)
        self.say(f"the first {self.MOST:,} of {len(positions):,} are selected" if more else "")
        for view in self.views:
            view.show_selection()
        self._describe()

    def choose_step(self, step: float | None) -> None:
        """Choose a step, within those that there are."""
        first, last = self.source.steps
        step = None if step is None else int(np.clip(round(step), first, last))
        if step is None or step == self.selection_step:
            return
        self.selection_step = step
        self.slider.value = step
        for view in self.views:
            view.show_step()
        self._describe()

    def show_quantity(self, key: str) -> None:
        """Show another quantity in the heat map."""
        self.quantity = key
        self.views[0].refresh()
        self._describe()

    def sort(self, by: str) -> None:
        """Sort the rows of the heat map and the table."""
        self.order, self.row_order = by, rows.ordered(self.frame, by)
        for view in self.views:
            if isinstance(view, HeatMap):
                view.draw()
            elif isinstance(view, Table):
                view.refresh()
        self._describe()

    def show_all_steps(self) -> None:
        """Make all steps visible."""
        first, last = self.source.steps
        self.x_range.update(start=first, end=max(last, first + 1))

    def _steps_changed(self) -> None:
        first, last = self.source.steps
        span = (max(int(np.ceil(self.x_range.start)), first), min(int(self.x_range.end), last))
        if span[1] < span[0] or span == self.visible_steps:
            return
        self.visible_steps = span
        self._refresh_steps()

    def _refresh_steps(self) -> None:
        for view in self.views:
            if isinstance(view, (HeatMap, Phases, Series, Trajectories)):
                view.refresh()
        self._describe()

    def notes(self) -> str:
        """Return the notes of the source as HTML."""
        return "".join(f"<p>{escape(note)}</p>" for note in self.source.notes)

    def _describe(self) -> None:
        """Say what is selected, in words, as Python and as a link."""
        first, last = self.source.steps
        labels = self.source.labels
        whole = self.visible_steps == (first, last)
        selection = Selection(
            tuple(labels[i].item() if hasattr(labels[i], "item") else labels[i] for i in self.selected),
            None if whole else self.visible_steps, None if self.selection_step == last else self.selection_step,
            "" if self.quantity in quantities.FIRST_SHOWN else self.quantity,
            "" if self.order == _FIRST_ORDER else self.order,
        )  # fmt: skip
        shown = ", ".join(self.names[i] for i in self.selected[:6])
        n, kind = len(self.selected), self.source.rows
        chosen = f"{n:,} {kind}{'s' if n != 1 else ''}: {shown}{', …' if n > 6 else ''}" if n else f"no {kind}"
        steps = "all steps" if whole else f"steps {self.visible_steps[0]:,} to {self.visible_steps[1]:,}"
        self._chosen.text = f"Selected: {escape(chosen)}. Visible: {steps}."
        self._python.value = selection.as_python(kind)
        context = self._document.session_context
        if context:
            address = f"http://{context.request.headers.get('Host', '')}{context.request.path}"
            query = selection.as_query()
            self._link.value = address + (f"?{query}" if query else "")

    def _play(self, active: bool) -> None:
        if not active:
            if (callback := self._waiting.pop("play", None)) is not None:
                self._document.remove_periodic_callback(callback)
            return
        first, last = self.visible_steps
        stride = max((last - first) // _FRAMES, 1)

        def forward() -> None:
            after = self.selection_step + stride
            self.choose_step(first if after > last else after)

        self._waiting["play"] = self._document.add_periodic_callback(forward, _PLAY)

    # what arrives

    def _summarise(self) -> None:
        if self.source.grows and not self.source.live:
            return  # once everything is open
        self.later("table", self._table, self._show_table)
        self.later("findings", self._find, lambda text: self._findings.update(text=text))

    def _table(self) -> Any:
        recording, norms = self.source.recording, None
        if recording is not None and "W" in recording:
            norms = np.linalg.norm(recording["W"].isel(step=-1).values.astype(np.float64), axis=-1)
        return rows.table(self.source, self.source.motion_so_far(), norms)

    def _show_table(self, frame: Any) -> None:
        self.frame = frame
        heat_map = self.views[0]
        assert isinstance(heat_map, HeatMap)
        heat_map.sorting.options = self.orders
        if self._wanted_order in frame:
            self.order, self._wanted_order = self._wanted_order, ""
        heat_map.sorting.value = self.order
        self.sort(self.order)

    def _find(self) -> str:
        """Return the main findings as a list."""
        if self.source.live:
            return ""
        import xarray as xr

        from deadtok_xr.results import findings

        tree = xr.DataTree.from_dict({"/": xr.Dataset(), **self.source.groups})
        found = findings.findings(findings.load(tree))[:6]
        return "".join(["<ul>", *(f"<li>{escape(finding.text)}</li>" for finding in found), "</ul>"]) if found else ""

    def _grown(self) -> None:
        """Show the steps that were added since."""
        source = self.source
        if source.version == self._version:
            return
        self._version = source.version
        before, (first, last) = self._steps, source.steps
        whole, at_end = self.visible_steps == before, self.selection_step == before[1]
        self._steps = (first, last)
        self.quantities, self._notes.text = quantities.of_rows(source), self.notes()
        if len(self.names) != len(source.labels):
            self.names, self.row_order, self.selected = rows.names(source), np.arange(len(source.labels)), ()
        self.x_range.bounds = (first, max(last, first + 1))
        self.slider.update(start=first, end=max(last, first + 1))
        if whole:
            self.visible_steps = (first, last)
            self.show_all_steps()
        if at_end:
            self.choose_step(last)
        if source.live:
            self.say(f"step {last:,}{'' if source.grows else ', complete'}")
        for view in self.views:
            view.refresh()
        self._summarise()
        self._describe()
