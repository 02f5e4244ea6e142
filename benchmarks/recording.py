"""Make a recording that the benchmarks run on: a word-level model, 10,000 tokens of which 37% are dead.

    python -m benchmarks.recording DIR [--steps 2400]
    python -m benchmarks.recording DIR --wide 24x50257x768 [--static]

leaves DIR/recording.zarr and the same values as DIR/recording.h5 in the layout of the notebooks (bfloat16 as
uint16). The text is the source of Python's own standard library; about 10 minutes on one core. With ``--wide`` nothing
is trained: the values are those of `benchmarks.wide`, of which none changes with ``--static``.
"""

from __future__ import annotations

import re
import sysconfig
from collections import Counter
from pathlib import Path

import click
import h5py
import numpy as np
from numpy.typing import NDArray

import deadtok_xr as dx
from benchmarks.wide import write
from deadtok_xr import demo

VOCABULARY, LIVE = 10_000, 6_301
STEPS_AT_ONCE = 128


def word_ids(seed: int = 42) -> NDArray[np.int64]:
    """The standard library's words as token ids, rare words as one id; dead ids lie among the live ones."""
    folder = Path(sysconfig.get_path("stdlib"))
    words = [
        word
        for path in sorted(folder.glob("*.py"))
        for word in re.findall(r"[A-Za-z]+|\d|[^\w\s]", path.read_text(encoding="utf-8", errors="ignore").lower())
    ]
    known = {word: i for i, (word, _) in enumerate(Counter(words).most_common(LIVE - 1))}
    shuffled = np.random.default_rng(seed).permutation(VOCABULARY)
    return shuffled[np.array([known.get(word, LIVE - 1) for word in words])]


def as_hdf5(store: Path, path: Path) -> None:
    """Write the W of a store as the notebooks' HDF5: uint16 bit patterns in large uncompressed chunks."""
    rec = dx.open_recording(store, raw=True)
    with h5py.File(path, "w") as file:
        data = file.create_dataset("W", rec.W.shape, "u2", chunks=(-(-rec.sizes["step"] // 2), *rec.W.shape[1:]))
        for start in range(0, rec.sizes["step"], STEPS_AT_ONCE):
            part = slice(start, start + STEPS_AT_ONCE)
            data[part] = rec.W[part].values.view(np.uint16)
        if "loss" in rec:
            file["losses"] = rec.loss.values
        file["dead_mask"] = rec.dead.values


def train(folder: Path, steps: int) -> None:
    """Train and record."""
    run = demo.Run(steps=steps, batch=8, length=128)
    demo.train(
        folder / "recording.zarr",
        word_ids(),
        VOCABULARY,
        run,
        progress=lambda step: print(f"step {step}", flush=True) if step % 50 == 0 else None,
        overwrite=True,
    )


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--steps", default=2400, show_default=True)
@click.option("--wide", help="STEPSxTOKENSxDIMS of a recording that is made without training.")
@click.option("--static", is_flag=True, help="No token of it moves.")
def main(folder: Path, steps: int, wide: str | None, static: bool) -> None:
    """Train, record and export."""
    folder.mkdir(parents=True, exist_ok=True)
    if wide:
        write(folder / "recording.zarr", *map(int, wide.split("x")), static=static)
    else:
        train(folder, steps)
    as_hdf5(folder / "recording.zarr", folder / "recording.h5")


if __name__ == "__main__":
    main()
