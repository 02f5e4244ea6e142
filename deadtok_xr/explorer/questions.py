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
_THAWED, _MOVED, _FROZE = (f"the tokens that {did}" for did in ("thawed last", "moved last", "froze first"))
_COLUMNS = {
    _THAWED: ("last thaw", max, "thawed last (moved again after a step without motion), at step"),
    _MOVED: ("last motion", max, "moved last, at step"),
    _FROZE: ("first freeze", min, "stood still first, at step"),
    HOLE: ("black hole", min, ""),
}
_NEEDS = {_THAWED: "lifecycle", _MOVED: "lifecycle", _FROZE: "lifecycle", HOLE: "census", LEAST_COHERENT: "coherence"}
_NAMED = 3  # other places that are as large


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
        The step; None if the question cannot be answered.
    """

    text: str
    rows: list[int] | None = None
    step: int | None = None


def offered(frame: pd.DataFrame, source: Source) -> dict[str, str]:
    """Return the questions, and what a list of them shows: of tokens, also those whose analysis is missing."""
    found = {}
    for question in _NEEDS:
        column, _, _ = _COLUMNS.get(question, ("", None, ""))
        known = column in frame if column else _COHERENCE in quantities.of_steps(source)
        if known and (not column or (frame[column] > 0).any()):
            found[question] = question
        elif not known and source.rows == "token" and not source.live:
            found[question] = f"{question} (not analysed)"
    return found


def answer(question: str, frame: pd.DataFrame, source: Source) -> Answer:
    """Answer one of the questions that `offered` returned, or say which analysis is missing."""
    if offered(frame, source).get(question) != question:
        group = _NEEDS[question]
        return Answer(f"{group.capitalize()} was not analysed: deadtok analyze … --only {group}")
    if question == LEAST_COHERENT:
        return _least_coherent(quantities.of_steps(source)[_COHERENCE])
    column, best, words = _COLUMNS[question]
    values = frame[column].to_numpy()
    value = int(best(values[values > 0]))
    rows = np.flatnonzero(values == value).tolist()
    n = ("All " if len(rows) == len(frame) > 1 else "") + counted(len(rows), source.rows)
    if question == HOLE:
        census = int(source.groups["census"]["census_step"][-1])
        return Answer(f"{n} are equal to the bit at step {census:,}{_as_large(frame, value)}.", rows, census)
    return Answer(f"{n} {words} {value:,}.", rows, value)


def _as_large(frame: pd.DataFrame, largest: int) -> str:
    """Return words about the other places that hold as many tokens as the largest black hole; "" if none does."""
    places = frame[frame["black hole"] > 0].groupby("black hole").groups
    others = [rows for place, rows in places.items() if place != largest and len(rows) == len(places[largest])]
    if not others:
        return ""
    labels = frame.iloc[:, 0]
    named = "; ".join(", ".join(map(str, labels[rows])) for rows in others[:_NAMED])
    more = f"; and {len(others) - _NAMED:,} more" if len(others) > _NAMED else ""
    hold = "another place holds" if len(others) == 1 else f"{len(others):,} other places hold"
    return f"; {hold} as many: {named}{more}"


def _least_coherent(cosine: xr.DataArray) -> Answer:
    """Answer with the smallest cosine, and say how many others are low, and where."""
    values, steps = cosine.values, cosine["step"].values
    low = np.flatnonzero(values < _LOW)
    at = int(cosine.idxmin("step"))
    said = f"The mean cosine between displacements is smallest at step {at:,}: {float(cosine.min()):.3g}. "
    known = counted(int(np.isfinite(values).sum()), "step")
    said += f"It is below {_LOW} at {len(low):,} of the {known} with at least two moving tokens"
    others = [i for i in low[np.argsort(values[low], kind="stable")] if steps[i] != at][:3]
    said += f", next lowest at {', '.join(f'{steps[i]:,} ({values[i]:.3g})' for i in others)}" if others else ""
    return Answer(f"{said}.", step=at)
