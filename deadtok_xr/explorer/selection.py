"""A selection of tokens and steps, as Python and as the query of a link."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode


@dataclass(frozen=True)
class Selection:
    """What is selected on a page, and what it shows.

    Attributes
    ----------
    tokens
        Labels of the selected rows: vocabulary ids, or names of parameters.
    steps
        The first and the last visible step; None for all.
    step
        The chosen step; None for the last.
    quantity, order
        What the heat map shows, and how its rows are sorted; "" for the default.
    run
        Of several runs, the one whose rows are shown; "" for the first.
    """

    tokens: tuple[int | str, ...] = ()
    steps: tuple[int, int] | None = None
    step: int | None = None
    quantity: str = ""
    order: str = ""
    run: str = ""

    def as_python(self, dim: str = "token") -> str:
        """Return an expression that selects the same of `rec`: of a recording or of a group of results."""
        parts = [f"{dim}=[{', '.join(map(repr, self.tokens))}]"] if self.tokens else []
        parts += [f"step=slice({self.steps[0]}, {self.steps[1]})"] if self.steps else []
        return f"rec.sel({', '.join(parts)})" if parts else "rec"

    def as_program(self, opening: str, dim: str = "token") -> str:
        """Return lines that select the same in a fresh notebook, given the expression that opens `rec`."""
        return f"import deadtok_xr as dx\nrec = {opening}\n{self.as_python(dim)}"

    def as_query(self) -> str:
        """Return the query of a link to the same selection, "" if nothing is selected."""
        items = [("token", str(token)) for token in self.tokens]
        items += [("steps", f"{self.steps[0]}-{self.steps[1]}")] if self.steps else []
        items += [("step", str(self.step))] if self.step is not None else []
        items += [("quantity", self.quantity)] if self.quantity else []
        items += [("order", self.order)] if self.order else []
        items += [("run", self.run)] if self.run else []
        return urlencode(items)


def from_query(arguments: Mapping[str, Sequence[bytes]]) -> Selection:
    """Return the selection of a link; what cannot be read is left out."""
    given = {key: [value.decode("utf-8", "replace") for value in values] for key, values in arguments.items()}
    tokens = tuple(int(text) if text.isascii() and text.isdigit() else text for text in given.get("token", ()))
    first, _, last = given.get("steps", [""])[0].partition("-")
    step = given.get("step", [""])[0]
    return Selection(
        tokens,
        (int(first), int(last)) if _is_number(first) and _is_number(last) and int(first) < int(last) else None,
        int(step) if _is_number(step) else None,
        given.get("quantity", [""])[0],
        given.get("order", [""])[0],
        given.get("run", [""])[0],
    )


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 16
