"""Compare the cost of `motion` on selections of a recording with that on the untouched dataset.

    python -m benchmarks.selections [DIR]

Makes a recording of 6,001 x 128 x 64 in DIR, and runs `motion` on it as people hold it in a notebook: cut along steps
and tokens, transposed and back, copied, opened through xarray, unpickled in a fresh process. Prints for each the median
ratio of CPU time to that of the untouched dataset, measured in turn.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import click
import dask
import numpy as np
import xarray as xr

import deadtok_xr as dx

STEPS, TOKENS, DIMS = 6001, 128, 64
FRESH = """
import pickle, sys, time
import deadtok_xr as dx
from benchmarks.selections import seconds
ds = pickle.load(open(sys.argv[1], "rb"))
seconds(ds)  # loads the kernels
print(seconds(ds))
"""


def ways(path: Path) -> dict[str, Callable[[], xr.Dataset]]:
    """Return the selections, the untouched dataset first."""
    ds = dx.open_recording(path)
    rng = np.random.default_rng(0)
    some = np.sort(rng.permutation(ds.token.values)[:64])
    return {
        "untouched": lambda: ds,
        "step slice": lambda: ds.sel(step=slice(70, 5900)),
        "token slice": lambda: ds.isel(token=slice(20, 100)),
        "token list": lambda: ds.sel(token=some),
        "token mask": lambda: ds.isel(token=ds.token.values % 2 == 0),
        "transposed and back": lambda: ds.transpose("token", "step", "dim").transpose("step", "token", "dim"),
        "copy": lambda: ds.copy(deep=True),
        "chunk": lambda: ds.chunk(step=500),
        "xr.open_dataset": lambda: xr.open_dataset(path, engine="deadtok"),
        "xr.open_dataset(chunks={})": lambda: xr.open_dataset(path, engine="deadtok", chunks={}),
        "unpickled": lambda: pickle.loads(pickle.dumps(ds)),
    }


def seconds(ds: xr.Dataset) -> float:
    """Return the CPU seconds of `motion`, in one thread."""
    began = time.process_time()
    with dask.config.set(scheduler="synchronous"):
        dx.motion(ds).compute()
    return time.process_time() - began


def in_a_fresh_process(ds: xr.Dataset) -> float:
    """Return the same of the dataset, unpickled in another process."""
    with tempfile.NamedTemporaryFile(suffix=".pickle") as file:
        pickle.dump(ds, file)
        file.flush()
        done = subprocess.run([sys.executable, "-c", FRESH, file.name], capture_output=True, text=True, check=True)
    return float(done.stdout)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), required=False)
@click.option("--runs", default=3, show_default=True)
def main(folder: Path | None, runs: int) -> None:
    """Print the ratios."""
    with tempfile.TemporaryDirectory() as temporary:
        path = (folder or Path(temporary)) / "selections.zarr"
        if not path.exists():
            dx.testing.synthetic_recording(path, steps=STEPS, tokens=TOKENS, dims=DIMS)
        selections = ways(path)
        seconds(selections["untouched"]())  # loads the kernels, and the file into memory
        taken: dict[str, list[float]] = {name: [] for name in (*selections, "in a fresh process")}
        for _ in range(runs):
            whole = seconds(selections["untouched"]())
            for name, select in selections.items():
                taken[name].append(seconds(select()) / whole)
            taken["in a fresh process"].append(in_a_fresh_process(selections["untouched"]()) / whole)
    for name, ratios in taken.items():
        print(f"{name:28} {median(ratios):5.2f}")


if __name__ == "__main__":
    main()
