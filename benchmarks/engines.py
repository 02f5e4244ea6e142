"""Compare readers of our chunks: zarr-python, the zarrs codec pipeline, TensorStore, and direct reading.

    python -m benchmarks.engines DIR            # DIR/recording.zarr, as benchmarks.recording leaves it

Each reads W of the dead tokens, all chunks of the same steps at a time, alternately; the table gives medians. `CPU` is
that of all threads; for `cold` the files are dropped from the page cache before (by advice to the operating system,
which may ignore it). zarrs and tensorstore are left out if they are not installed.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import zarr
from numpy.typing import NDArray

import deadtok_xr as dx
from deadtok_xr.engine import StepBlock
from deadtok_xr.engine.batches import batches
from deadtok_xr.store.chunk_reader import chunk_reader
from deadtok_xr.store.stored_array import StepReader, StoredArray, stored_array

Blocks = Iterator[NDArray[Any]]


class Engines:
    """Ways to read a recording, each an iterator over the decoded blocks of steps."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "recording.zarr"
        stored = stored_array(dx.open_recording(self.path, tokens="dead").W.data)
        assert stored is not None
        self.place: StoredArray = stored
        self.n_steps = len(stored.steps)
        self.rows = range(0, self.n_steps, stored.chunk_steps)

    def _slices(self) -> Iterator[tuple[slice, slice]]:
        for first in self.rows:
            yield slice(first, min(first + self.place.chunk_steps, self.n_steps)), slice(len(self.place.tokens))

    def zarr_python(self) -> Blocks:
        """Read with zarr-python and its default settings."""
        array: Any = zarr.open_array(self.path / "W", mode="r")
        for at in self._slices():
            yield array[at]

    def zarrs(self) -> Blocks:
        """zarr-python with the codec pipeline of zarrs."""
        with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
            yield from self.zarr_python()

    def tensorstore(self) -> Blocks:
        """TensorStore."""
        import tensorstore

        kvstore = {"driver": "file", "path": str(self.path / "W")}
        array = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}).result()
        for at in self._slices():
            yield array[at].read().result()

    def direct(self) -> Blocks:
        """Decompress each whole chunk within its task, as lazy arrays do."""
        reader, height = chunk_reader(self.place.array), self.place.array.chunks[1]
        for i in range(len(self.rows)):
            for j in range(-(-len(self.place.tokens) // height)):
                yield reader((i, j, 0))

    def batches(self, ahead: bool = False) -> Blocks:
        """Decompress a few steps of all chunks of a block at a time, as analyses do."""
        for first in self.rows:
            if ahead:
                self._announce(first + self.place.chunk_steps)
            n = min(self.place.chunk_steps, self.n_steps - first)
            row = StepBlock(first, n, n if first + n < self.n_steps else n - 1, *self.place.shape[1:])
            source = StepReader(self.place, first, first + n)
            for batch in batches(row, {"W": source}, 4):
                yield batch.values["W"]
            source.close()

    def batches_prefetched(self) -> Blocks:
        """Read as `batches`, and announce the next files to the operating system."""
        return self.batches(ahead=True)

    def _announce(self, first: int) -> None:
        for path in sorted((self.path / "W" / "c" / str(first // self.place.chunk_steps)).glob("*/0")):
            _advise(path, os.POSIX_FADV_WILLNEED)

    def forget(self) -> None:
        """Drop the files from the page cache."""
        for path in (self.path / "W" / "c").glob("*/*/0"):
            _advise(path, os.POSIX_FADV_DONTNEED)


def _advise(path: Path, advice: int) -> None:
    file = os.open(path, os.O_RDONLY)
    os.posix_fadvise(file, 0, 0, advice)
    os.close(file)


def ways() -> list[str]:
    """The names of the ways that are installed."""
    names = ["zarr_python", "zarrs", "tensorstore", "direct", "batches", "batches_prefetched"]
    return [n for n in names if n not in ("zarrs", "tensorstore") or importlib.util.find_spec(n)]


class Reading:
    """Read everything once, for asv: `Reading().setup(way, folder)`."""

    params = ways()

    def setup(self, way: str, folder: Path) -> None:
        """Choose a way."""
        self.engines = Engines(folder)
        self.read: Callable[[], Blocks] = getattr(self.engines, way)

    def time_read(self) -> int:
        """Read, and count the values."""
        return sum(block.size for block in self.read())


def measure(folder: Path, runs: int, cold: bool) -> dict[str, tuple[float, float]]:
    """Medians of wall and CPU seconds of each way."""
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways()}
    for _ in range(runs):
        for way, seconds in found.items():
            reading = Reading()
            reading.setup(way, folder)
            if cold:
                reading.engines.forget()
            wall, cpu = time.perf_counter(), time.process_time()
            reading.time_read()
            seconds.append((time.perf_counter() - wall, time.process_time() - cpu))
    return {way: (_median(seconds, 0), _median(seconds, 1)) for way, seconds in found.items()}


def _median(seconds: list[tuple[float, float]], which: int) -> float:
    return statistics.median(pair[which] for pair in seconds)


@click.command()
@click.argument("folder", type=click.Path(exists=True, path_type=Path))
@click.option("--runs", default=5, show_default=True)
def main(folder: Path, runs: int) -> None:
    """Compare ways of reading DIR/recording.zarr."""
    measure(folder, 1, cold=False)
    warm, cold = measure(folder, runs, cold=False), measure(folder, runs, cold=True)
    click.echo(f"{'':18s}{'warm s':>9s}{'CPU s':>9s}{'of direct':>11s}{'cold s':>9s}")
    for way, (wall, cpu) in warm.items():
        ratio = cpu / warm["direct"][1]
        click.echo(f"{way:18s}{wall:9.2f}{cpu:9.2f}{ratio:10.2f}x{cold[way][0]:9.2f}")


if __name__ == "__main__":
    main()
