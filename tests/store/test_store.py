"""The store: its layout on disk; partial or damaged stores are never taken for complete ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st

import deadtok_xr as dx
from deadtok_xr import schema, store
from deadtok_xr.errors import (
    DamagedStoreError,
    DestinationExistsError,
    IncompleteStoreError,
    InputError,
    MissingFileError,
)
from deadtok_xr.store import chunk_layout
from tests.manifests import accept


def write_store(path: Path, W: np.ndarray, tokens: np.ndarray, dead: np.ndarray | None, *, finish: bool = True) -> Path:
    writer = store.create(path, store.TokenTable(tokens, dead), {})
    writer.add_variable("W", schema.MATRIX, W.shape[1:], W.dtype)
    for start in range(0, len(W), writer.chunk_steps):
        part = W[start : start + writer.chunk_steps]
        writer.extend(np.arange(start, start + len(part)))
        writer.write("W", start, part)
    if finish:
        writer.finish()
    return path


@pytest.mark.slow
@given(data=st.data(), steps=st.integers(1, 300), n=st.integers(1, 30), dims=st.integers(1, 5))
def test_every_pattern_and_order_round_trips(tmp_path_factory, data, steps, n, dims) -> None:  # type: ignore[no-untyped-def]
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 65536, (steps, n, dims), dtype=np.uint16)
    tokens = rng.choice(1000, n, replace=False)
    dead = rng.random(n) < 0.5 if data.draw(st.booleans()) else None
    path = write_store(tmp_path_factory.mktemp("s") / "x.zarr", bits.view(ml_dtypes.bfloat16), tokens, dead)
    ds = dx.open_recording(path, raw=True)
    order = np.argsort(tokens)
    np.testing.assert_array_equal(ds.token, tokens[order])
    np.testing.assert_array_equal(ds.W.values.view(np.uint16), bits[:, order])
    assert ("dead" in ds.coords) == (dead is not None)
    if dead is not None:
        np.testing.assert_array_equal(ds.dead, dead[order])
    shutil.rmtree(path)


def test_dead_tokens_are_contiguous_on_disk(recording: Path) -> None:
    group = zarr.open_group(str(recording), mode="r")
    dead = group["dead"][:]
    assert dead[: dead.sum()].all()
    assert not dead[dead.sum() :].any()
    tokens = group["token"][:]
    assert (np.diff(tokens[: dead.sum()]) > 0).all()
    assert (np.diff(tokens[dead.sum() :]) > 0).all()


def test_codec_is_checksummed_and_every_chunk_is_written(recording: Path) -> None:
    metadata = json.loads((recording / "W" / "zarr.json").read_text())
    assert metadata["codecs"][-1] == {"name": "zstd", "configuration": {"level": 1, "checksum": True}}
    assert metadata["dimension_names"] == ["step", "token", "dim"]
    assert metadata["attributes"]["coordinates"] == "dead"


def test_a_flipped_bit_is_an_error_not_data(recording: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.zarr"
    shutil.copytree(recording, copy)
    chunk = copy / "W" / "c" / "0" / "0" / "0"
    damaged = bytearray(chunk.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    chunk.write_bytes(damaged)
    with pytest.raises(DamagedStoreError, match=r"W: the chunk at step positions 0..127, token .* missing or damaged"):
        dx.open_recording(copy, tokens="dead").W.isel(step=0).compute()


def test_a_chunk_lost_after_opening_is_an_error_not_nan(recording: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.zarr"
    shutil.copytree(recording, copy)
    rec = dx.open_recording(copy, tokens="dead")
    (copy / "W" / "c" / "1" / "0" / "0").unlink()
    with pytest.raises(DamagedStoreError, match=r"step positions 128\.\.255"):
        rec.W.isel(step=130).compute()


@pytest.mark.parametrize("compressor", [zarr.codecs.ZstdCodec(level=3), zarr.codecs.GzipCodec(), None])
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32])
def test_other_codecs_read_the_same_values(tmp_path: Path, compressor, dtype) -> None:  # type: ignore[no-untyped-def]
    W = np.random.default_rng(0).normal(size=(130, 5, 3)).astype(dtype)
    path = write_store(tmp_path / "o.zarr", W, np.arange(5), None)
    group = zarr.open_group(str(path), mode="r+")
    metadata = group["W"].attrs.asdict()
    array = group.create_array("W", shape=W.shape, chunks=(64, 2, 3), dtype=dtype, compressors=compressor,
                               dimension_names=schema.MATRIX, attributes=metadata, overwrite=True)  # fmt: skip
    array[:] = W
    accept(path)
    np.testing.assert_array_equal(dx.open_recording(path).W.values, W.astype(np.float32))
    np.testing.assert_array_equal(dx.open_recording(path, raw=True).W.values.view("u1"), W.view("u1"))
    (path / "W" / "c" / "1" / "0" / "0").write_bytes(b"rubbish")
    with pytest.raises(DamagedStoreError, match="step positions 64..127"):
        dx.open_recording(path).W.compute()


def test_all_zero_chunks_are_kept(tmp_path: Path) -> None:
    zeros = np.full((3, 4, 2), -0.0, ml_dtypes.bfloat16)
    path = write_store(tmp_path / "z.zarr", zeros, np.arange(4), None)
    assert np.signbit(dx.open_recording(path).W.values).all()


def test_unfinished_store_is_refused_and_opens_partially(tmp_path: Path) -> None:
    W = np.ones((260, 4, 2), ml_dtypes.bfloat16)
    path = write_store(tmp_path / "u.zarr", W, np.arange(4), None, finish=False)
    with pytest.raises(IncompleteStoreError, match="not written to its end.*partial=True"):
        dx.open_recording(path)
    assert dx.open_recording(path, partial=True).sizes["step"] == 260


def test_error_names_the_lost_chunk(tmp_path: Path) -> None:
    W = np.ones((300, 4, 2), ml_dtypes.bfloat16)
    path = write_store(tmp_path / "l.zarr", W, np.arange(4), None)
    (path / "W" / "c" / "1" / "0" / "0").unlink()
    with pytest.raises(IncompleteStoreError, match=r"1 chunk.*'W'.*step positions 128\.\.255, token positions 0\.\.3"):
        dx.open_recording(path)
    part = dx.open_recording(path, partial=True)
    assert part.sizes["step"] == 128
    assert (part.W.values == 1).all()


def test_plain_xarray_reads_the_coordinates(recording: Path) -> None:
    ds = xr.open_zarr(recording, consolidated=False)
    assert ds.W.dims == ("step", "token", "dim")
    assert "dead" in ds.coords


def test_provenance_attributes(recording: Path) -> None:
    attrs = dx.open_recording(recording).attrs
    assert attrs["complete"]
    assert attrs["optimizer"] == "AdamW"
    assert attrs["hyperparameters"]["betas"] == [0.9, 0.999]
    assert attrs["seed"] == 42
    assert attrs["tied"]
    assert "zarr" in attrs["software"]
    assert "after t optimizer updates" in attrs["index_convention"]


def test_existing_destination_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("ten years")
    rows = store.TokenTable(np.arange(2))
    with pytest.raises(DestinationExistsError, match="exists already"):
        store.create(tmp_path / "notes", rows, {})
    with pytest.raises(DestinationExistsError, match="not a Zarr store, so it is not replaced"):
        store.create(tmp_path / "notes", rows, {}, overwrite=True)
    assert (tmp_path / "notes" / "thesis.txt").read_text() == "ten years"


@pytest.mark.parametrize(
    ("prepare", "error", "match"),
    [
        (lambda p: None, MissingFileError, "no such file"),
        (lambda p: p.mkdir(), InputError, "not a Zarr v3 group.*deadtok convert"),
        (lambda p: p.write_text("hello"), InputError, "not a Zarr v3 group"),
        (lambda p: zarr.create_group(str(p)), InputError, "not a recording: the attribute 'deadtok_format'"),
        (
            lambda p: zarr.create_group(str(p), attributes={"deadtok_format": "2.0", "complete": True}),
            InputError,
            r"format 2\.0.*reads 1\.x: update",
        ),
        (
            lambda p: zarr.create_array(str(p), shape=(2,), dtype="f4"),
            InputError,
            "not a Zarr v3 group",
        ),
    ],
)
def test_paths_that_are_not_recordings_are_refused(tmp_path: Path, prepare, error, match) -> None:  # type: ignore[no-untyped-def]
    prepare(tmp_path / "x")
    with pytest.raises(error, match=match):
        dx.open_recording(tmp_path / "x")


def test_token_table_is_checked() -> None:
    with pytest.raises(InputError, match="distinct: 3 rows have 2 ids"):
        store.TokenTable(np.array([1, 1, 2]))
    with pytest.raises(InputError, match="dead mask has 2 entries; expected one per row, 3"):
        store.TokenTable(np.arange(3), np.zeros(2, bool))


def test_variables_are_checked_against_the_schema(tmp_path: Path) -> None:
    writer = store.create(tmp_path / "x.zarr", store.TokenTable(np.arange(2)), {})
    with pytest.raises(InputError, match="'W' has the dtype int32; expected bfloat16 or float16 or float32"):
        writer.add_variable("W", schema.MATRIX, (2, 2), np.int32)
    with pytest.raises(InputError, match=r"'loss' has the dimensions \(step, dim\)"):
        writer.add_variable("loss", ("step", "dim"), (2,), np.float32)


@pytest.mark.parametrize(
    ("n", "dims", "itemsize", "dead"),
    [(10_000, 64, 2, 3699), (151_936, 2560, 2, 0), (128, 64, 4, 51), (1, 1, 2, 1)],
)
def test_chunk_size_is_bounded(n: int, dims: int, itemsize: int, dead: int) -> None:
    steps, tokens, width = chunk_layout.chunk_shape(n, dims, itemsize, dead)
    assert width == dims
    assert steps * tokens * dims * itemsize <= 2 * chunk_layout.CHUNK_BYTES
    if n * dims > 10**5:
        assert steps * tokens * dims * itemsize >= chunk_layout.CHUNK_BYTES / 4
    if dead:
        assert -(-dead // tokens) * tokens - dead < tokens / 10  # hardly any live rows among the dead chunks
