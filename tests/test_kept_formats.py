"""Stores that earlier releases wrote are read bit for bit, and analyses of them give the same numbers.

`tests/data/make_format_1_0.py` shows how the stores were made; they are never written again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray

import deadtok_xr as dx
from deadtok_xr.errors import DestinationExistsError, IncompleteStoreError

KEPT = Path(__file__).parent / "data" / "format-1.0"
EXPECTED: dict[str, Any] = json.loads((KEPT / "expected.json").read_text())
STORES = sorted(EXPECTED["stores"])
WHOLE = [name for name in STORES if name != "unfinished"]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, so that nothing can be written to what is kept."""
    return shutil.copytree(KEPT, tmp_path_factory.mktemp("kept") / "format-1.0")


def opened(path: Path, **options: Any) -> xr.Dataset:
    return dx.open_recording(path, partial=path.stem == "unfinished", **options)


def check_arrays(ds: xr.Dataset, expected: dict[str, Any]) -> None:
    """Check that a dataset has these variables, of the same bits."""
    assert {*map(str, ds.variables)} == {*expected}
    for name, variable in ds.compute().variables.items():
        text = variable.dtype.kind in "OTU"
        data = "\0".join(variable.values.tolist()).encode() if text else np.ascontiguousarray(variable.values).tobytes()
        found = {
            "dims": list(variable.dims),
            "dtype": "text" if text else str(variable.dtype),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        assert found == expected[str(name)], name


def check_numbers(name: str, values: NDArray[Any], expected: dict[str, Any]) -> None:
    """Check a few values of a result: integers exactly, floats within the tolerance of results."""
    assert (list(values.shape), str(values.dtype)) == (expected["shape"], expected["dtype"]), name
    found, right = values.ravel()[expected["places"]], np.array(expected["values"])
    if values.dtype.kind != "f":
        np.testing.assert_array_equal(found, right, err_msg=name)
        return
    finite = np.abs(right[np.isfinite(right)])
    np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-12 * finite.max(initial=0), err_msg=name)


def test_every_stored_example_has_expectations() -> None:
    assert {path.stem for path in KEPT.glob("*.zarr")} == {*STORES, "results"}


@pytest.mark.parametrize("name", STORES)
def test_the_same_bits_are_read(kept: Path, name: str) -> None:
    ds = opened(kept / f"{name}.zarr", raw=True)
    assert dict(ds.sizes) == EXPECTED["stores"][name]["sizes"]
    check_arrays(ds, EXPECTED["stores"][name]["arrays"])


@pytest.mark.parametrize("name", WHOLE)
def test_every_chunk_fits_its_checksum(kept: Path, name: str) -> None:
    found = dx.verify(kept / f"{name}.zarr")
    assert found.problems == []
    assert found.n_chunks > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", STORES)
def test_analyses_give_the_same_numbers(kept: Path, name: str) -> None:
    ds = opened(kept / f"{name}.zarr")
    expected = EXPECTED["stores"][name]["analyses"]
    groups = list(dict.fromkeys(key.split("/")[0] for key in expected))
    precision = "float32" if name == "float32" else None
    tree = dx.analyze(ds.isel(run=1) if "run" in ds.dims else ds, analyses=groups, precision=precision)
    for key, numbers in expected.items():
        check_numbers(f"{name}: {key}", tree[key].values, numbers)


def test_unfinished_stores_are_refused(kept: Path) -> None:
    with pytest.raises(IncompleteStoreError, match="partial=True"):
        dx.open_recording(kept / "unfinished.zarr")
    assert dx.open_recording(kept / "unfinished.zarr", partial=True).sizes["step"] == 128


def test_saved_results_are_read(kept: Path) -> None:
    tree = dx.open_results(kept / "results.zarr")
    assert list(tree.children) == list(EXPECTED["results"])
    for name, node in tree.children.items():
        check_arrays(node.to_dataset(), EXPECTED["results"][name])
    assert len(dx.summary(tree).splitlines()) >= len(tree.children)


def test_an_unfinished_conversion_of_an_earlier_release_is_refused_or_started_again(kept: Path) -> None:
    folder = kept / "interrupted"  # killed by a signal when one of three chunks was written
    ((_, _, changed),) = json.loads((folder / ".run.zarr.progress/plan.json").read_text())["facts"]["the source"]
    os.utime(folder / "run.npz", ns=(changed, changed))
    with pytest.raises(DestinationExistsError, match="differs in the version of deadtok_xr"):
        dx.convert(folder / "run.npz", folder / "run.zarr")
    dx.convert(folder / "run.npz", folder / "run.zarr", overwrite=True)
    with np.load(folder / "run.npz") as source:
        recorded = dx.open_recording(folder / "run.zarr", raw=True).W.values
        np.testing.assert_array_equal(recorded.view("u2"), source["W"])
    assert not (folder / ".run.zarr.progress").exists()
