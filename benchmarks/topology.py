"""Compare the adjacency graph of 51 tokens at every step with the notebook's loop, in one run.

    python -m benchmarks.topology [--tokens 51] [--steps 2400]

Trains a small model from a tight cluster first (half a minute), so that tokens coincide, touch and part. With
``--tokens`` above 162 the positions are tiled with small offsets.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
import xarray as xr

import deadtok_xr as dx
from benchmarks import notebook
from deadtok_xr import demo


def positions(folder: Path, tokens: int, steps: int) -> xr.Dataset:
    """The dead tokens of a run that begins as a tight cluster, in memory, (step, token, dim)."""
    torch.set_num_threads(1)
    run = demo.Run(steps=steps, batch=2, length=16, layers=1, atom=2e-4)
    rec = dx.open_recording(demo.train(folder / "atom.zarr", demo.corpus(), 256, run), tokens="dead")
    W = rec.W.isel(token=np.arange(tokens) % rec.sizes["token"]).load()
    return xr.Dataset({"W": W.assign_coords(token=np.arange(tokens))}).chunk(step=128)


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


@click.command()
@click.option("--tokens", default=51, show_default=True)
@click.option("--steps", default=2400, show_default=True)
@click.option("--runs", default=5, show_default=True)
def main(tokens: int, steps: int, runs: int) -> None:
    """Time both ways in turn and print medians."""
    with tempfile.TemporaryDirectory() as folder:
        rec = positions(Path(folder), tokens, steps)
    values = rec.W.values  # the notebook has its positions in memory; so have we
    dx.topology(rec.isel(step=slice(0, 3))).compute()  # load the compiled kernel
    ours = [0.0] * runs
    theirs = [0.0] * runs
    for i in range(runs):
        theirs[i] = timed(lambda: notebook.topology(values))
        ours[i] = timed(lambda: dx.topology(rec).compute())
    a, b = statistics.median(theirs), statistics.median(ours)
    click.echo(f"{tokens} tokens, {len(values)} steps: notebook {len(values) / a:.0f} steps/s, ", nl=False)
    click.echo(f"ours {len(values) / b:.0f} steps/s, {a / b:.0f}x")


if __name__ == "__main__":
    main()
