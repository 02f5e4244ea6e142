"""What asks something of a recording, and looks for the answer in one row of chunks after the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from deadtok_xr.engine.batches import Field, Piece, Row

Block = dict[str, Any]
"""What a look found in a row, by field."""


class Look(Protocol):
    """A probe at work in one row."""

    def piece(self, piece: Piece) -> None:
        """Look at some steps; called for all in order."""
        ...

    def end(self) -> Block:
        """Every field of the probe for the row."""
        ...


class Probe(Protocol):
    """A question to a recording, answered row by row. A frozen dataclass: its options tell it from another."""

    @property
    def matrices(self) -> tuple[str, ...]:
        """The variables (step, token, dim) that it looks at."""
        ...

    def fields(self) -> Mapping[str, Field]:
        """What it finds."""
        ...

    def begin(self, row: Row) -> Look:
        """Begin with a row."""
        ...


@dataclass(frozen=True)
class OfOne:
    """What probes of one variable have in common; options of theirs follow."""

    variable: str

    @property
    def matrices(self) -> tuple[str, ...]:
        """The variable."""
        return (self.variable,)
