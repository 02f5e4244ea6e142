"""The table of tokens, or of parameters: its columns, search and order."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from deadtok_xr.errors import InputError
from deadtok_xr.explorer.motion_so_far import MotionSoFar
from deadtok_xr.explorer.quantities import words_of
from deadtok_xr.explorer.source import Source
from deadtok_xr.text import escaped

COLUMNS = {
    "lifecycle/last_motion": "last motion", "lifecycle/first_freeze": "first freeze", "lifecycle/thaw_count": "thaws",
    "last_thaw": "last thaw", "lifecycle/censored": "at the end", "lifecycle/moved_steps": "moved steps",
    "lifecycle/first_stumble": "stumble cohort", "mechanism/freeze_cause": "froze because",
    "mechanism/margin_after": "margin after", "census/black_hole": "black hole",
    "cloud/path_length": "path length", "cloud/net_displacement": "net displacement", "norm": "norm",
}  # fmt: skip
"""The quantities per token that the table shows first, and their headings; the rest is in the CSV file."""
MEANINGS = {
    "last motion": "last step at which the token moved", "first freeze": "first step without motion after the first "
    "motion", "thaws": "how often it moved again after a step without motion", "last thaw": "the last step at which it "
    "moved again after a step without motion", "moved steps": "at how many steps it moved",
    "at the end": "whether it moved at the last step", "stumble cohort": "first step at which all its "
    "elements together moved by at most 1 ULP, or not at all",
    "froze because": "why it did not move after its last motion", "margin after": "largest update after the last "
    "motion, in half gaps: below 1 it cannot move", "black hole": "place that it shares with others at the last "
    "step, ranked by size: 1 is the largest", "path length": "length of all its displacements together",
    "net displacement": "distance from the first to the last step", "norm": "‖W‖ at the last step",
    "–": "never, or none: in Find and in the CSV file -1, of black hole 0",
}  # fmt: skip
IDS = "as they are"
_LONGEST = 24  # letters of a text
_COMPARISONS = {
    "=": np.equal, "!=": np.not_equal, "<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal,
}  # fmt: skip
_CONDITION = re.compile(r"([\w ]*\w) *(!=|<=|>=|=|<|>) *(.*)")


def table(
    source: Source, so_far: MotionSoFar | None = None, norms: NDArray[Any] | None = None, *,
    only: Collection[str] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Return one row per token or parameter: its label and text, then what is known of it.

    Parameters
    ----------
    source
        What is explored.
    so_far
        Life cycles by motion: all of them where there is no `lifecycle`, else the last thaw alone.
    norms
        Norms of the rows.
    only
        Quantities, if not all of them: the rest is not read.
    """
    frame = labels(source)
    values = _per_row(source, only)
    if so_far is not None:
        values = {**{f"lifecycle/{k}": v for k, v in so_far.columns().items()}, **values}
        values["last_thaw"] = values.pop("lifecycle/last_thaw")
        values["lifecycle/censored"] = _at_the_end(values["lifecycle/censored"])
    if norms is not None:
        values["norm"] = norms
    ordered = [*(key for key in COLUMNS if key in values), *(key for key in values if key not in COLUMNS)]
    for key in ordered:
        name = key.removeprefix("monitor/").replace("_", " ").replace("censored", "at the end")
        frame[COLUMNS.get(key, name)] = values[key]
    return frame


def labels(source: Source) -> pd.DataFrame:
    """Return the first columns of the table, which need no reading: labels, and texts where they are known."""
    frame = pd.DataFrame({source.rows: source.labels})
    if any(texts := source.texts):
        frame["text"] = [escaped(text) for text in texts]
    return frame


def _per_row(source: Source, only: Collection[str] | None) -> dict[str, NDArray[Any]]:
    """Return every quantity with one value per row, or ``only`` some, in the order of the source's rows."""
    found = {}
    for group, ds in source.groups.items():
        if source.rows not in ds.coords:
            continue
        index = pd.Index(ds[source.rows].values).get_indexer(source.labels)
        for name, x in {**ds.data_vars, **ds.coords}.items():
            if name == "black_hole":
                x = x.isel(census_step=-1)
            if x.dims == (source.rows,) and name not in (source.rows, "token_text") and (index >= 0).all():
                key = f"{group}/{name}" if name in ds.data_vars else str(name)
                if only is not None and key not in only:
                    continue
                found[key] = _in_words(x)[index]
    return found


def _in_words(x: xr.DataArray) -> NDArray[Any]:
    if x.name == "censored":
        return _at_the_end(x.values)
    words = words_of(x) if x.dtype != bool else {}
    if x.name == "freeze_cause":  # "moved" is no cause: the token still moves
        words = {flag: "–" if word == "moved" else word for flag, word in words.items()}
    return np.array([words.get(int(v), str(v)) for v in x.values], object) if words else x.values


def _at_the_end(censored: NDArray[Any]) -> NDArray[Any]:
    """Return words for the flags of `lifecycle`: -1 unknown, 0 frozen, 1 moving."""
    if censored.dtype == object:
        return censored
    return np.array(["frozen", "moving", "unknown"], object)[censored.astype(np.int64)]


def shown_columns(frame: pd.DataFrame) -> list[str]:
    """Return the columns of a table that are shown: label, text and the first quantities."""
    if frame.columns[0] != "token":
        return list(frame.columns)
    first = set(COLUMNS.values())
    return [c for i, c in enumerate(frame.columns) if i == 0 or c == "text" or c in first]


def matching(frame: pd.DataFrame, pattern: str) -> NDArray[np.bool_]:
    """Return which rows a search finds.

    Parameters
    ----------
    frame
        The table.
    pattern
        A text; a regular expression between slashes; labels separated by commas; or a condition on a column of numbers
        or words, such as ``thaws > 0`` or ``black hole = 1``.

    Raises
    ------
    InputError
        If a regular expression or a condition cannot be read, or what looks like a condition names no column and is
        found in no text.
    """
    pattern = pattern.strip()
    if not pattern:
        return np.ones(len(frame), bool)
    ids = frame.iloc[:, 0].astype(str)
    if all(part.strip().isdigit() for part in pattern.split(",")) and pattern.isascii():
        return ids.isin([part.strip() for part in pattern.split(",")]).to_numpy()
    condition = _CONDITION.fullmatch(pattern)
    if condition and condition[1].casefold() in map(str.casefold, frame.columns):
        return _where(frame, *condition.groups())
    columns = [ids, *([frame["text"]] if "text" in frame else [])]
    columns += [frame[c] for c in frame.columns[1:] if not is_number(frame[c]) and c != "text"]
    if len(pattern) > 2 and pattern[0] == pattern[-1] == "/":
        try:
            found = re.compile(pattern[1:-1])
        except re.error as error:
            raise InputError(f"{pattern} is no regular expression: {error}") from None
        return np.array([any(found.search(str(c[i])) for c in columns) for i in range(len(frame))], bool)
    needle = pattern.casefold()
    has = np.any([c.astype(str).str.casefold().str.contains(needle, regex=False) for c in columns], axis=0)
    if condition and not has.any():
        raise InputError(f"there is no column {condition[1]!r}{_similar(condition[1], frame)}")
    return has


def _similar(name: str, frame: pd.DataFrame) -> str:
    """Return words about the columns whose names share a word with a name; "" if none does."""
    words = set(name.casefold().split())
    similar = [column for column in frame.columns if words & set(column.casefold().split())]
    return f", but {' and '.join(similar[:4])}" if similar else ""


def _where(frame: pd.DataFrame, name: str, comparison: str, value: str) -> NDArray[np.bool_]:
    """Return the rows whose value in a column compares as asked."""
    column = next(frame[c] for c in frame.columns if c.casefold() == name.casefold())
    if not is_number(column):
        if comparison not in ("=", "!="):
            raise InputError(f"{column.name} holds words: ask with {column.name} = …")
        equal = (column.astype(str).str.casefold() == value.casefold()).to_numpy()
        return equal if comparison == "=" else ~equal
    if not value:
        raise InputError(f"a number is missing after {name} {comparison}")
    try:
        number = float(value)
    except ValueError:
        raise InputError(f"{column.name} holds numbers, and {value!r} is none") from None
    found: NDArray[np.bool_] = _COMPARISONS[comparison](column.to_numpy(), number)
    return found


def orders(frame: pd.DataFrame) -> list[str]:
    """Return what rows can be sorted by."""
    return [IDS, *(c for c in frame.columns[1:])]


def ordered(frame: pd.DataFrame, by: str) -> NDArray[np.intp]:
    """Return the positions of the rows, sorted by a column; ties in the order of the rows."""
    if by not in frame:
        return np.arange(len(frame))
    values = frame[by]
    return np.argsort(values.to_numpy() if is_number(values) else values.astype(str).to_numpy(str), kind="stable")


def is_number(values: pd.Series[Any]) -> bool:
    """Return whether a column holds numbers, not words or flags."""
    return bool(is_numeric_dtype(values) and not is_bool_dtype(values))


def names(source: Source) -> list[str]:
    """Return a short name for each row: its text, and its id if it has a text."""
    return [name(label, text) for label, text in zip(source.labels.tolist(), source.texts, strict=True)]


def in_quotes(text: str) -> str:
    """Return the beginning of a text in quotes, which show the spaces at its ends."""
    return f'"{escaped(text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…")}"'


def name(label: Any, text: str) -> str:
    """Return a short name of a row that no typesetter of formulas takes for its own."""
    shown = f"{label} {in_quotes(text)}" if text else escaped(str(label))
    for mark in ("$$", r"\(", r"\["):
        shown = shown.replace(mark, mark[0] + "\u200b" + mark[1])
    return shown
