"""The command `deadtok`: each subcommand parses its options, calls the library and prints one screen."""

from __future__ import annotations

import sys
from typing import NoReturn

import click

from deadtok_xr._version import __version__
from deadtok_xr.cli import analyze, demo, report, stores
from deadtok_xr.cli.failures import status
from deadtok_xr.cli.warm_up import warm_up


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
def cli() -> None:
    """Record, convert and analyse how an embedding matrix moves during training.

    \b
    Try it:     deadtok demo
    Your data:  deadtok convert thimble_7.h5 thimble_7.zarr
                deadtok analyze thimble_7.zarr -o results.zarr
    """


for _command in (
    demo.demo,
    stores.convert,
    stores.recipes,
    stores.info,
    stores.verify,
    analyze.analyze,
    stores.label,
    stores.export,
    report.report,
    warm_up,
):
    cli.add_command(_command)


def main() -> NoReturn:
    """Run the command line: exit status 0 on success, 2 for unusable input, 1 for a failure of the machine."""
    sys.exit(status(lambda: cli(prog_name="deadtok", standalone_mode=False)))
