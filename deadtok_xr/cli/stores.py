"""`deadtok convert`, `info`, `verify`: stores made, described and checked."""

from __future__ import annotations

from pathlib import Path

import click

from deadtok_xr.cli.options import OVERWRITE, PARTIAL, PATH, QUIET, STORE, description, read_ids


@click.command()
@click.argument("source", type=PATH)
@click.argument("dest", type=PATH)
@click.option(
    "--dead-ids",
    type=PATH,
    help="File with the ids of the dead tokens, where SOURCE does not say: text, JSON, .npy, .npz, .h5, .safetensors.",
)
@OVERWRITE
@QUIET
def convert(source: Path, dest: Path, dead_ids: Path | None, overwrite: bool, quiet: bool) -> None:
    """Convert a recording (HDF5 or safetensors) to a store.

    \b
    Example:  deadtok convert thimble_7.h5 thimble_7.zarr
    """
    import deadtok_xr as dx
    from deadtok_xr.progress import reporting

    ids = None if dead_ids is None else read_ids(dead_ids)
    with reporting("converting", quiet=quiet) as report:
        path = dx.convert(source, dest, overwrite=overwrite, dead_ids=ids, progress=report)
    click.echo(description(path))


@click.command()
@STORE
@PARTIAL
def info(store: Path, partial: bool) -> None:
    """Say what a store holds and what analysing it takes.

    \b
    Example:  deadtok info thimble_7.zarr
    """
    click.echo(description(store, partial=partial))


@click.command()
@STORE
@click.option("--source", type=PATH, help="The file that STORE was converted from: compare every bit with it.")
@QUIET
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
