"""The Zarr data type: found automatically in every process, and compatible with other libraries."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import zarr

from deadtok_xr.store import zarr_dtype

BITS = np.arange(65536, dtype=np.uint16).reshape(256, 256)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    zarr_dtype.register()
    group = zarr.create_group(str(tmp_path / "x.zarr"))
    array = group.create_array("W", shape=BITS.shape, chunks=(100, 256), dtype=ml_dtypes.bfloat16,
                               fill_value=float("nan"), dimension_names=("a", "b"))  # fmt: skip
    array[:] = BITS.view(ml_dtypes.bfloat16)
    return tmp_path / "x.zarr"


def run(code: str, *args: object) -> str:
    done = subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_bit_pattern_round_trips(store: Path) -> None:
    found = zarr.open_array(str(store / "W"))[:]
    np.testing.assert_array_equal(np.asarray(found).view(np.uint16), BITS)


@pytest.mark.slow
def test_plain_xarray_in_a_fresh_process_finds_the_type(store: Path) -> None:
    code = """
import sys, numpy as np, xarray as xr
W = xr.open_zarr(sys.argv[1], consolidated=False).W
assert W.dtype.name == "bfloat16", W.dtype
print(int(W.values.view("u2").astype("i8").sum()), "deadtok_xr.recording.opening" in sys.modules)
"""
    assert run(code, store) == f"{BITS.astype(np.int64).sum()} False"


@pytest.mark.slow
def test_dask_workers_in_other_processes_find_the_type(store: Path) -> None:
    code = """
import sys, xarray as xr
from distributed import Client, LocalCluster
if __name__ == "__main__":
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None) as c, Client(c):
        W = xr.open_zarr(sys.argv[1], consolidated=False).W
        print(int(W.data.map_blocks(lambda b: b.view("u2").astype("i8"), dtype="i8").sum().compute()))
"""
    assert run(code, store).splitlines()[-1] == str(BITS.astype(np.int64).sum())


def test_tensorstore_reads_what_we_write(store: Path) -> None:
    ts = pytest.importorskip("tensorstore")
    array = ts.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": str(store / "W")}}).result()
    assert array.dtype == ts.bfloat16
    np.testing.assert_array_equal(array.read().result().view(np.uint16), BITS)


def test_we_read_what_tensorstore_writes(tmp_path: Path) -> None:
    ts = pytest.importorskip("tensorstore")
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": str(tmp_path / "t")},
        "metadata": {
            "shape": [256, 256],
            "data_type": "bfloat16",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [64, 256]}},
            "fill_value": "NaN",
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "zstd"}],
        },
        "create": True,
    }
    ts.open(spec).result().write(BITS.view(ml_dtypes.bfloat16)).result()
    array = zarr.open_array(str(tmp_path / "t"))
    assert np.isnan(array.fill_value)
    np.testing.assert_array_equal(np.asarray(array[:]).view(np.uint16), BITS)


def test_metadata_is_the_registered_one(store: Path) -> None:
    metadata = json.loads((store / "W" / "zarr.json").read_text())
    assert metadata["data_type"] == "bfloat16"
    assert metadata["fill_value"] == "NaN"
    assert metadata["codecs"][0] == {"name": "bytes", "configuration": {"endian": "little"}}


def test_registering_twice_has_no_effect() -> None:
    zarr_dtype.register()
    zarr_dtype.register()
    assert zarr.dtype.parse_dtype(np.dtype(ml_dtypes.bfloat16), zarr_format=3) == zarr_dtype.BFloat16()


def test_importing_registers_nothing() -> None:
    code = (
        "import deadtok_xr.store.zarr_dtype\n"
        "from zarr.dtype import data_type_registry as r\nprint('bfloat16' in r.contents)"
    )
    assert run(code) == "False"


@pytest.mark.parametrize(
    ("json_value", "bits"),
    [("NaN", 0x7FC0), ("Infinity", 0x7F80), ("-Infinity", 0xFF80), ("0x7fc1", 0x7FC1), (1.0, 0x3F80), (0, 0)],
)
def test_fill_values(json_value: object, bits: int) -> None:
    scalar = zarr_dtype.BFloat16().from_json_scalar(json_value, zarr_format=3)
    assert int(np.asarray(scalar).view(np.uint16)) == bits
    again = zarr_dtype.BFloat16().to_json_scalar(scalar, zarr_format=3)
    assert again == json_value


def test_big_endian_is_refused_not_misread(store: Path) -> None:
    path = store / "W" / "zarr.json"
    path.write_text(path.read_text().replace('"little"', '"big"'))
    with pytest.raises(NotImplementedError, match="big-endian"):
        zarr.open_array(str(store / "W"))[:]


def test_zarr_v2_is_refused(tmp_path: Path) -> None:
    zarr_dtype.register()
    with pytest.raises(ValueError, match="Zarr v3"):
        zarr.create_array(str(tmp_path / "v2"), shape=(2,), dtype=ml_dtypes.bfloat16, zarr_format=2)
