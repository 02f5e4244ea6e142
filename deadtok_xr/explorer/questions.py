"""What is asked most often of a run: the tokens or the step that answer, and a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from deadtok_xr.explorer import quantities
from deadtok_xr.explorer.source import Source
from deadtok_xr.text import counted

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

_LOW = 0.9  # mean cosine
_COHERENCE = "coherence/displacement_cosine_mean"
LEAST_COHERENT = "the step of least coherence"
HOLE = "the largest black hole"
_COLUMNS = {
    "the tokens that thawed last": ("last thaw", max, "thawed last (moved again after a step without motion), at step"),
    "the tokens that moved last": ("last motion", max, "moved last, at step"),
    "the tokens that froze first": ("first freeze", min, "stood still first, at step"),
    HOLE: ("black hole", min, ""),
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
    return [*found, *([LEAST_COHERENT] if _COHERENCE in quantities.of_steps(source) else [])]


def answer(question: str, frame: pd.DataFrame, source: Source) -> Answer:
    """Answer one of the questions that `offered` returned."""
    if question == LEAST_COHERENT:
        return _least_coherent(quantities.of_steps(source)[_COHERENCE])
    column, best, words = _COLUMNS[question]
    values = frame[column].to_numpy()
    value = int(best(values[values > 0]))
    rows = np.flatnonzero(values == value).tolist()
    n = ("All " if len(rows) == len(frame) > 1 else "") + counted(len(rows), source.rows)
    if question == HOLE:
        census = int(source.groups["census"]["census_step"][-1])
        return Answer(f"{n} are equal to the bit at step {census:,}.", rows)
    return Answer(f"{n} {words} {value:,}.", rows, value)


def _least_coherent(cosine: xr.DataArray) -> Answer:
    """Answer with the smallest cosine, and say how many others are low, and where."""
    values, steps = cosine.values, cosine["step"].values
    low = np.flatnonzero(values < _LOW)
    at = int(cosine.idxmin("step"))
    said = f"The mean cosine between displacements is smallest at step {at:,}: {float(cosine.min()):.3g}. "
    said += f"It is below {_LOW} at {len(low):,} of {int(np.isfinite(values).sum()):,} steps"
    others = [i for i in low[np.argsort(values[low], kind="stable")] if steps[i] != at][:3]
    said += f", next lowest at {', '.join(f'{steps[i]:,} ({values[i]:.3g})' for i in others)}" if others else ""
    return Answer(f"{said}. The selected tokens stay selected.", step=at)
