"""Report progress: a bar in a terminal, elsewhere a line every tenth, nothing when quiet."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dask.callbacks import Callback

Report = Callable[[int, int], None]
_POLL_S = 0.5


@contextmanager
def reporting(label: str, *, quiet: bool = False, bytes_: bool = False) -> Iterator[Report]:
    """Yield a function of (done, total), which are bytes if ``bytes_``, that shows progress under a label."""
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
    start, next_tenth = time.monotonic(), 0

    def report(done: int, total: int) -> None:
        nonlocal next_tenth
        if total and done * 10 // total >= next_tenth:
            next_tenth = done * 10 // total + 1
            seconds = time.monotonic() - start
            line = f"{label}: {100 * done // total}% after {seconds:.0f} s"
            if bytes_ and seconds >= 1 and done:
                line += f", {done / seconds / 1e6:.0f} MB/s, {seconds * (total - done) / done:.0f} s left"
            print(line, file=sys.stderr, flush=True)

    return report


@contextmanager
def dask_progress(label: str, *, quiet: bool = False) -> Iterator[None]:
    """Show the progress of the Dask computation inside, on the local schedulers or on a cluster."""
    from deadtok_xr.engine import cluster

    with reporting(label, quiet=quiet) as report:
        client = None if quiet else cluster.current()
        with _Tasks(report) if client is None else _polling(client, report):
            yield


def _is_block(key: Any) -> bool:
    # the tasks of a pass do the work; hundreds of small tasks follow
    return isinstance(key, tuple) and str(key[0]).startswith("pass-")


class _Tasks(Callback):  # type: ignore[misc]
    """Report finished blocks on a local scheduler; all tasks if there are no blocks."""

    def __init__(self, report: Report) -> None:
        super().__init__(start=self._begin, posttask=self._finished)
        self._report = report
        self._done = self._blocks = 0

    def _begin(self, graph: Any) -> None:
        self._done, self._blocks = 0, sum(map(_is_block, graph))

    def _finished(self, key: Any, result: Any, graph: Any, state: dict[str, Any], worker: Any) -> None:
        if self._blocks:
            if _is_block(key):
                self._done += 1
                self._report(self._done, self._blocks)
            return
        done = len(state["finished"])
        self._report(done, sum(len(state[k]) for k in ("ready", "waiting", "running")) + done)


@contextmanager
def _polling(client: Any, report: Report) -> Iterator[None]:
    """Report finished blocks on a cluster, as its scheduler counts them."""
    finished = threading.Event()

    def poll() -> None:
        while not finished.wait(_POLL_S):
            try:
                done, total = client.run_on_scheduler(_count_blocks)
            except Exception:
                return  # the computation raises the error
            if total:
                report(done, total)

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
        report(1, 1)
    finally:
        finished.set()
        thread.join()


def _count_blocks(dask_scheduler: Any) -> tuple[int, int]:
    """Return, on the scheduler, the number of finished blocks and of all blocks."""
    states = [ts.state for ts in dask_scheduler.tasks.values() if _is_block(ts.key)]
    return sum(state in ("memory", "released", "forgotten") for state in states), len(states)
