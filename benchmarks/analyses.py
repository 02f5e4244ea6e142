"""Measure the cost of each analysis and of decoding, all in one pass, as a table of CPU seconds.

    python -m benchmarks.analyses RECORDING [--only motion,phases] [--tokens all]

Runs two passes that write results, and measures the second: the first one loads the kernels. A reduction that several
analyses share is counted once. Work that several reductions use, such as comparing steps, is counted for the first that
needs it. The rest is the graph, compressing and writing results, second readings, and opening the results.
"""

from __future__ import annotations

import importlib
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
from deadtok_xr.analyses import open_for_analysis, plan_analyses
from deadtok_xr.analyses.common.checks import as_dask
from deadtok_xr.engine import (
    Accumulator,
    AnalysisSpec,
    Batch,
    Cost,
    Output,
    Reduction,
    ReductionResults,
    Sizes,
    StepBlock,
    run,
)

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
    """A reduction whose time is measured."""

    reduction: Reduction

    @property
    def matrices(self) -> tuple[str, ...]:
        """Return those of the reduction."""
        return self.reduction.matrices

    def outputs(self) -> Mapping[str, Output]:
        """Return those of the reduction."""
        return self.reduction.outputs()

    def start(self, block: StepBlock) -> Accumulator:
        """Start with a block."""
        return _TimedAccumulator(self.reduction, block)

    def cost(self, sizes: Sizes) -> Cost:
        """Return that of the reduction."""
        return self.reduction.cost(sizes)

    def __dask_tokenize__(self) -> tuple[str, str]:
        # else this file's globals were part of it, which change
        return "timed", tokenize(self.reduction)


class _TimedAccumulator:
    def __init__(self, reduction: Reduction, block: StepBlock) -> None:
        self.name, self.matrices = type(reduction).__name__, reduction.matrices
        with _timed(self.name):
            self.accumulator = reduction.start(block)

    def update(self, batch: Batch) -> None:
        with _timed("which rows changed"):
            for name in self.matrices:
                batch.changed(name)
        with _timed(self.name):
            self.accumulator.update(batch)

    def result(self) -> dict[str, Any]:
        with _timed(self.name):
            return self.accumulator.result()


@dataclass(frozen=True)
class Nothing:
    """A reduction that uses nothing, for which all is decoded."""

    matrices: tuple[str, ...]

    def outputs(self) -> dict[str, Output]:
        """A zero for each step."""
        return {"none": Output("step", dtype="i1")}

    def start(self, block: StepBlock) -> _NoAccumulator:
        """Start with a block."""
        return _NoAccumulator(block)

    def cost(self, sizes: Sizes) -> Cost:
        """Return no cost."""
        return Cost()


class _NoAccumulator:
    def __init__(self, block: StepBlock) -> None:
        self.n_states = block.n_states

    def update(self, batch: Batch) -> None:
        pass

    def result(self) -> dict[str, Any]:
        return {"none": np.zeros(self.n_states, np.int8)}


def decoding(ds: xr.Dataset, names: Sequence[str]) -> float:
    """CPU seconds of decoding variables, and nothing else."""
    matrices = {name: as_dask(ds[name].data) for name in names}

    def finish(found: ReductionResults) -> xr.Dataset:
        return xr.Dataset({"none": ("step", found.array("nothing", "none"))})

    (lazy,) = run([AnalysisSpec(matrices, {"nothing": Nothing(tuple(names))}, finish)])
    began = time.process_time()
    lazy.compute()
    return time.process_time() - began


def expected(ds: xr.Dataset, analyses: Sequence[str] | None) -> tuple[dict[str, float], float]:
    """CPU seconds of each reduction, and of everything together, as a plan of the analyses says before they run."""
    plan = plan_analyses(ds, analyses=analyses)
    reductions = plan.cost.reductions
    found: Counter[str] = Counter()
    for name, cost in plan.cost.costs.items():
        found[type(reductions[name]).__name__] += cost.seconds
    return dict(found), plan.cost.seconds


def costs(ds: xr.Dataset, analyses: Sequence[str] | None, out: Path) -> tuple[dict[str, float], float]:
    """CPU seconds of each reduction, most first, and of everything together, results written to ``out``."""
    module = importlib.import_module("deadtok_xr.analyses.plan")
    answered, matrices = module.run, set[str]()

    def timing(plans: Sequence[AnalysisSpec], device: str = "auto") -> list[xr.Dataset]:
        matrices.update(name for plan in plans for reduction in plan.reductions.values() for name in reduction.matrices)
        return answered([replace(p, reductions={k: Timed(x) for k, x in p.reductions.items()}) for p in plans], device)

    _taken.clear()
    module.run = timing
    began = time.process_time()
    try:
        dx.save_results(dx.analyze(ds, analyses=analyses), out)
    finally:
        module.run = answered
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
    planned, all_planned = expected(ds, only.split(",") if only else None)
    for name, seconds in found.items():
        plan = f"planned {planned[name]:8.2f} s" if name in planned else " " * 18
        click.echo(f"{seconds:8.2f} s  {seconds / found['decoding']:6.2f}x decoding  {plan}  {name}")
    rest, times = together - sum(found.values()), together / found["decoding"]
    click.echo(
        f"{together:8.2f} s  {times:6.2f}x decoding  planned {all_planned:8.2f} s  together; {rest:.2f} s have no name"
    )
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1000
    click.echo(f"peak memory {peak:.0f} MB")


if __name__ == "__main__":
    main()
