"""`deadtok report`: results as an HTML page."""

from __future__ import annotations

from pathlib import Path

import click

from deadtok_xr.cli.options import OVERWRITE, PATH
from deadtok_xr.cli.output import echo


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

    echo(f"report: {write_report(results, out, overwrite=overwrite)}")
