"""Measure how time, memory, tasks and bytes grow with steps, tokens, dims and workers, as tables.

    python -m benchmarks.scaling DIR [--only motion,phases] [--times 1,4,16]

Makes synthetic recordings in DIR, each once: a base, and the base with one dimension several times as long. Each is
analysed in a process of its own, all tokens, on one thread, so that CPU time is what the work costs. Then the longest
is analysed by one worker process and by two, in turn, three times each.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

import deadtok_xr as dx

BASE = {"steps": 512, "tokens": 512, "dims": 32}


def made(folder: Path, sizes: dict[str, int]) -> Path:
    """A recording of these sizes, made once."""
    path = folder / ("x".join(map(str, sizes.values())) + ".zarr")
    return path if path.exists() else dx.testing.synthetic_recording(path, **sizes)


def analysed(store: Path, analyses: list[str] | None) -> dict[str, Any]:
    """Analyse a recording on one thread: what it took. Imports and the loading of kernels are left out."""
    import cloudpickle
    import dask

    from deadtok_xr.results import save

    with tempfile.TemporaryDirectory() as temporary, dask.config.set(scheduler="synchronous"):
        folder = Path(temporary)
        tiny = dx.testing.synthetic_recording(folder / "tiny.zarr", steps=200, tokens=8, dims=4)
        dx.save_results(dx.analyze(tiny, analyses=analyses, tokens="all"), folder / "tiny-results")
        graphs, writing = [], save.writing

        def counted(pairs: Any) -> Any:
            task = writing(pairs)
            graphs.append(task.dask)
            return task

        save.writing = counted
        began, cpu = time.perf_counter(), time.process_time()
        dx.save_results(dx.analyze(store, analyses=analyses, tokens="all"), folder / "results")
        taken = {"wall_s": time.perf_counter() - began, "cpu_s": time.process_time() - cpu}
        status = Path("/proc/self/status").read_text()
        return {
            **taken,
            "peak_mb": int(status.split("VmHWM:")[1].split()[0]) / 1000,
            "tasks": len(graphs[0]),
            "graph_kb": len(cloudpickle.dumps(dict(graphs[0]))) / 1000,
            "values_mb": dx.open_recording(store, raw=True)["W"].nbytes / 1e6,
            "store_mb": _size(store) / 1e6,
            "results_mb": _size(folder / "results") / 1e6,
        }


def by_workers(store: Path, analyses: list[str] | None, counts: list[int], runs: int) -> dict[int, list[float]]:
    """Seconds of each run with so many worker processes of one thread each, in turn; the workers are warm."""
    from deadtok_xr.engine import cluster

    seconds: dict[int, list[float]] = {n: [] for n in counts}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tiny = dx.testing.synthetic_recording(folder / "tiny.zarr", steps=2000, tokens=8, dims=4)
        for run in range(runs):
            for n in counts:
                with cluster.local_cluster(n):
                    dx.save_results(dx.analyze(tiny, analyses=analyses, tokens="all"), folder / f"t{run}-{n}")
                    began = time.perf_counter()
                    dx.save_results(dx.analyze(store, analyses=analyses, tokens="all"), folder / f"r{run}-{n}")
                    seconds[n].append(time.perf_counter() - began)
    return seconds


def _size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def _apart(store: Path, only: str | None) -> dict[str, Any]:
    """`analysed` in a process of its own."""
    words = [sys.executable, "-m", "benchmarks.scaling", str(store.parent), "--one", str(store)]
    done = subprocess.run([*words, *(["--only", only] if only else [])], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--only", help="Analyses, separated by commas. Default: all.")
@click.option("--times", default="1,4,16", show_default=True, help="How many times as long.")
@click.option("--workers", default="1,2", show_default=True, help="Numbers of worker processes.")
@click.option("--runs", default=3, show_default=True)
@click.option("--one", type=click.Path(path_type=Path), help="Analyse this store here, once, and print its figures.")
def main(folder: Path, only: str | None, times: str, workers: str, runs: int, one: Path | None) -> None:
    """Print tables of what recordings of several sizes take."""
    analyses = only.split(",") if only else None
    if one:
        click.echo(json.dumps(analysed(one, analyses)))
        return
    folder.mkdir(parents=True, exist_ok=True)
    click.echo(f"{os.cpu_count()} cores; base: {BASE}")
    click.echo("| steps x tokens x dims | values MB | store MB | results MB | CPU s | peak MB | tasks | graph kB |")
    click.echo("|---|---|---|---|---|---|---|---|")
    for name in ("base", *BASE):
        for n in map(int, times.split(",")):
            if (name == "base") == (n == 1):
                sizes = BASE if name == "base" else {**BASE, name: BASE[name] * n}
                _print(sizes, _apart(made(folder, sizes), only))
    longest = made(folder, {**BASE, "steps": BASE["steps"] * max(map(int, times.split(",")))})
    seconds = by_workers(longest, analyses, [int(n) for n in workers.split(",")], runs)
    medians = {n: statistics.median(s) for n, s in seconds.items()}
    for n, s in medians.items():
        click.echo(f"{n} workers: {s:.2f} s, {next(iter(medians.values())) / s:.2f}x")


def _print(sizes: dict[str, int], found: dict[str, Any]) -> None:
    names = ("values_mb", "store_mb", "results_mb", "cpu_s", "peak_mb", "tasks", "graph_kb")
    click.echo(
        f"| {' x '.join(f'{n:,}' for n in sizes.values())} | " + " | ".join(f"{found[n]:,.4g}" for n in names) + " |"
    )


if __name__ == "__main__":
    main()
