"""Tokens counted in training data of several kinds, and the labels `count` and `dead`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import xarray as xr
from safetensors.numpy import save_file

import deadtok_xr as dx
from deadtok_xr import cli
from deadtok_xr.errors import InputError
from deadtok_xr.store import occurrences
from deadtok_xr.store.occurrences import count_occurrences
from tests.store.test_reachability import byte_level
from tests.store.test_store import write_store

IDS = np.random.default_rng(0).integers(0, 45, (30, 40))
COUNTS = np.bincount(IDS.ravel())


@pytest.fixture
def unlabelled(tmp_path: Path) -> Path:
    """A store of 2 steps and 50 tokens that says nothing of them."""
    return write_store(tmp_path / "run.zarr", np.zeros((2, 50, 4), ml_dtypes.bfloat16), np.arange(50), None)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same ids in every kind of file."""
    folder = tmp_path_factory.mktemp("corpus")
    found = {
        name: folder / name for name in ("ids.npy", "ids.npz", "ids.safetensors", "u16.bin", "u32.bin", "llmc.bin")
    }
    np.save(found["ids.npy"], IDS)
    np.savez(found["ids.npz"], input_ids=IDS[:10], more=IDS[10:].astype("u2"), attention_mask=IDS * 0 + 1, loss=IDS / 2)
    save_file({"tokens": IDS.astype("i4"), "position_ids": IDS}, found["ids.safetensors"])
    IDS.astype("u2").tofile(found["u16.bin"])
    IDS.astype("u4").tofile(found["u32.bin"])
    header = np.zeros(256, "i4")
    header[:3] = 20240520, 1, IDS.size
    found["llmc.bin"].write_bytes(header.tobytes() + IDS.astype("u2").tobytes())
    return found


@pytest.mark.parametrize("name", ["ids.npy", "ids.npz", "ids.safetensors", "u16.bin", "u32.bin", "llmc.bin"])
def test_every_kind_of_file_is_counted(files: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(occurrences, "_PART", 7)  # parts of few ids
    dtype = "uint32" if name == "u32.bin" else "uint16"
    np.testing.assert_array_equal(count_occurrences([files[name]], dtype=dtype), COUNTS)
    np.testing.assert_array_equal(count_occurrences([files[name], IDS], dtype=dtype), 2 * COUNTS)


def write_arrow(path: Path, columns: dict[str, Any], *, stream: bool = True) -> Path:
    """Write columns as `datasets` does, in batches of 7 rows, or in the format for files."""
    pa = pytest.importorskip("pyarrow")
    table = pa.table(columns)
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as sink, new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    return path


@pytest.mark.parametrize("stream", [True, False])
def test_arrow_files_of_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    pa, tokenizers = pytest.importorskip("pyarrow"), pytest.importorskip("tokenizers")
    monkeypatch.setattr(occurrences, "_PART", 9)
    rows = [*IDS.tolist(), None, []]
    of_ids = {"attention_mask": [[1, 1]] * len(rows), "input_ids": pa.array(rows, pa.list_(pa.int32()))}
    files = [write_arrow(tmp_path / "a.arrow", of_ids, stream=stream)]
    files.append(write_arrow(tmp_path / "b.arrow", {"tokens": IDS.ravel().astype("u2")}, stream=stream))
    np.testing.assert_array_equal(count_occurrences(files), 2 * COUNTS)
    byte_level(tmp_path / "tokenizer.json")
    texts = write_arrow(tmp_path / "c.arrow", {"id": range(40), "text": ["the cat", None] * 20}, stream=stream)
    with pytest.raises(InputError, match=r"c\.arrow is text; its tokens need the tokenizer"):
        count_occurrences([texts])
    ids = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("the cat").ids
    found = count_occurrences([texts], tokenizer=tmp_path / "tokenizer.json")
    np.testing.assert_array_equal(found, np.bincount(ids * 20))
    other = write_arrow(tmp_path / "d.arrow", {"label": [1], "text": [0.5]}, stream=stream)
    columns = r"the columns label \(int64\), text \(double\); expected: integers in input_ids"
    with pytest.raises(InputError, match=columns):
        count_occurrences([other])


def test_text_is_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    byte_level(tmp_path / "tokenizer.json")
    text = "the cat\nsat on\n\nthe mat ü\n"
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": part, "id": 1}) + "\n" for part in (text, "too")))
    encode = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode
    found = count_occurrences([tmp_path / "a.txt", tmp_path / "b.jsonl"], tokenizer=tmp_path / "tokenizer.json")
    np.testing.assert_array_equal(found, np.bincount(encode(text).ids * 2 + encode("too").ids))
    monkeypatch.setattr(occurrences, "_PART", 3)  # parts end with a line
    lines = [i for line in text.splitlines(keepends=True) for i in encode(line).ids]
    found = count_occurrences([tmp_path / "a.txt"], tokenizer=tmp_path / "tokenizer.json")
    assert found.sum() == len(lines)
    with pytest.raises(InputError, match=r"a\.txt is text; its tokens need the tokenizer"):
        count_occurrences([tmp_path / "a.txt"])


def test_counts_are_a_coordinate(unlabelled: Path, files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    args = ["label", unlabelled, "--corpus", files["u16.bin"], files["ids.npy"]]
    status = cli.status(lambda: cli.cli(list(map(str, args)), prog_name="deadtok", standalone_mode=False))
    out, err = capsys.readouterr()
    assert (status, err) == (0, "")
    assert "counted 2,400 tokens: 5 of 50 never occur and are dead" in out
    for ds in (dx.open_recording(unlabelled), xr.open_zarr(unlabelled, consolidated=False)):
        np.testing.assert_array_equal(ds["count"].sortby("token"), np.append(2 * COUNTS, [0] * 5))
        np.testing.assert_array_equal(ds.dead, ds["count"] == 0)
        assert {"count", "dead"} <= set(ds.W.coords)
    dx.label(unlabelled, corpus=[IDS, IDS])  # the same, so no error
    with pytest.raises(InputError, match="'count' already, and it differs for 45 of 50 tokens"):
        dx.label(unlabelled, corpus=files["ids.npy"])
    dx.label(unlabelled, corpus=files["ids.npy"], overwrite=True)
    assert (
        dx.undertrained(dx.open_recording(unlabelled))["count"].values.tolist() == np.append(COUNTS, [0] * 5).tolist()
    )


def test_a_store_of_some_tokens_counts_those(tmp_path: Path) -> None:
    path = write_store(tmp_path / "some.zarr", np.zeros((2, 3, 4), ml_dtypes.bfloat16), np.array([3, 44, 99]), None)
    dx.label(path, corpus=IDS)
    assert dx.open_recording(path)["count"].values.tolist() == [COUNTS[3], COUNTS[44], 0]


@pytest.mark.parametrize(
    ("corpus", "match"),
    [
        (np.array([50]), "the corpus has the token id 50, and .* the 50 tokens 0 to 49"),
        (np.array([3, -100]), "holds the token id -100; expected: 0 or more"),
        (np.array([0.5]), "holds float64; expected: integer token ids"),
        (np.zeros(0, int), "the corpus holds no token"),
        ("missing.npy", "missing.npy: no such file; expected: token ids in .npy"),
    ],
)
def test_a_corpus_that_cannot_be_counted(unlabelled: Path, corpus: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        dx.label(unlabelled, corpus=corpus)
    with pytest.raises(InputError, match="both say which tokens are dead"):
        dx.label(unlabelled, corpus=corpus, dead_ids=[1])


def test_files_that_hold_no_ids(tmp_path: Path) -> None:
    (tmp_path / "odd.bin").write_bytes(b"abc")
    (tmp_path / "a.csv").write_text("1,2")
    (tmp_path / "bad.npy").write_bytes(b"nothing")
    (tmp_path / "bad.arrow").write_bytes(b"nothing at all")
    np.savez(tmp_path / "floats.npz", a=np.ones(3))
    for name, match in (
        ("odd.bin", "has 3 bytes, no whole number of uint16"),
        ("a.csv", "is of no known kind; expected"),
        ("bad.npy", "cannot be read as token ids"),
        ("floats.npz", "holds a, none of it token ids"),
        ("bad.arrow", r"cannot be read as token ids|needs the library|which the library pyarrow reads"),
    ):
        with pytest.raises(InputError, match=match):
            count_occurrences([tmp_path / name])
