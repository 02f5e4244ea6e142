"""`deadtok doctor`: which values of a checkpoint cannot move, and which changed up to a later one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deadtok_xr.cli.options import JSON, PATH, QUIET, print_json
from deadtok_xr.cli.output import echo

if TYPE_CHECKING:
    import xarray as xr

STUCK = 3
"""The exit status if something is stuck."""
_LARGE = 2**28
"""Bytes from which progress is shown."""


@click.command()
@click.argument("checkpoint", type=PATH)
@click.argument("later", type=PATH, required=False)
@click.option("--lr", type=float, help="Learning rate, or the size of an update in general.")
@click.option(
    "--allow",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Share of the values of each parameter that may be stuck.",
)
@click.option("--details", is_flag=True, help="One line for each parameter, instead of one screen.")
@JSON
@QUIET
@click.pass_context
def doctor(
    ctx: click.Context, checkpoint: Path, later: Path | None, lr: float | None, allow: float, details: bool,
    as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Say which values of a checkpoint cannot move at a learning rate, and which changed up to a later one.

    The values of CHECKPOINT are those that can move or not; LATER is compared with them.

    CHECKPOINT and LATER are safetensors, torch, HDF5 or NumPy files, the index of a sharded model, or the folder
    of one. They are read once, in bounded memory, and no code in them is run.

    The exit status is 3 if something is stuck: with --lr, a value that neither +lr nor -lr moves; without it, a
    parameter of which no value changed between two checkpoints.

    \b
    Example:  deadtok doctor model.safetensors --lr 1e-5
              deadtok doctor step_1000/ step_2000/ --lr 1e-5 --json
    """
    from deadtok_xr.checkpoints.doctor import examine
    from deadtok_xr.checkpoints.findings import describe, is_stuck
    from deadtok_xr.engine.progress import reporting

    with reporting("reading", quiet=quiet or as_json, bytes_=True) as report:
        found = examine(
            checkpoint, later, lr=lr, progress=lambda done, total: report(done, total) if total > _LARGE else None
        )
    stuck = is_stuck(found, allow)
    if as_json:
        print_json(**_facts(found), stuck=stuck)
    else:
        echo(describe(found, details=details))
    ctx.exit(STUCK if stuck else 0)


def _facts(found: xr.Dataset) -> dict[str, Any]:
    """Return attributes, findings and parameters as values of JSON, which has no NaN: it becomes null."""
    from deadtok_xr.attributes import plain
    from deadtok_xr.checkpoints.findings import sentences

    columns = {str(name): found[name].values.tolist() for name in ("parameter", *found.data_vars)}
    parameters = [
        {name: None if isinstance(x, float) and math.isnan(x) else x for name, x in zip(columns, row, strict=True)}
        for row in zip(*columns.values(), strict=True)
    ]
    return {**plain(found.attrs), "findings": sentences(found), "parameters": parameters}
