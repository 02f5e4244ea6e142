"""Compare all analyses of a recording as wide as GPT-2 with only decoding it: CPU time and memory, also as planned.

    python -m benchmarks.wide DIR [--steps 64] [--tokens 50257] [--dims 768]

makes DIR/STEPSxTOKENSxDIMS.zarr, once: 64 steps of GPT-2's width are 4.9 GB of values. 37% of the tokens are dead. They
drift together, cool, and freeze one after the other. Half of the live tokens move at a step, the others rest. Each way
then runs once on one thread, in a process of its own with loaded kernels.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

import deadtok_xr as dx
from deadtok_xr import schema, store
from deadtok_xr.bfloat16 import BFLOAT16
from deadtok_xr.store.chunk_layout import chunk_shape

DEAD_SHARE, LIVE_MOVING = 0.37, 0.5
WAYS = ("decode_only", "motion_phases", "all")
_POOL = 2**20
"""Normal numbers that are drawn once; each token takes its noise from another place."""


def write(path: Path, steps: int, tokens: int, dims: int, seed: int = 0, *, static: bool = False) -> Path:
    """Write the recording, step by step, in the memory of a chunk's steps; no token moves in a ``static`` one."""
    rng = np.random.default_rng(seed)
    dead = rng.random(tokens) < DEAD_SHARE
    frozen_from = np.where(dead, rng.uniform(0.3, 1.2, tokens) * steps, np.inf)
    writer = store.create(path, store.TokenTable(np.arange(tokens), dead), {"made_by": "benchmarks.wide"})
    chunks = chunk_shape(tokens, dims, BFLOAT16.itemsize, int(dead.sum()), steps)
    writer.declare("W", schema.MATRIX, (0, tokens, dims), BFLOAT16, chunks)
    pool = np.lib.stride_tricks.sliding_window_view(rng.standard_normal(_POOL + dims, np.float32), dims)
    W = (0.02 * pool[rng.integers(_POOL, size=tokens)]).astype(BFLOAT16)
    drift = rng.standard_normal(dims, np.float32)
    for start in range(0, steps, chunks[0]):
        block = np.empty((min(chunks[0], steps - start), tokens, dims), BFLOAT16)
        for i in range(len(block)):
            if (t := start + i) and not static:
                moving = np.flatnonzero(np.where(dead, t < frozen_from, rng.random(tokens) < LIVE_MOVING))
                size = np.where(dead[moving], 1e-3 * 10 ** (-1.5 * t / steps), 3e-4).astype(np.float32)[:, None]
                noise = pool[rng.integers(_POOL, size=len(moving))]
                W[moving] = (W[moving].astype(np.float32) + size * (drift * dead[moving, None] + noise)).astype(
                    BFLOAT16
                )
            block[i] = W
        writer.extend(np.arange(start, start + len(block)))
        writer.write("W", start, block)
    writer.finish()
    return path


def decode(path: Path, tokens: str) -> None:
    """Decompress each chunk that holds selected tokens, and do nothing with it."""
    from deadtok_xr.store.chunk_reader import chunk_reader
    from deadtok_xr.store.stored_array import stored_array

    stored = stored_array(dx.open_recording(path, tokens=tokens, raw=True).W.data)
    assert stored is not None
    reader = chunk_reader(stored.array)
    for row in np.unique(stored.steps // stored.chunk_steps).tolist():
        for column in np.unique(stored.tokens // stored.array.chunks[1]).tolist():
            reader((row, column, 0))


def run(way: str, path: Path, tokens: str, out: Path) -> None:
    """Decode, compute `motion` and `phases`, or save the results of all analyses."""
    import dask

    if way == "decode_only":
        decode(path, tokens)
    elif way == "motion_phases":
        rec = dx.open_recording(path, tokens=tokens)
        dask.compute(dx.motion(rec), dx.phases(rec))
    else:
        dx.save_results(dx.analyze(path, tokens=tokens), out)


def measured(way: str, path: Path, tokens: str) -> dict[str, Any]:
    """CPU seconds and the peak of memory of this process, and what a plan says of both."""
    import dask

    from deadtok_xr.analyses import plan_analyses

    with tempfile.TemporaryDirectory() as temporary, dask.config.set(scheduler="synchronous"):
        folder = Path(temporary)
        tiny = dx.testing.synthetic_recording(folder / "tiny.zarr", steps=24, tokens=600, dims=700)
        run(way, tiny, tokens, folder / "tiny-results.zarr")
        base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        names = {"decode_only": None, "motion_phases": ["motion", "phases"], "all": None}[way]
        plan = plan_analyses(dx.open_recording(path, tokens=tokens), analyses=names)
        wall, cpu = time.perf_counter(), time.process_time()
        run(way, path, tokens, folder / "results.zarr")
        return {
            "cpu": time.process_time() - cpu,
            "wall": time.perf_counter() - wall,
            "base_mb": base,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
            "planned_s": plan.cost.reading if way == "decode_only" else plan.cost.seconds,
            "planned_mb": np.nan if way == "decode_only" else plan.cost.memory(1) / 1e6,
            "left_out": {name: plan.left_out[name] for name in plan.too_long},
        }


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--steps", default=64, show_default=True)
@click.option("--tokens", default=50_257, show_default=True)
@click.option("--dims", default=768, show_default=True)
@click.option("--only", type=click.Choice(["dead", "all"]), help="Which tokens. Default: dead ones, then all.")
@click.option("--way", type=click.Choice(WAYS), help="Run one way here, once, and print its figures.")
def main(folder: Path, steps: int, tokens: int, dims: int, only: str | None, way: str | None) -> None:
    """Print what each way takes, and as a multiple of decoding."""
    path = folder / f"{steps}x{tokens}x{dims}.zarr"
    if way:
        click.echo(json.dumps(measured(way, path, only or "dead")))
        return
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        write(path, steps, tokens, dims)
    click.echo(f"{steps} x {tokens:,} x {dims} in bfloat16, {2 * steps * tokens * dims / 1e9:.2f} GB, one thread")
    click.echo(f"{'tokens':8s}{'way':15s}{'CPU s':>9s}{'planned':>9s}{'x decoding':>12s}{'peak MB':>9s}{'planned':>9s}")
    for which in [only] if only else ["dead", "all"]:
        decoding = None
        for name in WAYS:
            words = [
                "--steps",
                str(steps),
                "--tokens",
                str(tokens),
                "--dims",
                str(dims),
                "--only",
                which,
                "--way",
                name,
            ]
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.wide", str(folder), *words], capture_output=True, text=True
            )
            if done.returncode:
                raise SystemExit(done.stderr)
            m = json.loads(done.stdout.splitlines()[-1])
            decoding = decoding or m["cpu"]
            click.echo(
                f"{which:8s}{name:15s}{m['cpu']:9.2f}{m['planned_s']:9.2f}{m['cpu'] / decoding:11.2f}x"
                f"{m['peak_mb']:9.0f}{m['planned_mb']:9.0f}"
            )
            for name, why in m["left_out"].items():
                click.echo(f"        left out: {name}, {why}")


if __name__ == "__main__":
    main()
