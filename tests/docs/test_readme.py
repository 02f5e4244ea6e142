"""Every block of the README runs, in order, in a temporary folder, and writes the files that the text names."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import pytest
import xarray as xr
from matplotlib import pyplot

import deadtok_xr as dx
from deadtok_xr.analyses.registry import ANALYSES

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SET_UP = (
    "python -m venv .venv && . .venv/bin/activate",
    "pip install -e . && deadtok demo",
    "pip install -e '.[test]' && pytest",
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """The lines of the bash blocks that are not set-up, which .ci/run tries."""
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.strip()]
    return [line for line in lines if line not in SET_UP]


@dataclass(frozen=True)
class Ran:
    """What running the README left: files, the names of the Python blocks, what each command printed."""

    folder: Path
    names: dict[str, object]
    printed: list[str]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """All Python blocks, in one namespace, and then all commands, in one folder."""
    folder = tmp_path_factory.mktemp("readme")
    names: dict[str, object] = {}
    with pytest.MonkeyPatch.context() as patch, matplotlib.rc_context({"backend": "agg"}):
        patch.chdir(folder)
        for block in blocks("python"):
            exec(compile(block, "README.md", "exec"), names)
        pyplot.close("all")
    ANALYSES.pop("largest")  # which the README defines: other tests expect the built-in analyses alone
    return Ran(folder, names, [run(line, folder) for line in commands()])


def run(line: str, folder: Path) -> str:
    program, *arguments = shlex.split(line)
    assert program == "deadtok", f"a bash block of the README has a line that no test runs: {line}"
    done = subprocess.run(
        [sys.executable, "-m", "deadtok_xr", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{line}\n{done.stderr}"
    return done.stdout


def test_every_block_is_run() -> None:
    fences = re.findall(r"^```(\w*)$", README, flags=re.MULTILINE)
    assert set(fences[::2]) == {"python", "bash"}
    assert set(fences[1::2]) == {""}
    assert all(f"\n{line}\n" in README for line in SET_UP)


def test_the_blocks_record_open_analyse_and_save(ran: Ran) -> None:
    rec = dx.open_recording(ran.folder / "run.zarr")
    assert dict(rec.sizes) == {"step": 51, "token": 40, "dim": 16}
    assert {"W", "grad", "exp_avg", "exp_avg_sq", "loss", "lr"} <= set(rec.data_vars)
    assert list(rec.token[rec.dead]) == list(range(30, 40))
    spread = ran.names["spread"]
    assert isinstance(spread, xr.DataArray)
    assert spread.sizes == {"step": 11}
    tree = dx.open_results(ran.folder / "results.zarr")
    assert list(tree.children) == [
        "motion", "phases", "phases_magnitude", "phases_cells", "lifecycle", "freezing", "kinematics", "epochs",
        "topology", "census", "lattice", "exponents", "cloud", "spectrum", "connectivity", "mechanism",
        "critical_boundary", "coherence", "centroid_origin", "freeze_predictors", "token_indicators",
    ]  # fmt: skip
    assert tree["motion"].sizes == {"step": 50, "token": 10}
    assert float(tree["motion"]["moved_dims"].max()) > 0
    assert (ran.folder / "phases.png").read_bytes().startswith(b"\x89PNG")


def test_the_commands_print_and_write(ran: Ran) -> None:
    planned, converted, info, verified, analysed = ran.printed
    assert "uint16 read as the bits of bfloat16" in planned
    assert "all as they were written; the same bits as thimble.h5: W" in verified
    assert info.startswith(converted.rstrip())
    assert "10 dead, 30 live" in info
    assert "memory to analyse" in info
    assert "tokens in the coldest phase, frozen" in analysed
    assert "topology" not in analysed
    assert "next:    deadtok report again-results.zarr -o again-results.html" in analysed
    tree = dx.open_results(ran.folder / "again-results.zarr")
    assert list(tree.children) == ["motion", "phases"]
    assert tree["motion"].sizes["token"] == 40
    assert {p.name for p in (ran.folder / "figures").iterdir()} == {
        "displacement.png",
        "trajectories.png",
        "phases.png",
    }


def test_every_name_in_the_table_of_analyses_exists(recording: Path) -> None:
    tree = dx.analyze(dx.open_recording(recording))  # all tokens: the dead beside the live ones
    table = README.split("## What each analysis gives")[1].split("##")[0]
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\|(.*)\|$", table, flags=re.MULTILINE)
    assert [name for name, _ in rows] == [name for name in tree.children if not name.startswith("phases_")]
    for name, cell in rows:
        known = {*map(str, tree[name].data_vars), "phases_magnitude", "phases_cells"}
        assert set(re.findall(r"`(\w+)`", cell)) <= known
    for name in re.findall(r"`(\w+)`", re.split(r"\.\s", table.split("`dx.bfloat16` has")[1])[0]):
        assert hasattr(dx.bfloat16, name)


def test_links_resolve() -> None:
    targets = re.findall(r"\]\((?!https?://)([^)#]+)\)", README)
    assert targets
    missing = [target for target in targets if not (ROOT / target).exists()]
    assert not missing
