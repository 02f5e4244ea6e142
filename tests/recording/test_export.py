"""Exported files: the bits and labels of the store, complete or absent, in bounded memory."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

import deadtok_xr as dx
from deadtok_xr import schema, store, testing
from deadtok_xr.errors import DamagedStoreError, DestinationExistsError, InputError
from tests.manifests import accept
from tests.store.test_store import write_store

SUFFIXES = (".safetensors", ".h5", ".npz")


def arrays(path: Path) -> dict[str, np.ndarray]:
    """What another program finds in a file; bfloat16 as its bits."""
    if path.suffix == ".safetensors":
        loaded = safetensors.torch.load_file(path)
        return {n: (v.view(torch.uint16) if v.dtype == torch.bfloat16 else v).numpy() for n, v in loaded.items()}
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    with h5py.File(path) as file:
        return {name: file[name][...] for name in file}


def bits(values: Any) -> np.ndarray:
    values = np.ascontiguousarray(values)
    return values.view(f"u{values.dtype.itemsize}")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("tokens", ["all", "dead", "live"])
def test_file_has_the_bits_and_labels_of_the_store(recording: Path, tmp_path: Path, suffix: str, tokens: Any) -> None:
    told: list[tuple[int, int]] = []
    out = dx.export(recording, tmp_path / f"x{suffix}", tokens=tokens, progress=lambda *a: told.append(a))
    rec, found = dx.open_recording(recording, tokens=tokens, raw=True), arrays(out)
    for name, v in rec.data_vars.items():
        np.testing.assert_array_equal(bits(found[str(name)]), bits(v.values), err_msg=str(name))
    np.testing.assert_array_equal(found["step"], rec.step)
    np.testing.assert_array_equal(found["token_ids"], rec.token)
    np.testing.assert_array_equal(found["dead_ids"], rec.token[rec.dead.values])
    assert ("dead_mask" in found) == (tokens == "all")
    assert told[-1][0] == told[-1][1] == sum(v.nbytes for n, v in found.items() if n not in ("metadata", "token_text"))
    assert [p.name for p in tmp_path.iterdir()] == [out.name]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*left out of the store")
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("tokens", ["all", "dead", "live"])
def test_round_trip(recording: Path, tmp_path: Path, suffix: str, tokens: Any) -> None:
    out = dx.export(recording, tmp_path / f"x{suffix}", tokens=tokens)
    back = dx.open_recording(dx.convert(out, tmp_path / "back.zarr"), raw=True)
    rec = dx.open_recording(recording, tokens=tokens, raw=True)
    for name, v in rec.data_vars.items():
        assert back[name].dtype == v.dtype
        np.testing.assert_array_equal(bits(back[name].values), bits(v.values), err_msg=str(name))
    for name in ("step", "token", "dead"):
        np.testing.assert_array_equal(back[name], rec[name])


@pytest.mark.slow
@settings(max_examples=15)
@given(data=st.data(), steps=st.integers(1, 140), n=st.integers(1, 20), suffix=st.sampled_from(SUFFIXES))
def test_every_bit_pattern_is_exported(tmp_path_factory: Any, data: Any, steps: int, n: int, suffix: str) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    W = rng.integers(0, 65536, (steps, n, 3), dtype=np.uint16)
    W.flat[: min(W.size, 5)] = np.array([0x8000, 0x7F81, 0xFFFF, 0x7F80, 0x0001], "u2")[: W.size]
    tokens = rng.choice(100, n, replace=False)
    folder = tmp_path_factory.mktemp("e")
    path = write_store(folder / "x.zarr", W.view(ml_dtypes.bfloat16), tokens, rng.random(n) < 0.5)
    found = arrays(dx.export(path, folder / f"x{suffix}"))
    np.testing.assert_array_equal(found["W"], W[:, np.argsort(tokens)])
    wide = data.draw(st.sampled_from(["float32", "float64", "uint16"]))
    zarr.open_group(str(path), mode="r+")["W"].attrs["source_dtype"] = wide
    accept(path)
    found = arrays(dx.export(path, folder / f"y{suffix}", source_dtype=True))
    assert found["W"].dtype == wide
    if wide == "float32":
        np.testing.assert_array_equal(found["W"].view("u4") >> 16, W[:, np.argsort(tokens)])


def test_chunks_of_every_shape_are_assembled(tmp_path: Path) -> None:
    """Other writers may chunk as they please, along dim too."""
    W = np.random.default_rng(0).normal(size=(20, 9, 7)).astype("f4")
    path = write_store(tmp_path / "x.zarr", W, np.arange(9)[::-1], np.arange(9) % 2 == 0)
    group = zarr.open_group(str(path), mode="r+")
    on_disk = group["W"][:]
    store.create_array(group, "W2", W.shape, schema.MATRIX, "f4", (6, 4, 3))[...] = on_disk
    accept(path)
    for tokens in ("all", "dead", "live"):
        found = arrays(dx.export(path, tmp_path / f"{tokens}.npz", tokens=tokens))  # type: ignore[arg-type]
        np.testing.assert_array_equal(found["W"], dx.open_recording(path, tokens=tokens).W)  # type: ignore[arg-type]
        np.testing.assert_array_equal(found["W2"], found["W"])


def test_export_of_one_run(tmp_path: Path) -> None:
    from tests.recording.test_runs import write_runs

    path, W = write_runs(tmp_path / "runs.zarr")
    with pytest.raises(InputError, match=r"several runs \(5, 7\), and a file holds one"):
        dx.export(path, tmp_path / "x.npz")
    found = arrays(dx.export(path, tmp_path / "x.npz", run=7))
    np.testing.assert_array_equal(found["W"], W[1].view("u2"))


def test_metadata_and_text(tmp_path: Path, recording: Path) -> None:
    path = Path(__import__("shutil").copytree(recording, tmp_path / "r.zarr"))
    dx.label(path, token_text=[f"tok {i} ü" for i in range(256)])
    for suffix in SUFFIXES:
        out = dx.export(path, tmp_path / f"x{suffix}", variables=["W"])
        if suffix == ".safetensors":
            with safe_open(out, framework="pt") as file:
                metadata = file.metadata()
                assert file.get_tensor("W").dtype == torch.bfloat16
            texts = json.loads(metadata["token_text"])
        else:
            texts = [t.decode() if isinstance(t, bytes) else str(t) for t in arrays(out)["token_text"]]
            if suffix == ".npz":
                metadata = json.loads(str(arrays(out)["metadata"]))
            else:
                with h5py.File(out) as file:
                    metadata = dict(file.attrs)
                    assert file["W"].attrs["dtype"] == "bfloat16"
                    assert file["W"].dtype == np.uint16
        assert texts[3] == "tok 3 ü"
        assert json.loads(metadata["hyperparameters"])["betas"] == [0.9, 0.999]
        assert json.loads(metadata["attributes"])["seed"] == 42
        assert json.loads(metadata["variables"])["W"]["dtype"] == "bfloat16"
        assert "grad" not in arrays(out)
    dx.export(path, tmp_path / "bits.safetensors", uint16=True)
    assert arrays(tmp_path / "bits.safetensors")["W"].dtype == np.uint16


def test_long_metadata_fits_into_hdf5(tmp_path: Path) -> None:
    writer = store.create(tmp_path / "x.zarr", store.TokenTable(np.arange(2)), {"notes": "x" * 200_000})
    writer.add_variable("W", schema.MATRIX, (2, 2), np.float32)
    writer.extend(np.arange(1))
    writer.write("W", 0, np.zeros((1, 2, 2), "f4"))
    writer.finish()
    with h5py.File(dx.export(tmp_path / "x.zarr", tmp_path / "x.h5")) as file:
        assert len(json.loads(file.attrs["attributes"])["notes"]) == 200_000


def test_invalid_exports_are_refused(recording: Path, tmp_path: Path) -> None:
    (tmp_path / "there.h5").write_text("mine")
    for out, options, error, match in (
        ("x.pt", {}, InputError, r"suffix '\.pt'; expected one of \.safetensors, \.h5"),
        ("there.h5", {}, DestinationExistsError, "exists already and is left as it is"),
        ("x.h5", {"uint16": False}, InputError, r"\.h5 has no bfloat16"),
        ("x.h5", {"variables": ["V"]}, InputError, "no variable 'V': choose from W,"),
        ("x.h5", {"variables": []}, InputError, "is empty"),
        ("none/x.h5", {}, InputError, "none is not a folder"),
        ("x.h5", {"run": 3}, InputError, "holds one run alone"),
    ):
        with pytest.raises(error, match=match):
            dx.export(recording, tmp_path / out, **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="lies in the Zarr store"):
        dx.export(recording, recording / "x.h5")
    assert (tmp_path / "there.h5").read_text() == "mine"
    dx.export(recording, tmp_path / "there.h5", variables=["loss"], overwrite=True)
    assert "loss" in arrays(tmp_path / "there.h5")


def test_source_dtype_that_is_not_exact_is_refused(tmp_path: Path) -> None:
    path = write_store(tmp_path / "x.zarr", np.full((2, 2, 2), 0.1, "f4"), np.arange(2), None)
    zarr.open_group(str(path), mode="r+")["W"].attrs["source_dtype"] = "float16"
    accept(path)
    with pytest.raises(InputError, match="'W' is stored in float32, and 8 of its values are not exact in float16"):
        dx.export(path, tmp_path / "x.npz", source_dtype=True)
    assert not list(tmp_path.glob("*x.npz*"))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_failed_export_leaves_no_file(tmp_path: Path, suffix: str) -> None:
    path = testing.synthetic_recording(tmp_path / "x.zarr", steps=200, tokens=20, dims=4)
    (path / "W/c/1/0/0").write_bytes(b"rubbish")
    with pytest.raises(DamagedStoreError, match="step positions 128"):
        dx.export(path, tmp_path / f"x{suffix}")
    assert [p.name for p in tmp_path.iterdir()] == ["x.zarr"]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_full_disk_leaves_no_file(tmp_path: Path, suffix: str) -> None:
    path = testing.synthetic_recording(tmp_path / "x.zarr", steps=300, tokens=60, dims=16)
    (tmp_path / f"x{suffix}").write_text("what was there before")

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    done = subprocess.run(
        [sys.executable, "-m", "deadtok_xr", "export", path, tmp_path / f"x{suffix}", "--overwrite", "-q"],
        preexec_fn=small_files, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert f"x{suffix} cannot be written: File too large" in done.stderr
    assert "nothing is left of it" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / f"x{suffix}").read_text() == "what was there before"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["x.zarr", f"x{suffix}"])


PEAK = """
import json, sys
from pathlib import Path
import deadtok_xr as dx

def rss(key):
    return int(Path("/proc/self/status").read_text().split(key + ":")[1].split()[0]) * 1024

tiny, store, folder, suffix = sys.argv[1:]
dx.export(tiny, f"{folder}/tiny{suffix}")
before = rss("VmRSS")
dx.export(store, f"{folder}/x{suffix}")
print(json.dumps(rss("VmHWM") - before))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
def test_memory_is_bounded_by_a_block_of_steps(tmp_path: Path) -> None:
    tiny = testing.synthetic_recording(tmp_path / "tiny.zarr", steps=20, tokens=20, dims=4)
    path = testing.synthetic_recording(tmp_path / "run.zarr", steps=6000, tokens=300, dims=32)
    block = 128 * 300 * 32 * 2
    for suffix in SUFFIXES:
        command = [sys.executable, "-c", PEAK, tiny, path, tmp_path, suffix]
        grown = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        assert grown < 6 * block + 8 * 2**20 < 6000 * 300 * 32 * 2 / 3, suffix


def test_export_command(recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from deadtok_xr import cli

    def run(*words: object) -> int:
        return cli.status(lambda: cli.cli([str(w) for w in words], prog_name="deadtok", standalone_mode=False))

    assert run("export", recording, tmp_path / "x.npz", "--variables", "W,loss", "--tokens", "dead") == 0
    assert "exporting: 100%" in capsys.readouterr().err
    found = arrays(tmp_path / "x.npz")
    assert xr.DataArray(found["W"]).shape == (301, len(found["dead_ids"]), 16)
    assert run("export", recording, tmp_path / "x.npz", "-q") == 2
    assert "--overwrite" in capsys.readouterr().err
