"""The command `deadtok`: each subcommand parses its options, calls the library and prints one screen."""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

import click

from deadtok_xr._version import __version__
from deadtok_xr.cli import analyze, compare, demo, doctor, explore, report, spelling, stores, tokens
from deadtok_xr.cli.failures import status
from deadtok_xr.cli.output import echo
from deadtok_xr.cli.warm_up import warm_up

_FIRST_HOUR = """\
deadtok records and analyses how the embedding matrix of a language model moves during training.

The commands of the first hour:

  deadtok demo                              train a tiny model, record and analyse it
  deadtok convert SOURCE run.zarr           make a store of a recording that you have
  deadtok analyze run.zarr -o results.zarr  measure how the tokens move
  deadtok explore results.zarr              look at every token and step in the browser

And later:

  deadtok report results.zarr -o page.html  put findings, pictures and definitions on one page
  deadtok compare run.zarr again.zarr       say from which step and in which tokens runs differ
  deadtok watch run.zarr                    look at a training run while it is recorded
  deadtok doctor model.pt --lr 1e-5         say which values of a saved model cannot move
  deadtok tokens model.pt                   say which tokens of a saved model were hardly trained

All commands: deadtok --help. All options of one: deadtok analyze --help.
"""


@click.group(
    invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__)
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Record, convert and analyse how an embedding matrix moves during training.

    \b
    Try it:     deadtok demo
    Your data:  deadtok convert thimble_7.h5 thimble_7.zarr
                deadtok analyze thimble_7.zarr -o results.zarr
    """
    spelling.running(cli.commands.get(ctx.invoked_subcommand or ""))
    if ctx.invoked_subcommand is None:
        echo(_FIRST_HOUR, nl=False)


for _command in (
    demo.demo,
    stores.convert,
    stores.recipes,
    stores.info,
    stores.verify,
    analyze.analyze,
    compare.compare,
    stores.label,
    stores.export,
    report.report,
    explore.explore,
    explore.watch,
    doctor.doctor,
    tokens.tokens,
    warm_up,
):
    cli.add_command(_command)


def main() -> NoReturn:
    """Run the command line and exit with the status of `failures.status`."""
    interrupted = False

    def run() -> Any:
        nonlocal interrupted
        try:
            return cli(prog_name="deadtok", standalone_mode=False)
        except (KeyboardInterrupt, click.Abort):
            interrupted = True
            raise

    found = status(run)
    if interrupted:  # Python would wait for threads, and a kernel may be at work for minutes; files allow it, as a kill
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(found)
    sys.exit(found)
