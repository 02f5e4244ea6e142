"""Recorded values are read directly through every selection; derived values are never read as recorded ones."""

from __future__ import annotations

import logging
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import ml_dtypes
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import deadtok_xr as dx
from deadtok_xr.store.stored_array import stored_array
from tests.store.test_store import write_store

STEPS, TOKENS, DIMS = 300, 40, 4

SELECTIONS: dict[str, Callable[[xr.Dataset], xr.Dataset]] = {
    "step slice": lambda ds: ds.sel(step=slice(70, 200)),
    "first steps": lambda ds: ds.isel(step=slice(0, 5)),
    "every second step": lambda ds: ds.isel(step=slice(None, None, 2)),
    "step list": lambda ds: ds.sel(step=[3, 4, 127, 128, 129, 299]),
    "step mask": lambda ds: ds.isel(step=ds.step.values % 3 > 0),
    "one step": lambda ds: ds.isel(step=[150]),
    "token slice": lambda ds: ds.isel(token=slice(7, 20)),
    "token list": lambda ds: ds.sel(token=ds.token.values[[15, 2, 9]]),
    "token mask": lambda ds: ds.isel(token=ds.token.values % 2 == 0),
    "a token twice": lambda ds: ds.isel(token=[4, 4, 5]),
    "both": lambda ds: ds.isel(token=slice(3, 30), step=slice(40, 250)).isel(token=[1, 5], step=slice(10, 150)),
    "transposed and back": lambda ds: ds.transpose("token", "dim", "step").transpose("step", "token", "dim"),
    "transposed": lambda ds: ds.transpose("token", "step", "dim"),
    "copy": lambda ds: ds.copy(),
    "deep copy": lambda ds: ds.copy(deep=True),
    "chunk": lambda ds: ds.chunk(step=50, token=7),
    "unpickled": lambda ds: pickle.loads(pickle.dumps(ds)),
    "renamed coordinate": lambda ds: ds.assign_coords(frozen=("token", np.zeros(ds.sizes["token"]))),
    "sorted": lambda ds: ds.sortby("token", ascending=False),
}
DERIVED: dict[str, Callable[[xr.DataArray], xr.DataArray]] = {
    "arithmetic": lambda x: x * 1,
    "where": lambda x: x.where(x > -9),
    "shift": lambda x: x.shift(step=1),
    "difference": lambda x: x.diff("step"),
    "mean": lambda x: x.coarsen(step=2, boundary="trim").mean(),
    "two of them": lambda x: xr.concat([x.isel(step=slice(0, 9)), x.isel(step=slice(100, 109))], "step"),
    "float64": lambda x: x.astype("f8"),
    "reindexed": lambda x: x.reindex(step=range(400)),
    "rounded": lambda x: x.round(1),
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(1)
    W = rng.normal(size=(STEPS, TOKENS, DIMS)).astype(ml_dtypes.bfloat16)
    W[60:90] = W[60]  # nothing moves for a while
    dead = rng.random(TOKENS) < 0.5
    return write_store(tmp_path_factory.mktemp("sel") / "r.zarr", W, rng.permutation(100)[:TOKENS], dead)


def same(a: xr.Dataset, b: xr.Dataset) -> None:
    xr.testing.assert_identical(a.drop_attrs(), b.drop_attrs())


def in_memory(ds: xr.Dataset) -> xr.Dataset:
    return ds.assign(W=ds.W.copy(data=np.asarray(ds.W.data)))


@pytest.mark.parametrize("name", SELECTIONS)
@pytest.mark.parametrize("tokens", ["all", "dead"])
def test_selections_are_read_directly_with_the_right_values(path: Path, name: str, tokens: Any, lazily: Any) -> None:
    with lazily():
        ds = SELECTIONS[name](dx.open_recording(path, tokens=tokens))
        assert stored_array(ds.W.transpose("step", "token", "dim").data) is not None
        motion = dx.motion(ds, allow_gaps=True) if ds.sizes["step"] > 1 else None
        census = dx.census(ds)
    if motion is not None:
        same(motion.compute(), dx.motion(in_memory(ds), allow_gaps=True).compute())
    same(census.compute(), dx.census(in_memory(ds)).compute())


@pytest.mark.parametrize("chunks", [None, {}, {"step": 50}])
def test_datasets_opened_by_xarray_are_read_directly(path: Path, chunks: Any, decoded: Counter[Any]) -> None:
    ds = xr.open_dataset(path, engine="deadtok", chunks=chunks).isel(token=slice(0, TOKENS))
    found = dx.motion(ds).compute()
    assert set(decoded.values()) == {128, 129, 44 + 1}  # each step once, and the first of each chunk for the one before
    same(found, dx.motion(dx.open_recording(path)).compute())


@pytest.mark.parametrize("name", DERIVED)
def test_derived_arrays_are_not_read_from_the_store(path: Path, name: str) -> None:
    W = DERIVED[name](dx.open_recording(path).W)
    assert stored_array(W.data) is None
    ds = W.rename("W").to_dataset()
    if ds.sizes["step"] != 400:  # reindexed steps hold NaN
        same(dx.census(ds).compute(), dx.census(ds.compute()).compute())


def test_arrays_changed_in_place_are_not_read_from_the_store(path: Path) -> None:
    x = dx.open_recording(path).W.data
    if not hasattr(x, "dask"):
        pytest.skip("Dask's expressions cannot be changed in place")
    x[0, 0, 0] = 5.0
    assert stored_array(x) is None


@pytest.mark.slow
def test_a_fresh_process_reads_an_unpickled_recording_directly(path: Path, tmp_path: Path) -> None:
    ds = dx.open_recording(path).isel(token=slice(2, 30), step=slice(100, 200))
    (tmp_path / "ds.pickle").write_bytes(pickle.dumps(ds))
    code = (
        "import pickle, sys, logging, deadtok_xr as dx\n"
        "from deadtok_xr.store.stored_array import stored_array\n"
        "ds = pickle.load(open(sys.argv[1], 'rb'))\n"
        "assert stored_array(ds.W.data) is not None\n"
        "pickle.dump(dx.motion(ds).compute(), open(sys.argv[2], 'wb'))"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "ds.pickle", tmp_path / "out.pickle"], check=True)
    same(pickle.loads((tmp_path / "out.pickle").read_bytes()), dx.motion(ds).compute())


def test_variables_read_through_the_graph_are_logged(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ds = dx.open_recording(path)
    with caplog.at_level(logging.INFO, logger="deadtok_xr"):
        dx.motion(ds.isel(step=slice(3, 100), token=[1, 2]))
        assert not caplog.records
        dx.census(ds.assign(W=ds.W * 2))
    (record,) = caplog.records
    assert record.getMessage().startswith("W does not hold recorded values")


@pytest.mark.slow
@given(data=st.data())
def test_any_selection_has_the_right_values(path: Path, data: st.DataObject) -> None:
    """Steps and tokens in any ascending selection, in blocks that begin anywhere in a chunk."""
    ds = dx.open_recording(path)
    steps = data.draw(st.lists(st.integers(0, STEPS - 1), min_size=2, unique=True).map(sorted))
    if data.draw(st.booleans()):
        steps = list(range(steps[0], steps[-1] + 1))
    tokens = data.draw(st.lists(st.integers(0, TOKENS - 1), min_size=1, max_size=12))
    part = ds.isel(step=steps, token=tokens)
    assert stored_array(part.W.data) is not None
    with dask.config.set(scheduler="synchronous"):
        found, expected = dx.motion(part, allow_gaps=True).compute(), dx.motion(in_memory(part), allow_gaps=True)
        same(found, expected.compute())
    assert len({*dx.motion(part, allow_gaps=True).displacement.data.chunks[0][:-1]}) <= 1


def test_damaged_chunk_is_an_error_if_a_part_of_it_is_used(path: Path, tmp_path: Path) -> None:
    import shutil

    copied = tmp_path / "damaged.zarr"
    shutil.copytree(path, copied)
    (chunk,) = sorted((copied / "W" / "c" / "1" / "0").iterdir())[:1]
    content = bytearray(chunk.read_bytes())
    content[-1] ^= 1  # of the checksum, behind all values
    chunk.write_bytes(content)
    ds = dx.open_recording(copied)
    used = ds.isel(step=slice(100, 140), token=slice(0, TOKENS))
    with pytest.raises(dx.errors.DamagedStoreError, match="checksum|damaged"):
        dx.motion(used).compute()
