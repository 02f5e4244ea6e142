"""Verification finds every damaged chunk, and every bit that differs from the source."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import pytest
import zarr

import deadtok_xr as dx
from deadtok_xr.errors import InputError
from tests.conftest import N_DEAD
from tests.manifests import accept


@pytest.fixture
def source(recording: Path, tmp_path: Path) -> Path:
    """A file in the layout of Thimble 7 with a real run in it."""
    rec = dx.open_recording(recording, raw=True).isel(step=slice(0, 140))
    with h5py.File(tmp_path / "run.h5", "w") as file:
        file["W"] = rec.W.values.view("u2")
        file["grad_W"] = rec.grad.values.view("u2")
        file["losses"] = rec.loss.values
        file["dead_mask"] = rec.dead.values
    return tmp_path / "run.h5"


@pytest.fixture
def converted(source: Path, tmp_path: Path) -> Path:
    return dx.convert(source, tmp_path / "run.zarr")


def test_undamaged_store_has_no_problems(converted: Path, source: Path) -> None:
    found = dx.verify(converted, source)
    assert found.problems == []
    assert found.compared == ["W", "grad", "loss"]
    files = [p for p in converted.glob("[!m]*/c/**/*") if p.is_file()]  # without the motion of each chunk
    assert found.n_chunks == len(files)


def test_dead_tokens_from_an_option(source: Path, tmp_path: Path) -> None:
    with h5py.File(source, "r+") as file:
        del file["dead_mask"]
    path = dx.convert(source, tmp_path / "d.zarr", dead_ids=[3, 200])
    assert dx.verify(path, source).problems == []


def test_every_flipped_bit_is_found_with_its_chunk(converted: Path) -> None:
    for chunk in ("0/0/0", "1/1/0"):
        path = converted / "W" / "c" / chunk
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.write_bytes(data)
    first, second = dx.verify(converted).problems
    assert f"W: the chunk at step positions 0..127, token positions 0..{N_DEAD - 1}" in first
    assert f"W: the chunk at step positions 128..139, token positions {N_DEAD}..255" in second


@pytest.mark.parametrize(("name", "value"), [("W", 0x8000), ("losses", None)])
def test_source_that_differs_in_one_value_is_found(converted: Path, source: Path, name: str, value: int | None) -> None:
    with h5py.File(source, "r+") as file:
        if value is None:
            file[name][7] += 1
        else:
            file[name][7, 3, 2] ^= value  # the sign alone
    (problem,) = dx.verify(converted, source).problems
    assert f"1 of {140 * (1 if value is None else 256 * 16)} values" in problem
    assert "the first at step 7" in problem


def test_changed_values_with_valid_checksums(converted: Path, source: Path) -> None:
    array = zarr.open_group(str(converted), mode="r+")["grad"]
    array[130, 5, 3] = 1.0
    assert "grad" in dx.verify(converted).problems[0]
    accept(converted)
    (problem,) = dx.verify(converted, source).problems
    assert "'grad' differ from" in problem
    assert "the first at step 130" in problem
    assert dx.verify(converted).problems == []


def test_source_of_another_store_is_refused(converted: Path, source: Path, recording: Path, tmp_path: Path) -> None:
    with h5py.File(source) as old, h5py.File(tmp_path / "short.h5", "w") as new:
        new["W"] = old["W"][:100]
        new["dead_mask"] = old["dead_mask"][:]
    with pytest.raises(InputError, match=r"has other steps than .*short\.h5"):
        dx.verify(converted, tmp_path / "short.h5")


def test_verify_command(converted: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from deadtok_xr import cli

    def run(*words: object) -> int:
        return cli.status(lambda: cli.cli([str(w) for w in words], prog_name="deadtok", standalone_mode=False))

    assert run("verify", converted, "--source", source, "-q") == 0
    assert "all as they were written; the same bits as" in capsys.readouterr().out
    shutil.copy(converted / "W/c/0/0/0", converted / "W/c/1/0/0")
    assert run("verify", converted, "--source", source, "-q") == 1
    said = capsys.readouterr().err
    assert said.startswith("deadtok: ")
    assert said.count("\n") == 1
    assert run("verify", converted.parent / "none", "-q") == 2
