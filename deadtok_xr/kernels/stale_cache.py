"""Forget compiled kernels whose sources changed: numba compares only the file of the function that Python calls."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_IMPORT = re.compile(r"^from (deadtok_xr[\w.]*) import", re.MULTILINE)


@cache
def forget_stale(folder: Path, source: Path) -> None:
    """Remove what was compiled of a file of kernels before it, or a module that it imports, was changed.

    Otherwise a compiled function would keep the functions that it calls as they were.
    """
    changed = max((_changed(path) for path in _sources(source)), default=0.0)
    if changed > time.time():
        return  # a clock is wrong: everything would be compiled again and again
    for index in _indexes(folder).get(source.stem, ()):
        with suppress(OSError):  # another process removes it as well
            if index.stat().st_mtime < changed:
                Path(index).unlink()


@cache
def _indexes(folder: Path) -> dict[str, list[os.DirEntry[str]]]:
    """Return numba's files of compiled functions by the name of the file of kernels."""
    found: dict[str, list[os.DirEntry[str]]] = {}
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(".nbi"):
                found.setdefault(entry.name.partition(".")[0], []).append(entry)
    return found


@cache
def _changed(file: Path) -> float:
    return file.stat().st_mtime if file.is_file() else 0.0


def _sources(file: Path) -> set[Path]:
    """Return a file of the package, and all that it imports from the package, directly or not."""
    found, pending = set[Path](), [file]
    while pending:
        path = pending.pop()
        if path not in found:
            found.add(path)
            pending += _imported(path)
    return found


@cache
def _imported(file: Path) -> tuple[Path, ...]:
    return tuple(_modules(file.read_text("utf-8"))) if file.is_file() else ()


def _modules(text: str) -> Iterator[Path]:
    for name in _IMPORT.findall(text):
        path = _PACKAGE.joinpath(*name.split(".")[1:])
        yield from (p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file())
