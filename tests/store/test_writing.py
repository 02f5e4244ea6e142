"""Blocks written as whole chunks equal the files that zarr writes, byte for byte."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from deadtok_xr import store
from deadtok_xr.store import writing

DTYPES = ("bfloat16", "float32", "float64", "int64", "int8", "bool")


def array(folder: Path | str, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: str) -> zarr.Array[Any]:
    return store.create_array(zarr.create_group(folder), "x", shape, "abc"[: len(shape)], dtype, chunks)


def files(array: zarr.Array[Any]) -> dict[str, bytes]:
    root = Path(str(array.store_path).removeprefix("file://"))
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@given(
    sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 5)), min_size=1, max_size=3),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_files_equal_those_of_zarr(sizes: list[tuple[int, int]], dtype: str, seed: int) -> None:
    shape, chunks = tuple(n for n, _ in sizes), tuple(min(n, c) for n, c in sizes)
    with tempfile.TemporaryDirectory() as folder:
        ours, zarrs = (array(f"{folder}/{name}", shape, chunks, dtype) for name in ("ours", "zarrs"))
        values = np.random.default_rng(seed).integers(-3, 3, shape).astype(ours.dtype)
        height = 2 * chunks[0]  # two rows of chunks at a time
        for first in range(0, shape[0], height):
            writing.write_block(ours, (first,), values[first : first + height])
        zarrs[...] = values
        assert files(ours) == files(zarrs)


@pytest.mark.parametrize(("start", "stop"), [(0, 3), (3, 4), (4, 7), (7, 10)])
def test_partly_covered_chunks_keep_their_other_values(start: int, stop: int, tmp_path: Path) -> None:
    ours = array(tmp_path / "s.zarr", (10, 3), (4, 3), "int64")
    ours[...] = -1
    writing.write_block(ours, (start,), np.full((stop - start, 3), 7))
    expected = np.full((10, 3), -1)
    expected[start:stop] = 7
    np.testing.assert_array_equal(ours[...], expected)


def test_failed_write_leaves_no_partial_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = array(tmp_path / "s.zarr", (4,), (4,), "int64")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        writing.write_block(ours, (0,), np.arange(4))
    assert [p.name for p in (tmp_path / "s.zarr").rglob("*") if p.is_file()] == ["zarr.json", "zarr.json"]
