"""Measure the throughput of `dx.doctor` as a share of only reading the file, and its peak memory.

    python -m benchmarks.doctor DIR [--gigabytes 4]

It writes checkpoints of bfloat16 and of float32 values to DIR, in the layout of a transformer, and removes them at the
end. `read` reads every byte of a file in parts of 8 MiB into one buffer, and `doctor` is the call; `read two` and `of
two` do the same with a second checkpoint. Each runs in processes of its own, alternately, from the page cache (`warm`)
and after the files were dropped from it (`cold`). The table gives medians; imports are not counted.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from deadtok_xr.text import table

PART = 8 * 2**20
HIDDEN = 4096


def write(path: Path, gigabytes: float, dtype: str, seed: int) -> None:
    """Write matrices of normal values and norm weights of ones, in pieces."""
    rng = np.random.default_rng(seed)
    block = (rng.standard_normal(HIDDEN * HIDDEN, np.float32) * 0.02).view(np.uint32)
    block = block if dtype == "F32" else (block >> 16).astype(np.uint16)
    ones = np.full(HIDDEN, 0x3F800000, np.uint32) if dtype == "F32" else np.full(HIDDEN, 0x3F80, np.uint16)
    header: dict[str, Any] = {}
    at = 0
    layers = max(1, round(gigabytes * 1e9 / (4 * block.nbytes)))
    arrays = [(f"layers.{i}.{k}.weight", block, [HIDDEN, HIDDEN]) for i in range(layers) for k in ("q", "k", "v", "o")]
    arrays += [(f"layers.{i}.norm.weight", ones, [HIDDEN]) for i in range(layers)]
    for name, array, shape in arrays:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, array, _ in arrays:
            file.write(array)
        file.flush()
        os.fsync(file.fileno())


def peak() -> int:
    """The largest resident memory of this process so far, in bytes (Linux)."""
    status = Path("/proc/self/status")
    return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024 if status.exists() else 0


def drop(path: Path) -> None:
    """Ask the system to drop a file from the page cache."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(what: str, paths: list[Path], small: Path) -> dict[str, float]:
    """Read or examine files in this process; the time does not include imports."""
    if what == "read":
        buffer = memoryview(bytearray(PART))
        began = time.perf_counter()
        for path in paths:
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
    else:
        import deadtok_xr as dx

        dx.doctor(small, small, lr=1e-5)  # loads the kernels
        began = time.perf_counter()
        dx.doctor(*paths, lr=1e-5)  # type: ignore[arg-type]
    return {"seconds": time.perf_counter() - began, "peak": peak()}


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--gigabytes", default=4.0, show_default=True, help="Size of each file.")
@click.option("--repeats", default=3, show_default=True, help="Processes for each line of the table.")
@click.option("--one", hidden=True)
def main(folder: Path, gigabytes: float, repeats: int, one: str | None) -> None:
    """Measure, in FOLDER."""
    if one is not None:
        what, *paths = json.loads(one)
        print(json.dumps(measure(what, [Path(p) for p in paths[1:]], Path(paths[0]))))
        return
    folder.mkdir(parents=True, exist_ok=True)
    rows = [("file", "cache", "what", "GB/s", "share of read", "peak memory")]
    for dtype in ("BF16", "F32"):
        a, b, small = (folder / f"{name}.safetensors" for name in ("a", "b", "small"))
        try:
            write(a, gigabytes, dtype, 0)
            write(b, gigabytes, dtype, 1)
            write(small, 0.01, dtype, 2)
            rows += _measured(folder, a, b, small, dtype, repeats)
        finally:
            for path in (a, b, small):
                path.unlink(missing_ok=True)
    click.echo("\n".join(table(rows, "<<<>>>")))


def _measured(folder: Path, a: Path, b: Path, small: Path, dtype: str, repeats: int) -> list[tuple[str, ...]]:
    calls = {
        "read": ("read", [a]),
        "doctor": ("doctor", [a]),
        "read two": ("read", [a, b]),
        "of two": ("doctor", [a, b]),
    }
    rows = []
    for cache in ("warm", "cold"):
        found: dict[str, list[dict[str, float]]] = {name: [] for name in calls}
        for i in range(repeats):
            turns = [*calls.items()]  # which call comes first changes: a disk may be faster after a rest
            for name, (what, paths) in [*turns[i % len(turns) :], *turns[: i % len(turns)]]:
                for path in paths if cache == "cold" else ():
                    drop(path)
                words = json.dumps([what, str(small), *map(str, paths)])
                command = [sys.executable, "-m", "benchmarks.doctor", str(folder), "--one", words]
                found[name].append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
        seconds = {name: statistics.median(run["seconds"] for run in runs) for name, runs in found.items()}
        for name, (what, paths) in calls.items():
            share = seconds["read" if len(paths) == 1 else "read two"] / seconds[name]
            size = sum(path.stat().st_size for path in paths)
            memory = max(run["peak"] for run in found[name])
            rows.append(
                (f"{size / 1e9:.1f} GB {dtype}", cache, name, f"{size / seconds[name] / 1e9:.2f}", f"{share:.0%}",
                 f"{memory / 1e6:.0f} MB" if what == "doctor" else "")
            )  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
