"""What each analysis costs beside decoding, all in one pass, as a table of CPU seconds.

    python -m benchmarks.analyses RECORDING [--only motion,phases] [--tokens all]

Two passes with results written, of which the second is measured: the first loads the kernels. A probe that several
analyses share is counted once, and what it decodes or compares first for others as well is its own. The rest is the
graph, compressing and writing results, second readings, and opening what was written.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import xarray as xr
from dask.base import tokenize

import deadtok_xr as dx
from deadtok_xr import analyses as package
from deadtok_xr.analyses import open_for_analysis
from deadtok_xr.engine import Field, Findings, Look, Piece, Plan, Probe, Row, run
from deadtok_xr.engine.blocks import as_dask

_taken: Counter[str] = Counter()
_lock = threading.Lock()


@contextmanager
def _timed(name: str) -> Iterator[None]:
    began = time.thread_time()
    yield
    with _lock:
        _taken[name] += time.thread_time() - began


@dataclass(frozen=True)
class Timed:
    """A probe whose time is taken."""

    probe: Probe

    @property
    def matrices(self) -> tuple[str, ...]:
        """As the probe's."""
        return self.probe.matrices

    def fields(self) -> Mapping[str, Field]:
        """As the probe's."""
        return self.probe.fields()

    def begin(self, row: Row) -> Look:
        """Begin with a row."""
        return _TimedLook(self.probe, row)

    def __dask_tokenize__(self) -> tuple[str, str]:
        # else this file's globals were part of it, which change
        return "timed", tokenize(self.probe)


class _TimedLook:
    def __init__(self, probe: Probe, row: Row) -> None:
        self.name, self.matrices = type(probe).__name__, probe.matrices
        with _timed(self.name):
            self.look = probe.begin(row)

    def piece(self, piece: Piece) -> None:
        with _timed("which rows changed"):
            for name in self.matrices:
                piece.changed(name)
        with _timed(self.name):
            self.look.piece(piece)

    def end(self) -> dict[str, Any]:
        with _timed(self.name):
            return self.look.end()


@dataclass(frozen=True)
class Nothing:
    """A probe that looks at nothing, for which all is decoded."""

    matrices: tuple[str, ...]

    def fields(self) -> dict[str, Field]:
        """A zero for each step."""
        return {"none": Field("states", (), "i1")}

    def begin(self, row: Row) -> _LookAway:
        """Begin with a row."""
        return _LookAway(row)


class _LookAway:
    def __init__(self, row: Row) -> None:
        self.n_states = row.n_states

    def piece(self, piece: Piece) -> None:
        pass

    def end(self) -> dict[str, Any]:
        return {"none": np.zeros(self.n_states, np.int8)}


def decoding(ds: xr.Dataset, names: Sequence[str]) -> float:
    """CPU seconds of decoding variables, and nothing else."""
    matrices = {name: as_dask(ds[name].data) for name in names}

    def finish(found: Findings) -> xr.Dataset:
        return xr.Dataset({"none": ("step", found.array("nothing", "none"))})

    (lazy,) = run([Plan(matrices, {"nothing": Nothing(tuple(names))}, finish)])
    began = time.process_time()
    lazy.compute()
    return time.process_time() - began


def costs(ds: xr.Dataset, analyses: Sequence[str] | None, out: Path) -> tuple[dict[str, float], float]:
    """CPU seconds of each probe, most first, and of everything together, results written to ``out``."""
    answered, matrices = package.run, set[str]()

    def timing(plans: Sequence[Plan], device: str = "auto") -> list[xr.Dataset]:
        matrices.update(name for plan in plans for probe in plan.probes.values() for name in probe.matrices)
        return answered([replace(p, probes={k: Timed(x) for k, x in p.probes.items()}) for p in plans], device)

    _taken.clear()
    package.run = timing
    began = time.process_time()
    try:
        dx.save_results(dx.analyze(ds, analyses=analyses), out)
    finally:
        package.run = answered
    together = time.process_time() - began
    return {"decoding": decoding(ds, sorted(matrices)), **dict(_taken.most_common())}, together


@click.command()
@click.argument("recording", type=click.Path(exists=True, path_type=Path))
@click.option("--only", help="Analyses, separated by commas. Default: all that the recording allows.")
@click.option("--tokens", help="dead, live or all. Default: dead where the store knows them.")
def main(recording: Path, only: str | None, tokens: str | None) -> None:
    """Print what each analysis costs."""
    ds = open_for_analysis(recording, tokens=tokens)
    with tempfile.TemporaryDirectory() as folder:
        for i in range(2):
            found, together = costs(ds, only.split(",") if only else None, Path(folder) / f"{i}.zarr")
    for name, seconds in found.items():
        click.echo(f"{seconds:8.2f} s  {seconds / found['decoding']:6.2f}x decoding  {name}")
    rest = together - sum(found.values())
    click.echo(f"{together:8.2f} s  {together / found['decoding']:6.2f}x decoding  together; {rest:.2f} s have no name")
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1000
    click.echo(f"peak memory {peak:.0f} MB")


if __name__ == "__main__":
    main()
