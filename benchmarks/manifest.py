"""Measure what the manifest of a store costs: the same work with it and without it, in turn, as ratios.

    python -m benchmarks.manifest [--repeat 7] [--steps 1500]

`wall` and `cpu` are medians of the ratios of neighbouring runs, with and without. `recording` is without the manifest
and without flushing each chunk to the disk; `flushing` compares only the latter. `share` is the CPU time spent in the
functions of the manifest, of the CPU time of the whole work: it does not depend on what else the machine does.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import click
import numpy as np
import zarr

import deadtok_xr as dx
from deadtok_xr import store, testing
from deadtok_xr.recorder.appender import create_appender
from deadtok_xr.store import chunk_bytes, chunk_entries, location, manifest, manifest_check, manifest_write

Timed = tuple[float, float]


@contextmanager
def without_manifest() -> Iterator[None]:
    """Declare stores complete as before there were manifests."""

    def complete(
        root: Any, arrays: Any, attributes: Any, known: Any = None, *, groups: Any = (), sync: bool = True
    ) -> None:
        root.attrs.put({**attributes, "complete": True})

    with patch.object(manifest_write, "complete", complete), patch.object(chunk_entries, "entry_of", lambda *_: (0, 0)):
        yield


@contextmanager
def without_flushing() -> Iterator[None]:
    """Write chunks of a recording as before they were flushed to the disk."""
    real = location.write_atomically
    with patch.object(location, "write_atomically", lambda path, data, durable=False: real(path, data)):
        yield


@contextmanager
def without_both() -> Iterator[None]:
    with without_manifest(), without_flushing():
        yield


def timed(work: Callable[[], object]) -> Timed:
    """Return the wall time and the CPU time of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


@contextmanager
def counted(found: list[float]) -> Iterator[None]:
    """Add up the CPU time of the outermost calls of the functions of the manifest."""
    within = threading.local()

    def counting(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if getattr(within, "deep", False):
                return real(*args, **options)
            within.deep, began = True, time.thread_time()
            try:
                return real(*args, **options)
            finally:
                within.deep = False
                found.append(time.thread_time() - began)

        return call

    functions = [
        (manifest_write, "complete"), (manifest_check, "check"), (manifest, "check_chunk"), (manifest, "lists"),
        (chunk_bytes, "_end_of"), (chunk_entries, "entry_of"),
    ]  # fmt: skip
    with ExitStack() as stack:
        for module, name in functions:
            stack.enter_context(patch.object(module, name, counting(getattr(module, name))))
        yield


def convert(source: Path, folder: Path) -> Callable[[], object]:
    return lambda: dx.convert(source, folder / "converted.zarr", overwrite=True)


def record(values: np.ndarray[Any, Any], folder: Path) -> Callable[[], object]:
    """Append steps as a Recorder does, 64 at a time, and finish."""

    def work() -> None:
        table = store.TokenTable(np.arange(values.shape[1]))
        appender = create_appender(folder / "recorded.zarr", table, {"made_by": "Recorder"}, 64, overwrite=True)
        for start in range(0, len(values), 64):
            part = values[start : start + 64]
            appender.append(np.arange(start, start + len(part)), {"W": (part, 0.0)}, {})
        appender.finish()

    return work


def compare(
    name: str, repeat: int, make: Callable[[AbstractContextManager[None]], Callable[[], object]],
    without: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> None:  # fmt: skip
    """Print the ratio of one work with a manifest and without."""
    wall, cpu, first = [], [], 0.0
    for i in range(repeat + 1):
        pair: list[Timed] = []
        for context in (nullcontext(), without()):
            work = make(context)
            with context:
                pair.append(timed(work))
        first = pair[0][0]
        if i:  # the first pair warms up
            wall.append(pair[0][0] / pair[1][0])
            cpu.append(pair[0][1] / pair[1][1])
    texts = (f"{median(r):.4f} ({min(r):.3f} to {max(r):.3f})" for r in (wall, cpu))
    shares = []
    for _ in range(repeat):
        found: list[float] = []
        work = make(nullcontext())
        with counted(found):
            _, total = timed(work)
        shares.append(sum(found) / total)
    click.echo(f"{name:12s} {first:8.3f} s   wall {next(texts)}   cpu {next(texts)}   share {median(shares):.3%}")


@click.command()
@click.option("--repeat", default=7, show_default=True)
@click.option("--steps", default=1500, show_default=True)
@click.option("--tokens", default=1000, show_default=True)
def main(repeat: int, steps: int, tokens: int) -> None:
    """Compare each work with and without a manifest."""
    folder = Path(tempfile.mkdtemp(prefix="manifest-"))
    try:
        path = testing.synthetic_recording(folder / "a.zarr", steps=steps, tokens=tokens, dims=64)
        source = dx.export(path, folder / "a.h5")
        values = dx.open_recording(path, raw=True).W.values
        older = Path(shutil.copytree(path, folder / "older.zarr"))
        manifest_write.remove(zarr.open_group(str(older), mode="r+"))
        n = sum(len(chunk_entries.positions_of(a)) for _, a in zarr.open_group(str(path)).arrays())
        size = len(chunk_entries.read_key(zarr.open_group(str(path)).store, manifest.KEY) or b"")
        click.echo(f"{values.nbytes / 1e6:.0f} MB in {n} chunks; the manifest has {size} bytes")
        compare("conversion", repeat, lambda _: convert(source, folder), without_manifest)
        compare("recording", repeat, lambda _: record(values, folder), without_both)
        compare("flushing", repeat, lambda _: record(values, folder), without_flushing)

        def reading(work: Callable[[Path], object]) -> Callable[[AbstractContextManager[None]], Callable[[], object]]:
            return lambda context: lambda: work(path if isinstance(context, nullcontext) else older)

        compare("opening", 5 * repeat, reading(dx.open_recording), without_manifest)
        compare("motion", repeat, reading(lambda p: dx.motion(dx.open_recording(p)).compute()), without_manifest)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
