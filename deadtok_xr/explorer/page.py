"""One page of a browser: the selection, and the views that show it."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from bokeh.document import Document
from bokeh.layouts import column
from bokeh.models import Div, Range1d
from jinja2 import Template

from deadtok_xr.explorer import quantities, questions, rows, runs
from deadtok_xr.explorer.selection import Selection, from_query
from deadtok_xr.explorer.views.bar import Bar
from deadtok_xr.explorer.views.cloud import Cloud
from deadtok_xr.explorer.views.common import COLOURS, View, key, room
from deadtok_xr.explorer.views.heat_map import HeatMap
from deadtok_xr.explorer.views.lines import Series, Trajectories, shares
from deadtok_xr.explorer.views.overview import Overview
from deadtok_xr.explorer.views.story import Story
from deadtok_xr.explorer.views.table import Table
from deadtok_xr.explorer.work import SETTLED, Work

if TYPE_CHECKING:
    import pandas as pd

_LOOK, _PLAY = 2000, 150  # milliseconds between looks at a growing store, and frames
_FRAMES = 200  # of the cloud, from the first step to the last
_FIRST_SORTED = "lifecycle/last_motion"
_FIRST_ORDER = rows.COLUMNS[_FIRST_SORTED]
_SHAPE = ("topology/n_components", "topology/largest_component", "census/n_black_holes", "recording/loss",
          "monitor/moved of all")  # fmt: skip
_TOGETHER = ("coherence/displacement_cosine_mean", "motion/displacement_ulp_mean", "monitor/rounded_to_zero of all")


class Page:
    """The state of one page, and its views: the heat map first, the others once it is drawn and everything is open.

    Attributes
    ----------
    runs
        The source of each run, by label; often one alone.
    run, source
        The run whose rows are shown, and its source.
    colours
        The colour of each run.
    quantities
        The quantities per step and row of this run.
    frame, names
        The table of its rows, and a short name for each.
    row_order
        The positions of the rows, as they are sorted.
    selected
        The positions of the selected rows.
    selection_step
        The chosen step.
    steps
        The first and the last step of all runs.
    """

    MOST = 2000
    """Rows that are selected at most."""
    selected: tuple[int, ...]

    def __init__(self, sources: runs.Runs, document: Document) -> None:
        self.runs, self._document = sources, document
        self.colours = {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(sources)}
        self._work = Work(document, self.say)
        self.later, self.soon = self._work.later, self._work.soon
        self._not_drawn, self._looking = {"the page", "the heat map"}, False
        self._playing: Any = None
        self._quantities: dict[str, tuple[int, dict[str, xr.DataArray]]] = {}
        self._versions = self._versions_now()
        context = document.session_context
        given = from_query(context.request.arguments) if context else Selection()
        self.order = given.order or _FIRST_ORDER
        self._wanted_quantity = given.quantity
        self._take(given.run if given.run in sources else next(iter(sources)))
        self.quantity = self.first_quantity()
        self.selected = self._positions_of(given.tokens)
        first, last = self.steps = self._all_steps()
        self.visible_steps = given.steps or (first, last)
        self.x_range = Range1d(*self.visible_steps, bounds=(first, max(last, first + 1)), min_interval=1)
        self.selection_step = given.step if given.step is not None else last
        self.bar, self.heat_map = Bar(self), HeatMap(self)
        self.views: list[View] = [self.heat_map]
        for end in ("start", "end"):
            self.x_range.on_change(end, lambda attr, old, new: self.soon("steps", self._steps_changed))

    def _take(self, run: str) -> None:
        """Take another run, of which nothing is selected yet."""
        self.run, self.source = run, self.runs[run]
        self.quantities = self.quantities_of(run)
        self.frame, self.names = rows.table(self.source, only=(_FIRST_SORTED,)), rows.names(self.source)
        self.row_order = rows.ordered(self.frame, self.order)
        self.selected = ()

    def _positions_of(self, labels: Any) -> tuple[int, ...]:
        return tuple(np.flatnonzero(np.isin(self.source.labels, list(labels))).tolist()) if len(labels) else ()

    def _all_steps(self) -> tuple[int, int]:
        steps = [source.steps for source in self.runs.values()]
        return min(first for first, _ in steps), max(last for _, last in steps)

    def _versions_now(self) -> list[int]:
        return [source.version for source in self.runs.values()]

    @property
    def address(self) -> str:
        """The address of the page, without a selection; "" outside of a server."""
        context = self._document.session_context
        return f"http://{context.request.headers.get('Host', '')}{context.request.path}" if context else ""

    def quantities_of(self, run: str) -> dict[str, xr.DataArray]:
        """Return the quantities per step and row of a run."""
        source = self.runs[run]
        if self._quantities.get(run, (None,))[0] != source.version:
            self._quantities[run] = source.version, quantities.of_rows(source)
        return self._quantities[run][1]

    def key_of_runs(self, words: str = "", only: str = "") -> str:
        """Return the runs, or only one, beside their colours, and words behind them, as HTML; "" for a single run."""
        labels = [only] if only else list(self.runs)
        named = key(labels, [self.colours[label] for label in labels]) if len(self.runs) > 1 else ""
        return f"{named} {escape(words)}"

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

    @property
    def sorted_by(self) -> str:
        """What the rows are sorted by: their order, as far as the table is known."""
        return self.order if self.order in self.frame else rows.IDS

    def _later_views(self) -> dict[str, Callable[[], View]]:
        """Return what makes the views below the heat map, by the name of their place."""
        makers: dict[str, Callable[[], View]] = {
            "phases": lambda: shares(self), "trajectories": lambda: Trajectories(self), "table": lambda: Table(self),
            "shape": lambda: Series(self, "shape", _SHAPE),
            "together": lambda: Series(self, "together", _TOGETHER, COLOURS[2]),
        }  # fmt: skip
        makers |= {"cloud": lambda: Cloud(self), "story": lambda: Story(self)} if self.source.rows == "token" else {}
        return makers | ({"runs": lambda: Overview(self)} if len(self.runs) > 1 else {})

    def show(self) -> None:
        """Put everything on the page, and begin to read."""
        document, source, several = self._document, self.source, len(self.runs) > 1
        name = f"{len(self.runs)} runs: {', '.join(self.runs)}" if several else source.name
        document.title = f"{name if several else Path(name).name} – deadtok explore"
        document.template = Template(Path(__file__).with_name("page.html").read_text("utf-8"))
        document.template_variables.update(
            name=escape(name), rows=source.rows, findings=not source.live, meanings=rows.MEANINGS, several=several
        )
        self.heat_map.root.name = self.heat_map.name
        self._places = {
            name: column(Div(text="opening …"), sizing_mode="stretch_width", name=name,
                         styles={"min-height": room(name, len(self.runs))})
            for name in self._later_views()
        }  # fmt: skip
        self._findings, self._notes = (
            Div(sizing_mode="stretch_width", name=name, styles={"overflow-wrap": "anywhere"})
            for name in ("findings", "notes")
        )
        findings = [] if source.live else [self._findings]
        with document.models.freeze():  # else Bokeh goes through all models for each of them
            for root in (self.bar.root, self.heat_map.root, *self._places.values(), self._notes, *findings):
                document.add_root(root)
        self._notes.text = self.notes()
        self.heat_map.refresh()
        self._describe()
        document.on_event("document_ready", lambda event: self.show_rest("the page"))
        document.on_session_destroyed(lambda context: self._work.close())

    def show_rest(self, drawn: str) -> None:
        """Open and show the rest once both the page and the heat map are drawn: it would slow them down."""
        if self._not_drawn:
            self._not_drawn.discard(drawn)
            if not self._not_drawn:
                self._document.add_timeout_callback(self._look, SETTLED)
                if self.source.live:
                    self._document.add_periodic_callback(self._look, _LOOK)

    def _look(self) -> None:
        if not self._looking:
            self.later("opening", self._open, self._grown)

    def _open(self) -> pd.DataFrame | None:
        """Open what was added; return the table of the rows, or None if there is nothing new."""
        self._looking = True
        try:
            for source in self.runs.values():
                source.refresh()
            return self._table() if self._is_new() else None
        finally:
            self._looking = False

    def _is_new(self) -> bool:
        return len(self.views) == 1 or self._versions_now() != self._versions

    def say(self, text: str) -> None:
        """Show a sentence about the page."""
        self.bar.say(text)

    # what users do

    def select(self, positions: list[int]) -> None:
        """Select rows by their positions."""
        chosen = tuple(positions[: self.MOST])
        if chosen == self.selected:
            return
        self.selected = chosen
        more = len(positions) - len(chosen)
        self.say(f"the first {self.MOST:,} of {len(positions):,} are selected" if more else "")
        self._describe()
        for view in self.views:
            view.show_selection()

    def answer(self, question: str) -> None:
        """Select the rows and choose the step that answer a question, and say so; "" for none."""
        found = questions.answer(question, self.frame, self.source) if question else questions.Answer("")
        if found.rows is not None:
            self.select(found.rows)
        self.choose_step(found.step)
        run = f"{self.run}: " if question and len(self.runs) > 1 else ""
        kept = self.selected and found.step is not None and found.rows is None
        stay = " The selected tokens stay selected." if kept else ""
        self.bar.say(f"{run}{found.text}{stay}", answers=question)

    def choose_step(self, step: float | None) -> None:
        """Choose a step, within those that there are."""
        first, last = self.steps
        step = None if step is None else int(np.clip(round(step), first, last))
        if step is None or step == self.selection_step:
            return
        self.selection_step = step
        self.say("")
        self.bar.slider.value = step
        for view in self.views:
            view.show_step()
        self._describe()

    def choose_run(self, run: str) -> None:
        """Show the rows of another run; tokens that it has too stay selected."""
        if run == self.run:
            return
        labels = self.source.labels[list(self.selected)]
        self._work.forget()  # answers for the other run
        self.say("")
        self.bar.offer({})
        self._take(run)
        self.selected = self._positions_of(labels)
        for view in self.views:
            view.refresh()
        self.later("table", self._table, self._show_table)
        self._find()
        self._describe()

    def show_quantity(self, key: str) -> None:
        """Show another quantity in the heat map."""
        self.quantity = key
        self.heat_map.refresh()
        self._describe()

    def sort(self, by: str) -> None:
        """Sort the rows of the heat map and the table."""
        self.order, self.row_order = by, rows.ordered(self.frame, by)
        self.heat_map.draw()
        for view in self.views:
            if isinstance(view, Table):
                view.refresh()
        self._describe()

    def show_all_steps(self) -> None:
        """Make all steps visible."""
        first, last = self.steps
        self.x_range.update(start=first, end=max(last, first + 1))

    def show_everything(self) -> None:
        """Make all steps and all rows of the heat map visible."""
        self.show_all_steps()
        self.heat_map.show_all_rows()

    def _steps_changed(self) -> None:
        first, last = self.steps
        span = (max(int(np.ceil(self.x_range.start)), first), min(int(self.x_range.end), last))
        if span[1] < span[0] or span == self.visible_steps:
            return
        self.visible_steps = span
        self._refresh_steps()

    def _refresh_steps(self) -> None:
        for view in self.views:
            if view.over_steps:
                view.refresh()
        self._describe()

    def notes(self) -> str:
        """Return the notes of all runs as HTML."""
        every = [note for source in self.runs.values() for note in source.notes]
        return "".join(f"<p>{escape(note)}</p>" for note in dict.fromkeys([*runs.in_common(self.runs), *every]))

    def _describe(self) -> None:
        """Say what is selected, in words, as Python and as a link."""
        labels, last = self.source.labels, self.steps[1]
        self.bar.describe(self, Selection(
            tuple(labels[i].item() if hasattr(labels[i], "item") else labels[i] for i in self.selected),
            None if self.visible_steps == self.steps else self.visible_steps,
            None if self.selection_step == last else self.selection_step,
            "" if self.quantity in quantities.FIRST_SHOWN else self.quantity,
            "" if self.order == _FIRST_ORDER else self.order,
            "" if self.run == next(iter(self.runs)) else self.run,
        ))  # fmt: skip

    def play(self, active: bool) -> None:
        """Move through the visible steps, or stop."""
        self.bar.show_playing(active)
        if not active:
            if self._playing is not None:
                self._document.remove_periodic_callback(self._playing)
            self._playing = None
            return

        def forward() -> None:
            first, last = self.visible_steps
            after = self.selection_step + max((last - first) // _FRAMES, 1)
            self.choose_step(after if first < after <= last else first)

        self._playing = self._document.add_periodic_callback(forward, _PLAY)

    # what arrives

    def _table(self) -> pd.DataFrame:
        recording, norms = self.source.recording, None
        if recording is not None and "W" in recording:
            norms = np.linalg.norm(recording["W"].isel(step=-1).values.astype(np.float64), axis=-1)
        return rows.table(self.source, self.source.motion_so_far(), norms)

    def _show_table(self, frame: pd.DataFrame) -> None:
        self.frame = frame
        self.sort(self.order)
        self.bar.offer(questions.offered(frame, self.source))

    def _find(self) -> None:
        """Show the main findings as lists."""
        if not self.source.live:
            self.later("findings", self._findings_as_html, lambda text: self._findings.update(text=text), slow=True)

    def _findings_as_html(self) -> str:
        found = [(heading, texts) for heading, texts in runs.findings(self.runs) if texts]
        return "".join(
            f"<p>{escape(heading)}</p><ul>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>"
            for heading, texts in found
        )

    def _grown(self, frame: pd.DataFrame | None) -> None:
        """Show what was opened, or the steps that were added since."""
        if frame is None or not self._is_new():
            return
        self._versions = self._versions_now()
        before, self.steps = self.steps, self._all_steps()
        (first, last), source = self.steps, self.source
        whole, at_end = self.visible_steps == before, self.selection_step == before[1]
        self.quantities, self._notes.text = self.quantities_of(self.run), self.notes()
        if len(self.names) != len(source.labels):
            self._take(self.run)
        self.frame, self.row_order = frame, rows.ordered(frame, self.order)
        self.x_range.bounds = (first, max(last, first + 1))
        self.bar.show_steps(self)
        if whole:
            self.visible_steps = (first, last)
            self.show_all_steps()
        if at_end:
            self.choose_step(last)
        if source.live:
            self.say(f"step {last:,}{'' if source.grows else ', complete'}")
        if len(self.views) == 1:
            self._add_views()
        for view in self.views:
            view.refresh()
        self.bar.offer(questions.offered(frame, source))
        self._find()
        self._describe()

    def _add_views(self) -> None:
        for name, make in self._later_views().items():
            view = make()
            self._places[name].children = [view.root]
            self.views.append(view)
