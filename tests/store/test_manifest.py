"""The manifest: what belongs to a store, and which chunk belongs where."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tensorstore
import xarray as xr
import zarr

import deadtok_xr as dx
from deadtok_xr import schema, store
from deadtok_xr.conversion.verify import Verification, verify
from deadtok_xr.errors import DamagedStoreError
from deadtok_xr.store import labels, manifest, manifest_write

STEPS, TOKENS, DIMS = 300, 20, 4
N_CHUNKS = 2 * 3 * 5 + 3  # of two matrices, and of three coordinates
SETTINGS = {"optimizer": "AdamW", "hyperparameters": {"lr": 1e-3, "betas": [0.9, 0.999]}}


def write(path: Path, seed: int) -> Path:
    """Write a store of two matrices; its values depend on the seed."""
    rng = np.random.default_rng(seed)
    dead = np.arange(TOKENS) % 5 == seed % 5
    writer = store.create(path, store.TokenTable(np.arange(TOKENS) + seed, dead), SETTINGS)
    for name in ("W", "exp_avg"):
        writer.add_variable(name, schema.MATRIX, (TOKENS, DIMS), ml_dtypes.bfloat16)
    writer.extend(np.arange(STEPS))
    for name in ("W", "exp_avg"):
        writer.write(name, 0, rng.normal(size=(STEPS, TOKENS, DIMS)).astype(ml_dtypes.bfloat16))
    writer.finish()
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two stores of the same layout."""
    folder = tmp_path_factory.mktemp("stores")
    return write(folder / "a.zarr", 0), write(folder / "b.zarr", 1)


@pytest.fixture
def copy(made: tuple[Path, Path], tmp_path: Path) -> Path:
    shutil.copytree(made[0], tmp_path / "copy.zarr")
    return tmp_path / "copy.zarr"


def chunk(path: Path, name: str, step: int = 0) -> Path:
    return path / name / "c" / str(step) / "0" / "0"


def edit(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def moment_in_place_of_weights(path: Path, other: Path) -> None:
    shutil.copyfile(chunk(path, "exp_avg"), chunk(path, "W"))


def exchanged(path: Path, other: Path) -> None:
    first, second = chunk(path, "W", 0), chunk(path, "W", 1)
    content = first.read_bytes()
    shutil.copyfile(second, first)
    second.write_bytes(content)


def of_another_store(path: Path, other: Path) -> None:
    shutil.copyfile(chunk(other, "W"), chunk(path, "W"))


@pytest.mark.parametrize(
    ("attack", "origin"),
    [
        (moment_in_place_of_weights, "what belongs to 'exp_avg' at step positions 0..127, token positions 0..3"),
        (exchanged, "what belongs to 'W' at step positions 128..255, token positions 0..3"),
        (of_another_store, "what no chunk of this store held"),
    ],
)
def test_a_chunk_at_a_wrong_place_is_refused(
    made: tuple[Path, Path], copy: Path, attack: Callable[[Path, Path], None], origin: str
) -> None:
    attack(copy, made[1])
    rec = dx.open_recording(copy)
    for read in (lambda: rec.W.compute(), lambda: rec.W[:1].compute(), lambda: dx.motion(rec).compute()):
        with pytest.raises(DamagedStoreError, match=r"W: the chunk at step positions .* not that of the chunk"):
            read()
    assert rec.exp_avg.compute().shape == (STEPS, TOKENS, DIMS)
    where = "the chunk of 'W' at step positions 0..127, token positions 0..3"
    assert f"{where} is not the one that was written there: it holds {origin}" in verify(copy).problems[0]


def lost(name: str) -> Callable[[Path, Path], None]:
    return lambda path, other: shutil.rmtree(path / name)


def foreign(name: str) -> Callable[[Path, Path], None]:
    return lambda path, other: shutil.copyfile(other / name / "c" / "0", path / name / "c" / "0")  # type: ignore[return-value]


def edited(node: str, change: Callable[[dict[str, Any]], None]) -> Callable[[Path, Path], None]:
    return lambda path, other: edit(path / node / "zarr.json", change)


def another(path: Path, other: Path) -> None:
    shutil.copytree(path / "exp_avg", path / "grad")


@pytest.mark.parametrize(
    ("attack", "sentence"),
    [
        (lost("token"), "'token' is missing"),
        (lost("dead"), "'dead' is missing"),
        (lost("step"), "'step' is missing"),
        (lost("exp_avg"), "the array 'exp_avg', which belongs to it, is missing"),
        (another, "the array 'grad' does not belong to it"),
        (foreign("token"), "the chunk of 'token' at token positions 0..19 is not the one that was written there"),
        (edited("", lambda m: m["attributes"]["hyperparameters"].update(lr=1.0)), "the attribute 'hyperparameters' is"),
        (edited("", lambda m: m["attributes"].pop("optimizer")), "the attribute 'optimizer' is not the one"),
        (edited("", lambda m: m["attributes"].update(implementation="fused")), "the attribute 'implementation' is not"),
        (edited("W", lambda m: m["attributes"].update(precision="float16")), "the attribute 'precision' of 'W' is not"),
        (edited("W", lambda m: m.update(data_type="float16")), "the dtype of 'W' is float16, but bfloat16 was written"),
        (edited("W", lambda m: m["shape"].__setitem__(0, 299)), "has the size 299 along step|the shape of 'W' is"),
        (edited("W", lambda m: m["dimension_names"].reverse()), "has the size 4 along|the dims of|have the dimensions"),
        (lost(manifest.GROUP), "its manifest, .* is missing"),
        (lambda path, other: (path / manifest.KEY).write_bytes(b"rubbish"), "its manifest, .* is damaged"),
    ],
)
def test_a_store_that_is_not_as_it_was_written_does_not_open(
    made: tuple[Path, Path], copy: Path, attack: Callable[[Path, Path], None], sentence: str
) -> None:
    attack(copy, made[1])
    for opened in (dx.open_recording, verify, lambda path: dx.open_recording(path, partial=True)):
        with pytest.raises(DamagedStoreError, match=sentence):
            opened(copy)


def test_other_attributes_may_be_added(copy: Path) -> None:
    zarr.open_group(str(copy), mode="r+").attrs["note"] = "the good one"
    assert dx.open_recording(copy).attrs["note"] == "the good one"


def test_other_readers_are_not_disturbed(made: tuple[Path, Path]) -> None:
    path, _ = made
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(xr.open_zarr(path, consolidated=False).data_vars) == {"W", "exp_avg"}
        assert "/W" in {f"/{name}" for name in xr.open_datatree(path, engine="zarr", consolidated=False).data_vars}
        assert {name for name, _ in zarr.open_group(str(path), mode="r").arrays()} >= {"W", "exp_avg", "step", "token"}
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path / "W")}}
    ours = dx.open_recording(path, raw=True).W
    order = np.argsort(zarr.open_group(str(path), mode="r")["token"][:])
    theirs = tensorstore.open(spec).result()[:, order.tolist()].read().result()
    np.testing.assert_array_equal(np.asarray(theirs).view(np.uint16), ours.values.view(np.uint16))


def test_an_older_store_opens_and_gets_a_manifest(made: tuple[Path, Path], copy: Path) -> None:
    root = zarr.open_group(str(copy), mode="r+")
    manifest_write.remove(root)
    shutil.rmtree(copy / manifest.GROUP)
    shutil.copyfile(chunk(made[1], "W"), chunk(copy, "W"))
    assert dx.open_recording(copy).W.compute().shape == (STEPS, TOKENS, DIMS)
    assert verify(copy) == Verification(N_CHUNKS, has_manifest=False)
    assert verify(copy, write_manifest=True).has_manifest
    shutil.copyfile(chunk(made[0], "W"), chunk(copy, "W"))
    assert len(verify(copy, write_manifest=True).problems) == 1
    assert verify(copy, write_manifest=True, overwrite=True).problems == []
    assert verify(copy) == Verification(N_CHUNKS, has_manifest=True)


@pytest.mark.parametrize("n_calls", range(6))
def test_a_label_that_is_interrupted_leaves_a_store_that_opens(
    copy: Path, monkeypatch: pytest.MonkeyPatch, n_calls: int
) -> None:
    calls = 0

    def interrupting(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > n_calls:
                raise KeyboardInterrupt
            return real(*args)

        return call

    texts = [f"t{i}" for i in range(TOKENS)]
    with monkeypatch.context() as patch:
        for name in ("_announce", "_move_in", "_update_attributes", "_settle_manifest"):
            patch.setattr(labels, name, interrupting(getattr(labels, name)))
        if n_calls < 5:
            with pytest.raises(KeyboardInterrupt):
                dx.label(copy, dead_ids=[1, 2], token_text=texts, overwrite=True)
        else:
            dx.label(copy, dead_ids=[1, 2], token_text=texts, overwrite=True)
    assert verify(copy).problems == []
    dx.label(copy, dead_ids=[1, 2], token_text=texts, overwrite=True)
    rec = dx.open_recording(copy)
    assert rec.token_text.values.tolist() == texts
    assert np.flatnonzero(rec.dead.values).tolist() == [1, 2]
    found = manifest.load(zarr.open_group(str(copy), mode="r"))
    assert found is not None
    assert {len(states) for states in found.members.values()} == {1}
    shutil.rmtree(copy / "token_text")
    with pytest.raises(DamagedStoreError, match="'token_text' is missing"):
        dx.open_recording(copy)
