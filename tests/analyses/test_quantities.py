"""docs/reference/quantities.md: every call that it names gives numbers on a real recording."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy
import xarray as xr

import deadtok_xr as dx

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "quantities.md"
ROW = re.compile(r"^\| (?P<id>[A-Z]\d+[ab]?) \| (?P<what>.+?) \| `(?P<call>.+)` \|$")
ROWS = [m.groupdict() for line in PAGE.read_text().splitlines() if (m := ROW.match(line))]


@pytest.fixture(scope="module")
def names(recording: Path, atom: Path) -> dict[str, Any]:
    rec = dx.open_recording(recording, tokens="dead")
    results = {
        "motion": dx.motion(rec), "kin": dx.kinematics(rec), "cloud": dx.cloud(rec), "lattice": dx.lattice(rec),
        "life": dx.lifecycle(rec),
        "census": dx.census(dx.open_recording(atom, tokens="dead").isel(dim=[0])),  # where tokens coincide
    }  # fmt: skip
    lazy = ("position", "thermal_velocity")
    return {
        "dx": dx, "np": np, "xr": xr, "scipy": scipy, "rec": rec, "all_tokens": dx.open_recording(recording),
        "again": rec.assign(W=rec.W * 2),  # such that it differs
        **{name: ds.drop_vars(lazy, errors="ignore").compute() for name, ds in results.items()},
    }  # fmt: skip


def test_every_table_row_is_parsed() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if re.match(r"\| [A-Z]\d", line)]
    assert len(rows) == len(ROWS) > 150


@pytest.mark.parametrize("row", ROWS, ids=[f"{r['id']}-{i}" for i, r in enumerate(ROWS)])
def test_every_call_gives_numbers(names: dict[str, Any], row: dict[str, str]) -> None:
    value = np.asarray(eval(row["call"], dict(names)))  # our own page
    assert value.size, row["call"]
    assert np.isfinite(value.astype(np.float64)).any(), row["call"]


def test_the_notebook_has_every_call_of_the_page() -> None:
    notebook = json.loads((PAGE.parents[2] / "notebooks" / "quantities.ipynb").read_text())
    code = [ast.parse("".join(cell["source"])) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    dicts = [node for tree in code for node in ast.walk(tree) if isinstance(node, ast.Dict)]
    shown = {ast.unparse(value) for node in dicts for value in node.values}
    calls = [row["call"].replace("step=300", "step=last") for row in ROWS]
    assert [call for call in calls if ast.unparse(ast.parse(call, mode="eval").body) not in shown] == []
