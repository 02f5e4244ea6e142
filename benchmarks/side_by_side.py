"""Our way beside the notebooks' way and the cost of decoding alone, in one run, as ratios.

    python -m benchmarks.recording DIR          # once, about 10 minutes on one core
    python -m benchmarks.side_by_side DIR

Each way runs in processes of its own, in turn; the table gives medians. `work` leaves the imports and the
compilation of kernels out, `process` counts everything from start to exit.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click


def notebook(folder: Path) -> Callable[[], object]:
    """1.31b: read everything, compute eagerly."""
    from benchmarks.notebook import motion_and_phases

    return lambda: motion_and_phases(folder / "recording.h5")


def ours(folder: Path) -> Callable[[], object]:
    """What the notebook computes, and the phases on the lattice beside its own."""
    return _ours(folder, ["displacement_ulp", "displacement_ulp_mean", "displacement_ulp_std", "n_invalid"])


def ours_all(folder: Path) -> Callable[[], object]:
    """Every variable of `motion` and `phases`: five float and one integer value per step and token."""
    return _ours(folder, None)


def _ours(folder: Path, names: list[str] | None) -> Callable[[], object]:
    import dask
    import xarray as xr

    import deadtok_xr as dx

    def analyse(rec: xr.Dataset) -> object:
        motion = dx.motion(rec)
        return dask.compute(motion[names or list(motion)], dx.phases(rec), dx.phases(rec, scheme="magnitude"))

    if not (folder / "warm.zarr").exists():
        dx.testing.synthetic_recording(folder / "warm.zarr", steps=3, tokens=4)
    analyse(dx.open_recording(folder / "warm.zarr"))  # imports, and loads the compiled kernels
    return lambda: analyse(dx.open_recording(folder / "recording.zarr", tokens="dead"))


def decode_only(folder: Path) -> Callable[[], object]:
    """Read and decompress the chunks of the dead tokens once, and do nothing with them."""
    import dask

    import deadtok_xr as dx

    dx.open_recording(folder / "recording.zarr")  # imports what it needs

    def work() -> object:
        W = dx.open_recording(folder / "recording.zarr", tokens="dead", raw=True).W.data
        return dask.compute(W.map_blocks(lambda block: block[:1, :1, :1].copy(), chunks=(1, 1, 1), dtype=W.dtype))

    return work


WAYS = {"notebook": notebook, "ours": ours, "ours_all": ours_all, "decode_only": decode_only}


def _measure(way: str, folder: Path) -> dict[str, float]:
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.side_by_side", str(folder), "--way", way], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return {**json.loads(done.stdout), "process": time.perf_counter() - began}


def _one(way: str, folder: Path) -> dict[str, float]:
    work = WAYS[way](folder)
    began, cpu = time.perf_counter(), time.process_time()
    work()
    return {
        "work": time.perf_counter() - began,
        "cpu": time.process_time() - cpu,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }


@click.command()
@click.argument("folder", type=click.Path(exists=True, path_type=Path))
@click.option("--runs", default=3, show_default=True)
@click.option("--way", type=click.Choice(list(WAYS)), help="Run one way here, once, and print its figures.")
def main(folder: Path, runs: int, way: str | None) -> None:
    """Compare the ways on DIR/recording.zarr and DIR/recording.h5."""
    if way:
        click.echo(json.dumps(_one(way, folder)))
        return
    for name in WAYS:
        _measure(name, folder)  # warm the file cache and the compiled kernels
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
    for _ in range(runs):
        for name in WAYS:
            figures[name].append(_measure(name, folder))
    click.echo(
        f"{'':12s}{'work s':>10s}{'cpu s':>10s}{'process s':>11s}{'peak MB':>10s}   notebook / this, work and peak"
    )
    medians = {n: {k: statistics.median(f[k] for f in fs) for k in fs[0]} for n, fs in figures.items()}
    base = medians["notebook"]
    for name, m in medians.items():
        ratio = f"{base['work'] / m['work']:.1f}x  {base['peak_mb'] / m['peak_mb']:.1f}x"
        click.echo(f"{name:12s}{m['work']:10.2f}{m['cpu']:10.2f}{m['process']:11.2f}{m['peak_mb']:10.0f}   {ratio}")


if __name__ == "__main__":
    main()
