"""Write results as one HTML page, readable without a server or network, and without scripts."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import xarray as xr

from deadtok_xr.analyses.common.summary_text import number
from deadtok_xr.errors import DestinationExistsError, InputError
from deadtok_xr.results import findings
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
    told = story.of_one_run(tree, groups)
    figures = [
        (name, figure.name, [number(figure.first), number(figure.last), number(figure.overall)])
        for name, figure in findings.key_figures(groups).items()
    ]
    return {
        "title": facts.title(tree),
        "lead": facts.lead(tree, groups),
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "main": [part for part in told if part.is_main],
        "further": [part for part in told if not part.is_main and part.pictures],
        "nothing": [text for part in told if not part.is_main and not part.pictures for text in part.sentences],
        "columns": ("first step", "last step", "all steps"),
        "figures": figures,
        "units_note": _UNITS,
        "warnings": findings.warnings(groups),
        "left_out": list(findings.left_out(tree)),
        "details": detailed(tree, groups),
        "series": series.compressed(groups),
        "recorded": facts.recorded(tree, groups),
        "settings": facts.other_settings(tree),
        "definitions": facts.definitions(groups),
        "provenance": facts.provenance(tree),
        "style": (_HERE / "page.css").read_text("utf-8"),
        "script": (_HERE / "page.js").read_text("utf-8"),
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
