"""The command `deadtok`: each subcommand parses its options, calls the library and prints one screen."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import click

from deadtok_xr import __version__
from deadtok_xr.errors import InputError

_QUIET = click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
_OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace the destination if it exists.")
_PARTIAL = click.option("--partial", is_flag=True, help="Accept a store that was not written to its end.")
_STORE = click.argument("store", type=click.Path(path_type=Path))


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
def cli() -> None:
    """Record, convert and analyse how an embedding matrix moves during training.

    \b
    Try it:     deadtok demo
    Your data:  deadtok convert thimble_7.h5 thimble_7.zarr
                deadtok analyze thimble_7.zarr -o results.zarr
    """


@cli.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--quick", is_flag=True, help="A shorter run, within a minute.")
@_QUIET
def demo(folder: Path | None, quick: bool, quiet: bool) -> None:
    """Train a real tiny model here, record it, analyse the recording, draw it.

    Leaves recording.zarr, results.zarr and figures/ in FOLDER (deadtok-demo, or the next free
    deadtok-demo-N).

    \b
    Example:  deadtok demo --quick
    """
    import deadtok_xr as dx
    from deadtok_xr import demo as training
    from deadtok_xr.progress import dask_progress, reporting

    folder = folder or _next_free("deadtok-demo")
    run = training.QUICK if quick else training.Run()
    with reporting("training", quiet=quiet) as report:
        recording = training.byte_level(folder / "recording.zarr", run, progress=lambda t: report(t, run.steps))
    progress = dask_progress("analysing", quiet=quiet)
    tree = dx.save_results(dx.analyze(recording), folder / "results.zarr", progress=progress)
    click.echo(dx.summary(tree))
    _draw(tree, folder / "figures")
    click.echo(f"recording: {recording}\nresults:   {folder / 'results.zarr'}")


@cli.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("dest", type=click.Path(path_type=Path))
@_OVERWRITE
@_QUIET
def convert(source: Path, dest: Path, overwrite: bool, quiet: bool) -> None:
    """Convert a recording (HDF5 or safetensors) to a store.

    \b
    Example:  deadtok convert thimble_7.h5 thimble_7.zarr
    """
    import deadtok_xr as dx
    from deadtok_xr.progress import reporting

    with reporting("converting", quiet=quiet) as report:
        path = dx.convert(source, dest, overwrite=overwrite, progress=report)
    click.echo(_describe(path))


@cli.command()
@_STORE
@_PARTIAL
def info(store: Path, partial: bool) -> None:
    """Say what a store holds and what analysing it takes.

    \b
    Example:  deadtok info thimble_7.zarr
    """
    click.echo(_describe(store, partial=partial))


@cli.command()
@_STORE
@click.option(
    "-o",
    "--output",
    "results",
    required=True,
    type=click.Path(path_type=Path),
    help="Results store to write.",
)
@click.option("--tokens", type=click.Choice(["all", "live", "dead"]), help="Default: dead where known.")
@click.option("--only", help="Analyses, separated by commas. Default: all that the recording allows.")
@click.option("--figures", type=click.Path(path_type=Path), help="Also draw the figures into this folder.")
@click.option("--scheduler", default="threads", show_default=True, help="threads, processes or a cluster's ADDRESS.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True)
@click.option("--allow-gaps", is_flag=True, help="Measure transitions across missing steps.")
@_PARTIAL
@_OVERWRITE
@_QUIET
def analyze(
    store: Path, results: Path, tokens: str | None, only: str | None, figures: Path | None, scheduler: str,
    device: str, allow_gaps: bool, partial: bool, overwrite: bool, quiet: bool,
) -> None:  # fmt: skip
    """Analyse a store and save the results.

    \b
    Example:  deadtok analyze thimble_7.zarr -o results.zarr --only motion,phases
    """
    import deadtok_xr as dx
    from deadtok_xr.progress import dask_progress

    if device in ("cuda", "mps"):
        raise InputError(f"--device {device}: the kernels of this version run on the CPU; say --device cpu")
    names = [name.strip() for name in only.split(",") if name.strip()] if only else None
    tree = dx.analyze(store, analyses=names, tokens=tokens, allow_gaps=allow_gaps, partial=partial)
    with _scheduler(scheduler):
        saved = dx.save_results(tree, results, overwrite=overwrite, progress=dask_progress("analysing", quiet=quiet))
    click.echo(dx.summary(saved))
    if figures:
        _draw(saved, figures)
    click.echo(f"results: {results}")


@contextmanager
def _scheduler(name: str) -> Iterator[None]:
    import dask

    if name in ("threads", "processes", "synchronous"):
        with dask.config.set(scheduler=name):
            yield
        return
    try:
        from distributed import Client
    except ImportError:
        raise InputError("--scheduler ADDRESS needs dask.distributed: pip install 'deadtok_xr[cluster]'") from None
    try:
        client = Client(name, timeout="10s")
    except (OSError, ValueError) as error:
        raise InputError(f"no Dask scheduler answers at {name!r} ({error}): start one, or give its address") from error
    with client:
        yield


def _describe(path: Path, *, partial: bool = False) -> str:
    from deadtok_xr.describe import describe

    return describe(path, partial=partial)


def _draw(tree: Any, folder: Path) -> None:
    from deadtok_xr import plot

    for path in plot.save_figures(tree, folder):
        click.echo(f"figure: {path}")


def _next_free(name: str) -> Path:
    return next(p for n in range(1, 10_000) if not (p := Path(name if n == 1 else f"{name}-{n}")).exists())


def main() -> NoReturn:
    """Run the command line: exit status 0 done, 2 what the user gave is wrong, 1 what the machine could not do."""
    sys.exit(_status(lambda: cli(standalone_mode=False)))


def _status(run: Callable[[], Any]) -> int:
    try:
        run()
    except click.ClickException as error:
        error.show()
        return 2
    except click.exceptions.Abort:
        return _fail("interrupted", 1)
    except (InputError, FileNotFoundError, PermissionError) as error:
        return _fail(str(error), 2)
    except MemoryError:
        return _fail("not enough memory: close other programs, or analyse fewer tokens at a time", 1)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        return _fail(f"{error}" + ("; free some space, then run the same command again" if full else ""), 1)
    return 0


def _fail(message: str, status: int) -> int:
    click.echo(f"deadtok: {message}", err=True)
    return status


if __name__ == "__main__":
    main()
