"""Text for the terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import PurePath


def table(rows: Sequence[Sequence[str]], align: str = "") -> list[str]:
    """Return the lines of a table, two spaces between columns as wide as their widest cell.

    Parameters
    ----------
    rows
        Rows of as many cells each.
    align
        A letter per column, ``"<"`` or ``">"``; columns without one are aligned on the left.
    """
    columns = [
        [f"{cell:{side}{max(map(len, column))}s}" for cell in column]
        for column, side in zip(zip(*rows, strict=True), align.ljust(len(rows[0]), "<"), strict=True)
    ]
    return ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]


def distinct_names(places: Sequence[object]) -> list[str]:
    """Return the names of stores, their whole places if these are not all different, or numbers."""
    for names in ([PurePath(str(place)).name.removesuffix(".zarr") for place in places], list(map(str, places))):
        if len(set(names)) == len(names) and all(names):
            return names
    return [str(i) for i in range(1, len(places) + 1)]


def counted(n: int, what: str) -> str:
    """Return a number of things in words: "1 step", "2,401 steps"."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def duration(seconds: float) -> str:
    """Return a time as text with two digits: "0.4 s", "12 s", "3.5 min", "20 h", "8.1 days"."""
    for unit, size in (("s", 60), ("min", 60), ("h", 48)):
        if seconds < size:
            return f"{seconds:.{0 if seconds >= 9.95 else 1}f} {unit}"
        seconds /= size if unit != "h" else 24
    return f"{seconds:,.{0 if seconds >= 9.95 else 1}f} days"


def quoted(text: str, width: int) -> str:
    """Return a text in quotes, at most ``width`` columns wide, with escapes for what a terminal might act on."""
    shown, used = "", 2
    for i, letter in enumerate(text):
        part = escaped(letter)
        columns = sum(_columns(c) for c in part)
        if used + columns > width - (i < len(text) - 1):
            return f'"{shown}\N{HORIZONTAL ELLIPSIS}"'
        shown, used = shown + part, used + columns
    return f'"{shown}"'


def escaped(text: str) -> str:
    """Return a text with escapes for all characters that do not print: of control, of direction, without a width."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def shortened(found: object, at_most: int = 200) -> str:
    """Return an error or any other value on one line, escaped and cut, for a message about foreign contents."""
    text = escaped(" ".join(str(found).split())) or type(found).__name__
    return text if len(text) <= at_most else f"{text[:at_most]}\N{HORIZONTAL ELLIPSIS}"


def _columns(letter: str) -> int:
    return 0 if unicodedata.combining(letter) else 1 + (unicodedata.east_asian_width(letter) in "WF")


def ranges(numbers: Iterable[int], at_most: int = 4) -> str:
    """Return ascending numbers as text, neighbours as ranges: "3, 17-19, 40 and 12 more"."""
    found: list[list[int]] = []
    for n in numbers:
        if found and n == found[-1][1] + 1:
            found[-1][1] = n
        else:
            found.append([n, n])
    shown = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in found[:at_most])
    more = sum(b - a + 1 for a, b in found[at_most:])
    return f"{shown} and {more:,} more" if more else shown
