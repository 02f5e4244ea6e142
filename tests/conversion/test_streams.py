"""Streams of sparse updates become recordings of one parameter, or are refused with the folder that is wrong."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import deadtok_xr as dx
from deadtok_xr.bfloat16 import BFLOAT16
from deadtok_xr.errors import InputError
from deadtok_xr.sparse_updates import tensor_hash
from tests.conversion import streams
from tests.conversion.streams import EMBEDDING, MANIFEST, PATCH

STATES = streams.history()
UP = "model.layers.0.mlp.up_proj.weight"


def bits_of(states: list[streams.State], name: str) -> np.ndarray:
    return torch.stack([state[name] for state in states]).view(torch.uint16).numpy()


def check(store: Path | str, states: list[streams.State], name: str, steps: list[int]) -> None:
    rec = dx.open_recording(store, raw=True)
    np.testing.assert_array_equal(rec.W.values.view(np.uint16), bits_of(states, name))
    assert rec.step.values.tolist() == steps
    assert {*rec.data_vars} == {"W"}


def with_base(states: list[streams.State], base: streams.State) -> list[streams.State]:
    """The states that a receiver has which begins with another checkpoint."""
    now = {name: x.bfloat16() for name, x in base.items()}
    found = [now]
    for before, after in itertools.pairwise(states):
        changed = {name: x.view(torch.int16) != before[name].view(torch.int16) for name, x in after.items()}
        now = {name: torch.where(changed[name], x, now[name]) for name, x in after.items()}
        found.append(now)
    return found


@pytest.mark.parametrize("compress", [False, True])
def test_prime_rl_stream(tmp_path: Path, compress: bool) -> None:
    steps = [0, 1, 2, 5, 6, 10]  # weights are not sent after every step
    stream = streams.write_prime_rl(tmp_path / "out" / "broadcasts", STATES, steps=steps, compress=compress)
    for src in (stream, stream.parent):  # the folder of the steps, and the one of the run
        out = dx.convert(src, tmp_path / "out.zarr", overwrite=True)
        check(out, STATES, EMBEDDING, steps)
    assert not dx.verify(out, stream.parent).problems
    out = dx.convert(stream, tmp_path / "up.zarr", parameter=UP)
    check(out, STATES, UP, steps)
    assert not dx.verify(out, stream).problems


def test_the_first_state_of_prime_rl_is_given(tmp_path: Path) -> None:
    stream = streams.write_prime_rl(tmp_path / "stream", STATES, base=False)
    with pytest.raises(InputError, match=r"step_1 changes step 0, .* name it with initial=") as caught:
        dx.convert(stream, tmp_path / "out.zarr")
    assert "--initial MODEL" in caught.value.advice
    model = tmp_path / "model"
    model.mkdir()
    exact = {name: x.float() * 1.001 for name, x in STATES[0].items()}  # cast to bfloat16, as a receiver does
    save_file(exact, model / "model.safetensors")
    out = dx.convert(stream, tmp_path / "out.zarr", initial=model)
    check(out, with_base(STATES, exact), EMBEDDING, [*range(6)])
    assert not dx.verify(out, stream, initial=model).problems
    out = dx.convert(stream, tmp_path / "head.zarr", initial=model, parameter="lm_head.weight")  # tied, in no update
    check(out, [{"lm_head.weight": exact[EMBEDDING].bfloat16()}] * 6, "lm_head.weight", [*range(6)])
    with pytest.raises(InputError, match="begins with a full checkpoint"):
        dx.convert(streams.write_prime_rl(tmp_path / "whole", STATES), tmp_path / "x.zarr", initial=model)


@pytest.mark.parametrize("encoding", [None, "raw", "gap_delta"])
def test_trl_stream(tmp_path: Path, encoding: str | None) -> None:
    stream = streams.write_trl(tmp_path / "stream", STATES, encoding=encoding)
    out = dx.convert(stream, tmp_path / "out.zarr")
    check(out, STATES, EMBEDDING, [*range(1, 7)])
    assert not dx.verify(out, stream).problems


def test_trl_streams_that_are_refused(tmp_path: Path) -> None:
    def refused(stream: Path, match: str) -> None:
        with pytest.raises(InputError, match=match):
            dx.convert(stream, tmp_path / "out.zarr")
        shutil.rmtree(stream)

    def written(encoding: str | None = None) -> Path:
        return streams.write_trl(tmp_path / "stream", STATES, encoding=encoding)

    stream = written()
    (stream / "deltas" / "step_000003.safetensors").unlink()
    refused(stream, r"step_000004.safetensors changes step 3, which is not there.*missing: step 3")
    stream = written()
    shutil.rmtree(stream / "anchors")
    refused(stream, r"step_000002.safetensors changes step 1, of which there is no anchor")
    stream = written()
    path = stream / "deltas" / "step_000002.safetensors"
    metadata = {**streams.metadata_of(path), "model_version": "7"}
    save_file(load_file(path), path, metadata=metadata)
    refused(stream, r"step_000002.safetensors says model_version 7")
    stream = written("raw")
    path = stream / "deltas" / "step_000002.safetensors"
    save_file(load_file(path), path, metadata={**streams.metadata_of(path), "encoding": "nvcomp_cascaded"})
    refused(stream, r"step_000002.safetensors has its indices encoded as .nvcomp_cascaded., which only a GPU")
    stream = written()
    path = stream / "deltas" / "step_000002.safetensors"
    tensors = load_file(path)
    tensors[f"{EMBEDDING}.indices"][-1] = 80
    save_file(tensors, path)
    refused(stream, r"step_000002.safetensors: an index of .* is 80, outside its 80 values")
    stream = written()
    tensors[f"{EMBEDDING}.indices"][-1] = tensors[f"{EMBEDDING}.indices"][0]
    save_file(tensors, stream / "deltas" / "step_000002.safetensors")
    refused(stream, r"step_000002.safetensors: an index of .* occurs twice")


Change = Callable[[Path, dict[str, Any]], None]


def renamed(**fields: Any) -> Change:
    return lambda folder, manifest: manifest.update(fields)


def of_embedding(**fields: Any) -> Change:
    return lambda folder, manifest: manifest["tensors"][0].update(fields)


def patched(change: Callable[[streams.State], None]) -> Change:
    def edit(folder: Path, manifest: dict[str, Any]) -> None:
        tensors = load_file(folder / PATCH)
        change(tensors)
        save_file(tensors, folder / PATCH)

    return edit


def other_index(tensors: streams.State) -> None:
    tensors["tensor_0.indices"][-1] = 80


def unsigned(folder: Path, manifest: dict[str, Any]) -> None:
    patched(other_index)(folder, manifest)
    manifest["tensors"][0].pop("checksum")


DAMAGE: dict[str, tuple[Change, str]] = {
    "base_step": (renamed(base_step=0), r"step_2 changes step 0, but the state before it is step 1 \(step_1\)"),
    "later": (renamed(base_step=7), r"step_2 changes step 7, which is not there"),
    "step": (renamed(step=3), r"step_2/.*json says step 3, but its folder is step_2"),
    "version": (renamed(version=2), r"step_2/.*json has the format .* of version 2"),
    "compute": (renamed(compute_dtype="float16"), r"step_2 was computed in float16, but step_1 in bfloat16"),
    "negative": (renamed(base_step=-1), r"step_2/.*: base_step is -1"),
    "outside": (renamed(patch_file="../step_1/" + PATCH), r"step_2/.* names the patch_file '../step_1"),
    "absent": (renamed(patch_file="other.safetensors"), r"step_2/.* names the patch_file 'other"),
    "none": (renamed(patch_file=None), r"step_2/.* but names no patch_file"),
    "checksum": (
        of_embedding(checksum=1),
        r"step_2: the checksum of 'model.embed_tokens.weight' is \d+, but .* says 1",
    ),
    "shape": (of_embedding(shape=[4, 20]), r"step_2: 'model.embed_tokens.weight' has the shape \(4, 20\), but"),
    "numel": (of_embedding(numel=3), r"step_2/.*: .* has the shape \(20, 4\), 3 values"),
    "count": (of_embedding(changed_numel=2), r"step_2: the .* have the shape \(\d,\), but .* says that 2 values"),
    "dtype": (of_embedding(dtype="float32"), r"step_2: the values of .* have the dtype BF16; expected: float32"),
    "key": (of_embedding(values="tensor_9.values"), r"step_2/.* does not hold 'tensor_9.values'"),
    "twice": (of_embedding(values="tensor_1.values"), r"step_2: .* names the same indices or values twice"),
    "index": (unsigned, r"step_2: an index of 'model.embed_tokens.weight' is 80, outside its 80 values"),
    "values": (
        patched(lambda t: t.update({"tensor_1.values": t["tensor_1.values"] * 2})),
        r"step_2: the checksum of 'model.layers.0.mlp.up_proj.weight'",
    ),
    "floats": (
        patched(lambda t: t.update({"tensor_0.indices": t["tensor_0.indices"].float()})),
        r"step_2: the indices of .* have the dtype F32; expected: int32",
    ),
    "gone": (lambda folder, manifest: shutil.rmtree(folder.parent / "step_1"), r"step_2 changes step 1, which is not"),
    "empty": (lambda folder, manifest: (folder.parent / "step_7").mkdir(), r"step_7 is a folder without a recording"),
    "short": (
        lambda folder, manifest: (folder / PATCH).write_bytes((folder / PATCH).read_bytes()[:-3]),
        r"step_2/.* cannot be read as safetensors \(it ends too early\)",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_prime_rl_streams_that_are_refused(tmp_path: Path, kind: str) -> None:
    stream = streams.write_prime_rl(tmp_path / "stream", STATES)
    change, match = DAMAGE[kind]
    folder = stream / "step_2"
    manifest = json.loads((folder / MANIFEST).read_text())
    change(folder, manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=match):
        dx.convert(stream, tmp_path / "out.zarr")


def test_one_update_alone_and_unknown_parameters_are_refused(tmp_path: Path) -> None:
    stream = streams.write_prime_rl(tmp_path / "stream", STATES)
    with pytest.raises(InputError, match=rf"one update of a stream.*convert the folder of the stream, {stream}"):
        dx.convert(stream / "step_2", tmp_path / "out.zarr")
    with pytest.raises(InputError, match=r"has no parameter 'x'; its matrices are .*parameter="):
        dx.convert(stream, tmp_path / "out.zarr", parameter="x")
    with pytest.raises(InputError, match=r"'model.norm.weight' is bfloat16 \(4,\); expected: a matrix"):
        dx.convert(stream, tmp_path / "out.zarr", parameter="model.norm.weight")


def test_hash_is_that_of_torch() -> None:
    for x in (torch.randn(500).bfloat16(), torch.randn(500), torch.arange(-50, 300).int(), torch.arange(10)):
        narrow = x.dtype == torch.bfloat16
        values = x.view(torch.uint16).numpy().view(BFLOAT16) if narrow else x.numpy()
        assert tensor_hash(values) == streams.hash_of(x)
        if hasattr(torch, "hash_tensor"):  # not in older versions
            assert tensor_hash(values) == torch.hash_tensor(x).item()


@pytest.mark.parametrize("compress", [False, True])
def test_exported_stream_is_read_by_the_rules_of_prime_rl(tmp_path: Path, compress: bool) -> None:
    store = dx.convert(streams.write_prime_rl(tmp_path / "stream", STATES), tmp_path / "out.zarr")
    out = dx.export(store, tmp_path / "again", format="prime-rl", compress=compress)
    found = streams.read_prime_rl(out)
    assert [*found] == [*range(6)]
    np.testing.assert_array_equal(bits_of([*found.values()], EMBEDDING), bits_of(STATES, EMBEDDING))
    for step in range(1, 6):  # the same updates as those that were converted
        ours, theirs = (json.loads((s / f"step_{step}" / MANIFEST).read_text()) for s in (out, tmp_path / "stream"))
        assert ours["tensors"] == [t for t in theirs["tensors"] if t["name"] == EMBEDDING]
        assert {k: v for k, v in ours.items() if k not in ("tensors", "stats", "compressed", "patch_file")} == {
            k: v for k, v in theirs.items() if k not in ("tensors", "stats", "compressed", "patch_file")
        }
    check(dx.convert(out, tmp_path / "round.zarr"), STATES, EMBEDDING, [*range(6)])


def test_streams_that_are_not_written(tmp_path: Path) -> None:
    w = bits_of(STATES, EMBEDDING)
    np.savez(tmp_path / "w.npz", W=w, grad=w)
    recording = dx.convert(tmp_path / "w.npz", tmp_path / "w.zarr", dead_ids=[3, 5, 6])
    with pytest.raises(InputError, match=r"the tokens are 3 to 6, 3 of them; .* with tokens='all'"):
        dx.export(recording, tmp_path / "out", format="prime-rl", tokens="dead")
    with pytest.raises(InputError, match=r"holds one matrix: choose it with variables=, from W, grad"):
        dx.export(recording, tmp_path / "out", format="prime-rl", variables=["W", "grad"])
    with pytest.raises(InputError, match=r"leave out uint16=True"):
        dx.export(recording, tmp_path / "out", format="prime-rl", uint16=True)
    with pytest.raises(InputError, match=r"format='trl' is not known"):
        dx.export(recording, tmp_path / "out", format="trl")
    with pytest.raises(InputError, match=r"are for format='prime-rl'"):
        dx.export(recording, tmp_path / "out.npz", compress=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(InputError, match=r"exists already"):
        dx.export(recording, tmp_path / "mine", format="prime-rl")
    with pytest.raises(InputError, match=r"not a stream of sparse updates, so it is not replaced"):
        dx.export(recording, tmp_path / "mine", format="prime-rl", overwrite=True)
    assert {item.name for item in tmp_path.iterdir()} == {"w.npz", "w.zarr", "mine"}
