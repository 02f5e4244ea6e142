"""Measure the CPU time of `deadtok tokens` as a multiple of only reading the file, and its peak memory.

    python -m benchmarks.tokens DIR [--tokens 151936] [--dims 2560]

It writes a tied model in bfloat16 to DIR, with 300 equal rows beyond the vocabulary, and removes it at the end. `read`
reads every byte once in parts of 8 MiB into one buffer, `float32` also converts it to float32, `tokens` computes what
the screen shows, and `all` also the distance without the first principal component. Each runs in processes of its own,
alternately, from the page cache. The table gives medians; imports and compiling are not counted.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np

from benchmarks.doctor import PART, peak
from deadtok_xr.text import table

REPEATS = 3
CALLS = ("read", "float32", "tokens", "all")
EQUAL = 300


def write(path: Path, n: int, d: int) -> None:
    """Write normal rows around a common mean, with a few strong directions, and equal rows at the end."""
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((4, d), np.float32) * 0.01
    header = {"model.embed_tokens.weight": {"dtype": "BF16", "shape": [n, d], "data_offsets": [0, 2 * n * d]}}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for begin in range(0, n, 8192):
            rows = rng.standard_normal((min(8192, n - begin), d), np.float32) * 0.02 + 0.003
            rows += rng.standard_normal((len(rows), 4), np.float32) @ directions
            if begin + len(rows) == n:
                rows[-EQUAL:] = rows[-1]
            file.write((rows.view(np.uint32) >> 16).astype(np.uint16))


def measure(what: str, path: Path, small: Path) -> dict[str, float]:
    """Read or examine a file in this process; the time does not include imports."""
    began, cpu = time.perf_counter(), time.process_time()
    if what in ("read", "float32"):
        buffer = np.empty(PART // 2, np.uint16)
        with path.open("rb", buffering=0) as file:
            while file.readinto(memoryview(buffer).cast("B")):
                if what == "float32":
                    (buffer.astype(np.uint32) << np.uint32(16)).view(np.float32)
    else:
        import deadtok_xr as dx

        dx.undertrained(small).compute()
        began, cpu = time.perf_counter(), time.process_time()
        found = dx.undertrained(path)
        found = (found if what == "all" else found.drop_vars(["cosine_distance_without_pc1", "pc1_gap"])).compute()
        assert int(found.reference_size[0]) == EQUAL
    return {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu, "peak": peak()}


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--tokens", default=151_936, show_default=True)
@click.option("--dims", default=2560, show_default=True)
@click.option("--one", hidden=True)
def main(folder: Path, tokens: int, dims: int, one: str | None) -> None:
    """Measure, in FOLDER."""
    folder.mkdir(parents=True, exist_ok=True)
    path, small = folder / "model.safetensors", folder / "small.safetensors"
    if one is not None:
        print(json.dumps(measure(one, path, small)))
        return
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CALLS}
    try:
        write(path, tokens, dims)
        write(small, 1000, 520)
        for _ in range(REPEATS):
            for name in CALLS:
                command = [sys.executable, "-m", "benchmarks.tokens", str(folder), "--one", name]
                found[name].append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
        size = path.stat().st_size
    finally:
        for file in (path, small):
            file.unlink(missing_ok=True)
    rows = [("what", "seconds", "CPU", "CPU as a multiple of read", "peak memory")]
    for name, runs in found.items():
        seconds, cpu = (statistics.median(run[key] for run in runs) for key in ("seconds", "cpu"))
        multiple = statistics.median(run["cpu"] / read["cpu"] for run, read in zip(runs, found["read"], strict=True))
        memory = max(run["peak"] for run in runs) / 1e6
        rows.append((name, f"{seconds:.2f}", f"{cpu:.2f}", f"{multiple:.1f}", f"{memory:.0f} MB"))
    click.echo(f"{tokens:,} x {dims:,} bfloat16, {size / 1e9:.2f} GB")
    click.echo("\n".join(table(rows, "<>>>>")))


if __name__ == "__main__":
    main()
