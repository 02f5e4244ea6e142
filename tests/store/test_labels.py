"""Labels added to an existing store: correct in any order on disk, complete at every moment; data stay untouched."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest
import xarray as xr
import zarr
from safetensors.numpy import save_file

import deadtok_xr as dx
from deadtok_xr import store
from deadtok_xr.errors import IncompleteStoreError, InputError, MissingFileError
from deadtok_xr.store.token_ids import read_ids
from deadtok_xr.store.tokenizer import token_texts
from tests.manifests import accept
from tests.recording.test_opening import chunk_reads
from tests.store.test_store import write_store

IDS = [3, 17, 18, 40, 7]


@pytest.fixture
def unlabelled(tmp_path: Path) -> Path:
    """A store of 200 steps and 50 tokens, that says nothing of them; ids 0..49 lie in that order."""
    bits = np.random.default_rng(0).integers(0, 2**16, (200, 50, 4), dtype=np.uint16)
    return write_store(tmp_path / "run.zarr", bits.view(ml_dtypes.bfloat16), np.arange(50), None)


@pytest.mark.slow
def test_dead_tokens_labelled_afterwards_are_scattered_on_disk(recording: Path, tmp_path: Path) -> None:
    """Analyses of a labelled store give what they give where dead tokens lie first."""
    rec = dx.open_recording(recording, raw=True).isel(step=slice(0, 150))
    dead = rec.token.values[rec.dead.values]
    path = write_store(tmp_path / "plain.zarr", rec.W.values, rec.token.values, None)
    dx.label(path, dead_ids=dead)
    for tokens in ("dead", "live", "all"):
        ours = dx.open_recording(path, tokens=tokens, raw=True)  # type: ignore[arg-type]
        theirs = dx.open_recording(recording, tokens=tokens, raw=True).isel(step=slice(0, 150))  # type: ignore[arg-type]
        np.testing.assert_array_equal(ours.token, theirs.token)
        np.testing.assert_array_equal(ours.dead, theirs.dead)
        np.testing.assert_array_equal(ours.W.values.view("u2"), theirs.W.values.view("u2"))
    found = dx.motion(dx.open_recording(path, tokens="dead")).compute()
    expected = dx.motion(dx.open_recording(recording, tokens="dead").isel(step=slice(0, 150))).compute()
    xr.testing.assert_equal(found.drop_vars(["loss", "lr"], errors="ignore"), expected)
    tree = dx.save_results(dx.analyze(path), tmp_path / "results.zarr")
    assert tree["motion"].sizes["token"] == len(dead)


def test_only_chunks_with_dead_tokens_are_read(tmp_path: Path, reads: list[str], lazily: Any) -> None:
    W = np.zeros((2, 2000, 64), ml_dtypes.bfloat16)
    path = write_store(tmp_path / "run.zarr", W, np.arange(2000), None)
    assert zarr.open_array(str(path / "W"), mode="r").cdata_shape == (1, 4, 1)
    reads.clear()
    dx.label(path, dead_ids=[1999, 3])
    assert not chunk_reads(reads, "W")
    with lazily():
        ds = dx.open_recording(path, tokens="dead")
    ds.W.compute()
    assert sorted(chunk_reads(reads, "W")) == ["W/c/0/0/0", "W/c/0/3/0"]


def test_plain_xarray_reads_the_labels(unlabelled: Path) -> None:
    dx.label(unlabelled, dead_ids=IDS)
    dx.label(unlabelled, token_text=[f"t{i}" for i in range(50)])
    ds = xr.open_zarr(unlabelled, consolidated=False)
    assert {"dead", "token_text"} <= set(ds.coords)
    assert ds.W.coords["token_text"].values[3] == "t3"
    np.testing.assert_array_equal(ds.token[ds.dead.values], sorted(IDS))
    assert set(dx.open_recording(unlabelled).attrs["labelled"]) == {"dead", "token_text"}
    assert [p.name for p in unlabelled.parent.iterdir()] == [unlabelled.name]


def test_empty_list_labels_every_token_live(unlabelled: Path) -> None:
    dx.label(unlabelled, dead_ids=[])
    assert not dx.open_recording(unlabelled).dead.any()
    with pytest.raises(InputError, match="no dead tokens"):
        dx.open_recording(unlabelled, tokens="dead")


def test_other_labels_need_overwrite(unlabelled: Path) -> None:
    dx.label(unlabelled, dead_ids=IDS)
    dx.label(unlabelled, dead_ids=IDS[::-1])  # the same, so no error
    with pytest.raises(
        InputError, match=r"'dead' already, and it differs for 6 of 50 tokens, the first being 3.*overwrite=True"
    ):
        dx.label(unlabelled, dead_ids=[4])
    dx.label(unlabelled, dead_ids=[4], overwrite=True)
    np.testing.assert_array_equal(dx.open_recording(unlabelled, tokens="dead").token, [4])


def test_a_coordinate_with_another_chunk_layout_is_replaced(unlabelled: Path) -> None:
    group = zarr.open_group(str(unlabelled), mode="r+")
    store.create_array(group, "dead", (50,), ("token",), bool, (7,))[...] = np.arange(50) == 9
    accept(unlabelled)
    dx.label(unlabelled, dead_ids=IDS, overwrite=True)
    np.testing.assert_array_equal(dx.open_recording(unlabelled, tokens="dead").token, sorted(IDS))


@pytest.mark.parametrize(
    ("ids", "match"),
    [
        (
            [3, 50, 51],
            r"holds the token id 50 and 1 more, which .*run\.zarr does not have; its 50 tokens are .*0\.\.49",
        ),
        ([-1], "holds the token id -1; expected 0 or more"),
        ([3, 4, 3], "repeats the token id 3"),
        ([1.5], "float64.*expected a list of integer"),
        ([True, False], "bool.*expected a list of integer"),
        ([[1, 2]], r"\(1, 2\); expected a list"),
    ],
)
def test_invalid_dead_ids_are_refused(unlabelled: Path, ids: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        dx.label(unlabelled, dead_ids=ids)
    assert "dead" not in dx.open_recording(unlabelled).coords


def test_stores_that_cannot_be_labelled(unlabelled: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to add"):
        dx.label(unlabelled)
    with pytest.raises(MissingFileError):
        dx.label(tmp_path / "none.zarr", dead_ids=[1])
    half = write_store(tmp_path / "u.zarr", np.ones((2, 3, 1), "f4"), np.arange(3), None, finish=False)
    with pytest.raises(IncompleteStoreError):
        dx.label(half, dead_ids=[1])


# --- files -----------------------------------------------------------------------------------------


def files_of_ids(folder: Path) -> list[Path]:
    mask = np.isin(np.arange(50), IDS)
    ids = np.array(IDS)
    (folder / "a.txt").write_text("3, 17 18\n40\n7\n")
    (folder / "a.json").write_text(json.dumps(IDS))
    np.save(folder / "ids.npy", ids)
    np.save(folder / "mask.npy", mask)
    np.savez(folder / "a.npz", untrained_mask=mask, W=np.zeros(3))
    np.savez(folder / "b.npz", dead_ids=ids, dead_mask=mask)
    with h5py.File(folder / "a.h5", "w") as file:
        file["dead_token_ids"] = ids
    save_file({"untrained_indices": ids.astype("i4"), "dead_mask": mask}, folder / "a.safetensors")
    return sorted(folder.iterdir())


def test_ids_are_read_from_every_file_format(tmp_path: Path, unlabelled: Path) -> None:
    (tmp_path / "ids").mkdir()
    for path in files_of_ids(tmp_path / "ids"):
        assert sorted(read_ids(path)) == sorted(IDS), path
        dx.label(unlabelled, dead_ids=path)


def test_files_with_contradictory_or_no_ids_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", dead_ids=[1, 2], dead_mask=np.array([False, True, False]))
    with pytest.raises(InputError, match="'dead_mask' and 'dead_ids' contradict each other, first at token 2"):
        read_ids(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", W=[1, 2])
    with pytest.raises(InputError, match=r"b\.npz does not say which tokens are dead"):
        read_ids(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", dead_mask=[0, 2])
    with pytest.raises(InputError, match="'dead_mask' is int64.*one bool per token"):
        read_ids(tmp_path / "c.npz")
    for name in ("d.npz", "d.npy", "d.h5", "d.safetensors"):
        (tmp_path / name).write_bytes(b"rubbish")
        with pytest.raises(InputError, match="cannot be read as token ids"):
            read_ids(tmp_path / name)
    with pytest.raises(MissingFileError):
        read_ids(tmp_path / "none.txt")


# --- text ------------------------------------------------------------------------------------------


def byte_level(tmp_path: Path, **changes: Any) -> Path:
    vocabulary = {"a": 0, "Ġthe": 1, "Ċ": 2, "Ã©": 3, "ðŁĺ": 4}
    found = {
        "model": {"type": "BPE", "vocab": vocabulary},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Split"}, {"type": "ByteLevel"}]},
        "decoder": None,
        "added_tokens": [{"id": 5, "content": "<|end|>"}],
        **changes,
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(found))
    return tmp_path / "tokenizer.json"


def test_byte_level_tokens_are_decoded(tmp_path: Path) -> None:
    texts = token_texts(byte_level(tmp_path))
    assert texts == {0: "a", 1: " the", 2: "\n", 3: "é", 4: "\\xf0\\x9f\\x98", 5: "<|end|>"}


def test_tokens_of_other_vocabularies_are_unchanged(tmp_path: Path) -> None:
    path = byte_level(tmp_path, model={"type": "Unigram", "vocab": [["<s>", 0.0], ["▁the", -1.5]]}, pre_tokenizer=None)
    assert token_texts(path) == {0: "<s>", 1: "▁the", 5: "<|end|>"}
    assert token_texts(byte_level(tmp_path, pre_tokenizer=None, added_tokens=[]))[1] == "Ġthe"
    (tmp_path / "list.json").write_text('["a", "b"]')
    (tmp_path / "dict.json").write_text('{"x": 7}')
    (tmp_path / "lines.txt").write_bytes("a\r\n\u2028\nb c\n".encode())
    assert token_texts(tmp_path / "list.json") == {0: "a", 1: "b"}
    assert token_texts(tmp_path / "dict.json") == {7: "x"}
    assert token_texts(tmp_path / "lines.txt") == {0: "a", 1: "\u2028", 2: "b c"}


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", "is not JSON"),
        ("7", "holds a int; expected"),
        ('{"model": {}}', "model.vocab is missing"),
        ("[1]", "found the token 1 with the id 0"),
        ('{"a": 1, "b": 1}', "the id 1 has two texts, 'a' and 'b'"),
    ],
)
def test_invalid_tokenizer_files_are_refused(tmp_path: Path, content: str, match: str) -> None:
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(InputError, match=match):
        token_texts(tmp_path / "t.json")


def test_warning_counts_tokens_without_text(unlabelled: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="44 of 50 tokens have no text"):
        dx.label(unlabelled, token_text=byte_level(tmp_path))
    assert dx.open_recording(unlabelled).token_text.values.tolist()[:7] == ["a", " the", "\n", "é", "\\xf0\\x9f\\x98",
                                                                           "<|end|>", ""]  # fmt: skip
    with pytest.raises(InputError, match="has no text for any token of"):
        dx.label(unlabelled, token_text={"x": 99})


# --- breaking in -------------------------------------------------------------------------------------

LABEL = """
import sys, itertools
import deadtok_xr as dx
dx.label(sys.argv[2], dead_ids=[], token_text=["x"] * 50)  # everything is imported now
print("ready", flush=True)
for i in itertools.count():
    dx.label(sys.argv[1], dead_ids=range(i % 2, 50, 2), token_text=[str(i % 2)] * 50, overwrite=True)
"""


@pytest.mark.slow
def test_store_opens_after_label_was_killed(unlabelled: Path, tmp_path: Path) -> None:
    expected = dx.open_recording(unlabelled, raw=True).W.values.view("u2")
    for delay in (0.001, 0.007, 0.021, 0.121):
        copy, other = (Path(shutil.copytree(unlabelled, tmp_path / f"{delay}{x}.zarr")) for x in "ab")
        child = subprocess.Popen([sys.executable, "-c", LABEL, copy, other], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(delay)
        child.kill()
        child.wait()
        child.stdout.close()
        ds = dx.open_recording(copy, raw=True)
        np.testing.assert_array_equal(ds.W.values.view("u2"), expected)
        if "dead" in ds.coords:
            assert int(ds.dead.sum()) == 25
            assert ds.dead.values[0] != ds.dead.values[1]
        if "token_text" in ds.coords:
            assert len(set(ds.token_text.values)) == 1
        xr.open_zarr(copy, consolidated=False)
        dx.label(copy, dead_ids=[1], token_text=["x"] * 50, overwrite=True)
        assert {"dead", "token_text"} <= set(xr.open_zarr(copy, consolidated=False).coords)
        assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("replacing", [False, True])
def test_store_opens_after_an_interruption_at_every_file_operation(
    unlabelled: Path, monkeypatch: Any, replacing: bool
) -> None:
    """The rename or replacement number n fails, for every n: the store is as before, or labelled."""
    if replacing:
        dx.label(unlabelled, dead_ids=[0], token_text=["old"] * 50)
    rename, replace = Path.rename, Path.replace
    for n in range(20):
        copy = Path(shutil.copytree(unlabelled, unlabelled.with_name(f"{n}.zarr")))
        left = [n]

        def counted(function: Any, left: list[int] = left) -> Any:
            def call(*args: Any) -> Any:
                if str(args[0]).find(".label") >= 0:
                    left[0] -= 1
                    if left[0] < 0:
                        raise OSError(28, "No space left on device")
                return function(*args)

            return call

        monkeypatch.setattr(Path, "rename", counted(rename))
        monkeypatch.setattr(Path, "replace", counted(replace))
        try:
            dx.label(copy, dead_ids=IDS, token_text=["new"] * 50, overwrite=True)
            done = True
        except OSError:
            done = False
        ds = dx.open_recording(copy)
        dead = ds.token.values[ds.dead.values].tolist() if "dead" in ds.coords else None
        assert dead in (sorted(IDS), [0] if replacing else None)
        assert xr.open_zarr(copy, consolidated=False).W.shape == (200, 50, 4)
        if done:
            assert dead == sorted(IDS)
            return
    raise AssertionError("never done")


def test_label_command(unlabelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from deadtok_xr import cli

    def run(*words: object) -> int:
        return cli.status(lambda: cli.cli([str(w) for w in words], prog_name="deadtok", standalone_mode=False))

    (tmp_path / "ids.json").write_text(json.dumps(IDS))
    assert run("label", unlabelled, "--dead-ids", tmp_path / "ids.json") == 0
    assert "50: 5 dead, 45 live" in capsys.readouterr().out
    (tmp_path / "ids.json").write_text("[1]")
    assert run("label", unlabelled, "--dead-ids", tmp_path / "ids.json") == 2
    said = capsys.readouterr().err
    assert said.startswith("deadtok: ")
    assert said.count("\n") == 1
