"""The runs of a page, a row for each."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from bokeh.models import Div

from deadtok_xr.explorer import runs
from deadtok_xr.explorer.views.common import View

if TYPE_CHECKING:
    import pandas as pd

    from deadtok_xr.explorer.page import Page

_CELL = "padding: 2px 14px 2px 0; text-align: left; white-space: nowrap"


class Overview(View):
    """When the tokens of each run froze, and since when it differs from the first."""

    name = "runs"

    def __init__(self, page: Page) -> None:
        super().__init__(page)
        shrinks = ".bk-clearfix { width: 100%; }"  # or a wide table would widen the sentence above it
        self.root = Div(text=page.key_of_runs(), sizing_mode="stretch_width", stylesheets=[shrinks])

    def refresh(self) -> None:
        """Draw the table."""
        self.page.later("runs", lambda: runs.overview(self.page.runs), self._show, slow=True)

    def _show(self, frame: pd.DataFrame) -> None:
        head = "".join(f'<th style="{_CELL}">{escape(name)}</th>' for name in ["run", *frame.columns])
        rows = "".join(
            f'<tr><td style="{_CELL}">{self.page.key_of_runs(only=str(label))}</td>'
            + "".join(f'<td style="{_CELL}">{escape(value)}</td>' for value in row)
            + "</tr>"
            for label, *row in frame.itertuples()
        )
        first = f"<p>{escape(runs.froze_first(self.page.runs))}</p>"
        self.root.text = f'{first}<div style="overflow-x: auto"><table><tr>{head}</tr>{rows}</table></div>'
