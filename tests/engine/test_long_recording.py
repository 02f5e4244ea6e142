"""A scaled-down long recording: created, converted, verified and analysed within a memory limit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import deadtok_xr as dx
from benchmarks import long_recording
from deadtok_xr import demo
from deadtok_xr.bfloat16 import BFLOAT16

pytestmark = pytest.mark.slow

STEPS, TOKENS, DIMS = 600, 300, 64
LIMIT = 700 * 10**6
"""Of each process, Python and the libraries included, pyarrow too where pandas finds it; the values are 0.1 GB."""
PEAK = """
import json, sys
from pathlib import Path
import dask
import deadtok_xr as dx

job, *words = sys.argv[1:]
if job == "convert":
    dx.convert(*words, memory="500MB")
elif job == "verify":
    assert not dx.verify(*words).problems
else:
    with dask.config.set(scheduler="threads", num_workers=2):
        dx.save_results(dx.analyze(words[0], tokens="all"), words[1])
print(int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024)
"""


@pytest.fixture(scope="module")
def schedule(recording: Path) -> long_recording.Schedule:
    return long_recording.fitted(recording, parts=20)


@pytest.fixture(scope="module")
def folder(schedule: long_recording.Schedule, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with recording.h5."""
    folder = tmp_path_factory.mktemp("long")
    long_recording.write(folder / "recording.h5", schedule, STEPS, TOKENS, DIMS)
    return folder


def peak(job: str, *words: Path) -> int:
    """The most memory that a job took in a process of its own."""
    done = subprocess.run([sys.executable, "-c", PEAK, job, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
def test_conversion_verification_and_analysis_within_a_memory_limit(folder: Path, recording: Path) -> None:
    peak("analyze", recording, folder / "compiled.zarr")  # compiles kernels, which takes memory of its own
    source, store, results = folder / "recording.h5", folder / "recording.zarr", folder / "results.zarr"
    values = 4 * (STEPS + 1) * TOKENS * DIMS * 2
    peaks = {
        "convert": peak("convert", source, store),
        "verify": peak("verify", store, source),
        "analyze": peak("analyze", store, results),
    }
    assert max(peaks.values()) < LIMIT, peaks
    stored = sum(p.stat().st_size for p in store.rglob("*") if p.is_file())
    assert 1.3 < values / stored < 20  # as real recordings do: 1.5 to 3 where tokens move, 400 where they are frozen
    tree = dx.open_results(results)
    assert {"motion", "phases", "kinematics", "topology", "mechanism", "coherence"} <= set(tree.children)


def test_the_moments_follow_from_the_gradients_as_in_a_real_run(folder: Path) -> None:
    """Adam in bfloat16, checked in float64 within the rounding of its operations."""
    with h5py.File(folder / "recording.h5") as file:
        found = {name: dx.bfloat16.decode(file[name][:60].view(BFLOAT16)) for name in long_recording.VARIABLES}
    grad, m, v = (found[name].astype(np.float64) for name in ("grad", "exp_avg", "exp_avg_sq"))
    assert not grad[0].any()
    np.testing.assert_allclose(m[1:], m[:-1] + 0.1 * (grad[1:] - m[:-1]), rtol=2**-7, atol=2**-8 * np.abs(m).max())
    np.testing.assert_allclose(v[1:], 0.999 * v[:-1] + 0.001 * grad[1:] ** 2, rtol=2**-6, atol=1e-30)


def test_tokens_move_then_freeze(folder: Path) -> None:
    with h5py.File(folder / "recording.h5") as file:
        W, dead = file["W"][:], file["dead_mask"][:]
    moved = (W[1:] != W[:-1]).any(2)
    assert moved[:50].mean() > 0.9
    assert moved[-5:, dead].mean() < moved[:50, dead].mean() / 2
    assert (np.diff(moved[:, dead].astype(int), axis=0) == 1).any()  # some thaw


def test_memory_of_the_generator_does_not_grow_with_the_steps(schedule: long_recording.Schedule) -> None:
    blocks: Any = long_recording.evolved(schedule, 10**6, np.arange(10) % 3 == 0, 4)
    starts = [start for start, _ in (next(blocks) for _ in range(3))]
    assert starts == [0, 16, 32]


def test_the_same_seed_gives_the_same_file(schedule: long_recording.Schedule, tmp_path: Path) -> None:
    for name in "ab":
        long_recording.write(tmp_path / name, schedule, 20, 30, 4)
    with h5py.File(tmp_path / "a") as a, h5py.File(tmp_path / "b") as b:
        for name in (*long_recording.VARIABLES, "dead_mask"):
            np.testing.assert_array_equal(a[name][:], b[name][:])


def test_the_benchmark_trains_a_model_of_its_own(tmp_path: Path) -> None:
    small = demo.Run(steps=20, batch=2, length=8, dims=8, layers=1)
    schedule = long_recording.real_schedule(small)
    assert schedule.rate.shape == (20,)
    assert (schedule.own[:, :20] > 0).any()
