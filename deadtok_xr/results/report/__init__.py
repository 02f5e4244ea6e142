"""Write results as one HTML page, readable without a server or network, and without scripts."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import xarray as xr

from deadtok_xr.analyses.common.summary_text import number
from deadtok_xr.analyses.runs import select_run
from deadtok_xr.errors import DestinationExistsError, InputError
from deadtok_xr.results import findings, side_by_side
from deadtok_xr.results.report import facts, series, story
from deadtok_xr.results.summary import detailed

_HERE = files("deadtok_xr.results.report")
_UNITS = (
    "ULP: the spacing of the number grid at a weight; norm ULP: at the norm of a token. Weights have no unit, so that "
    "distances and speeds without one are in the units of the weights. Dead tokens never occur in the training data."
)


def report(results: xr.DataTree | str | Path, out: str | Path, *, overwrite: bool = False) -> Path:
    """Write a report of results as one HTML file.

    Parameters
    ----------
    results
        A tree of results, or the path of saved ones; any of the groups may be missing.
    out
        The file to write.
    overwrite
        Replace a file that is there.

    Returns
    -------
    Path
        The file: the findings, each with the pictures that show it and how to read them; key figures, what was
        recorded, the definition of every variable with its formula, and the origin of the data. Where nothing happened,
        a sentence says so instead of a picture. It refers to no other file and to no address.

    Raises
    ------
    DestinationExistsError
        If ``out`` exists.
    InputError
        If the results hold no groups.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from deadtok_xr.results.opening import open_results

    out = Path(out)
    if out.exists() and (not overwrite or out.is_dir()):
        raise DestinationExistsError(f"{out} already exists: name another file, or say overwrite=True (--overwrite)")
    tree = results if isinstance(results, xr.DataTree) else open_results(results)
    if not tree.children:
        raise InputError("these results hold no groups of analyses; there is nothing to report")
    page = Environment(
        loader=PackageLoader("deadtok_xr.results.report", ""), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    ).get_template("page.html.jinja")  # fmt: skip
    _write(out, page.render(**_content(tree)))
    return out


def _content(tree: xr.DataTree) -> dict[str, Any]:
    groups = findings.load(tree)
    runs = side_by_side.groups_of_runs(tree, groups)
    own = _of_runs(tree, groups, runs) if runs else _of_one_run(tree, groups)
    told: list[story.Part] = own.pop("told")
    return {
        **own,
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "main": [part for part in told if part.is_main],
        "further": [part for part in told if not part.is_main and part.pictures],
        "nothing": [text for part in told if not part.is_main and not part.pictures for text in part.sentences],
        "units_note": _UNITS,
        "left_out": list(findings.left_out(tree)),
        "details": detailed(tree, groups),
        "definitions": facts.definitions(groups),
        "style": (_HERE / "page.css").read_text("utf-8"),
        "script": (_HERE / "page.js").read_text("utf-8"),
    }


def _of_one_run(tree: xr.DataTree, groups: dict[str, xr.Dataset]) -> dict[str, Any]:
    figures = [
        (name, figure.name, [number(figure.first), number(figure.last), number(figure.overall)])
        for name, figure in findings.key_figures(groups).items()
    ]
    return {
        "title": facts.title(tree),
        "lead": facts.lead(tree, groups),
        "told": story.of_one_run(tree, groups),
        "rows": "analysis",
        "columns": ("first step", "last step", "all steps"),
        "figures": figures,
        "warnings": findings.warnings(groups),
        "series": series.compressed(groups),
        "recorded": [("", facts.recorded(tree, groups), facts.other_settings(tree))],
        "provenance": facts.provenance(tree),
    }


def _of_runs(
    tree: xr.DataTree, groups: dict[str, xr.Dataset], runs: dict[Any, dict[str, xr.Dataset]]
) -> dict[str, Any]:
    trees = {label: select_run(tree, label) for label in runs}
    figures, apart = side_by_side.figures(runs), side_by_side.differences(groups)
    order = " / ".join(map(str, runs)) if len(runs) <= side_by_side.AT_MOST else "smallest to largest"
    return {
        "title": f"{len(runs)} runs: {side_by_side.enumeration(runs)}",
        "lead": f"{facts.lead_of_runs(trees, runs)}. Numbers that differ are given in the order {order}.",
        "told": story.of_runs(tree, groups, runs),
        "rows": "analysis" if figures else "run",
        "columns": list(map(str, runs)) if figures else side_by_side.DIFFERENCES,
        "figures": figures or [(name, "against the first run", cells) for name, *cells in apart],
        "warnings": [f"{label}: {text}" for label, own in runs.items() for text in findings.warnings(own)],
        "series": series.compressed(
            {
                **{f"{name}, against the first": ds for name, ds in side_by_side.compared(groups).items()},
                **{f"{label}, {name}": ds for label, own in runs.items() for name, ds in own.items()},
            }
        ),
        "recorded": [
            (label, facts.recorded(one, runs[label]), facts.other_settings(one)) for label, one in trees.items()
        ],
        "provenance": [row for one in trees.values() for row in facts.provenance(one)],
    }


def _write(out: Path, text: str) -> None:
    """Write the file, or none at all if that fails."""
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.part")
    try:
        temporary.write_text(text, "utf-8")
        temporary.replace(out)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise OSError(error.errno, f"{out} cannot be written: {reason}; choose another destination") from error
