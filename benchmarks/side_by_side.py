"""Compare this package with the notebooks, with plain xarray and Dask, and with only decoding, in one run, as ratios.

    python -m benchmarks.recording DIR          # once, about 10 minutes on one core
    python -m benchmarks.side_by_side DIR [OTHER ...]

Each way runs in processes of its own, in turn; the table gives medians for each recording. `work` leaves the imports
and the compilation of kernels out, `process` counts everything from start to exit.
"""

from __future__ import annotations

import json
import os
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


def xarray_and_dask(folder: Path) -> Callable[[], object]:
    """The same results by a good user of xarray and Dask, on the same store: lazy, in the store's chunks.

    The store is opened and decoded by us, which is quicker than `xarray.open_zarr`; no kernel of ours computes.
    """
    import dask
    import numpy as np
    import xarray as xr

    import deadtok_xr as dx

    def analyse(rec: xr.Dataset) -> object:
        W = rec.W
        step = W.diff("step")  # float32, exact; labelled with the later step
        before = W.isel(step=slice(None, -1)).assign_coords(step=W.step[1:])
        length = np.sqrt((step**2).sum("dim"))
        gap = np.maximum(np.sqrt((before**2).sum("dim")) * 2.0**-7, 1e-10)
        ratio = length / gap
        regimes = [(ratio >= a) & (ratio < b) for a, b in ((0, 0.1), (0.1, 10), (10, 100), (100, np.inf))]
        ulp = xr.apply_ufunc(
            dx.bfloat16.ulp, before, kwargs={"grid": "bfloat16"}, dask="parallelized", output_dtypes=["f8"]
        )
        cells = abs(step) / ulp
        frozen, late = (cells == 0).all("dim"), cells.max("dim") <= 1
        midlife = np.sqrt((cells**2).sum("dim")) <= np.sqrt(rec.sizes["dim"])
        phases = [frozen, late & ~frozen, midlife & ~late, ~midlife & ~late]
        shares = [part.mean("token") for part in (*regimes, *phases)]
        return dask.compute(ratio, ratio.mean("token"), ratio.std("token", ddof=1), shares)

    analyse(dx.open_recording(_warm(folder)))
    return lambda: analyse(dx.open_recording(folder / "recording.zarr", tokens="dead"))


def _warm(folder: Path) -> Path:
    """A tiny recording, on which a way imports what it needs."""
    import deadtok_xr as dx

    if not (folder / "warm.zarr").exists():
        dx.testing.synthetic_recording(folder / "warm.zarr", steps=3, tokens=4)
    return folder / "warm.zarr"


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

    analyse(dx.open_recording(_warm(folder)))  # imports, and loads the compiled kernels
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


WAYS = {"notebook": notebook, "xarray": xarray_and_dask, "ours": ours, "ours_all": ours_all, "decode_only": decode_only}


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
@click.argument("folders", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--runs", default=3, show_default=True)
@click.option("--way", type=click.Choice(list(WAYS)), help="Run one way here, once, and print its figures.")
def main(folders: tuple[Path, ...], runs: int, way: str | None) -> None:
    """Compare the ways on DIR/recording.zarr and DIR/recording.h5, for each DIR."""
    if way:
        click.echo(json.dumps(_one(way, folders[0])))
        return
    for folder in folders:
        _compare(folder, runs)


def _compare(folder: Path, runs: int) -> None:
    """Print a table of what the ways take for one recording."""
    click.echo(_described(folder))
    for name in WAYS:
        _measure(name, folder)  # warm the file cache and the compiled kernels
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
    for _ in range(runs):
        for name in WAYS:
            figures[name].append(_measure(name, folder))
    medians = {n: {k: statistics.median(f[k] for f in fs) for k in fs[0]} for n, fs in figures.items()}
    titles = f"{'work s':>9s}{'CPU s':>9s}{'process s':>11s}{'peak MB':>9s}"
    click.echo(f"{'':12s}{titles}   times as long, CPU, process, and as large:")
    click.echo(f"{'':53s}{'notebook':>25s}{'xarray':>28s}{'decode_only':>28s}")
    for name, m in medians.items():
        ratios = [_ratios(medians[base], m) for base in ("notebook", "xarray", "decode_only")]
        click.echo(
            f"{name:12s}{m['work']:9.2f}{m['cpu']:9.2f}{m['process']:11.2f}{m['peak_mb']:9.0f}   {'  '.join(ratios)}"
        )


def _ratios(base: dict[str, float], m: dict[str, float]) -> str:
    return " ".join(f"{base[k] / m[k]:5.2f}x" for k in ("work", "cpu", "process", "peak_mb"))


def _described(folder: Path) -> str:
    """Return the sizes of a recording, and how busy the machine is."""
    import deadtok_xr as dx

    rec = dx.open_recording(folder / "recording.zarr", raw=True)
    (steps, tokens, dims), dead, gb = rec.W.shape, int(rec.dead.sum()), rec.W.nbytes / 1e9
    sizes = f"{steps:,} steps x {tokens:,} tokens ({dead:,} dead) x {dims:,} dims"
    return f"\n{sizes}, {gb:.1f} GB in bfloat16, load average {os.getloadavg()[0]:.1f}"


if __name__ == "__main__":
    main()
