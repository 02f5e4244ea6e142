"""Memory is bounded by blocks and threads, for any length of the recording."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import deadtok_xr as dx
from deadtok_xr import store, testing
from deadtok_xr.analyses import plan_analyses
from deadtok_xr.cli import describe
from deadtok_xr.engine.cost import LIBRARIES

pytestmark = pytest.mark.slow

THREADS = 2
TOKENS, DIMS = 300, 64
PEAK = """
import json, sys
from pathlib import Path
import dask
import deadtok_xr as dx

def rss(key):  # VmHWM is this program's own peak; ru_maxrss may be inherited from whoever started it
    return int(Path("/proc/self/status").read_text().split(key + ":")[1].split()[0]) * 1024

tiny, store, folder, threads = sys.argv[1:]
with dask.config.set(scheduler="threads", num_workers=int(threads)):
    dx.save_results(dx.analyze(tiny, tokens="all"), folder + "/tiny")
    before = rss("VmRSS")
    dx.save_results(dx.analyze(store, tokens="all"), folder + "/results")
print(json.dumps({"before": before, "peak": rss("VmHWM")}))
"""


def analysed(folder: Path, steps: int) -> dict[str, int]:
    """Analyse a recording in a process of its own: what it took, what was promised, the size of the data."""
    tiny = testing.synthetic_recording(folder / "tiny.zarr", steps=300, tokens=20, dims=4)
    path = testing.synthetic_recording(folder / "run.zarr", steps=steps, tokens=TOKENS, dims=DIMS)
    (folder / "out").mkdir()
    command = [sys.executable, "-c", PEAK, tiny, path, folder / "out", str(THREADS)]
    found: dict[str, int] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    _, arrays, _ = store.open_arrays(path)
    found["promised"] = plan_analyses(dx.open_recording(path)).cost.memory(THREADS)
    found["row"] = arrays["W"].chunks[0] * TOKENS * DIMS * 4
    found["data"] = steps * TOKENS * DIMS * 4
    return found


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
def test_memory_does_not_grow_with_the_recording(tmp_path_factory: pytest.TempPathFactory) -> None:
    short = analysed(tmp_path_factory.mktemp("short"), 1500)
    long = analysed(tmp_path_factory.mktemp("long"), 6000)
    assert long["data"] > 10 * THREADS * 2 * long["row"]
    for found in (short, long):
        grown = found["peak"] - found["before"]
        assert grown < found["promised"] - LIBRARIES
        assert found["peak"] < found["promised"]
    assert long["peak"] < 1.15 * short["peak"]  # tasks, and what is kept for each step


def test_memory_depends_on_analyses_tokens_and_threads(tmp_path: Path) -> None:
    path = testing.synthetic_recording(tmp_path / "run.zarr", steps=300, tokens=200, dims=16)
    rec = dx.open_recording(path)
    of_all = plan_analyses(rec).cost.memory(2)
    fewer = (plan_analyses(rec.isel(token=slice(50))), plan_analyses(rec, analyses=["motion", "phases"]))
    assert all(plan.cost.memory(2) < of_all for plan in fewer)
    assert of_all < plan_analyses(rec).cost.memory(4)
    assert "to analyse the dead tokens with" in describe.analysis_cost(path)
