"""Compare converting a recording with only compressing its chunks, in one run, as a ratio.

    python -m benchmarks.recording DIR          # once, about 10 minutes on one core
    python -m benchmarks.conversion DIR/recording.h5

`encode` compresses every chunk that the store will have, from memory, on as many threads as conversion uses; no
conversion can be faster. `store` also writes them to files, and waits for the disk as a conversion does. `convert`
is `dx.convert`: `work` is the call without imports, `process` everything from start to exit. Each runs in separate
processes, alternately; the table gives medians, the peak memory, and the peak that the plan predicted.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import h5py
import numpy as np
from dask.system import CPU_COUNT
from numcodecs.zstd import Zstd
from numpy.typing import NDArray

import deadtok_xr as dx
from deadtok_xr import store
from deadtok_xr.conversion.opening import open_with_options
from deadtok_xr.conversion.options import DEFAULT_OPTIONS
from deadtok_xr.conversion.planning import make_plan
from deadtok_xr.conversion.units import divide, fill, word_type

Figures = dict[str, float]


def encode(source: Path, folder: Path) -> Figures:
    """Compress all chunks; what puts them together in memory is not counted."""
    return _encode(source, lambda i, data: None)


def store_chunks(source: Path, folder: Path) -> Figures:
    """Compress all chunks and write them to files, and wait until they are on the disk: nothing is read."""
    chunks = folder / "chunks"
    chunks.mkdir(exist_ok=True)
    found = _encode(source, lambda i, data: (chunks / str(i)).write_bytes(data))
    began = time.perf_counter()
    os.sync()
    return {**found, "work": found["work"] + time.perf_counter() - began}


def _encode(source: Path, put: Callable[[int, bytes], object]) -> Figures:
    seconds, cpu, written, n_chunks = 0.0, 0.0, 0, 0

    def finish(i: int, block: NDArray[Any]) -> int:
        data = Zstd(store.ZSTD_LEVEL, checksum=True).encode(block)
        put(i, data)
        return len(data)

    with open_with_options(source, DEFAULT_OPTIONS) as (opened, options), ThreadPoolExecutor(CPU_COUNT) as pool:
        plan = make_plan(opened, options)
        for unit in divide(plan, plan.unit_bytes()):
            blocks = np.empty(unit.nbytes, np.uint8).view(word_type(unit.variable.dtype)).reshape(unit.layout())
            fill(unit, plan, opened, blocks, 0)
            began, used = time.perf_counter(), time.process_time()
            written += sum(pool.map(finish, itertools.count(n_chunks), blocks))
            n_chunks += len(blocks)
            seconds, cpu = seconds + time.perf_counter() - began, cpu + time.process_time() - used
    return {"work": seconds, "cpu": cpu, "peak_mb": 0, "promised_mb": 0, "written_mb": written / 1e6}


def convert(source: Path, folder: Path) -> Figures:
    """The whole call, once everything is imported and compiled."""
    with h5py.File(folder / "warm.h5", "w") as file:
        file["W"] = np.arange(60, dtype=np.uint16).reshape(5, 6, 2)
    dx.convert(folder / "warm.h5", folder / "warm.zarr", overwrite=True)
    with open_with_options(source, DEFAULT_OPTIONS) as (opened, options):
        promised = make_plan(opened, options).peak_memory()
    began, used = time.perf_counter(), time.process_time()
    dest = dx.convert(source, folder / "converted.zarr", overwrite=True)
    seconds, cpu = time.perf_counter() - began, time.process_time() - used
    written = sum(path.stat().st_size for path in dest.rglob("*") if path.is_file())
    sizes = {"peak_mb": peak() / 1e6, "promised_mb": promised / 1e6, "written_mb": written / 1e6}
    return {"work": seconds, "cpu": cpu, **sizes}


def peak() -> int:
    """This program's own peak; ru_maxrss may be inherited from whoever started it."""
    status = Path("/proc/self/status")
    return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024 if status.exists() else 0


WAYS: dict[str, Callable[[Path, Path], Figures]] = {"encode": encode, "store": store_chunks, "convert": convert}


def _measure(way: str, source: Path, folder: Path) -> Figures:
    command = [sys.executable, "-m", "benchmarks.conversion", str(source), "--way", way, "--folder", str(folder)]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return {**json.loads(done.stdout), "process": time.perf_counter() - began}


def compare(source: Path, folder: Path, runs: int) -> dict[str, Figures]:
    """The medians of each way."""
    figures: dict[str, list[Figures]] = {name: [] for name in WAYS}
    for _ in range(runs):
        for name in WAYS:
            figures[name].append(_measure(name, source, folder))
    medians = {name: {k: statistics.median(f[k] for f in found) for k in found[0]} for name, found in figures.items()}
    for name in ("encode", "store"):
        ratios = [e["work"] / c["work"] for e, c in zip(figures[name], figures["convert"], strict=True)]
        medians["convert"][f"of_{name}"] = statistics.median(ratios)
    return medians


@click.command()
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.option("--runs", default=5, show_default=True)
@click.option("--folder", type=click.Path(exists=True, path_type=Path), help="Where to write; default: beside SOURCE.")
@click.option("--way", type=click.Choice(list(WAYS)), help="Run one way here, once, and print its figures.")
def main(source: Path, runs: int, folder: Path | None, way: str | None) -> None:
    """Compare converting SOURCE with compressing its chunks alone."""
    warnings.simplefilter("ignore", UserWarning)
    with tempfile.TemporaryDirectory(dir=folder or source.absolute().parent) as made:
        if way:
            click.echo(json.dumps(WAYS[way](source, Path(made))))
            return
        _measure("encode", source, Path(made))  # warms the file cache and the compiled kernels
        medians = compare(source, Path(made), runs)
    columns = {"work s": 10, "cpu s": 10, "process s": 11, "peak MB": 10, "promised MB": 13, "written MB": 12}
    click.echo(" " * 10 + "".join(f"{title:>{width}s}" for title, width in columns.items()))
    for name, m in medians.items():
        sizes = f"{m['peak_mb']:10.0f}{m['promised_mb']:13.0f}{m['written_mb']:12.0f}"
        click.echo(f"{name:10s}{m['work']:10.2f}{m['cpu']:10.2f}{m['process']:11.2f}{sizes}")
    found, cpu = medians["convert"], medians["encode"]["cpu"] / medians["convert"]["cpu"]
    click.echo(
        f"conversion runs at {found['of_encode']:.0%} of the speed of compressing alone, {found['of_store']:.0%} of "
        f"that of compressing and writing; {cpu:.0%} of its CPU time is compressing"
    )


if __name__ == "__main__":
    main()
