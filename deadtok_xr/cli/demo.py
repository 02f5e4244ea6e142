"""`deadtok demo`."""

from __future__ import annotations

import shlex
from concurrent.futures import as_completed
from pathlib import Path

import click

from deadtok_xr.cli.options import PATH, QUIET, draw, print_places, print_summary
from deadtok_xr.cli.warm_up import compiling_beside
from deadtok_xr.errors import InputError

_QUICK = (
    "motion", "phases", "phases_magnitude", "phases_cells", "lifecycle", "freezing", "kinematics", "epochs", "census",
)  # fmt: skip
_FULL = (*_QUICK, "topology", "mechanism", "critical_boundary")
"""Compiling the kernels of the others takes two thirds as long again."""


@click.command()
@click.argument("folder", required=False, type=PATH)
@click.option("--quick", is_flag=True, help="A shorter run, and only the analyses whose kernels compile fast.")
@click.option("--all", "every", is_flag=True, help="All analyses. Compiling their kernels takes 1.7 times as long.")
@QUIET
def demo(folder: Path | None, quick: bool, every: bool, quiet: bool) -> None:
    """Train a tiny model, record it, analyse the recording and draw the figures.

    Writes recording.zarr, results.zarr and figures/ to FOLDER (default: deadtok-demo, or deadtok-demo-N if it
    exists).

    \b
    Example:  deadtok demo --quick
    """
    folder = _next_free("deadtok-demo") if folder is None else _unused(folder)
    names = None if every else _QUICK if quick else _FULL
    with compiling_beside(names) as kernels:  # the following imports take seconds, in which these processes start
        from deadtok_xr import demo as training
        from deadtok_xr.engine.progress import dask_progress, reporting

        run = training.QUICK if quick else training.FULL
        with reporting("training", quiet=quiet) as report:
            recording = training.byte_level(folder / "recording.zarr", run, progress=lambda t: report(t, run.steps))
        from deadtok_xr.analyses import analyze
        from deadtok_xr.results.save import save_results

        with reporting("compiling", quiet=quiet) as report:
            for done, _ in enumerate(as_completed(kernels), start=1):
                report(done, len(kernels))
    progress = dask_progress("analysing", quiet=quiet)
    tree = analyze(recording, analyses=names)
    tree = save_results(tree, folder / "results.zarr", progress=progress)
    print_summary(tree)
    drawn = draw(tree, folder / "figures")
    others = f"{shlex.join(('deadtok', 'analyze', str(recording), '-o', str(folder / 'all.zarr')))}   (all analyses)"
    print_places(folder / "results.zarr", drawn, recording=recording, then="" if every else others)


def _unused(folder: Path) -> Path:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists already and is left as it is: name another folder, or none")
    return folder


def _next_free(name: str) -> Path:
    return next(p for n in range(1, 10_000) if not (p := Path(name if n == 1 else f"{name}-{n}")).exists())
