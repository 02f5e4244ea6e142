"""The table of tokens or parameters: search, selection, download."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from bokeh.layouts import column
from bokeh.models import (
    AllIndices,
    Button,
    ColumnDataSource,
    CustomJS,
    Div,
    HTMLTemplateFormatter,
    ScientificFormatter,
    StringFormatter,
    TableColumn,
    TextInput,
)
from numpy.typing import NDArray

from deadtok_xr.errors import InputError
from deadtok_xr.explorer import rows
from deadtok_xr.explorer.views.common import View, heading, plain_table, wrapping

if TYPE_CHECKING:
    import pandas as pd

    from deadtok_xr.explorer.page import Page

_WIDTHS = {"text": 80, "parameter": 260, "method": 360}
_DIGITS = 5  # after the point: conditions compare what is not rounded
_COUNT = '<div style="text-align: right"><%= value < LEAST ? "–" : Number(value).toLocaleString("en") %></div>'
_SAVE = """
const link = document.createElement("a")
link.href = URL.createObjectURL(new Blob([file.text], {type: "text/csv;charset=utf-8"}))
link.download = file.name
link.click()
setTimeout(() => URL.revokeObjectURL(link.href), 1000)
"""


class Table(View):
    """A row per token, the largest first by what they are sorted; rows that are clicked are selected."""

    name = "table"

    def __init__(self, page: Page) -> None:
        super().__init__(page)
        self.search = TextInput(
            title=f"Find {page.source.rows}s",
            placeholder="text; 3, 17; /regular expression/; thaws > 0"
            if page.source.rows == "token"
            else "name; /regular expression/; numel > 1000",
            sizing_mode="stretch_width",
            max_width=390,
        )
        self.search.on_change("value", lambda attr, old, new: self.refresh())
        self.found = Div(text="", styles={"align-self": "end", "padding-bottom": "6px"})
        self.choose = Button(label="Select the found", button_type="primary", width=130)
        self.choose.on_click(lambda: page.select(self.shown[: page.MOST].tolist()))
        clear = Button(label="Clear selection", width=120)
        clear.on_click(lambda: page.select([]))
        self.file = Div(text="", visible=False, name="")
        save = Button(label="Download as CSV", width=140)
        save.on_click(self._download)
        self.file.js_on_change("text", CustomJS(code="""
            if (!cb_obj.text) return
            const file = JSON.parse(cb_obj.text)
        """ + _SAVE))  # fmt: skip
        self.data = ColumnDataSource({})
        self.shown: NDArray[np.intp] = np.arange(len(page.frame))
        self.grid = plain_table(source=self.data, columns=self._columns(page.frame), height=330, selectable="checkbox")
        self.data.selected.on_change("indices", self._clicked)
        self._telling = False
        self.root = column(
            wrapping(self.search, self.found), self.grid, wrapping(self.choose, clear, save, self.file),
            sizing_mode="stretch_width",
        )  # fmt: skip

    def _columns(self, frame: pd.DataFrame) -> list[TableColumn]:
        return [
            TableColumn(
                field=name,
                title=heading(name, rows.MEANINGS.get(name, "")),
                width=_width(name),
                formatter=_formatter(frame[name]),
            )
            for name in rows.shown_columns(frame)
        ]

    def refresh(self) -> None:
        """Show the rows that the search finds, in the order of the page."""
        frame = self.page.frame
        try:
            found = rows.matching(frame, self.search.value)
            said = f"{np.count_nonzero(found):,} of {len(frame):,}"
        except InputError as error:
            found, said = np.zeros(len(frame), bool), str(error)
        order = self.page.row_order if self.page.sorted_by == rows.IDS else self.page.row_order[::-1]
        self.shown = order[found[order]]  # the largest first: as in the heat map, from the top down
        columns = rows.shown_columns(frame)
        part = frame[columns].iloc[self.shown]
        self._telling = True
        self.data.selected.indices = []
        self.data.data = {name: _cells(part[name]) for name in columns}
        if [c.field for c in self.grid.columns] != columns:
            self.grid.columns = self._columns(frame)
        self.grid.view.filter = AllIndices()  # or rows that are as many as before would not be drawn again
        self._telling = False
        self.choose.disabled = not len(self.shown)
        self.found.text = escape(said)
        self.show_selection()

    def show_selection(self) -> None:
        """Mark the selected rows."""
        place = {int(i): k for k, i in enumerate(self.shown)}
        self._telling = True
        self.data.selected.indices = [place[i] for i in self.page.selected if i in place]
        self._telling = False

    def _clicked(self, attr: str, old: Any, new: list[int]) -> None:
        if not self._telling:
            self.page.select([int(self.shown[i]) for i in new if i < len(self.shown)])

    def _download(self) -> None:
        """Send the rows that are shown, with all columns, to the browser, which saves them."""
        import json

        part = self.page.frame.iloc[self.shown]
        self.file.text = ""
        self.file.text = json.dumps({"name": f"{self.page.source.rows}s.csv", "text": part.to_csv(index=False)})


def _width(name: str) -> int:
    """Return a width with room for the heading, in pixels."""
    return _WIDTHS.get(name, max(64, 7 * len(name) + 14))


def _cells(values: pd.Series[Any]) -> Any:
    if rows.is_number(values):
        return values.to_numpy()
    words: list[str] = values.astype(str).tolist()
    return [f'"{word}"' if word else "" for word in words] if values.name == "text" else words  # spaces show


def _formatter(values: pd.Series[Any]) -> Any:
    if not rows.is_number(values):
        return StringFormatter()
    if values.dtype.kind == "f":
        return ScientificFormatter(precision=_DIGITS, power_limit_low=-3, power_limit_high=4, text_align="right")
    least = 1 if values.name == rows.COLUMNS["census/black_hole"] else 0
    return HTMLTemplateFormatter(template=_COUNT.replace("LEAST", str(least)))
