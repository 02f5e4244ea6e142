"""Write results as one HTML page, readable without a server or network, and without scripts."""

from __future__ import annotations

import base64
import json
import os
from datetime import UTC, datetime
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any

import xarray as xr

from deadtok_xr.analyses.common.summary_text import number
from deadtok_xr.errors import DestinationExistsError, InputError
from deadtok_xr.results import findings
from deadtok_xr.results.report import facts, series
from deadtok_xr.results.summary import N_FINDINGS, detailed

_HERE = files("deadtok_xr.results.report")


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
        The file: what was recorded, the findings in sentences, every picture with how to read it, warnings, the
        definition of every variable with its formula, and the origin of the data. It refers to no other file and to no
        address.

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
    found = [finding.text for finding in findings.findings(groups)]
    return {
        "title": facts.title(tree),
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "recorded": facts.recorded(tree, groups),
        "settings": facts.other_settings(tree),
        "findings": found[:N_FINDINGS],
        "more": found[N_FINDINGS:],
        "figures": findings.key_figures(groups),
        "number": number,
        "warnings": [*findings.warnings(groups), *findings.left_out(tree)],
        "details": detailed(tree, groups),
        "pictures": _pictures(tree),
        "series": json.dumps(series.step_series(groups)).replace("<", "\\u003c"),  # inside a script element
        "definitions": facts.definitions(groups),
        "provenance": facts.provenance(tree),
        "style": (_HERE / "page.css").read_text("utf-8"),
        "script": (_HERE / "page.js").read_text("utf-8"),
    }


def _pictures(tree: xr.DataTree) -> list[dict[str, str]]:
    """Return every picture that the results allow: title, how to read it, and the encoded image."""
    from deadtok_xr.plot.save import figures, write_png

    pictures = []
    for picture, figure in figures(tree):
        image = BytesIO()
        write_png(figure, image, 130)
        data = base64.b64encode(image.getvalue()).decode()
        pictures.append({"name": picture.name, "title": picture.title, "read": picture.reading, "data": data})
    return pictures


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
