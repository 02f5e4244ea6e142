"""The motion index of a store: correct for each chunk, recognised if out of date, and never required."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import deadtok_xr as dx
from deadtok_xr import store
from deadtok_xr.recorder.appender import create_appender
from deadtok_xr.store import chunk_streams, motion_index, zarr_dtype


def reference(steps: NDArray[np.uint16]) -> NDArray[np.uint16]:
    moved = np.any(steps[1:] != steps[:-1], axis=2)
    out = np.zeros((2, steps.shape[1]), np.uint16)
    for n in range(steps.shape[1]):
        at = np.flatnonzero(moved[:, n]) + 1
        if at.size:
            out[:, n] = at[0], at[-1]
    return out


@given(
    seed=st.integers(0, 2**32 - 1), steps=st.integers(1, 12), n=st.integers(1, 6), d=st.integers(1, 4),
    share=st.sampled_from([0.0, 0.1, 0.5, 1.0]), dtype=st.sampled_from(["u2", "u4"]),
)  # fmt: skip
def test_first_and_last_motion(seed: int, steps: int, n: int, d: int, share: float, dtype: str) -> None:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 3, (steps, n, d)).astype(dtype)
    for t in range(1, steps):
        x[t] = np.where(rng.random((n, 1)) < share, x[t], x[t - 1])
    np.testing.assert_array_equal(motion_index.first_and_last_motion(x), reference(x))


def bounds_of(path: Path) -> dict[tuple[int, ...], NDArray[np.uint16] | None]:
    zarr_dtype.register()
    W = zarr.open_group(path, mode="r")["W"]
    return {position: motion_index.read(W, position) for position in np.ndindex(W.cdata_shape)}


def check(path: Path) -> None:
    zarr_dtype.register()
    W = zarr.open_group(path, mode="r")["W"]
    whole = np.asarray(W[...]).view(np.uint16)
    t, n, _ = W.chunks
    for (i, j, _), found in bounds_of(path).items():
        chunk = whole[i * t : (i + 1) * t, j * n : (j + 1) * n]
        assert found is not None, (i, j)
        np.testing.assert_array_equal(found[:, : chunk.shape[1]], reference(chunk))


def test_recorded_stores_have_a_motion_index(recording: Path) -> None:
    check(recording)
    assert any((found == 0).all() for found in bounds_of(recording).values() if found is not None)  # one is frozen


def test_converted_stores_have_a_motion_index(recording: Path, tmp_path: Path) -> None:
    check(dx.convert(dx.export(recording, tmp_path / "run.h5"), tmp_path / "run.zarr"))


def test_entry_of_other_content_is_ignored(recording: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    shutil.copytree(recording, path)
    (path / "W/c/0/0/0").write_bytes((path / "W/c/1/0/0").read_bytes())
    found = bounds_of(path)
    assert found[0, 0, 0] is None
    assert found[1, 0, 0] is not None


@pytest.mark.parametrize("damage", ["lost", "torn", "empty"])
def test_results_are_the_same_without_the_index(recording: Path, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "run.zarr"
    shutil.copytree(recording, path)
    file = path / "motion/W/c/0/0/0"
    file.unlink() if damage == "lost" else file.write_bytes(file.read_bytes()[:20] if damage == "torn" else b"")
    assert bounds_of(path)[0, 0, 0] is None
    assert dx.verify(path).problems == []


def test_verify_finds_a_wrong_entry(recording: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    shutil.copytree(recording, path)
    zarr_dtype.register()
    W = zarr.open_group(path, mode="r")["W"]
    still = np.zeros(W.chunks, np.uint16)
    data = motion_index.encode(still, (path / "W/c/0/0/0").read_bytes())
    (path / "motion/W/c/0/0/0").write_bytes(data)
    (problem,) = dx.verify(path).problems
    assert "the motion index of the chunk (0, 0, 0) does not agree" in problem


def still_at_the_end(recording: Path, path: Path, steps: int) -> Path:
    """The recording cut to its first steps, and then nothing moves: two more rows of chunks."""
    rec = dx.open_recording(recording, raw=True)
    W = rec.W.values[np.minimum(np.arange(300), steps)]
    rows = store.TokenTable(rec.token.values, rec.dead.values)
    appender = create_appender(path, rows, {"optimizer": "AdamW"}, 128, overwrite=False)
    for first in range(0, 300, 100):
        appender.append(np.arange(first, first + 100), {"W": (W[first : first + 100], np.nan)}, {})
    appender.finish()
    return path


@pytest.mark.parametrize("tokens", ["dead", "live", "all"])
def test_steps_after_the_last_motion_are_not_decoded(
    recording: Path, tmp_path: Path, tokens: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = still_at_the_end(recording, tmp_path / "run.zarr", 50)
    check(path)
    decoded = count_steps(monkeypatch)
    found = computed(path, tokens)
    n_chunks = len({key[-1] for key in decoded})
    # the first row to step 50; of the two rows after it the first step, for themselves and for the row before
    assert sum(decoded.values()) <= n_chunks * (51 + 2 + 2 + 1)  # and the first step beside the last
    decoded.clear()
    monkeypatch.setattr(motion_index, "read", lambda array, position: None)
    expected = computed(path, tokens)
    # two steps of each row for the row before, and the first of all beside the last
    assert sum(decoded.values()) == n_chunks * (300 + 2 * 2 + 1)
    assert len(found) == len(expected) > 8
    for a, b in zip(found, expected, strict=True):
        xr.testing.assert_identical(a, b)


def computed(path: Path, tokens: Any) -> tuple[xr.Dataset, ...]:
    datasets = [node.to_dataset() for node in dx.analyze(path, tokens=tokens).values()]
    small = [ds.drop_vars(["position", "thermal_velocity"], errors="ignore") for ds in datasets]
    found: tuple[xr.Dataset, ...] = dask.compute(*small)
    return found


def count_steps(monkeypatch: pytest.MonkeyPatch) -> Counter[Any]:
    counts: Counter[Any] = Counter()
    read = chunk_streams.Stream.read

    def counted(self: chunk_streams.Stream, out: NDArray[Any], rows: slice) -> None:
        counts[self._id[-3:-1]] += len(out)
        read(self, out, rows)

    monkeypatch.setattr(chunk_streams.Stream, "read", counted)
    return counts
