"""Text for the terminal."""

from __future__ import annotations

from collections.abc import Sequence


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
