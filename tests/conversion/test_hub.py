"""Revisions of a model on a Hub: the bytes of the embedding alone are fetched, and every failure is explained."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

import deadtok_xr as dx
from deadtok_xr.cli import cli
from deadtok_xr.conversion.hub import client
from deadtok_xr.errors import DestinationExistsError, InputError, StorageError
from tests.conversion.hub_server import MODEL, Log, Revisions, serving

SRC = f"hf://{MODEL}"
STEPS = (0, 1, 8, 512)
V, D = 400, 16
EMBED, HEAD = "gpt_neox.embed_in.weight", "embed_out.weight"


def weights(step: int, n_tokens: int = V) -> dict[str, torch.Tensor]:
    torch.manual_seed(step)
    return {
        HEAD: torch.randn(n_tokens, D).half(),
        EMBED: torch.randn(n_tokens, D).half(),
        "gpt_neox.layers.0.mlp.weight": torch.randn(3000, D).half(),
    }


def tokenizer() -> bytes:
    vocabulary = {f"t{i}": i for i in range(V - 2)}  # the last two rows are padding
    return json.dumps({"model": {"type": "BPE", "vocab": vocabulary}, "added_tokens": []}).encode()


def files(step: int, **others: bytes) -> dict[str, bytes]:
    config = json.dumps({"vocab_size": V, "hidden_size": D, "tie_word_embeddings": False}).encode()
    return {"config.json": config, "tokenizer.json": tokenizer(), "model.safetensors": save(weights(step)), **others}


def sharded(step: int) -> dict[str, bytes]:
    """The same in three shards."""
    found = {k: v for k, v in files(step).items() if k != "model.safetensors"}
    names = {name: f"model-0000{i}-of-00003.safetensors" for i, name in enumerate(weights(step), 1)}
    found |= {file: save({name: weights(step)[name]}) for name, file in names.items()}
    found["model.safetensors.index.json"] = json.dumps({"metadata": {}, "weight_map": names}).encode()
    return found


REVISIONS: Revisions = {"main": files(512), **{f"step{step}": files(step) for step in STEPS}}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    yield from _served(REVISIONS, monkeypatch)


def _served(revisions: Revisions, monkeypatch: pytest.MonkeyPatch, model: str = MODEL) -> Iterator[Log]:
    monkeypatch.setattr(client, "WAIT_S", 0.01)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with serving(revisions, model) as (endpoint, log):
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        yield log


def check(store: Any, steps: tuple[int, ...] = STEPS) -> None:
    rec = dx.open_recording(store, raw=True)
    assert rec.step.values.tolist() == [*steps]
    for variable, name in (("W", HEAD), ("E", EMBED)):
        expected = torch.stack([weights(step)[name] for step in steps]).numpy()
        np.testing.assert_array_equal(rec[variable].values.view(np.uint16), expected.view(np.uint16))


def test_only_the_embedding_of_each_revision_is_fetched(hub: Log, tmp_path: Path) -> None:
    out = dx.convert(SRC, tmp_path / "out.zarr", revisions="step*")
    check(out)
    rec = dx.open_recording(out)
    assert rec.token_text.values.tolist() == [*(f"t{i}" for i in range(V - 2)), "", ""]
    assert rec.attrs["hyperparameters"]["config.hidden_size"] == D
    assert [s["name"].partition("@")[0] for s in rec.attrs["sources"]] == [f"step{s}" for s in STEPS]
    assert [item.name for item in tmp_path.iterdir()] == ["out.zarr"]
    embeddings, size = 2 * V * D * 2, len(REVISIONS["step0"]["model.safetensors"])
    header = 2**17 if size > 2**17 else size
    compared = embeddings  # of the first revision, to know that the two matrices differ
    assert hub.sent["model.safetensors"] == len(STEPS) * (embeddings + header) + compared
    assert not dx.verify(out, SRC).problems


def test_one_matrix_of_listed_revisions_in_shards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for log in _served({f"step{step}": sharded(step) for step in STEPS}, monkeypatch):
        out = dx.convert(SRC, tmp_path / "out.zarr", revisions=["step512", "step8"], parameter=EMBED)
        rec = dx.open_recording(out, raw=True)
        assert {*rec.data_vars} == {"W"}
        np.testing.assert_array_equal(rec.W.values, torch.stack([weights(s)[EMBED] for s in (8, 512)]).numpy())
        asked = [path for path in log.asked if "/cdn/" in path and "00003-of" in path]
        assert len(asked) == 1  # the header of the layers' shard, once, to know all matrices


def test_one_revision(hub: Log, tmp_path: Path) -> None:
    check(dx.convert(f"{SRC}@step8", tmp_path / "out.zarr"), (8,))
    rec = dx.open_recording(dx.convert(SRC, tmp_path / "main.zarr"), raw=True)
    np.testing.assert_array_equal(rec.W.values[0], weights(512)[HEAD].numpy())
    assert rec.step.values.tolist() == [0]


def test_failures_that_pass_are_repeated(hub: Log, tmp_path: Path) -> None:
    hub.failures = {"/refs": [503, 429], "/tree/": [500, 502], "/resolve/": [429, 503, 504], "/cdn/": ["cut"] * 8}
    check(dx.convert(SRC, tmp_path / "out.zarr", revisions="step*"))


def test_an_interrupted_fetch_is_continued(hub: Log, tmp_path: Path) -> None:
    told: list[int] = []
    hub.failures = {"/cdn/": [None] * 10 + [503] * 60}  # headers and texts, some tensors, and then nothing more
    with pytest.raises(StorageError, match=r"the Hub answered 503, 6 times; .* continues with what is missing"):
        dx.convert(SRC, tmp_path / "out.zarr", revisions="step*")
    kept = tmp_path / ".out.zarr.revisions"
    before = sum(path.stat().st_size for path in kept.iterdir())
    assert before
    hub.failures, hub.sent = {}, {}
    check(dx.convert(SRC, tmp_path / "out.zarr", revisions="step*", progress=lambda done, total: told.append(done)))
    assert hub.sent["model.safetensors"] < len(STEPS) * (2 * V * D * 2 + len(REVISIONS["step0"]["model.safetensors"]))
    assert not kept.exists()


def test_credentials_come_from_the_environment(hub: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.private = True
    with pytest.raises(InputError, match="there is no such model, or it is private; .* HF_TOKEN"):
        dx.convert(SRC, tmp_path / "out.zarr", revisions="step8")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    check(dx.convert(SRC, tmp_path / "out.zarr", revisions="step8"), (8,))
    assert {token for _, token in hub.tokens[-4:]} == {"Bearer hf_secret"}
    assert "hf_secret" not in "".join(p.read_text("latin-1") for p in (tmp_path / "out.zarr").rglob("*") if p.is_file())


def refused(there: Revisions, monkeypatch: pytest.MonkeyPatch, dest: Path, match: str, **options: Any) -> None:
    for _ in _served(there, monkeypatch):
        with pytest.raises(InputError, match=match):
            dx.convert(SRC, dest, **options)
    assert not dest.exists()


def test_revisions_that_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    dest = tmp_path / "out.zarr"

    def check_refused(match: str, there: Revisions, **options: Any) -> None:
        refused(there, monkeypatch, dest, match, **{"revisions": "step*", **options})

    check_refused(r"hf://org/model has no revision 'step9'; there are 5: main, ", REVISIONS, revisions="step8,step9")
    check_refused(r"the name of the revision 'main' says no step", REVISIONS, revisions="*")
    check_refused(r"has no 'x', given for 'W'; its matrices: embed_out", REVISIONS, parameter="x")
    other = {**files(8), "model.safetensors": save(weights(8, n_tokens=300))}
    check_refused(
        r"hf://org/model@step8: 'embed_out.weight' is float16 \(300, 16\), but in step0 it is float16 \(400, 16\); "
        r".* leave it out of revisions=",
        {**REVISIONS, "step8": other},
    )
    pickled = {"pytorch_model.bin": b"x" * 5000, "config.json": b"{}"}
    check_refused(
        r"2 of 4 revisions \(step1, step8\) have their weights as pytorch_model.bin alone, .* all of it is 1e-05 GB",
        {**REVISIONS, "step1": pickled, "step8": pickled},
    )
    check_refused(
        r"step1 holds no model.safetensors; there is config.json", {**REVISIONS, "step1": {"config.json": b"{}"}}
    )
    broken = {**files(1), "model.safetensors": b"\xff" * 500}
    check_refused(r"step1: model.safetensors has 500 bytes, of which \d+ would be", {**REVISIONS, "step1": broken})
    kinds = {"stage1-step5": files(1), "stage2-step9": files(8)}
    check_refused(r"are revisions of different kinds", kinds, revisions="stage*")
    twice = {"step1-a": files(1), "step1-b": files(8)}
    check_refused(r"step1-a and step1-b are .* different kinds|both of step 1", twice)


def test_other_refusals(hub: Log, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"hf://model is no model; expected: hf://ORG/MODEL"):
        dx.convert("hf://model", tmp_path / "out.zarr")
    with pytest.raises(InputError, match=r"hf://other/model: there is no such model"):
        dx.convert("hf://other/model", tmp_path / "out.zarr", revisions="step*")
    with pytest.raises(InputError, match=r"is not on a Hub: leave out revisions="):
        dx.convert(tmp_path, tmp_path / "out.zarr", revisions="step*")
    hub.whole = True
    with pytest.raises(InputError, match=r"cannot be read in parts: the server answered 200 .* `hf download`"):
        dx.convert(SRC, tmp_path / "out.zarr", revisions="step*")
    (tmp_path / "there.zarr").mkdir()
    n = len(hub.asked)
    with pytest.raises(DestinationExistsError):
        dx.convert(SRC, tmp_path / "there.zarr", revisions="step*")
    assert len(hub.asked) == n  # nothing is fetched for a destination that is taken


def test_commands_of_the_page(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "hub.md").read_text("utf-8")
    install, commands = re.findall(r"^```bash\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert install == "pip install 'deadtok_xr[hub]'\n"
    monkeypatch.chdir(tmp_path)
    steps = (0, 1000, 143000)
    for _ in _served({f"step{step}": files(step) for step in steps}, monkeypatch, "EleutherAI/pythia-160m"):
        planned, *others = commands.splitlines()
        cli(shlex.split(planned)[1:], standalone_mode=False)
        assert "EleutherAI/pythia-160m: 3 revisions, steps 0 to 143000" in (said := capsys.readouterr().out)
        assert "to fetch: 0.1 MB of 0.4 MB" in said
        assert not [*tmp_path.iterdir()]
        for command in others:
            cli(shlex.split(command)[1:], standalone_mode=False)
        assert "fetching: 100%" in capsys.readouterr().err
    check(tmp_path / "pythia.zarr", steps)
    assert dx.open_recording("two.zarr").step.values.tolist() == [0, 143000]


def test_tokens_of_a_revision_that_were_hardly_trained(hub: Log) -> None:
    """The rows that its tokenizer has no token for are the reference; nothing is converted."""
    found = dx.undertrained(f"{SRC}@step8").compute()
    assert found.reference.values[found.reference_used.values].tolist() == ["beyond_tokenizer"]
    assert found.token[found.is_reference].values.tolist() == [V - 2, V - 1]
    assert not found.candidate[V - 2 :].any()
    E, W = (weights(8)[name].double().numpy() for name in (EMBED, HEAD))
    np.testing.assert_allclose(found.norm, np.linalg.norm(E, axis=1))
    np.testing.assert_allclose(found.l2_distance, np.linalg.norm(W - W[V - 2 :].mean(0), axis=1))
    assert set(hub.sent) == {"config.json", "tokenizer.json", "model.safetensors"}
