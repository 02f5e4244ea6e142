"""`deadtok warm-up`: compile the kernels in processes, by analysing a recording of a few steps."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

import click

from deadtok_xr.cli.options import QUIET
from deadtok_xr.cli.output import echo

_ANALYSES = {
    "topology": ("topology",),
    "spanning_tree": ("connectivity",),
    "lattice": ("lattice", "exponents"),
    "coherence": (
        "coherence",
        "h_persistence",
        "centroid_origin",
        "freeze_predictors",
        "token_indicators",
        "spectrum",
    ),
    "motion": ("motion", "phases", "phases_magnitude", "phases_cells", "lifecycle", "freezing", "epochs", "kinematics"),
    "mechanism": ("mechanism", "critical_boundary"),
    "census": ("census", "token_indicators"),
    "cloud": ("cloud",),
}
"""For the main kernel of each, the analyses that one process compiles together, those that take longest first."""
_INSTEAD = {"mechanism": "replayed_adam"}
"""The kernel that most recordings use instead of a main one."""
_FUNCTIONS = ("functions",)
"""The kernels of public functions that are not part of `analyze`."""


@click.command("warm-up")
@click.option("--workers", type=click.IntRange(min=1), help="Number of processes. Default: one for each core.")
@QUIET
def warm_up(workers: int | None, quiet: bool) -> None:
    """Compile all kernels, so that no analysis has to.

    Otherwise each kernel is compiled when it is first used. Compiled kernels are cached for the CPU of this machine:
    beside the package's files, in NUMBA_CACHE_DIR if it is set, or, if the package cannot be written, in the user's
    cache folder. For container images, run this while the image is built.

    \b
    Example:  deadtok warm-up
    """
    from dask.system import CPU_COUNT

    from deadtok_xr.engine.progress import reporting

    with tempfile.TemporaryDirectory() as folder, reporting("compiling", quiet=quiet) as report:
        stores = [_recording(Path(folder) / "bfloat16.zarr")]
        stores.append(_as_float32(stores[0], Path(folder) / "float32.zarr"))
        jobs = [(store, names) for names in (*_ANALYSES.values(), _FUNCTIONS) for store in stores]
        with _pool(workers or CPU_COUNT) as pool:
            futures = [pool.submit(_compile, *job) for job in jobs]
            for done, future in enumerate(as_completed(futures), start=1):
                future.result()
                report(done, len(futures))
    echo("all kernels are compiled")


@contextmanager
def compiling_beside(names: Iterable[str] | None, *, in_bfloat16: bool = True) -> Iterator[list[Future[None]]]:
    """Compile the missing kernels of some analyses in other processes during a `with` block; None: of all.

    Yields
    ------
    The work of these processes, to be waited for. If it fails, the analysis compiles what is missing.
    """
    from dask.system import CPU_COUNT

    jobs = missing_kernels(names)
    if not jobs:
        yield []
        return
    workers = min(CPU_COUNT, len(jobs))
    with tempfile.TemporaryDirectory() as folder, _pool(workers) as pool:
        for _ in range(workers):  # they start while this process makes a recording for them
            pool.submit(_import_all)
        store = _recording(Path(folder) / "bfloat16.zarr")
        if not in_bfloat16:
            store = _as_float32(store, Path(folder) / "float32.zarr")
        futures = [pool.submit(_compile, store, job) for job in jobs]
        try:
            yield futures
        finally:
            pool.shutdown(cancel_futures=True)


def compile_missing(names: Iterable[str], *, in_bfloat16: bool, quiet: bool) -> None:
    """Compile the missing kernels of some analyses: in processes, if they belong to several."""
    from deadtok_xr.engine.progress import reporting

    jobs = missing_kernels(names)
    if jobs and not quiet:
        echo("compiling the kernels, once after an installation", err=True)
    if len(jobs) > 1:
        with (
            compiling_beside(names, in_bfloat16=in_bfloat16) as futures,
            reporting("compiling", quiet=quiet) as report,
        ):
            for done, _ in enumerate(as_completed(futures), start=1):
                report(done, len(futures))


def missing_kernels(names: Iterable[str] | None) -> list[tuple[str, ...]]:
    """Return those of some analyses, or of all, whose kernels are not compiled, as a tuple for each process."""
    from deadtok_xr.kernels import needs_compiling

    wanted = None if names is None else set(names)
    jobs = (
        tuple(n for n in group if wanted is None or n in wanted)
        for kernel, group in _ANALYSES.items()
        if needs_compiling(kernel) and needs_compiling(_INSTEAD.get(kernel, kernel))
    )
    return [job for job in jobs if job]


def _pool(workers: int) -> ProcessPoolExecutor:
    from deadtok_xr.engine.worker_process import end_with_parent

    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=end_with_parent)


def _import_all() -> None:
    """Import what each job needs."""
    for module in ("deadtok_xr.analyses", "deadtok_xr.kernels.numba"):
        import_module(module)


def _recording(path: Path) -> Path:
    """Record a few steps of a tiny model."""
    from deadtok_xr import demo

    return demo.byte_level(path, demo.Run(steps=4, batch=2, length=8, dims=8, layers=1))


def _as_float32(source: Path, path: Path) -> Path:
    """Write a recording of the same values in float32."""
    import warnings

    import numpy as np

    from deadtok_xr.conversion.run import convert
    from deadtok_xr.recording.opening import open_recording

    file = path.with_suffix(".npz")
    recording = open_recording(source)
    np.savez(file, W=recording.W.values, grad=recording.grad.values, dead_mask=recording.dead.values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that all values are those of bfloat16
        return Path(convert(file, path, keep_dtype=True))


def _compile(store: Path, names: Sequence[str]) -> None:
    """Compile the kernels of some analyses by computing them."""
    import warnings

    import dask

    from deadtok_xr.analyses import analyze, open_for_analysis
    from deadtok_xr.engine.compiling import compiling_together
    from deadtok_xr.errors import InputError

    with dask.config.set(scheduler="synchronous"), compiling_together(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of so few steps
        if names == _FUNCTIONS:
            _call_functions(store)
            return
        recording = open_for_analysis(store)
        for name in names:  # each by itself: one that is not possible is left out, here too
            with suppress(InputError):
                analyze(recording, analyses=[name])[name].to_dataset().compute()


def _call_functions(store: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from deadtok_xr.analyses.autocorrelation import velocity_autocorrelation
    from deadtok_xr.analyses.checkpoint import checkpoint
    from deadtok_xr.analyses.common import fused_replay
    from deadtok_xr.analyses.compare_runs import compare_runs
    from deadtok_xr.analyses.elements import elements
    from deadtok_xr.analyses.gaps import lattice_gaps
    from deadtok_xr.analyses.grid_test import grid_test
    from deadtok_xr.analyses.neighbours import neighbour_preservation
    from deadtok_xr.analyses.undertrained import undertrained
    from deadtok_xr.checkpoints import doctor
    from deadtok_xr.recording.opening import open_recording

    recording, dtype = open_recording(store), open_recording(store, raw=True).W.dtype.name
    fused_replay.tried("single", dtype)
    for function in (velocity_autocorrelation, elements, grid_test, neighbour_preservation):
        function(recording).compute()
    checkpoint(recording, step=0).compute()
    lattice_gaps(recording, step=0).compute()
    compare_runs(recording, recording).compute()
    model = store.with_suffix(".safetensors")
    save_file({"embed_tokens.weight": torch.ones(8, 520, dtype=getattr(torch, dtype))}, model)  # wide: see `pc1`
    doctor(model, model)
    undertrained(model).compute()
