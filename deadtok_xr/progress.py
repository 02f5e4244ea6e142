"""Progress of long work: a bar in a terminal, a plain line every tenth elsewhere, nothing when quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dask.callbacks import Callback

Report = Callable[[int, int], None]


@contextmanager
def reporting(label: str, *, quiet: bool = False, bytes_: bool = False) -> Iterator[Report]:
    """A function that is told (done, total), of bytes if so said, and shows it under a label."""
    if quiet:
        yield lambda done, total: None
    elif sys.stderr.isatty():
        with _bar(label, bytes_) as report:
            yield report
    else:
        yield _lines(label, bytes_)


@contextmanager
def _bar(label: str, bytes_: bool) -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description:>10}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        *([TransferSpeedColumn()] if bytes_ else []),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _lines(label: str, bytes_: bool) -> Report:
    began, next_tenth = time.monotonic(), 0

    def report(done: int, total: int) -> None:
        nonlocal next_tenth
        if total and done * 10 // total >= next_tenth:
            next_tenth = done * 10 // total + 1
            seconds = time.monotonic() - began
            line = f"{label}: {100 * done // total}% after {seconds:.0f} s"
            if bytes_ and seconds >= 1 and done:
                line += f", {done / seconds / 1e6:.0f} MB/s, {seconds * (total - done) / done:.0f} s left"
            print(line, file=sys.stderr, flush=True)

    return report


@contextmanager
def dask_progress(label: str, *, quiet: bool = False) -> Iterator[None]:
    """Show the progress of the Dask computation inside, on the local schedulers."""
    with reporting(label, quiet=quiet) as report, _Tasks(report):
        yield


class _Tasks(Callback):  # type: ignore[misc]
    def __init__(self, report: Report) -> None:
        super().__init__(posttask=self._finished)
        self._report = report

    def _finished(self, key: Any, result: Any, dsk: Any, state: dict[str, Any], worker: Any) -> None:
        done = len(state["finished"])
        total = sum(len(state[k]) for k in ("ready", "waiting", "running")) + done
        self._report(done, total)
