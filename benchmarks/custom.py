"""Compare an analysis of a user's own with the same NumPy in memory plus one decoding, and with `motion`.

    python -m benchmarks.custom [DIR] [--runs 5]

Makes a recording of 2,000 x 2,000 x 64 in DIR (0.5 GB of bfloat16), and takes in turn, in one thread, the CPU seconds
of

    decode    reading and decompressing the chunks once, and nothing else: as whole arrays through Dask, and a few steps
              at a time, as a pass does
    NumPy     the function itself, called with float32 arrays that are in memory: whole, and a few steps at a time,
              which stay in the cache
    alone     the analysis, computed by itself
    motion    `motion` by itself, and both in one pass

for an analysis with one value per step, and for one with a value per update and token. Prints medians of the ratios.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import click
import dask
import numpy as np
import xarray as xr
from numpy.typing import NDArray

import deadtok_xr as dx
from benchmarks.analyses import decoding

STEPS, TOKENS, DIMS = 2000, 2000, 64
FEW = 16
"""Steps at a time of NumPy in the cache: about as many as a batch has."""


def largest(batch: Any) -> dict[str, NDArray[Any]]:
    """Return the largest absolute weight of each step."""
    return {"largest": np.abs(batch.W).max((1, 2))}


def hops(batch: Any) -> dict[str, NDArray[Any]]:
    """Return the largest change of an element of each token at each update."""
    return {"hop": np.abs(batch.after - batch.before).max(2)}


OUTPUTS: dict[str, Mapping[str, dx.Output]] = {
    "largest": {"largest": dx.Output("step", long_name="largest absolute weight")},
    "hops": {
        "hop": dx.Output(("step", "token"), at="transitions", dtype="f4", long_name="largest change of an element")
    },
}
FUNCTIONS: dict[str, Callable[[Any], dict[str, NDArray[Any]]]] = {"largest": largest, "hops": hops}


def in_memory(name: str, W: NDArray[Any], few: int | None = None) -> NDArray[Any]:
    """Return what the function of an analysis gives for an array, all steps at once or a few at a time."""
    function, n = FUNCTIONS[name], few or len(W)
    parts = []
    for i in range(0, len(W), n):
        batch = SimpleNamespace(W=W[i : i + n], before=W[i : i + n + 1][:-1], after=W[i + 1 : i + n + 1])
        parts += list(function(batch).values())
    return np.concatenate(parts)


def ways(path: Path, W: NDArray[Any], name: str) -> dict[str, Callable[[], Any]]:
    """Return what is compared for one analysis."""
    rec = dx.open_recording(path)
    raw = dx.open_recording(path, raw=True).W.data
    own = dx.analysis(needs="W", outputs=OUTPUTS[name], name=name)(FUNCTIONS[name])

    def both() -> xr.DataTree:
        return dx.analyze(rec, analyses=["motion", name])

    return {
        "decode": raw.map_blocks(lambda block: block[:1, :1, :1].copy(), chunks=(1, 1, 1), dtype=raw.dtype).compute,
        "decode, few steps at a time": lambda: decoding(rec, ["W"]),
        "NumPy, whole": lambda: in_memory(name, W),
        "NumPy, few steps at a time": lambda: in_memory(name, W, FEW),
        "alone": lambda: own(rec).compute(),
        "motion": lambda: dx.motion(rec).compute(),
        "motion and this, one pass": lambda: dask.compute([node.to_dataset() for node in both().children.values()]),
    }


def seconds(way: Callable[[], Any]) -> float:
    """Return the CPU seconds of a way, in one thread."""
    with dask.config.set(scheduler="synchronous"):
        began = time.process_time()
        way()
        return time.process_time() - began


def compare(path: Path, runs: int) -> dict[str, dict[str, list[float]]]:
    """Return the CPU seconds of each way, by analysis; the first of each, which loads kernels, is left out."""
    W = dx.open_recording(path).W.values
    found: dict[str, dict[str, list[float]]] = {}
    for name in FUNCTIONS:
        taken: dict[str, list[float]] = {}
        compared = ways(path, W, name)
        for run in range(runs + 1):
            for way, work in compared.items():
                if run:
                    taken.setdefault(way, []).append(seconds(work))
                else:
                    work()
        found[name] = taken
    return found


def ratios(taken: Mapping[str, list[float]]) -> dict[str, float]:
    """Return the medians of the ratios that count."""

    def ratio(over: Callable[[int], float], under: Callable[[int], float]) -> float:
        return median(over(i) / under(i) for i in range(len(taken["decode"])))

    def whole(i: int) -> float:
        return taken["NumPy, whole"][i] + taken["decode"][i]

    def few(i: int) -> float:
        return taken["NumPy, few steps at a time"][i] + taken["decode, few steps at a time"][i]

    return {
        "alone / (NumPy + decode), whole": ratio(lambda i: taken["alone"][i], whole),
        "alone / (NumPy + decode), few": ratio(lambda i: taken["alone"][i], few),
        "alone / motion": ratio(lambda i: taken["alone"][i], lambda i: taken["motion"][i]),
        "both in one pass / motion": ratio(
            lambda i: taken["motion and this, one pass"][i], lambda i: taken["motion"][i]
        ),
    }


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), required=False)
@click.option("--runs", default=5, show_default=True)
def main(folder: Path | None, runs: int) -> None:
    """Print CPU seconds and ratios."""
    with tempfile.TemporaryDirectory() as temporary:
        path = (folder or Path(temporary)) / "custom.zarr"
        if not path.exists():
            dx.testing.synthetic_recording(path, steps=STEPS, tokens=TOKENS, dims=DIMS)
        for name, taken in compare(path, runs).items():
            click.echo(name)
            for way, values in taken.items():
                click.echo(f"  {way:32} {median(values):6.2f} s")
            for what, value in ratios(taken).items():
                click.echo(f"  {what:32} {value:6.2f}x")


if __name__ == "__main__":
    main()
