"""Report progress: a bar in a terminal, elsewhere a line every tenth or half a minute, nothing when quiet.

Tasks that run in threads of this process say within a block how far they are, and which analysis is at work.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from dask.callbacks import Callback

from deadtok_xr.engine.reduction import Reduction

_POLL_S = 0.5
_SILENCE_S = 30
"""Seconds after which a line is printed although no tenth is finished."""


class Report(Protocol):
    """A function that shows how much is done, and what is at work."""

    def __call__(self, done: float, total: float, what: str = "") -> None: ...


Note = Callable[[float, str], None]
"""A function that takes the share of its block that a task has done, and what it does next."""
_note: Note | None = None


def listener() -> Note | None:
    """Return the function to which tasks report; None in another process, and where no progress is shown."""
    return _note


def label(reduction: Reduction) -> str:
    """Return the name under which the work of a reduction is shown."""
    own = getattr(reduction, "label", "") or getattr(reduction, "name", "")
    return str(own) or type(reduction).__module__.rpartition(".")[2]


@contextmanager
def reporting(label: str, *, quiet: bool = False, bytes_: bool = False) -> Iterator[Report]:
    """Yield a function of (done, total), which are bytes if ``bytes_``, that shows progress under a label."""
    if quiet:
        yield lambda done, total, what="": None
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
        TextColumn("{task.fields[what]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(label, total=None, what="")
        yield lambda done, total, what="": progress.update(task, completed=done, total=total, what=what)


def _lines(label: str, bytes_: bool) -> Report:
    start = last = time.monotonic()
    next_tenth = 1  # nothing is said at the start

    def report(done: float, total: float, what: str = "") -> None:
        nonlocal next_tenth, last
        now = time.monotonic()
        if total and (done * 10 // total >= next_tenth or now - last > _SILENCE_S):
            next_tenth, last = int(done * 10 // total) + 1, now
            seconds = now - start
            line = f"{label}: {int(100 * done // total)}% after {seconds:.0f} s{what and ', ' + what}"
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
    """Report finished blocks on a local scheduler, and parts of those at work; all tasks if there are no blocks."""

    def __init__(self, report: Report) -> None:
        super().__init__(start=self._begin, posttask=self._finished)
        self._report, self._lock = report, threading.Lock()
        self._done = self._blocks = 0
        self._parts: dict[int, float] = {}
        self._shown, self._what = 0.0, ""
        self._ended = threading.Event()

    def __enter__(self) -> _Tasks:
        global _note
        _note = self._at_work
        super().__enter__()
        threading.Thread(target=self._repeat, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        global _note
        _note = None
        self._ended.set()
        super().__exit__(*error)

    def _begin(self, graph: Any) -> None:
        self._done, self._blocks, self._shown = 0, sum(map(_is_block, graph)), 0.0

    def _at_work(self, part: float, what: str) -> None:
        with self._lock:
            self._parts[threading.get_ident()] = part
            self._show(what)

    def _repeat(self) -> None:
        """Show progress again: for minutes, one step of an analysis may say nothing."""
        while not self._ended.wait(_SILENCE_S / 2):
            with self._lock:
                if self._what and not self._ended.is_set():
                    self._show(self._what)

    def _show(self, what: str) -> None:
        """Show progress, which never goes back: the part of a block is forgotten before the block is counted."""
        self._what = what or self._what
        if self._blocks:
            self._shown = max(self._shown, min(self._done + sum(self._parts.values()), self._blocks))
            self._report(self._shown, self._blocks, what)

    def _finished(self, key: Any, result: Any, graph: Any, state: dict[str, Any], worker: Any) -> None:
        if self._blocks:
            if _is_block(key):
                with self._lock:
                    self._done += 1
                    self._show("finishing" if self._done == self._blocks else "")
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
                done, total, n_workers = client.run_on_scheduler(_count_blocks)
            except Exception:
                return  # the computation raises the error
            if total:
                report(done, total, "" if n_workers else "waiting for workers, of which there are none")

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
        report(1, 1)
    finally:
        finished.set()
        thread.join()


def _count_blocks(dask_scheduler: Any) -> tuple[int, int, int]:
    """Return, on the scheduler, the number of finished blocks, of all blocks, and of workers."""
    states = [ts.state for ts in dask_scheduler.tasks.values() if _is_block(ts.key)]
    return (
        sum(state in ("memory", "released", "forgotten") for state in states),
        len(states),
        len(dask_scheduler.workers),
    )
