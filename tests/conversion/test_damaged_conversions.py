"""Conversions of damaged files: an error of one sentence and no store, or a store with what the file holds.

`test_damaged_sources.py` has the hostile files; here each format is cut short and flipped, bit by bit, all
over its structure.
"""

from __future__ import annotations

import io
import time
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import deadtok_xr as dx
from deadtok_xr.errors import IncompleteStoreError, InputError, MissingFileError

CASES = 40
"""Of each kind and format."""
SECONDS = 20
W = np.random.default_rng(0).integers(0, 0x7F00, (6, 8, 4), dtype=np.uint16)
ARRAYS = {"W": W, "grad_W": W[::-1].copy(), "losses": np.arange(6, dtype="f4"), "dead_ids": np.array([1, 5])}


def _hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        for name, values in ARRAYS.items():
            options = {"chunks": (4, 8, 4), "compression": "gzip"} if values.ndim == 3 else {}
            file.create_dataset(name, data=values, **options)
        file.attrs["seed"] = 42


def _torch(path: Path) -> None:
    torch.save({name: torch.from_numpy(values.copy()) for name, values in ARRAYS.items()}, path)


FORMATS = {
    "run.h5": _hdf5,
    "run.safetensors": lambda path: save_file(ARRAYS, path),
    "run.npz": lambda path: np.savez(path, **ARRAYS),
    "packed.npz": lambda path: np.savez_compressed(path, **ARRAYS),
    "run.pt": _torch,
}


@pytest.fixture(scope="module", params=FORMATS)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good file of each format."""
    path = tmp_path_factory.mktemp("whole") / request.param
    FORMATS[request.param](path)
    return path


def outcome(path: Path, dest: Path) -> str:
    """Convert a damaged file; return whether it was converted or refused. Any other outcome fails."""
    began = time.monotonic()
    sentence = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dx.convert(path, dest, memory="2GB")
    except InputError as error:
        sentence = str(error)
    assert time.monotonic() - began < SECONDS
    if sentence is None:
        assert not dx.verify(dest, path).problems
        return "converted"
    assert path.name in sentence
    assert "\n" not in sentence
    with pytest.raises((MissingFileError, IncompleteStoreError)):
        dx.open_recording(dest)
    return "refused"


def test_truncated_files(whole: Path, tmp_path: Path) -> None:
    data = whole.read_bytes()
    for i, length in enumerate(np.linspace(0, len(data) - 1, CASES).astype(int)):
        path = tmp_path / f"{i}-{whole.name}"
        path.write_bytes(data[:length])
        assert outcome(path, tmp_path / f"{i}.zarr") == "refused", f"cut after {length} of {len(data)} bytes"


def _structure(data: bytes) -> np.ndarray:
    """Return the positions of all bytes that are not values of W."""
    inside = np.zeros(len(data), bool)
    for values in (ARRAYS["W"], ARRAYS["grad_W"]):
        at = data.find(values.tobytes())
        if at >= 0:
            inside[at : at + values.nbytes] = True
    return np.flatnonzero(~inside)


@pytest.mark.slow
def test_flipped_bits_of_the_structure(whole: Path, tmp_path: Path) -> None:
    """Flip a bit of the structure: names, shapes, offsets, checksums. Some files remain valid, with other contents."""
    data = whole.read_bytes()
    rng = np.random.default_rng(7)
    ends = []
    for i, at in enumerate(rng.choice(_structure(data), CASES, replace=False)):
        damaged = bytearray(data)
        damaged[at] ^= 1 << int(rng.integers(8))
        path = tmp_path / f"{i}-{whole.name}"
        path.write_bytes(damaged)
        ends.append(outcome(path, tmp_path / f"{i}.zarr"))
    assert "refused" in ends


def test_values_of_compressed_and_checked_files_are_never_wrong(tmp_path: Path) -> None:
    """Where the format has checksums, a flipped bit among the values is found."""
    for name in ("run.npz", "packed.npz"):
        path = tmp_path / name
        FORMATS[name](path)
        good = path.read_bytes()
        for i, at in enumerate(np.linspace(100, len(good) // 2, 15).astype(int)):
            damaged = bytearray(good)
            damaged[at] ^= 4
            path.write_bytes(damaged)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    store = dx.convert(path, tmp_path / f"{name}-{i}.zarr")
            except InputError:
                continue
            found = dx.open_recording(store, raw=True)["W"].values.view(np.uint16)
            np.testing.assert_array_equal(found, W)


def test_memory_of_absurd_shapes(tmp_path: Path) -> None:
    """A header that promises petabytes costs nothing."""
    header = b'{"W":{"dtype":"BF16","shape":[1000000,1000000,1000],"data_offsets":[0,2000000000000000]}}'
    path = tmp_path / "huge.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 64)
    assert outcome(path, tmp_path / "a.zarr") == "refused"
    path = tmp_path / "huge.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("W", (10**6, 10**6, 64), "u2", chunks=(1, 1000, 64))
    assert outcome(path, tmp_path / "b.zarr") == "refused"
    buffer = io.BytesIO()
    np.lib.format.write_array_header_2_0(buffer, {"descr": "<u2", "fortran_order": False, "shape": (10**9, 10**6, 4)})
    path = tmp_path / "huge.npy"
    path.write_bytes(buffer.getvalue())
    assert outcome(path, tmp_path / "c.zarr") == "refused"
