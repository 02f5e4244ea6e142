"""The command `deadtok`: each subcommand parses its options, calls the library and prints one screen."""

from __future__ import annotations

import errno
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import click

from deadtok_xr import __version__
from deadtok_xr.errors import InputError


class _LocalPath(click.Path):
    """A path on this machine."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value):
            self.fail("it is empty; needed: a path", param, ctx)
        if "://" in str(value):
            self.fail(f"{str(value)!r} is an address; needed: a path on this machine", param, ctx)
        return super().convert(value, param, ctx)


_PATH = _LocalPath(path_type=Path)
_TRACEBACK = "DEADTOK_TRACEBACK"
_PATIENCE = "10s"  # for a scheduler to answer
_NO_ARGUMENTS = getattr(click.exceptions, "NoArgsIsHelpError", ())  # click 8.2 and newer
_GIVEN = (FileNotFoundError, FileExistsError, PermissionError, NotADirectoryError, IsADirectoryError)
_QUIET = click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
_OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace the destination if it exists.")
_PARTIAL = click.option("--partial", is_flag=True, help="Accept a store that was not written to its end.")
_STORE = click.argument("store", type=_PATH)


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
@click.argument("folder", required=False, type=_PATH)
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

    folder = _next_free("deadtok-demo") if folder is None else _unused(folder)
    run = training.QUICK if quick else training.Run()
    with reporting("training", quiet=quiet) as report:
        recording = training.byte_level(folder / "recording.zarr", run, progress=lambda t: report(t, run.steps))
    progress = dask_progress("analysing", quiet=quiet)
    tree = dx.save_results(dx.analyze(recording), folder / "results.zarr", progress=progress)
    click.echo(dx.summary(tree))
    _draw(tree, folder / "figures")
    click.echo(f"recording: {recording}\nresults:   {folder / 'results.zarr'}")


@cli.command()
@click.argument("source", type=_PATH)
@click.argument("dest", type=_PATH)
@click.option(
    "--dead-ids",
    type=_PATH,
    help="File with the ids of the dead tokens (text, JSON or .npy), where SOURCE does not say.",
)
@_OVERWRITE
@_QUIET
def convert(source: Path, dest: Path, dead_ids: Path | None, overwrite: bool, quiet: bool) -> None:
    """Convert a recording (HDF5 or safetensors) to a store.

    \b
    Example:  deadtok convert thimble_7.h5 thimble_7.zarr
    """
    import deadtok_xr as dx
    from deadtok_xr.progress import reporting

    ids = None if dead_ids is None else _ids(dead_ids)
    with reporting("converting", quiet=quiet) as report:
        path = dx.convert(source, dest, overwrite=overwrite, dead_ids=ids, progress=report)
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
@click.option("--source", type=_PATH, help="The file that STORE was converted from: compare every bit with it.")
@_QUIET
def verify(store: Path, source: Path | None, quiet: bool) -> None:
    """Read every chunk of a store against its checksum, and compare it with its source.

    \b
    Example:  deadtok verify thimble_7.zarr --source thimble_7.h5
    """
    import deadtok_xr as dx
    from deadtok_xr.errors import DamagedStoreError
    from deadtok_xr.progress import reporting

    with reporting("verifying", quiet=quiet) as report:
        found = dx.verify(store, source, progress=report)
    if found.problems:
        raise DamagedStoreError("; ".join(found.problems))
    same = f"; the same bits as {source}: {', '.join(found.compared)}" if source else ""
    click.echo(f"{store}: {found.n_chunks} chunks read, all as they were written{same}")


@cli.command()
@_STORE
@click.option(
    "-o",
    "--output",
    "results",
    required=True,
    type=_PATH,
    help="Results store to write.",
)
@click.option("--tokens", type=click.Choice(["all", "live", "dead"]), help="Default: dead where known.")
@click.option("--only", help="Analyses, separated by commas. Default: all that the recording allows.")
@click.option("--figures", type=_PATH, help="Also draw the figures into this folder.")
@click.option("--scheduler", default="threads", show_default=True, help="threads, processes or a cluster's ADDRESS.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True)
@click.option(
    "--precision",
    type=click.Choice(["bfloat16", "float16", "float32"]),
    help="Number format that the weights were trained in. Default: what the store says.",
)
@click.option("--allow-gaps", is_flag=True, help="Measure transitions across missing steps.")
@_PARTIAL
@_OVERWRITE
@_QUIET
def analyze(
    store: Path, results: Path, tokens: str | None, only: str | None, figures: Path | None, scheduler: str,
    device: str, precision: str | None,
    allow_gaps: bool, partial: bool, overwrite: bool, quiet: bool,
) -> None:  # fmt: skip
    """Analyse a store and save the results.

    \b
    Example:  deadtok analyze thimble_7.zarr -o results.zarr --only motion,phases
    """
    import deadtok_xr as dx
    from deadtok_xr import store as stores
    from deadtok_xr.progress import dask_progress

    if device in ("cuda", "mps"):
        raise InputError(f"--device {device}: the kernels of this version run on the CPU; say --device cpu")
    names = None if only is None else [name.strip() for name in only.split(",") if name.strip()]
    if names == []:
        raise InputError(f"--only {only!r} names no analysis: say for instance --only motion,phases")
    if figures:
        stores.refuse_inside(figures / "figure.png")
        figures.mkdir(parents=True, exist_ok=True)  # now, not after an hour's work
    tree = dx.analyze(store, analyses=names, tokens=tokens, allow_gaps=allow_gaps, precision=precision, partial=partial)
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
        client = Client(name, timeout=_PATIENCE)
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


def _ids(path: Path) -> list[int]:
    """The integers in a file: NumPy's own format, a JSON list, or text with spaces, commas or lines between them."""
    import numpy as np

    try:
        if path.suffix == ".npy":
            return list(np.load(path, allow_pickle=False).ravel())
        return [int(word) for word in re.split(r"[\s,\[\]]+", path.read_text()) if word]
    except ValueError as error:
        raise InputError(f"{path} cannot be read as token ids ({error}); needed: integers, or a .npy file") from error


def _unused(folder: Path) -> Path:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists already and is left as it is: name another folder, or none")
    return folder


def _next_free(name: str) -> Path:
    return next(p for n in range(1, 10_000) if not (p := Path(name if n == 1 else f"{name}-{n}")).exists())


def main() -> NoReturn:
    """Run the command line: exit status 0 done, 2 what the user gave is wrong, 1 what the machine could not do."""
    sys.exit(_status(lambda: cli(prog_name="deadtok", standalone_mode=False)))


def _status(run: Callable[[], Any]) -> int:
    try:
        with _plain_warnings():
            run()
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        if os.environ.get(_TRACEBACK):
            traceback.print_exc()
        if isinstance(error, _NO_ARGUMENTS):
            error.show()
            return 2
        message, status = _explained(error)
        message = message.replace("\n", " ")  # a path may hold one
        click.echo(f"deadtok: {message}", err=True)
        return status
    return 0


def _explained(error: BaseException) -> tuple[str, int]:
    """One sentence about an error, and the exit status that it means."""
    if isinstance(error, click.ClickException):
        return _usage(error), 2
    if isinstance(error, (KeyboardInterrupt, click.exceptions.Abort)):
        return "interrupted; anything that it was writing is incomplete and will not open", 1
    if isinstance(error, InputError):
        return str(error), 2
    if isinstance(error, MemoryError):
        return "not enough memory: close other programs, or analyse fewer tokens at a time", 1
    sentence = " ".join(str(error).split()) or "no message"
    if type(error).__module__.startswith("distributed") or isinstance(error, BrokenExecutor):
        return f"the workers failed, {type(error).__name__}: {sentence}; they may have run out of memory", 1
    if isinstance(error, OSError):
        return _about_files(error)
    return (
        f"an error that should not happen, {type(error).__name__}: {sentence}; run the command again with "
        f"{_TRACEBACK}=1 in the environment for the traceback, and report it",
        1,
    )


def _usage(error: click.ClickException) -> str:
    message = " ".join(error.format_message().split())
    ctx = getattr(error, "ctx", None)
    return f"{message.rstrip('.')}; see {ctx.command_path} --help" if ctx else message


def _about_files(error: OSError) -> tuple[str, int]:
    reason = error.strerror or str(error)
    message = f"{error.filename}: {reason}" if error.filename else reason
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    given = isinstance(error, _GIVEN) or error.errno in (errno.ENAMETOOLONG, errno.ELOOP, errno.EROFS)
    if full and "make room" not in message:
        message += "; make room, then run the same command again with --overwrite"
    return message, 2 if given else 1


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show each warning as one sentence, without Python's file and line."""

    def show(message: Warning | str, *args: Any, **kwargs: Any) -> None:
        click.echo(f"deadtok: warning: {' '.join(str(message).split())}", err=True)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


if __name__ == "__main__":
    main()
