"""`deadtok tokens`: every kind of file, one screen, the CSV, and one sentence for what cannot be used."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import deadtok_xr as dx
from deadtok_xr import cli
from deadtok_xr.text import quoted, ranges
from tests.analyses.test_undertrained import model
from tests.store.test_reachability import byte_level


def to_torch(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.view(np.int16).copy()).view(torch.bfloat16)


@pytest.fixture
def deadtok(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*words: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        args = ["tokens", "-q", *map(str, words)]
        status = cli.status(lambda: cli.cli(args, prog_name="deadtok", standalone_mode=False))
        return status, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One tied model in several formats, and an untied one."""
    folder = tmp_path_factory.mktemp("models")
    W, small = to_torch(model()), torch.zeros(8, 8).bfloat16()
    found = {name: folder / name for name in ("tied.safetensors", "tied.pt", "sharded", "untied.safetensors")}
    save_file({"model.embed_tokens.weight": W, "model.norm.weight": small[0].clone()}, found["tied.safetensors"])
    torch.save({"transformer.wte.weight": W, "lm_head.weight": W}, found["tied.pt"])
    found["sharded"].mkdir()
    shards = {"model.embed_tokens.weight": "model-00001-of-00002.safetensors",
              "lm_head.weight": "model-00002-of-00002.safetensors"}  # fmt: skip
    for name, shard in shards.items():
        save_file({name: W.clone()}, found["sharded"] / shard)
    (found["sharded"] / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    E = torch.randn(400, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    E[50:58] *= 1e-3
    save_file({"model.embed_tokens.weight": E, "lm_head.weight": W}, found["untied.safetensors"])
    found["store"] = Path(dx.convert(found["tied.safetensors"], folder / "store.zarr", drop=["model.norm.weight"]))
    return found


@pytest.mark.parametrize("name", ["tied.safetensors", "tied.pt", "sharded", "store"])
def test_the_same_from_every_kind_of_file(deadtok: Any, files: dict[str, Path], name: str) -> None:
    status, out, err = deadtok(files[name], "--share", "0.05")
    assert (status, err) == (0, "")
    words = " ".join(out.split())
    assert words.startswith("20 of 400 tokens may be under-trained, 12 of them tokens of the reference")
    assert "measured from the reference, the largest black hole" in words
    assert "12 tokens (380-391)" in words
    listed = [line.split()[1] for line in out.partition("\n\n")[2].splitlines()[1:]]
    assert sorted(map(int, listed)) == list(range(100, 108))


def test_a_step_of_a_run(deadtok: Any, tmp_path: Path) -> None:
    W = model()
    for step in (10, 20):
        save_file({"lm_head.weight": to_torch(W)}, tmp_path / f"step_{step}.safetensors")
        W[300:308] = W[380]
    for step, n in ((["--step", "10"], 12), ([], 20)):
        found = json.loads(deadtok(tmp_path, "--json", *step)[1])
        assert found["references"]["black_hole"] == n
    status, _, err = deadtok(tmp_path, "--step", "11")
    assert status == 2
    assert "step 11 is not in this dataset; choose from its 2 steps, 10 to 20" in err


def test_untied_weights_are_ranked_by_the_input_embedding(deadtok: Any, files: dict[str, Path]) -> None:
    status, out, _ = deadtok(files["untied.safetensors"], "--json", "--without-pc1")
    found = json.loads(out)
    assert status == 0
    assert (found["indicator"], found["tied"], found["input_variable"]) == ("norm", False, "E")
    assert {row["token"] for row in found["candidates"]} == set(range(50, 58))
    assert found["candidates"][0]["cosine_distance_without_pc1"] is not None


def test_texts_and_kinds_of_tokens(deadtok: Any, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    names = byte_level(tmp_path / "tokenizer.json")
    rng = np.random.default_rng(0)
    W = rng.normal(0.02, 0.02, (len(names) + 20, 16))
    W[len(names) :] = W[-1]
    near = [names["\\n"], names["the"], names[" cat"]]
    W[near] = W[-1] + rng.normal(size=(3, 16)) * 1e-4
    file = tmp_path / "model.safetensors"
    save_file({"model.embed_tokens.weight": to_torch(W.astype(ml_dtypes.bfloat16))}, file)
    status, out, _ = deadtok(file, "--tokenizer", tmp_path / "tokenizer.json", "--csv", tmp_path / "t.csv")
    assert status == 0
    lines = out.splitlines()[:-2]  # without the path of the CSV
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    assert all(text in out for text in ('"the"', '" cat"', '"\\n"'))
    assert "1 special, 128 parts of characters, 20 not in the tokenizer" in " ".join(lines[:8]).replace("  ", "")
    assert out.isprintable() or {c for c in out if not c.isprintable()} == {"\n"}
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as opened:
        rows = list(csv.DictReader(opened))
    assert len(rows) == len(W)
    assert {int(row["token"]) for row in rows if row["candidate"] == "True"} >= set(near)
    assert {row["kind"] for row in rows if int(row["token"]) >= len(names)} == {"beyond_tokenizer"}
    assert {row["text"] for row in rows} >= {"\\n", "the"}
    status, _, err = deadtok(file, "--tokenizer", tmp_path / "none.json")
    assert (status, err.count("\n")) == (2, 1)
    save_file({"model.embed_tokens.weight": to_torch(W[:50].astype(ml_dtypes.bfloat16))}, file)
    status, _, err = deadtok(file, "--tokenizer", tmp_path / "tokenizer.json")
    assert status == 2
    assert f"has {len(names)} tokens, the last of them {len(names) - 1}, but there are 50 rows" in err


def test_unusable_input_is_one_sentence(deadtok: Any, files: dict[str, Path], tmp_path: Path) -> None:
    save_file({"lm_head.weight": torch.ones(8, 4).to(torch.float8_e4m3fn)}, tmp_path / "f8.safetensors")
    save_file({"lm_head.weight": torch.randn(30, 4)}, tmp_path / "random.safetensors")
    for words, expected in (
        ([tmp_path / "f8.safetensors"], "float8: cast it where it was made"),
        ([tmp_path / "random.safetensors"], "no two rows are equal, and no row is zero; the weights are tied"),
        ([files["tied.pt"], "--reference", "none"], "--reference none: expected: ids with commas"),
        ([files["tied.pt"], "--reference", "400"], "names token 400, which is not in this dataset of 400 tokens"),
        ([tmp_path / "missing.pt"], "no such file"),
    ):
        status, out, err = deadtok(*words)
        assert (status, out, err.count("\n")) == (2, "", 1), err
        assert expected in err
    assert "--reference IDS" in deadtok(tmp_path / "random.safetensors")[2]


def test_texts_stay_within_their_columns() -> None:
    assert quoted(" the", 10) == '" the"'
    assert quoted("a\x1b[31m\u202eb\n", 40) == '"a\\x1b[31m\\u202eb\\n"'
    assert quoted("語" * 9, 12) == '"' + "語" * 4 + '…"'
    assert quoted("語" * 5, 12) == '"' + "語" * 5 + '"'
    assert ranges([1, 2, 3, 7, 9, 10, 20, 30, 31]) == "1-3, 7, 9-10, 20 and 2 more"
