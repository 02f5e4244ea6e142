"""Conversions keep all bits and labels, or fail with one sentence that gives the reason."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import xarray as xr
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

import deadtok_xr as dx
from deadtok_xr.bfloat16 import BFLOAT16, decode, from_bits
from deadtok_xr.conversion import empty_store, units
from deadtok_xr.conversion.plan import ConversionPlan
from deadtok_xr.conversion.planning import make_plan
from deadtok_xr.conversion.readers import formats
from deadtok_xr.errors import DestinationExistsError, IncompleteStoreError, InputError, MissingFileError

Arrays = dict[str, NDArray[Any]]
THIMBLE = {"W": "W", "grad_W": "grad", "momentum_W": "exp_avg", "variance_W": "exp_avg_sq"}


# --- files in the exact layouts ------------------------------------------------------------------


def bits(x: Any) -> NDArray[Any]:
    """Any floats as integers, so that NaNs and signs of zero are compared as well."""
    x = np.ascontiguousarray(x)
    return x.view(f"u{x.dtype.itemsize}") if x.dtype.kind != "b" else x.view("u1")


def thimble(rec: xr.Dataset) -> tuple[Arrays, dict[str, Any]]:
    """Thimble 7: bfloat16 as uint16, masks and ids beside it, hyperparameters as file attributes."""
    dead = rec["dead"].values
    arrays = {key: bits(rec[name].values) for key, name in THIMBLE.items()}
    arrays["grad_W"][0] = 0
    arrays["losses"] = rec["loss"].values.astype(np.float32)
    arrays |= {"live_mask": ~dead, "dead_mask": dead}
    arrays |= {"live_ids": np.flatnonzero(~dead), "dead_ids": np.flatnonzero(dead)}
    attrs = {"vocab_size": np.int64(256), "learning_rate": 3e-3, "seed": 42, "n_dead": int(dead.sum())}
    return arrays, attrs


def instrumented(rec: xr.Dataset) -> Arrays:
    """14.1a: float32 displacements and gradients, no weights, settings as scalars."""
    w, grad = decode(rec["W"].values), decode(rec["grad"].values)
    grad[0] = 0
    dead = rec["dead"].values
    return {
        "recorded_steps": rec["step"].values.astype(np.int64),
        "dead_token_ids": np.flatnonzero(dead),
        "live_token_ids": np.flatnonzero(~dead),
        "grads": grad,
        "deltas": np.diff(w, axis=0, prepend=w[:1]),
        "init_sigma": np.float32(0.02),
        "learning_rate": np.float32(3e-3),
        "weight_decay": np.float32(0),
    }


def write_h5(path: Path, arrays: Arrays, attrs: Any = (), **options: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            chunked = {"chunks": (160, *np.shape(values)[1:]), **options} if np.ndim(values) == 3 else {}
            file.create_dataset(name, data=values, **(chunked if np.shape(values)[0:1] > (160,) else {}))
        file.attrs.update(attrs)
    return path


def write_safetensors(path: Path, arrays: Arrays) -> Path:
    save_file({name: np.array(values, order="C") for name, values in arrays.items()}, path)
    return path


def small(n_steps: int = 5, n_tokens: int = 6, n_dims: int = 2) -> Arrays:
    """Make a small recording with every kind of array; tokens 1 and 4 are dead."""
    dead = np.zeros(n_tokens, bool)
    dead[[1, 4]] = True
    shape = (n_steps, n_tokens, n_dims)
    return {
        "W": np.arange(np.prod(shape), dtype="u2").reshape(shape),
        "dead_mask": dead,
        "dead_ids": np.flatnonzero(dead),
        "losses": np.ones(n_steps, "f4"),
        "recorded_steps": np.arange(n_steps),
    }


def raw(path: Path, **options: Any) -> xr.Dataset:
    return dx.open_recording(path, raw=True, **options)


@pytest.fixture(scope="module")
def real(recording: Path) -> xr.Dataset:
    """The real run, in memory, as stored, ascending by token."""
    return raw(recording).load()


# --- the same bits -------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"compression": "gzip", "chunks": (1, 256, 16)}, {"dtype": ">u2"}])
def test_hdf5_with_bfloat16_as_uint16(real: xr.Dataset, tmp_path: Path, options: dict[str, Any]) -> None:
    arrays, attrs = thimble(real)
    source = write_h5(tmp_path / "thimble_7.h5", arrays, attrs, **options)
    rec = raw(dx.convert(source, tmp_path / "thimble_7.zarr"))
    for key, name in THIMBLE.items():
        assert rec[name].dtype == BFLOAT16
        assert rec[name].attrs["precision"] == "bfloat16"
        np.testing.assert_array_equal(bits(rec[name].values), arrays[key])
    np.testing.assert_array_equal(bits(rec["loss"].values), bits(arrays["losses"]))
    np.testing.assert_array_equal(rec["token"], np.arange(256))
    np.testing.assert_array_equal(rec["dead"], arrays["dead_mask"])
    np.testing.assert_array_equal(rec["step"], np.arange(len(arrays["W"])))
    assert rec.attrs["hyperparameters"] == attrs
    assert set(rec.data_vars) == {*THIMBLE.values(), "loss"}
    assert "dropped" not in rec.attrs


def test_dead_tokens_are_a_selection_of_all_tokens(real: xr.Dataset, tmp_path: Path) -> None:
    arrays, attrs = thimble(real)
    store = dx.convert(write_h5(tmp_path / "a.h5", arrays, attrs), tmp_path / "a.zarr")
    dead = raw(store, tokens="dead")
    np.testing.assert_array_equal(dead["token"], arrays["dead_ids"])
    np.testing.assert_array_equal(bits(dead["W"].values), arrays["W"][:, arrays["dead_mask"]])


def test_deltas_without_weights(real: xr.Dataset, tmp_path: Path) -> None:
    arrays = instrumented(real)
    source = write_safetensors(tmp_path / "gradient_delta_history.safetensors", arrays)
    rec = raw(dx.convert(source, tmp_path / "run.zarr"))
    assert set(rec.data_vars) == {"delta", "grad"}
    for key, name in {"deltas": "delta", "grads": "grad"}.items():
        np.testing.assert_array_equal(bits(decode(rec[name].values)), bits(arrays[key]))
    assert rec["delta"].dtype == np.float32  # a difference of two bfloat16 need not be one
    assert rec["delta"].attrs["precision"] == "none"
    assert rec["grad"].dtype == BFLOAT16  # it was, once, and every value shows it
    assert rec["delta"].attrs["valid_from"] == 1
    np.testing.assert_array_equal(np.flatnonzero(rec["dead"]), arrays["dead_token_ids"])
    settings_ = rec.attrs["hyperparameters"]
    assert settings_ == {k: float(arrays[k]) for k in ("init_sigma", "learning_rate", "weight_decay")}


def test_kinematics_of_deltas_are_those_of_the_weights(real: xr.Dataset, tmp_path: Path) -> None:
    source = write_safetensors(tmp_path / "run.safetensors", instrumented(real))
    rec = dx.open_recording(dx.convert(source, tmp_path / "run.zarr"), tokens="dead")
    found = dx.kinematics(rec)
    w = decode(real["W"].values)[:, real["dead"].values].astype(np.float64)
    steps = np.diff(w.astype(np.float32), axis=0)  # as the file has them: rounded to float32
    path = np.concatenate([np.zeros((1, *w.shape[1:])), np.cumsum(steps, axis=0, dtype=np.float64)])
    assert found.attrs["origin"] == "relative"
    np.testing.assert_allclose(found["centroid"], path.mean(axis=1), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found["centroid"], (w - w[0]).mean(axis=1), atol=1e-5)
    with pytest.raises(InputError, match="absolute positions are not known"):
        dx.motion(rec)


@pytest.mark.parametrize("key", ["W", "embeddings", "embedding_history"])
def test_native_bfloat16(real: xr.Dataset, tmp_path: Path, key: str) -> None:
    w = bits(real["W"].values)[:20].copy()
    source = tmp_path / "embedding_evolution.safetensors"
    save_torch({key: torch.from_numpy(w.view("i2")).view(torch.bfloat16)}, source)
    rec = raw(dx.convert(source, tmp_path / "run.zarr"))
    np.testing.assert_array_equal(bits(rec["W"].values), w)
    assert "dead" not in rec.coords
    assert rec["W"].attrs["source_key"] == key


def test_float32_stays_float32(tmp_path: Path) -> None:
    w = np.random.default_rng(0).normal(size=(4, 3, 2)).astype(np.float32)
    source = write_safetensors(tmp_path / "a.safetensors", {"W": w})
    with pytest.warns(UserWarning, match="not on the bfloat16 grid: its lattice is unknown"):
        rec = raw(dx.convert(source, tmp_path / "a.zarr"))
    np.testing.assert_array_equal(bits(rec["W"].values), bits(w))
    assert rec["W"].attrs["precision"] == "none"


def test_float32_weights_on_the_bfloat16_grid_are_reported(tmp_path: Path) -> None:
    source = write_safetensors(tmp_path / "a.safetensors", {"W": np.ones((4, 3, 2), np.float32)})
    rec = raw(dx.convert(source, tmp_path / "a.zarr"))
    assert rec["W"].dtype == BFLOAT16  # exact, in half the room
    with pytest.warns(UserWarning, match="'W' is float32, but every value is on the bfloat16 grid"):
        rec = raw(dx.convert(source, tmp_path / "b.zarr", keep_dtype=True))
    assert rec["W"].dtype == np.float32
    assert rec["W"].attrs["precision"] == "bfloat16"
    assert (dx.motion(rec).moved_dims == 0).all()


def test_float16_copies_of_bfloat16_are_recognised(tmp_path: Path) -> None:
    copy = np.array([1.0, 0.00390625, 3e-6, 1.5], np.float16).reshape(2, 2, 1)  # the third is subnormal
    own = (copy * np.float16(1.01)).astype(np.float16)
    for name, w, precision in (("copy", copy, "bfloat16"), ("own", own, "float16")):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            rec = dx.open_recording(
                dx.convert(write_safetensors(tmp_path / f"{name}.safetensors", {"W": w}), tmp_path / f"{name}.zarr")
            )
        assert rec["W"].attrs["precision"] == precision
        assert len(said) == (precision == "bfloat16")


# what no arithmetic leaves alone: NaNs with payloads, signalling ones, infinities, -0, subnormals
SPECIAL = [0x7FC0, 0x7FC1, 0xFFFF, 0x7F81, 0xFF81, 0x7F80, 0xFF80, 0x8000, 0x0000, 0x0001, 0x8001, 0x007F]


@given(
    shape=st.tuples(st.integers(1, 140), st.integers(1, 9), st.integers(1, 5)),
    seed=st.integers(0, 2**32 - 1),
    special=st.lists(st.sampled_from(SPECIAL), max_size=30),
    dead=st.booleans(),
)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_conversion_keeps_every_bit_pattern(
    tmp_path_factory: pytest.TempPathFactory,
    shape: tuple[int, int, int],
    seed: int,
    special: list[int],
    dead: bool,
) -> None:
    rng = np.random.default_rng(seed)
    w = rng.integers(0, 2**16, shape, dtype=np.uint16)
    w.flat[rng.integers(0, w.size, len(special))] = special
    arrays: Arrays = {"W": w, **({"dead_mask": rng.random(shape[1]) < 0.5} if dead else {})}
    folder = tmp_path_factory.mktemp("bits")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        rec = raw(dx.convert(write_h5(folder / "a.h5", arrays), folder / "a.zarr"))
    np.testing.assert_array_equal(bits(rec["W"].values), w)


# --- which token a row is ------------------------------------------------------------------------


def test_dead_rows_alone_in_the_order_of_the_ids(tmp_path: Path) -> None:
    arrays = small()
    arrays["W"] = arrays["W"][:, :2]
    arrays["dead_ids"] = np.array([4, 1])
    rec = raw(dx.convert(write_h5(tmp_path / "a.h5", arrays), tmp_path / "a.zarr"))
    np.testing.assert_array_equal(rec["token"], [1, 4])
    np.testing.assert_array_equal(bits(rec["W"].values), arrays["W"][:, ::-1])
    assert rec["dead"].values.all()


@pytest.mark.parametrize("known", [["dead_mask"], ["live_mask"], ["dead_ids"], []])
def test_dead_tokens_from_masks_and_lists(tmp_path: Path, known: list[str]) -> None:
    arrays = small()
    arrays["live_mask"] = ~arrays["dead_mask"]
    every = {"dead_mask", "dead_ids", "live_mask"}
    source = write_h5(tmp_path / "a.h5", {k: v for k, v in arrays.items() if k in known or k not in every})
    rec = raw(dx.convert(source, tmp_path / "a.zarr", dead_ids=None if known else [1, 4]))
    np.testing.assert_array_equal(rec["dead"], arrays["dead_mask"])


def test_coordinate_dead_is_absent_if_unknown(tmp_path: Path) -> None:
    rec = raw(dx.convert(write_h5(tmp_path / "a.h5", {"W": small()["W"]}), tmp_path / "a.zarr"))
    assert "dead" not in rec.coords
    with pytest.raises(InputError, match="does not say which tokens are dead"):
        raw(tmp_path / "a.zarr", tokens="dead")


def test_step_labels_may_have_gaps(tmp_path: Path) -> None:
    arrays = {**small(), "recorded_steps": np.array([0, 10, 20, 21, 40])}
    rec = raw(dx.convert(write_h5(tmp_path / "a.h5", arrays), tmp_path / "a.zarr"))
    np.testing.assert_array_equal(rec["step"], arrays["recorded_steps"])


# --- everything else that a file holds -----------------------------------------------------------


def test_unknown_arrays_are_kept_or_listed_as_dropped(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    arrays = {
        **small(),
        "logits": rng.normal(size=(5, 6)).astype("f2"),
        "odd": rng.normal(size=(5, 3)),
        "counts": np.arange(5, dtype=np.int16),
        "betas": np.array([0.9, 0.999]),
        "W_initial": np.zeros((6, 2), np.float32),
        "note": np.array(b"written by hand", dtype="S20"),
        "token": np.arange(5),
        "loss": np.arange(3, dtype="f4"),
        "h_mean": rng.normal(size=(5, 7)).astype("f4"),
    }
    del arrays["losses"]
    source = write_h5(tmp_path / "a.h5", arrays)
    with pytest.warns(UserWarning, match=r"left out of the store: 'loss' \(float32 \(3,\): its first axis"):
        rec = raw(dx.convert(source, tmp_path / "a.zarr"))
    assert rec["logits"].dims == ("step", "token")
    assert rec["odd"].dims == ("step", "odd_1")
    for name in ("logits", "odd", "counts"):
        assert rec[name].dtype == arrays[name].dtype
        np.testing.assert_array_equal(rec[name].values, arrays[name])
    assert rec["W_initial"].dims == ("token", "dim")
    assert rec.attrs["hyperparameters"] == {"betas": [0.9, 0.999]}
    assert set(rec.attrs["dropped"]) == {"note", "token", "loss"}
    assert rec["h_mean_float32"].dims == ("step", "h_mean_1")  # not as wide as the tokens
    np.testing.assert_array_equal(rec["token"], np.arange(6))


def test_variables_one_step_short_begin_with_nan(tmp_path: Path) -> None:
    """A gradient, displacement or loss without a row for the initial state belongs to steps 1..T."""
    arrays = small()
    arrays |= {"g": arrays["W"][1:], "losses": np.arange(1, 5, dtype="f4")}
    done: list[tuple[int, int]] = []
    store = dx.convert(write_h5(tmp_path / "a.h5", arrays), tmp_path / "a.zarr", progress=lambda *x: done.append(x))
    rec = raw(store)
    assert np.isnan(decode(rec["grad"].values[0])).all()
    np.testing.assert_array_equal(bits(rec["grad"].values[1:]), arrays["W"][1:])
    np.testing.assert_array_equal(rec["loss"], [np.nan, 1, 2, 3, 4])
    assert done[-1][0] == done[-1][1]


def test_float64_loss_is_kept_exactly_under_a_name_of_its_own(tmp_path: Path) -> None:
    arrays = {**small(), "losses": np.arange(5) / 3}
    rec = raw(dx.convert(write_h5(tmp_path / "a.h5", arrays), tmp_path / "a.zarr"))
    np.testing.assert_array_equal(rec["loss_float64"], arrays["losses"])
    assert rec["loss_float64"].attrs["valid_from"] == 1


def test_plan_as_text(tmp_path: Path) -> None:
    arrays = {**small(), "W_initial": np.zeros((6, 2)), "note": np.array(b"by hand")}
    with formats.open_source(write_h5(tmp_path / "a.h5", arrays)) as source:
        plan = make_plan(source)
    text = plan.describe()
    for line in (
        "HDF5, 5 steps x 6 tokens",
        "rows: token ids 0..5; dead are those of 'dead_mask'",
        "uint16 read as the bits of bfloat16",
        "left out: note (bytes56 (): recordings hold numbers)",
        "MiB of memory",
    ):
        assert line in text
    words = [line.split()[:2] for line in text.splitlines()]
    for pair in (["W", "W"], ["loss", "losses"], ["W_initial", "W_initial"]):
        assert pair in words
    assert plan.nbytes == sum(arrays[key].nbytes for key in ("W", "losses", "W_initial"))


def test_provenance_is_stored(tmp_path: Path) -> None:
    source = write_h5(tmp_path / "a.h5", small())
    rec = raw(dx.convert(source, tmp_path / "a.zarr"))
    digest = blake3(source.read_bytes()).hexdigest()
    assert rec.attrs["made_by"] == "convert"
    assert rec.attrs["sources"] == [{"name": "a.h5", "bytes": source.stat().st_size, "blake3": digest}]
    assert {"deadtok_xr", "zarr", "numpy"} <= set(rec.attrs["software"])


def test_invalid_values_are_counted_and_kept(tmp_path: Path) -> None:
    arrays = small()
    arrays["grad_W"] = arrays["W"].copy()
    arrays["W"][2, 3, 1] = 0x7FC1
    arrays["W"][3, 0, :] = 0xFF80
    arrays["grad_W"][0] = 0x7FC0  # before the gradient means anything
    source = write_h5(tmp_path / "a.h5", arrays)
    sentence = "a.h5: variable 'W' holds 3 values that are NaN or infinite, the first at step 2, token 3"
    with pytest.warns(UserWarning, match=re.escape(sentence)) as caught:
        rec = raw(dx.convert(source, tmp_path / "a.zarr"))
    assert len(caught) == 1
    assert caught[0].filename == __file__
    np.testing.assert_array_equal(bits(rec["W"].values), arrays["W"])


def test_the_format_does_not_depend_on_the_file_name(tmp_path: Path) -> None:
    source = write_h5(tmp_path / "misnamed.safetensors", small())
    np.testing.assert_array_equal(bits(raw(dx.convert(source, tmp_path / "a.zarr"))["W"].values), small()["W"])


def test_the_function_keeps_its_name_when_the_subpackage_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys, deadtok_xr.conversion.inspect.keys, deadtok_xr as dx\n"
        "assert not {'torch', 'h5py'} & set(sys.modules)\n"
        f"dx.convert({str(write_h5(tmp_path / 'a.h5', small()))!r}, {str(tmp_path / 'a.zarr')!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- bounded memory ------------------------------------------------------------------------------

MEMORY = """
import resource
import sys
import numpy as np
import h5py
from pathlib import Path
import deadtok_xr as dx
from deadtok_xr.conversion import empty_store, units
from deadtok_xr.conversion.plan import ConversionPlan
from deadtok_xr.conversion.planning import make_plan
from deadtok_xr.conversion.readers.formats import open_source

def peak():  # VmHWM is this program's own; ru_maxrss may be inherited from whoever started it
    try:
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

small, large, folder = sys.argv[1:]
dx.convert(small, folder + "/small.zarr")
before = peak()
dx.convert(large, folder + "/large.zarr")
with open_source(large) as source:
    print(peak() - before, peak(), make_plan(source).peak_memory())
"""


@pytest.mark.slow
def test_memory_is_bounded(tmp_path: Path) -> None:
    """A file of 300 MB, in two chunks without compression as Thimble 7 has them, in less than 100 MB."""
    block = np.random.default_rng(0).integers(0, 0x7F80, (100, 1000, 64), dtype=np.uint16)
    large = tmp_path / "large.h5"
    with h5py.File(large, "w") as file:
        w = file.create_dataset("W", (2400, 1000, 64), "u2", chunks=(1250, 1000, 64))
        for start in range(0, 2400, 100):
            w[start : start + 100] = block
    source = write_h5(tmp_path / "small.h5", small())
    command = [sys.executable, "-c", MEMORY, source, large, tmp_path]
    grown, peak, planned = map(int, subprocess.run(command, check=True, capture_output=True).stdout.split())
    assert grown < 2400 * 1000 * 64 * 2 / 2.5
    assert peak < planned
    rec = raw(tmp_path / "large.zarr")
    np.testing.assert_array_equal(bits(rec["W"][2300:].values), block)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_option_bounds_the_peak(tmp_path: Path) -> None:
    """128 steps of all tokens are 330 MB, more than the memory limit: tokens are read in groups."""
    large = tmp_path / "large.h5"
    with h5py.File(large, "w") as file:
        w = file.create_dataset("W", (130, 20_000, 64), "u2", chunks=(13, 20_000, 64))
        block = np.random.default_rng(0).integers(0, 0x7F80, (13, 20_000, 64), dtype=np.uint16)
        for start in range(0, 130, 13):
            w[start : start + 13] = block
    code = (
        "import sys; import deadtok_xr as dx; dx.convert(sys.argv[1], sys.argv[2], memory=sys.argv[3]); "
        "print(open('/proc/self/status').read())"  # getrusage would count what this process had before exec
    )
    command = [sys.executable, "-c", code, large, tmp_path / "large.zarr", "380MB"]
    status = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    peak = 1024 * int(re.search(r"VmHWM:\s*(\d+)", status)[1])  # type: ignore[index]
    assert peak < 380e6 < w_bytes(130, 20_000, 64)
    rec = raw(tmp_path / "large.zarr")
    np.testing.assert_array_equal(bits(rec["W"][117:].values), block)


def w_bytes(*shape: int) -> int:
    return int(np.prod(shape)) * 2 + 250_000_000  # what holding it all would take, with Python itself


def test_compressed_chunks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "large.h5"
    with h5py.File(source, "w") as file:
        file.create_dataset("W", (1600, 1000, 64), "u2", chunks=(1600, 1000, 64), compression="gzip")[:1] = 1
    sentence = (
        r"large.h5: converting needs \d+ MB of memory \(205 MB of it because 'W' is compressed in chunks that can "
    )
    with pytest.raises(InputError, match=sentence):
        dx.convert(source, tmp_path / "a.zarr", memory="350MB")
    assert raw(dx.convert(source, tmp_path / "a.zarr", memory="1GB"))["W"].shape == (1600, 1000, 64)


# --- broken off in the middle --------------------------------------------------------------------


def check_refused_then_done(source: Path, store: Path, expected: NDArray[Any]) -> None:
    """The incomplete store does not open, and converting again completes it."""
    with pytest.raises(IncompleteStoreError, match="was not written to its end"):
        dx.open_recording(store)
    dx.convert(source, store)
    np.testing.assert_array_equal(bits(raw(store)["W"].values), expected)


def test_interrupted_conversion_leaves_no_complete_store(tmp_path: Path) -> None:
    arrays = small(n_steps=300)
    source = write_h5(tmp_path / "a.h5", arrays)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dx.convert(source, tmp_path / "a.zarr", progress=interrupt)
    check_refused_then_done(source, tmp_path / "a.zarr", arrays["W"])
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "a.zarr").rglob("*")}
    dx.convert(source, tmp_path / "a.zarr")  # it is whole now: nothing is written
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "a.zarr").rglob("*")}
    with pytest.raises(DestinationExistsError):
        dx.convert(source, tmp_path / "a.zarr", keep_dtype=True)


def test_damage_found_in_the_middle_leaves_no_complete_store(tmp_path: Path) -> None:
    arrays = small(n_steps=300)
    source = write_h5(tmp_path / "a.h5", arrays, chunks=(50, 6, 2), compression="gzip")
    whole = source.read_bytes()
    with h5py.File(source) as file:
        chunk = file["W"].id.get_chunk_info(5)
    torn = bytearray(whole)
    torn[chunk.byte_offset : chunk.byte_offset + chunk.size] = b"\xff" * chunk.size
    source.write_bytes(torn)
    with pytest.raises(InputError, match=r"a.h5: variable 'W', 128\.\.255 cannot be read as HDF5"):
        dx.convert(source, tmp_path / "a.zarr")
    source.write_bytes(whole)
    check_refused_then_done(source, tmp_path / "a.zarr", arrays["W"])


FULL_DISK = """
import resource, sys
import deadtok_xr as dx
resource.setrlimit(resource.RLIMIT_FSIZE, (16384, 16384))
try:
    dx.convert(sys.argv[1], sys.argv[2])
except OSError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files")
def test_full_disk_leaves_no_complete_store(tmp_path: Path) -> None:
    w = np.random.default_rng(0).integers(0, 0x7F80, (200, 60, 8), dtype=np.uint16)
    source = write_h5(tmp_path / "a.h5", {"W": w})
    command = [sys.executable, "-c", FULL_DISK, source, tmp_path / "a.zarr"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert re.search(r"a.zarr cannot be written: .*, after 0 of \d+ bytes; it is left incomplete", said)
    check_refused_then_done(source, tmp_path / "a.zarr", w)


def test_a_source_that_changes_during_the_conversion_is_refused(tmp_path: Path) -> None:
    source = write_h5(tmp_path / "a.h5", small())

    def touch(done: int, total: int) -> None:
        source.touch()

    with pytest.raises(InputError, match="changed during the conversion"):
        dx.convert(source, tmp_path / "a.zarr", progress=touch)
    with pytest.raises(IncompleteStoreError):
        dx.open_recording(tmp_path / "a.zarr")


def test_only_an_unfinished_conversion_of_the_same_source_is_replaced(tmp_path: Path) -> None:
    source = write_h5(tmp_path / "a.h5", small())
    store = dx.convert(source, tmp_path / "a.zarr")
    facts = json.loads((store / "zarr.json").read_text())
    facts["attributes"]["complete"] = False
    (store / "zarr.json").write_text(json.dumps(facts))
    other = write_h5(tmp_path / "b.h5", small())
    with pytest.raises(DestinationExistsError, match="exists already"):
        dx.convert(other, store)
    dx.convert(source, store)
    dx.convert(other, store, overwrite=True)
    assert raw(store).attrs["sources"][0]["name"] == "b.h5"


# --- bad input: one sentence each ----------------------------------------------------------------


def changed(**changes: Any) -> Callable[[Path], Path]:
    """The small recording as HDF5, with arrays replaced, or left out where they are None."""

    def make(folder: Path) -> Path:
        arrays = {k: v for k, v in {**small(), **changes}.items() if v is not None}
        return write_h5(folder / "bad.h5", arrays)

    return make


def written(content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "bad").write_bytes(content)
        return folder / "bad"

    return make


def damaged(damage: Callable[[bytes], bytes], *, format_: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        whole = folder / "bad"
        write_h5(whole, small(n_steps=300)) if format_ == "h5" else write_safetensors(whole, small(n_steps=300))
        whole.write_bytes(damage(whole.read_bytes()))
        return whole

    return make


def header(text: str) -> Callable[[Path], Path]:
    return written(len(text).to_bytes(8, "little") + text.encode() + b"\0" * 64)


def directory(folder: Path) -> Path:
    (folder / "bad").mkdir()
    return folder / "bad"


def unwritten(folder: Path) -> Path:
    arrays = {k: v for k, v in small().items() if k != "W"}
    with h5py.File(write_h5(folder / "bad.h5", arrays), "a") as file:
        w = file.create_dataset("W", (5, 6, 2), "u2", chunks=(2, 6, 2))
        w[:2] = 1
    return folder / "bad.h5"


W = small()["W"]
BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (
        lambda folder: folder / "bad",
        "no such file; expected: an HDF5, NetCDF-4, safetensors, .npz, torch or GGUF file, a Zarr array",
    ),
    "directory": (directory, "is a folder without a recording; expected: one recording, checkpoints"),
    "empty file": (written(b""), "looks like an empty file"),
    "zip": (written(b"PK\x03\x04" + b"\0" * 60), "cannot be read as a zip archive .*: the file is damaged, truncated"),
    "text": (written(b"step,epoch,loss\n0,0,9.2\n"), r"looks like text \(it begins with 'step,epoch,loss"),
    "git lfs": (written(b"version https://git-lfs.github.com/spec/v1\n"), "looks like a Git LFS pointer"),
    "unknown": (written(b"\xde\xad\xbe\xef" * 9), "begins with the bytes de ad be ef"),
    "truncated hdf5": (
        damaged(lambda b: b[: len(b) // 2], format_="h5"),
        r"the file cannot be read as HDF5 .*truncated",
    ),
    "damaged hdf5": (damaged(lambda b: b[:100] + b"\x55" * 3000 + b[3100:], format_="h5"), "be read as HDF5"),
    "truncated safetensors": (damaged(lambda b: b[:-1], format_="st"), "is truncated: '.*' ends at byte"),
    "truncated header": (damaged(lambda b: b[:40], format_="st"), "is truncated: its header needs"),
    "header is no json": (header('{"W": nonsense}'), "its header cannot be read as safetensors"),
    "header of lists": (header('{"W": [1, 2]}'), "its header cannot be read as safetensors"),
    "offsets": (
        header('{"W": {"dtype": "F32", "shape": [2, 2, 2], "data_offsets": [0, 31]}}'),
        "is damaged: 'W' is float32",
    ),
    "negative shape": (
        header('{"W": {"dtype": "F32", "shape": [-1, 2], "data_offsets": [0, 8]}}'),
        "cannot be read as safetensors",
    ),
    "no weights": (
        changed(W=None),
        r"holds no weights: expected: one of W, .* deltas, .*; there is dead_ids int64 \(2,\), dead",
    ),
    "rank 1": (changed(W=W[0, 0]), r"no weights|'W' has the shape \(2,\); expected: three axes, \(step, token, dim\)"),
    "rank 5": (changed(W=W[None, None]), r"'W' has the shape \(1, 1, 5, 6, 2\); expected: three axes"),
    "float64": (changed(W=W.astype("f8")), "'W' has the dtype float64; expected: bfloat16, .* or uint16"),
    "int64": (changed(W=W.astype("i8")), "'W' has the dtype int64; expected: bfloat16"),
    "text as weights": (changed(W=np.full((5, 6, 2), b"x")), "'W' has the type .*; expected: numbers"),
    "grad shape": (changed(grad_W=W[:3]), r"'grad_W' has the shape \(3, 6, 2\); expected: \(5, 6, 2\)"),
    "grad dtype": (changed(grad_W=W.astype("i4")), "'grad_W' has the dtype int32"),
    "moment two short": (changed(m=W[2:]), r"'m' has the shape \(3, 6, 2\); expected: \(5, 6, 2\)"),
    "mask too short": (
        changed(dead_mask=np.array([True, False, True]), dead_ids=None),
        "'W' has 6 rows, but 'dead_mask' has 3 entries, 2 of them dead; expected: 3 rows",
    ),
    "mask of counts": (
        changed(dead_mask=np.arange(6), dead_ids=None),
        "'dead_mask' is int64 .*; expected: one bool",
    ),
    "masks contradict": (
        changed(live_mask=np.ones(6, bool)),
        "'dead_mask' and 'live_mask' contradict each other",
    ),
    "id out of range": (
        changed(dead_ids=np.array([1, 6])),
        "'dead_ids' holds the token id 6, outside .*: 0 to 5",
    ),
    "id out of the rows": (
        changed(dead_ids=np.array([1, 9]), dead_mask=None),
        "'dead_ids' holds the token id 9, outside the rows of 'W'",
    ),
    "negative id": (
        changed(dead_ids=np.array([-1, 1])),
        "'dead_ids' holds the token id -1; expected: 0 or more",
    ),
    "id repeated": (changed(dead_ids=np.array([1, 4, 4])), "'dead_ids' repeats the token id 4"),
    "ids are not whole": (
        changed(dead_ids=np.array([1.5, 4.0])),
        "'dead_ids' is float64 .*; expected: a list of integer",
    ),
    "mask and ids": (
        changed(dead_ids=np.array([1, 5])),
        r"'dead_mask' \(2 dead\) and 'dead_ids' \(2\) contradict .* token 4",
    ),
    "dead and live": (
        changed(live_ids=np.array([0, 1])),
        "'dead_mask' and 'live_ids' contradict .* token 1 is dead",
    ),
    "steps too short": (
        changed(recorded_steps=np.arange(4)),
        r"'recorded_steps' is int64 \(4,\); expected: 5 integers",
    ),
    "steps descend": (
        changed(recorded_steps=np.array([0, 1, 3, 2, 4])),
        "'recorded_steps' does not ascend: 3 is followed by 2 at position 3",
    ),
    "steps repeat": (
        changed(recorded_steps=np.array([0, 0, 1, 2, 3])),
        "does not ascend: 0 is followed by 0",
    ),
    "two weights": (
        changed(embeddings=W),
        "'W' and 'embeddings' both mean the variable 'W'; expected: one of them",
    ),
    "two lists of ids": (
        changed(dead_indices=np.array([1, 4])),
        "'dead_ids' and 'dead_indices' both mean the dead ids",
    ),
    "no steps": (
        changed(W=W[:0], recorded_steps=None),
        r"'W' is empty, \(0, 6, 2\); expected: at least one step",
    ),
    "no tokens": (changed(W=W[:, :0]), r"'W' is empty, \(5, 0, 2\)"),
    "never written": (unwritten, r"'W' was never written at positions 2\.\.4 of 5"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(tmp_path: Path, case: str) -> None:
    make, sentence = BAD[case]
    source = make(tmp_path)
    with pytest.raises(InputError, match=sentence) as caught:
        dx.convert(source, tmp_path / "out.zarr")
    assert str(source) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.zarr").exists()


def test_missing_file_is_a_file_not_found(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        dx.convert(tmp_path / "bad", tmp_path / "out.zarr")


@pytest.mark.parametrize(
    ("ids", "sentence"),
    [
        ([1, 5], "dead_ids= names 2 tokens, and 'dead_ids' in the file 2 others"),
        ([1, 1], "'dead_ids=' repeats the token id 1"),
        ([0.5], "'dead_ids=' is float64"),
    ],
)
def test_ids_from_the_caller_that_contradict_the_file(tmp_path: Path, ids: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        dx.convert(write_h5(tmp_path / "a.h5", small()), tmp_path / "a.zarr", dead_ids=ids)


def test_existing_destinations_are_not_replaced(tmp_path: Path) -> None:
    source = write_h5(tmp_path / "a.h5", small())
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("chapter 1")
    with pytest.raises(DestinationExistsError, match="exists already and is left as it is"):
        dx.convert(source, tmp_path / "taken")
    with pytest.raises(DestinationExistsError, match="is not a Zarr store"):
        dx.convert(source, tmp_path / "taken", overwrite=True)
    with pytest.raises(InputError, match=r"cannot be made: .*thesis.txt is a file"):
        dx.convert(source, tmp_path / "taken" / "thesis.txt" / "a.zarr")
    assert (tmp_path / "taken" / "thesis.txt").read_text() == "chapter 1"


@pytest.mark.parametrize("dest", ["run/a.h5", "run", "."])
def test_the_source_is_never_overwritten(tmp_path: Path, dest: str) -> None:
    (tmp_path / "run").mkdir()
    source = write_h5(tmp_path / "run" / "a.h5", small())
    with pytest.raises(InputError, match="would be replaced"):
        dx.convert(source, tmp_path / dest, overwrite=True)
    assert source.exists()


def test_every_bfloat16_pattern(tmp_path: Path) -> None:
    w = np.arange(2**16, dtype=np.uint16).reshape(4, 256, 64)
    with pytest.warns(UserWarning, match=f"{2 * 128} values"):
        store = dx.convert(write_h5(tmp_path / "a.h5", {"W": w}), tmp_path / "a.zarr")
    np.testing.assert_array_equal(bits(raw(store)["W"].values), w)
    decoded = dx.open_recording(store)["W"].values
    np.testing.assert_array_equal(bits(decoded), bits(from_bits(w)))


def test_many_files_are_listed_as_one_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Zarr array may have thousands of chunks, and every reader of the store loads the list of its sources."""
    monkeypatch.setattr(empty_store, "MOST_SOURCES", 3)
    folder = tmp_path / "run"
    folder.mkdir()
    for step in range(5):
        np.savez(folder / f"step_{step}.npz", W=np.full((3, 2), step, np.float32))
    out = dx.convert(folder, tmp_path / "out.zarr")
    (listed,) = dx.open_recording(out).attrs["sources"]
    files = sorted(folder.iterdir())
    hashes = "\n".join(blake3(file.read_bytes()).hexdigest() for file in files)
    total = sum(file.stat().st_size for file in files)
    assert listed == {"name": "run", "files": 5, "bytes": total, "blake3": blake3(hashes.encode()).hexdigest()}


def test_rows_of_other_units_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a step is read in several parts, a unit reads the parts that hold its rows, wherever dead tokens lie."""
    rng = np.random.default_rng(3)
    w, dead = rng.integers(0, 0x7F00, (3, 1500, 4), dtype=np.uint16), rng.choice(1500, 400, replace=False)
    np.savez(tmp_path / "a.npz", W=w, dead_ids=dead)
    monkeypatch.setattr(units, "READ_BYTES", 8 * 100)  # a hundred rows
    monkeypatch.setattr(ConversionPlan, "unit_bytes", lambda plan, memory=0: plan.variables[0].chunk_bytes)
    rec = dx.open_recording(dx.convert(tmp_path / "a.npz", tmp_path / "out.zarr"), raw=True)
    np.testing.assert_array_equal(rec.W.values.view(np.uint16), w)
    np.testing.assert_array_equal(rec.token[rec.dead.values], np.sort(dead))
