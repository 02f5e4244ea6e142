"""`deadtok label`, `export`, `report`: commands for existing stores and results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from deadtok_xr.cli.options import OVERWRITE, PATH, QUIET, STORE, description

if TYPE_CHECKING:
    from deadtok_xr.recording.opening import Tokens


@click.command()
@STORE
@click.option(
    "--dead-ids", type=PATH, help="File with the ids of the dead tokens (text, JSON, .npy, .npz, .h5 or .safetensors)."
)
@click.option("--token-text", type=PATH, help="A tokenizer.json, a JSON list, or text with one token per line.")
@click.option("--overwrite", is_flag=True, help="Replace existing labels that differ.")
def label(store: Path, dead_ids: Path | None, token_text: Path | None, overwrite: bool) -> None:
    """Add dead tokens and token texts to a store; the data are not changed.

    \b
    Example:  deadtok label thimble_7.zarr --dead-ids dead.json --token-text tokenizer.json
    """
    from deadtok_xr.store.labels import label as add_labels

    add_labels(store, dead_ids=dead_ids, token_text=token_text, overwrite=overwrite)
    click.echo(description(store))


@click.command()
@STORE
@click.argument("out", type=PATH)
@click.option("--variables", help="Variables, separated by commas. Default: all.")
@click.option("--tokens", type=click.Choice(["all", "live", "dead"]), default="all", show_default=True)
@click.option("--run", help="Label of one run, for a store of several runs.")
@click.option("--uint16", is_flag=True, help="Write the bits of bfloat16 as uint16, as .h5 and .npz always do.")
@click.option("--source-dtype", is_flag=True, help="Write each variable in the dtype that it was converted from.")
@OVERWRITE
@QUIET
def export(
    store: Path, out: Path, variables: str | None, tokens: str, run: str | None, uint16: bool, source_dtype: bool,
    overwrite: bool, quiet: bool,
) -> None:  # fmt: skip
    """Write a store as a plain file, OUT.safetensors, OUT.h5 or OUT.npz, bit for bit.

    \b
    Example:  deadtok export thimble_7.zarr dead.safetensors --variables W,grad --tokens dead
    """
    from deadtok_xr.engine.progress import reporting
    from deadtok_xr.recording.export import export as write_file

    names = None if variables is None else [name.strip() for name in variables.split(",") if name.strip()]
    with reporting("exporting", quiet=quiet) as report:
        write_file(
            store, out, variables=names, tokens=cast("Tokens", tokens), run=run, uint16=uint16 or None,
            source_dtype=source_dtype, overwrite=overwrite, progress=report,
        )  # fmt: skip
    click.echo(f"{out}: {out.stat().st_size} bytes")


@click.command()
@click.argument("results", type=PATH)
@click.option("-o", "--output", "out", required=True, type=PATH, help="HTML file to write.")
@OVERWRITE
def report(results: Path, out: Path, overwrite: bool) -> None:
    """Write results as one HTML page: findings, figures, definitions, provenance.

    \b
    Example:  deadtok report results.zarr -o report.html
    """
    from deadtok_xr.results.report import report as write_report

    click.echo(f"report: {write_report(results, out, overwrite=overwrite)}")
