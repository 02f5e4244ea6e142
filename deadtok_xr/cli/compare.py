"""`deadtok compare`: from which step and in which tokens runs differ, or which findings of their results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deadtok_xr.cli.options import JSON, OVERWRITE, PATH, PLACE, QUIET, print_json
from deadtok_xr.cli.output import echo
from deadtok_xr.errors import InputError, MissingFileError
from deadtok_xr.schema import RESULTS
from deadtok_xr.text import distinct_names

if TYPE_CHECKING:
    import xarray as xr

Places = tuple[Path | str, ...]
DIFFERENT = 3
"""The exit status if recordings differ in a bit."""


@click.command()
@click.argument("runs", type=PLACE, nargs=-1, required=True)
@click.option("--tokens", type=click.Choice(["all", "live", "dead"]), help="Default: dead, if all stores know them.")
@click.option("--variable", default="W", show_default=True, help="Variable of the recordings to compare.")
@click.option(
    "--join",
    type=click.Choice(["exact", "inner"]),
    default="exact",
    show_default=True,
    help="inner: compare the steps and tokens that all runs have.",
)
@click.option("--report", "page", type=PATH, help="Also write an HTML page with pictures, a colour for each run.")
@JSON
@OVERWRITE
@QUIET
@click.pass_context
def compare(
    ctx: click.Context, runs: Places, tokens: str | None, variable: str, join: str, page: Path | None, as_json: bool,
    overwrite: bool, quiet: bool,
) -> None:  # fmt: skip
    """Compare two or more recordings to the bit, all with the first; or the results of two or more runs.

    Of recordings it says from which step and in which tokens they differ, and how far they are apart. Of results, as
    `deadtok analyze` writes them, it says which findings differ.

    The exit status is 3 if recordings differ in a bit.

    \b
    Example:  deadtok compare run.zarr again.zarr
              deadtok compare seed_1.zarr seed_2.zarr seed_3.zarr --report seeds.html
              deadtok compare results_1.zarr results_2.zarr results_3.zarr
    """
    from deadtok_xr.engine.progress import dask_progress
    from deadtok_xr.results.report import report
    from deadtok_xr.results.summary import summary

    if len(runs) < 2:
        raise InputError(f"compare takes two or more runs, and {runs[0]} is one: name another")
    of_results = [_holds_results(path) for path in runs]
    if any(of_results) and not all(of_results):
        one, other = runs[of_results.index(True)], runs[of_results.index(False)]
        raise InputError(f"{one} holds results and {other} a recording: compare results, or recordings")
    with dask_progress("comparing", quiet=quiet or as_json):
        tree = _results(runs, join) if all(of_results) else _recordings(runs, tokens, variable, join)
    if as_json:
        print_json(**_facts(tree))
    else:
        echo(summary(tree))
    if page:
        written = report(tree, page, overwrite=overwrite)
        echo(f"report: {written}", err=as_json)
    if not all(of_results):
        ctx.exit(DIFFERENT if (tree["compare_runs"]["first_difference"] >= 0).any() else 0)


def _holds_results(path: Path | str) -> bool:
    from deadtok_xr.store import destination, location

    if not location.exists(path):
        raise MissingFileError(f"{path} does not exist; expected a recording, or results of `deadtok analyze`")
    return RESULTS in destination.root_attributes(path)


def _results(paths: Places, join: str) -> xr.DataTree:
    from deadtok_xr.analyses.compare_runs import compare_runs
    from deadtok_xr.results.opening import open_results

    tree: xr.DataTree = compare_runs(*(open_results(path) for path in paths), join=join, run=distinct_names(paths))
    return tree


def _recordings(paths: Places, tokens: str | None, variable: str, join: str) -> xr.DataTree:
    from deadtok_xr.analyses.compare_runs import comparison_tree
    from deadtok_xr.recording.opening import open_recording

    wanted: Any = tokens_of(paths, tokens)
    recordings = [open_recording(path, tokens=wanted) for path in paths]
    return comparison_tree(recordings, variable=variable, join=join, run=distinct_names(paths)).compute()


def tokens_of(paths: Places, tokens: str | None) -> str:
    """Return which tokens of several stores to open: those asked for, or the dead ones if all know them."""
    from deadtok_xr.analyses import knows_dead_tokens

    return tokens or ("dead" if all(map(knows_dead_tokens, paths)) else "all")


def _facts(tree: xr.DataTree) -> dict[str, Any]:
    """Return the comparison of recordings, or the findings of results, as values of JSON."""
    from deadtok_xr.analyses.runs import COMPARISON, labels_of
    from deadtok_xr.results import findings, side_by_side

    groups = findings.load(tree)
    facts: dict[str, Any] = {"runs": labels_of(tree)}
    if COMPARISON not in groups:
        found = side_by_side.shared_findings(side_by_side.groups_of_runs(tree, groups))
        differ, same = ([finding.text for finding in found if finding.differs is flag] for flag in (True, False))
        return {**facts, "differ": differ, "same": same}
    ds = groups[COMPARISON]
    facts["findings"] = [finding.text for finding in side_by_side.comparison(groups)]
    for name in ("first_difference", "n_common_prefix", "n_equal", "n_elements"):
        facts[name] = dict(zip(map(str, ds["run"].values), ds[name].values.tolist(), strict=True))
    return facts
