"""docs/reference/quantities.md: every call that it names gives numbers on a real recording."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import deadtok_xr as dx

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "quantities.md"
ROW = re.compile(r"^\| (?P<id>[A-Z]\d+[ab]?) \| (?P<what>.+?) \| `(?P<call>.+)` \|$")
ROWS = [m.groupdict() for line in PAGE.read_text().splitlines() if (m := ROW.match(line))]


@pytest.fixture(scope="module")
def names(recording: Path) -> dict[str, Any]:
    rec = dx.open_recording(recording, tokens="dead")
    found = {
        "dx": dx, "np": np, "xr": xr, "rec": rec, "all_tokens": dx.open_recording(recording), "again": rec,
        "motion": dx.motion(rec), "kin": dx.kinematics(rec), "cloud": dx.cloud(rec), "lattice": dx.lattice(rec),
    }  # fmt: skip
    lazy = ("position", "thermal_velocity")
    return {k: v.drop_vars(lazy, errors="ignore").compute() if k in ("motion", "kin", "cloud", "lattice") else v
            for k, v in found.items()}  # fmt: skip


def test_no_row_of_a_table_is_overlooked() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if re.match(r"\| [A-Z]\d", line)]
    assert len(rows) == len(ROWS) > 90


@pytest.mark.parametrize("row", ROWS, ids=[f"{r['id']}-{i}" for i, r in enumerate(ROWS)])
def test_quantity(names: dict[str, Any], row: dict[str, str]) -> None:
    value = np.asarray(eval(row["call"], dict(names)))  # our own page
    assert value.size, row["call"]
    assert np.isfinite(value.astype(np.float64)).any(), row["call"]
