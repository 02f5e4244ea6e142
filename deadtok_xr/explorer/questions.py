"""What is asked most often of a run: the tokens or the step that answer, and a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from deadtok_xr.explorer import quantities
from deadtok_xr.explorer.source import Source

if TYPE_CHECKING:
    import pandas as pd

_COHERENCE = "coherence/displacement_cosine_mean"
BREAKS = "the step at which coherence breaks"
HOLE = "the largest black hole"
_COLUMNS = {
    "the tokens that thawed last": ("last thaw", max, "thawed last, at step"),
    "the tokens that moved last": ("last motion", max, "moved last, at step"),
    "the tokens that froze first": ("first freeze", min, "were the first to stand still, at step"),
    HOLE: ("black hole", min, "share the largest black hole, number"),
}


@dataclass(frozen=True)
class Answer:
    """The rows and the step that answer a question.

    Attributes
    ----------
    text
        The answer as a sentence.
    rows
        The positions of the rows; None if the question is about a step alone.
    step
        The step; None if the question is about rows alone.
    """

    text: str
    rows: list[int] | None = None
    step: int | None = None


def offered(frame: pd.DataFrame, source: Source) -> list[str]:
    """Return the questions that these results can answer."""
    found = [question for question, (column, _, _) in _COLUMNS.items() if column in frame and (frame[column] > 0).any()]
    return [*found, *([BREAKS] if _COHERENCE in quantities.of_steps(source) else [])]


def answer(question: str, frame: pd.DataFrame, names: Sequence[str], source: Source) -> Answer:
    """Answer one of the questions that `offered` returned."""
    if question == BREAKS:
        cosine = quantities.of_steps(source)[_COHERENCE]
        at = int(cosine.idxmin("step"))
        return Answer(f"The mean cosine between displacements is smallest at step {at:,}: "
                      f"{float(cosine.min()):.3g}.", step=at)  # fmt: skip
    column, best, words = _COLUMNS[question]
    values = frame[column].to_numpy()
    value = int(best(values[values > 0]))
    rows = np.flatnonzero(values == value).tolist()
    shown = ", ".join(names[i] for i in rows[:6]) + (", …" if len(rows) > 6 else ".")
    n = f"{len(rows):,} {source.rows}{'s' if len(rows) != 1 else ''}"
    return Answer(f"{n} {words} {value:,}: {shown}", rows, None if question == HOLE else value)
