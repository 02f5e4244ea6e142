"""`xarray.open_dataset(path, engine="deadtok")`, as a user of xarray expects it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import deadtok_xr as dx
from deadtok_xr.errors import InputError


@pytest.mark.parametrize("options", [{}, {"tokens": "dead"}, {"tokens": "live", "raw": True}])
@pytest.mark.parametrize("chunks", [None, {}, {"step": 50}])
def test_engine_equals_open_recording(recording: Path, options: Any, chunks: Any, lazily: Any) -> None:
    with lazily():
        found = xr.open_dataset(recording, engine="deadtok", chunks=chunks, **options)
        expected = dx.open_recording(recording, **options)
    assert (found.W.chunks is None) == (chunks is None)
    computed = found.compute()
    for name in expected.variables:
        a, b = computed[name].values, expected[name].values
        assert a.dtype == b.dtype, name
        assert a.tobytes() == b.tobytes(), name
        assert found[name].attrs == expected[name].attrs, name
    assert found.attrs == expected.attrs


def test_engine_uses_the_chunks_of_the_store(recording: Path) -> None:
    found = xr.open_dataset(recording, engine="deadtok", chunks={}, tokens="dead")
    assert found.W.chunks == dx.open_recording(recording, tokens="dead").W.chunks


def test_a_selection_reads_only_its_chunks(recording: Path, reads: list[str]) -> None:
    found = xr.open_dataset(recording, engine="deadtok", tokens="dead")
    reads.clear()
    W = found.W.sel(step=[3, 200]).isel(token=slice(1, 4), dim=2).values
    np.testing.assert_array_equal(W, dx.open_recording(recording, tokens="dead").W.values[[3, 200], 1:4, 2])
    assert not [key for key in reads if key.startswith("grad/c")]


@pytest.mark.parametrize("chunks", [None, {}])
def test_analyses_of_the_engines_datasets_are_lazy(recording: Path, chunks: Any, lazily: Any, reads: list[str]) -> None:
    found = xr.open_dataset(recording, engine="deadtok", tokens="dead", chunks=chunks)
    reads.clear()
    with lazily():
        motion = dx.motion(found)
    assert not [key for key in reads if key.startswith("W/c")]
    expected = dx.motion(dx.open_recording(recording, tokens="dead"))
    np.testing.assert_array_equal(motion.moved_dims, expected.moved_dims)


def test_engine_is_found_by_path_in_a_fresh_process(recording: Path) -> None:
    code = "import sys, xarray; ds = xarray.open_dataset(sys.argv[1]); print(dict(ds.sizes), ds.W.dtype)"
    done = subprocess.run([sys.executable, "-c", code, recording], capture_output=True, text=True, check=True)
    assert "'step': 301" in done.stdout
    assert "float32" in done.stdout


def test_engine_does_not_claim_other_folders(tmp_path: Path) -> None:
    from deadtok_xr.recording.xarray_backend import RecordingBackend

    xr.Dataset({"x": ("t", [1.0])}).to_zarr(tmp_path / "other.zarr", zarr_format=3)
    assert not RecordingBackend().guess_can_open(tmp_path / "other.zarr")
    assert not RecordingBackend().guess_can_open(tmp_path)
    assert not RecordingBackend().guess_can_open(7)
    with pytest.raises(InputError, match="holds|recording"):
        xr.open_dataset(tmp_path / "other.zarr", engine="deadtok")
