"""`deadtok analyze`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deadtok_xr.attributes import plain
from deadtok_xr.cli.compare import Places, tokens_of
from deadtok_xr.cli.options import (
    JSON,
    OVERWRITE,
    PARTIAL,
    PATH,
    PLACE,
    QUIET,
    draw,
    print_json,
    print_places,
    print_summary,
    rechunk_here,
    remove_leftovers,
)
from deadtok_xr.cli.output import echo
from deadtok_xr.cli.replaying import for_mechanism, replay_options
from deadtok_xr.cli.warm_up import compile_missing
from deadtok_xr.errors import InputError
from deadtok_xr.kernels.device import NAMES, resolve, resources
from deadtok_xr.schema import RUN
from deadtok_xr.text import distinct_names

if TYPE_CHECKING:
    import xarray as xr

    from deadtok_xr.analyses.plan import Plan

_HERE = ("threads", "processes", "synchronous")


@click.command()
@click.argument("stores", type=PLACE, nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    "results",
    required=True,
    type=PLACE,
    help="Results store to write.",
)
@click.option("--tokens", type=click.Choice(["all", "live", "dead"]), help="Default: dead, if they are known.")
@click.option("--run", help="Label of one run, for a store of several runs. Default: each run by itself.")
@click.option(
    "--join",
    type=click.Choice(["exact", "inner", "outer"]),
    default="exact",
    show_default=True,
    help="Of several stores: the steps and tokens that all have (inner) or that any has (outer).",
)
@click.option("--only", help="Analyses, separated by commas. Default: all that the recording allows.")
@click.option("--import", "modules", type=PATH, multiple=True, help="A Python file that defines analyses of your own.")
@click.option("--figures", type=PATH, help="Also draw the figures into this folder.")
@click.option("--scheduler", default="threads", show_default=True, help="threads, processes or a cluster's ADDRESS.")
@click.option("--workers", type=int, help="Number of worker processes on this machine (dask.distributed).")
@click.option(
    "--device",
    type=click.Choice(NAMES),
    default="auto",
    show_default=True,
    help="Where dense kernels run: auto uses CUDA if it is faster; torch-cpu runs the GPU kernels on the CPU.",
)
@click.option(
    "--precision",
    type=click.Choice(["bfloat16", "float16", "float32"]),
    help="Number format that the weights were trained in. Default: that of the store.",
)
@click.option("--allow-gaps", is_flag=True, help="Measure transitions across missing steps.")
@click.option("--budget", help="CPU time an analysis may take (90s, 2h). Default: 10min, or 10 times reading.")
@click.option("--memory", help="Memory of a process (4GB): with fewer threads, or refused before the work.")
@click.option("--details", is_flag=True, help="Print everything that the analyses say, instead of one screen.")
@replay_options
@JSON
@PARTIAL
@OVERWRITE
@QUIET
def analyze(
    stores: Places, results: Path | str, tokens: str | None, run: str | None, join: Any, only: str | None,
    modules: tuple[Path, ...], figures: Path | None, scheduler: str, workers: int | None, device: str,
    precision: str | None, allow_gaps: bool, budget: str | None, memory: str | None, partial: bool, as_json: bool,
    overwrite: bool, quiet: bool, details: bool, **replay: Any,
) -> None:  # fmt: skip
    """Analyse a store and save the results.

    Of several stores, or a store of several runs, each run is analysed by itself, and all are compared with the first.
    After an interruption or a kill, the same command resumes.

    --lr, --optimizer, --hyperparameter and --arithmetic are for `mechanism`, if the store lacks the settings of
    the training, or has wrong ones.

    \b
    Example:  deadtok analyze thimble_7.zarr -o results.zarr --only motion,phases
              deadtok analyze thimble_7.zarr -o why.zarr --only mechanism --optimizer AdamW --lr 1e-3 \\
                  --hyperparameter betas=0.9,0.999 --hyperparameter eps=1e-8 --arithmetic find
              deadtok analyze seed_1.zarr seed_2.zarr seed_3.zarr -o seeds.zarr
    """
    from deadtok_xr.analyses import plan_analyses
    from deadtok_xr.analyses.analyze import plan_runs, tree_of_runs
    from deadtok_xr.analyses.plan import check_memory
    from deadtok_xr.analyses.registry import import_analyses
    from deadtok_xr.engine.progress import dask_progress
    from deadtok_xr.results.save import save_results
    from deadtok_xr.store import destination

    if workers is None and scheduler in _HERE:
        rechunk_here()
        if device != "auto":
            resolve(device, 0)  # an unknown device is an error now, not in the first task
    for file in modules:
        import_analyses(file)
    names = None if only is None else [name.strip() for name in only.split(",") if name.strip()]
    if names == []:
        raise InputError(f"--only {only!r} names no analysis: give for instance --only motion,phases")
    options = for_mechanism(**replay)
    if options and names and "mechanism" not in names:
        raise InputError("--lr, --optimizer, --hyperparameter and --arithmetic are for mechanism: add it to --only")
    if figures:
        destination.refuse_inside_store(figures / "figure.png")
        figures.mkdir(parents=True, exist_ok=True)  # a failure is reported now, not after an hour's work
    for store in stores:
        remove_leftovers(store)
    recording = _opened(stores, tokens=tokens, run=run, join=join, partial=partial)
    keywords: dict[str, Any] = {
        "analyses": names, "allow_gaps": allow_gaps, "precision": precision, "budget": budget,
        "options": {"mechanism": options} if options else None,
    }  # fmt: skip
    runs = plan_runs(recording, **keywords) if RUN in recording.dims else {}
    planned = next(iter(runs.values()), None) or plan_analyses(recording, **keywords)
    threads = _threads(planned, memory) if workers is None and scheduler == "threads" else 1
    if memory is not None:
        check_memory(planned, memory, threads)
    tree = tree_of_runs(recording, runs, names, device) if RUN in recording.dims else planned.tree(device)
    plan = "" if quiet else _plan_text(planned, threads, here=workers is None and scheduler == "threads")
    with _scheduler(scheduler, workers, device, threads, quiet=quiet), _print_log(quiet):
        names = list(tree.children) if workers is not None or scheduler in _HERE else []

        def before() -> None:
            """Do what comes before the computation, after all checks."""
            if plan:
                echo(plan, err=True)
            compile_missing(names, in_bfloat16=_is_bfloat16(planned.ds), quiet=quiet)

        progress = _after(before, dask_progress("analysing", quiet=quiet))
        saved = save_results(tree, results, overwrite=overwrite, progress=progress)
    if not as_json:
        print_summary(saved, details=details)
    drawn = draw(saved, figures) if figures else []
    if as_json:
        left_out, files = plain(saved.attrs.get("left_out", {})), [str(path) for path in drawn]
        print_json(results=str(results), groups=list(saved.children), left_out=left_out, figures=files)
        return
    print_places(results, drawn)


def _opened(stores: Places, *, tokens: str | None, run: str | None, join: Any, **opening: Any) -> Any:
    """Open a store, or several as one dataset of several runs."""
    from deadtok_xr.analyses import open_for_analysis
    from deadtok_xr.recording.runs import concat_runs

    if len(stores) == 1:
        return open_for_analysis(stores[0], tokens=tokens, run=run, **opening)
    if run is not None:
        raise InputError(f"--run {run} names a run of one store, and there are {len(stores)} stores: leave it out")
    return concat_runs(list(stores), run=distinct_names(stores), tokens=tokens_of(stores, tokens), join=join, **opening)  # type: ignore[arg-type]


@contextmanager
def _after(before: Callable[[], None], progress: AbstractContextManager[None]) -> Iterator[None]:
    """Show progress when the computation starts, after a call of ``before``."""
    before()
    with progress:
        yield


def _is_bfloat16(ds: xr.Dataset) -> bool:
    """Return whether the weights are stored in 16 bits: kernels are compiled for the words of a recording."""
    from deadtok_xr.store.stored_array import stored_dtype

    return "W" in ds and stored_dtype(ds["W"].data).name == "bfloat16"


@contextmanager
def _print_log(quiet: bool) -> Iterator[None]:
    """Print what the library logs when it resumes unfinished results."""
    said, logger = _Printed(logging.INFO), logging.getLogger("deadtok_xr.results.save")
    level = logger.level
    if not quiet:
        logger.addHandler(said)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(said)
        logger.setLevel(level)


class _Printed(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        echo(record.getMessage(), err=True)


def _threads(plan: Plan, memory: str | None) -> int:
    """Return how many threads to use: as many as Dask would, or fewer that fit into the memory; at least one."""
    from deadtok_xr.analyses.plan import dask_threads, fitting_threads, size

    threads = dask_threads()
    return threads if memory is None else max(1, fitting_threads(plan, size(memory), threads))


def _plan_text(plan: Plan, threads: int, *, here: bool) -> str:
    """Return lines about the work, its time and its peak memory, and what is left out because it takes too long."""
    from dask.utils import format_bytes

    from deadtok_xr.cli.spelling import options_alone
    from deadtok_xr.text import duration

    sizes = " x ".join(f"{plan.ds.sizes[name]:,} {name}s" for name in ("step", "token", "dim"))
    where = ("with 1 thread" if threads == 1 else f"with {threads} threads") if here else "for each thread of a worker"
    analyses = "1 analysis" if len(plan.specs) == 1 else f"{len(plan.specs)} analyses"
    need = f"{format_bytes(plan.cost.memory(threads))} of memory {where}"
    first = f"analysing {sizes}: {analyses}, about {duration(plan.cost.seconds)} of CPU time and {need}"
    if RUN in plan.ds.coords:
        first += ", each run"
    return "\n".join([first, *map(options_alone, plan.describe())])


@contextmanager
def _scheduler(name: str, workers: int | None, device: str, threads: int, *, quiet: bool) -> Iterator[None]:
    """Use a scheduler of Dask inside a `with` block."""
    if workers is None and name in _HERE:
        import dask.threaded

        # by the function: for a name, Dask imports dask.distributed first, half a second
        chosen = {"scheduler": dask.threaded.get, "num_workers": threads} if name == "threads" else {"scheduler": name}
        with dask.config.set(chosen):
            yield
        return
    from deadtok_xr.engine import cluster

    if workers is not None and name != "threads":
        raise InputError(f"--workers {workers} and --scheduler {name} exclude each other: give one of them")
    with cluster.connected(name) if workers is None else cluster.local_cluster(workers) as client:
        if find_spec("bokeh") and not quiet:  # without bokeh Dask has no dashboard
            echo(f"dashboard: {client.dashboard_link}", err=True)
        _check_workers(client.scheduler_info()["workers"], name, device)
        logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # what it logs is raised as well
        yield


def _check_workers(workers: Mapping[str, Any], scheduler: str, device: str) -> None:
    """Refuse tasks that need a resource that no worker has: they would wait for ever."""
    for resource in resources(device).get("resources", {}):
        if not any(worker.get("resources", {}).get(resource) for worker in workers.values()):
            raise InputError(
                f"--device {device}: none of the {len(workers)} workers of {scheduler} has the resource {resource}: "
                f"start those with a GPU as `dask worker {scheduler} --resources {resource}=1`, or use --device cpu"
            )
