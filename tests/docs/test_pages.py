"""Every block of the documentation's pages runs, in order, in a temporary folder; some have tests elsewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import xarray as xr
from matplotlib import pyplot

import deadtok_xr as dx
from deadtok_xr.cli import cli
from tests.conftest import N_DEAD

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[2] / "docs"
ELSEWHERE = {
    "design.md": "no block",
    "cluster.md": "tests/docs/test_cluster_page.py",
    "how-to/hub.md": "tests/conversion/test_hub.py",
    "how-to/object-storage.md": "tests/docs/test_cluster_page.py",
    "how-to/recording.md": "tests/docs/test_recording_page.py",
    "index.md": "test_the_commands_of_the_home_page",
    "reference/quantities.md": "tests/analyses/test_quantities.py",
}
SET_UP = ("pip install -e .", "pip install torch --index-url https://download.pytorch.org/whl/cpu")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CHANGED_FROM = 150
"""The step at which `again.zarr` parts from `run.zarr`."""


def pages() -> dict[str, list[tuple[str, str]]]:
    """The blocks of each page: language and text."""
    found = {path.relative_to(DOCS).as_posix(): BLOCK.findall(path.read_text("utf-8")) for path in DOCS.rglob("*.md")}
    return {name: blocks for name, blocks in sorted(found.items()) if blocks}


OURS = [name for name in pages() if name not in ELSEWHERE]


@pytest.fixture(scope="module")
def again(recording: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, but for one bit of one token from some step on."""
    folder = tmp_path_factory.mktemp("again")
    raw = dx.open_recording(recording, raw=True)
    bits = raw.W.values.view("uint16").copy()
    bits[CHANGED_FROM:, 3, 2] ^= 1
    np.savez(folder / "again.npz", W=bits, dead_mask=raw.dead.values)
    return Path(dx.convert(folder / "again.npz", folder / "again.zarr"))


@pytest.fixture(params=OURS)
def ran(
    request: pytest.FixtureRequest, recording: Path, again: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, dict[str, object]]:
    """A page that was run, and the names that its Python blocks left."""
    (tmp_path / "run.zarr").symlink_to(recording)
    (tmp_path / "again.zarr").symlink_to(again)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    with matplotlib.rc_context({"backend": "agg"}):
        for language, text in pages()[request.param]:
            if language == "python":
                exec(compile(text, request.param, "exec"), names)
            else:
                commands(language, text)
        pyplot.close("all")
    return request.param, names


def commands(language: str, text: str) -> None:
    assert language == "bash", f"a block in {language or 'no language'} that nothing runs"
    for line in text.splitlines():
        program, *words = shlex.split(line)
        if line not in SET_UP:
            assert program == "deadtok", f"a line that nothing runs: {line}"
            cli(words, standalone_mode=False)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_blocks_of_every_page_run(ran: tuple[str, dict[str, object]]) -> None:
    page, names = ran
    if page == "tutorial.md":
        tree = dx.open_results("results.zarr")
        assert tree["motion"].sizes == {"step": 600, "token": N_DEAD}
        assert int((tree["lifecycle"].first_freeze > 0).sum()) > 100  # "Freezing is not final. Most tokens thaw again"
        assert int((tree["lifecycle"].thaw_count > 0).sum()) > 100
        assert float(tree["mechanism"].realised_net.mean()) < float(tree["mechanism"].intended_net.mean())
        assert int((tree["mechanism"].freeze_cause == 1).sum()) > 0
        assert int((tree["mechanism"].freeze_cause == 0).sum()) == 0  # they do have a gradient
    if page == "how-to/compare-runs.md":
        differ = names["differ"]
        assert isinstance(differ, xr.Dataset)
        assert int(differ.first_difference) == int(differ.n_common_prefix) == CHANGED_FROM


def test_every_page_is_tested() -> None:
    assert set(ELSEWHERE) <= {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert {"tutorial.md", "explanation/pitfalls.md", "how-to/convert.md"} <= set(OURS)


def test_the_commands_of_the_home_page() -> None:
    ((language, text),) = pages()["index.md"]
    assert (language, text) == ("bash", "pip install -e . && deadtok demo --quick\n")  # .ci/run does this
