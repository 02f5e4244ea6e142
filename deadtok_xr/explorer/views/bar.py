"""The bar above the views: the chosen step and run, and what is selected, in words, as Python and as a link."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from bokeh.layouts import column
from bokeh.models import Button, CustomJS, Div, Select, Slider, TextInput, Toggle

from deadtok_xr.explorer.views.common import wrapping
from deadtok_xr.text import counted

if TYPE_CHECKING:
    from deadtok_xr.explorer.page import Page
    from deadtok_xr.explorer.selection import Selection

_COPY = """
navigator.clipboard.writeText(field.value).then(
  () => { button.label = "Copied" }, () => { button.label = "Not allowed" })
setTimeout(() => { button.label = label }, 1500)
"""


class Bar:
    """What users choose for all views.

    Attributes
    ----------
    root
        What is drawn.
    slider, play
        The chosen step, and whether it moves.
    """

    def __init__(self, page: Page) -> None:
        self.slider = Slider(
            title="Step", start=0, end=1, step=1, format="0,0", sizing_mode="stretch_width", min_width=200
        )
        self.show_steps(page)
        self.slider.on_change("value", lambda attr, old, new: page.choose_step(new))
        self.play = Toggle(label="Play", width=70)
        self.play.on_change("active", lambda attr, old, new: page.play(new))
        everything = Button(label="Whole map", width=90)
        everything.on_click(page.show_everything)
        runs: list[Any] = []
        if len(page.runs) > 1:
            self.run = Select(title="Run of the map, table and cloud", options=list(page.runs), value=page.run,
                              width=230)  # fmt: skip
            self.run.on_change("value", lambda attr, old, new: page.choose_run(new))
            runs = [self.run]
        self._find = Select(title="Find and select", width=260, options=[("", "(opening …)")], value="", disabled=True)
        self._find.on_change("value", lambda attr, old, new: self._asked(page, new))
        self._answered = ""
        self._chosen = Div(sizing_mode="stretch_width")
        wraps = "label, label * { overflow-wrap: anywhere; white-space: normal; }"
        self._python = TextInput(
            title="Selection in Python (Copy Python adds the lines that open rec)", sizing_mode="stretch_width",
            min_width=200, stylesheets=[wraps],
        )  # fmt: skip
        self._program, self._link = TextInput(visible=False), TextInput(visible=False)
        copies = []
        for label, field in (("Copy Python", self._program), ("Copy link", self._link)):
            button = Button(label=label, width=110, styles={"align-self": "end"})
            button.js_on_click(CustomJS(args={"field": field, "button": button, "label": label}, code=_COPY))
            copies.append(button)
        self._status = Div(text="", sizing_mode="stretch_width", styles={"min-height": "1.5em"})
        self.root = column(
            wrapping(self.slider, self.play, everything, self._find, *runs), self._chosen,
            wrapping(self._python, *copies, self._program, self._link), self._status,
            sizing_mode="stretch_width", name="controls",
        )  # fmt: skip

    def show_steps(self, page: Page) -> None:
        """Show the steps that there are, and the chosen one."""
        first, last = page.steps
        self.slider.update(start=first, end=max(last, first + 1), value=page.selection_step)

    def _asked(self, page: Page, question: str) -> None:
        if question != self._answered:
            page.answer(question)

    def offer(self, questions: dict[str, str]) -> None:
        """Offer questions about the run that is shown, as a list shows them."""
        self._find.update(options=[("", "(choose)"), *questions.items()], disabled=not questions)

    def say(self, text: str, answers: str = "") -> None:
        """Show a sentence about the page, and in the list the question that it answers, if it does."""
        self._answered = self._find.value = answers
        self._status.text = escape(text)

    def show_playing(self, playing: bool) -> None:
        """Show whether the chosen step moves."""
        self.play.label = "Stop" if playing else "Play"

    def describe(self, page: Page, selection: Selection) -> None:
        """Say what is selected."""
        shown = ", ".join(page.names[i] for i in page.selected[:6])
        n, kind = len(page.selected), page.source.rows
        every = "all " if n == len(page.names) > 1 else ""
        chosen = f"{every}{counted(n, kind)}: {shown}{', …' if n > 6 else ''}" if n else f"no {kind}"
        steps = f"steps {selection.steps[0]:,} to {selection.steps[1]:,}" if selection.steps else "all steps"
        self._chosen.text = f"Selected: {escape(chosen)}. Visible: {steps}."
        self._python.value = selection.as_python(kind)
        self._program.value = selection.as_program(page.source.in_python(), kind)
        if address := page.address:
            query = selection.as_query()
            self._link.value = address + (f"?{query}" if query else "")
