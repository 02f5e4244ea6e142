"""The kinds of `test_cases` under other names, and the advice of refusals: what a message names works."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from safetensors.torch import save_file

import deadtok_xr as dx
from deadtok_xr.conversion.readers.names import named_rank, named_step
from deadtok_xr.errors import InputError
from tests.conversion.foreign_arrays import moving, to_torch, write_netcdf
from tests.conversion.foreign_checkpoints import adamw, save, zeros
from tests.conversion.foreign_runs import Untied, save_hugging_face, to_numpy, update
from tests.conversion.test_cases import bits, convert

W, OUT = moving(3, 4, 40, 16), moving(4, 4, 40, 16)
WIDE = W.astype(np.float32)
TIMES = (0, 5, 50, 500)


def opened(path: Path, tmp_path: Path, **options: Any) -> xr.Dataset:
    """Convert and verify, and return the recording."""
    out = tmp_path / "out.zarr"
    convert(path, out, **options)
    assert not dx.verify(out, path).problems
    return dx.open_recording(out, raw=True, tokens="all").load()


def refusal(path: Path, tmp_path: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        convert(path, tmp_path / "refused.zarr", **options)
    assert "\n" not in caught.value.advice
    return caught.value.advice


def equal(found: Any, expected: Any) -> None:
    np.testing.assert_array_equal(bits(found), bits(expected))


def part(values: Any) -> dict[str, torch.Tensor]:
    return {"embed.weight": to_torch(values), "norm.weight": torch.ones(16)}


RANKS = (
    ("tp_00.pt", "tp_01.pt"), ("pytorch_model_fsdp_0.bin", "pytorch_model_fsdp_1.bin"), ("rank0.pt", "rank1.pt"),
    ("ckpt_rank_0.pt", "ckpt_rank_1.pt"), ("weights-rank00.pth", "weights-rank01.pth"), ("shard-0.pt", "shard-1.pt"),
    ("step_100_rank_0.pt", "step_100_rank_1.pt", "step_200_rank_0.pt", "step_200_rank_1.pt"),
    ("model-tp0of2.pt", "model-tp1of2.pt"), ("mp_rank_00/model.pt", "mp_rank_01/model.pt"),
)  # fmt: skip


@pytest.mark.parametrize("names", RANKS, ids=lambda names: names[0])
def test_ranks_are_not_steps(names: tuple[str, ...], tmp_path: Path) -> None:
    for i, name in enumerate(names):
        save(part(W[i][:20]), tmp_path / "run" / name)
    assert re.search(r"parts \(ranks\) of one checkpoint.*merge", refusal(tmp_path / "run", tmp_path))
    assert re.search(r"is a part \(rank\)", refusal(tmp_path / "run" / names[-1], tmp_path))


def test_a_lone_rank_gets_no_token_ids(tmp_path: Path) -> None:
    save(part(W[0][:20]), tmp_path / "tp_rank_03.pt")
    assert "rank 3 of a checkpoint in several parts" in refusal(tmp_path / "tp_rank_03.pt", tmp_path)


def test_names_that_can_be_ranks_or_saves_are_asked_about(tmp_path: Path) -> None:
    for i in (0, 1):
        save(part(W[i]), tmp_path / "run" / f"model_{i:02d}.pt")
    message = refusal(tmp_path / "run", tmp_path)
    assert "may be parts (ranks)" in message
    assert "--steps names" in message
    assert opened(tmp_path / "run", tmp_path, steps="names")["step"].values.tolist() == [0, 1]


@pytest.mark.parametrize("names", [("model_0", "model_100", "model_200"), ("model_01", "model_02", "model_05")])
def test_numbers_that_are_no_ranks_are_steps(names: tuple[str, ...], tmp_path: Path) -> None:
    for i, name in enumerate(names):
        save(part(W[i]), tmp_path / "run" / f"{name}.pt")
    steps = [int(name.rpartition("_")[2]) for name in names]
    assert opened(tmp_path / "run", tmp_path)["step"].values.tolist() == steps


STATED: dict[str, dict[str, Any]] = {
    "global_steps [7]": {"global_steps": [7]},
    "trainer.completed_steps 7.0": {"trainer": {"completed_steps": 7.0}},
    "state.num_updates": {"state": {"num_updates": 7}},
    "meta.iteration, a tensor": {"meta": {"iteration": torch.tensor([7])}},
    "training_state.iter": {"training_state": {"iter": 7, "epoch": 3}},
    "a text": {"info": {"train_steps": "7"}},
    "update counts": {"optimizer": adamw([(to_torch(W[0]), to_torch(W[1])), (torch.zeros(16), torch.zeros(16))], 7)},
}


@pytest.mark.parametrize("name", STATED)
def test_a_stated_step_is_used(name: str, tmp_path: Path) -> None:
    save({"model": part(W[0]), **STATED[name]}, tmp_path / "a.pt")
    assert opened(tmp_path / "a.pt", tmp_path)["step"].values.tolist() == [7]


@pytest.mark.parametrize("other", [{"args": {"max_steps": 900}}, {"epoch": 3, "batch": 9}, {"total_steps": 900}])
def test_what_does_not_state_a_step_is_not_used(other: dict[str, Any], tmp_path: Path) -> None:
    save({"model": part(W[0]), **other}, tmp_path / "a.pt")
    assert opened(tmp_path / "a.pt", tmp_path)["step"].values.tolist() == [0]


def test_two_steps_that_disagree_are_asked_about_and_the_answers_work(tmp_path: Path) -> None:
    save({"model": part(W[0]), "step": 5, "global_step": 500}, tmp_path / "a.pt")
    message = refusal(tmp_path / "a.pt", tmp_path)
    for key, step in (("step", 5), ("global_step", 500)):
        assert f"--key step={key}" in message
        assert opened(tmp_path / "a.pt", tmp_path / key, keys={"step": key})["step"].values.tolist() == [step]


def test_a_name_that_contradicts_the_content_of_one_file(tmp_path: Path) -> None:
    save({"model": part(W[0]), "step": 5}, tmp_path / "step_900.pt")
    message = refusal(tmp_path / "step_900.pt", tmp_path)
    for steps, label in (("names", 900), ("content", 5)):
        assert f"--steps {steps}" in message
        assert opened(tmp_path / "step_900.pt", tmp_path / steps, steps=steps)["step"].values.tolist() == [label]


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("checkpoint_step_00010", 10), ("epoch=0-step=100", 100), ("iter_0001000", 1000), ("step1000-unsharded", 1000),
        ("model_500_steps", 500), ("model_step500_valloss_3.9", 500), ("ckpt-iter100-loss2.3", 100), ("ckpt_150", 150),
        ("step_1k", None), ("last", None), ("step_1.5", None), ("step-2,5_last", None), ("ckpt_0.25", None),
        ("epoch=1-val_loss=0.32", None), ("epoch=1-loss=2", None), ("llama3.1-100", 100),
    ],
)  # fmt: skip
def test_steps_of_names(name: str, number: int | None) -> None:
    step = named_step(name)
    assert (step and step.number) == number


def test_fractions_are_not_steps(tmp_path: Path) -> None:
    for name in ("step_1.5", "step_2.5"):
        save(part(W[0]), tmp_path / "run" / f"{name}.pt")
    assert "1.5 is not read as a step" in refusal(tmp_path / "run", tmp_path)
    save_file({"step_1.5": to_torch(W[0]), "step_2.5": to_torch(W[1])}, tmp_path / "a.safetensors")
    refusal(tmp_path / "a.safetensors", tmp_path)
    save_file({str(x): to_torch(W[0]) for x in (0.25, 0.26, 0.27)}, tmp_path / "c.safetensors")
    assert "holds no weights" in refusal(tmp_path / "c.safetensors", tmp_path)
    grouped = {f"step_{step}.0.weight": to_torch(W[i]) for i, step in enumerate((5, 10))}
    save_file(grouped, tmp_path / "b.safetensors")  # the first of the matrices of a step: no fraction
    assert opened(tmp_path / "b.safetensors", tmp_path)["step"].values.tolist() == [5, 10]


@pytest.mark.parametrize("name", ["checkpoint_100", "step_5", "epoch_3", "model_100", "final", "gpt_2", "part"])
def test_names_without_a_rank(name: str) -> None:
    assert named_rank(name) is None


def test_seeds_are_not_one_run(tmp_path: Path) -> None:
    for seed in (1, 2):
        for step in (10, 20):
            save(part(W[0]), tmp_path / "run" / f"seed{seed}_step{step}.pt")
    assert "seed1_step*.pt, seed2_step*.pt" in refusal(tmp_path / "run", tmp_path)


i0, o0 = to_torch(W[0]), to_torch(OUT[0])
OUTPUTS: dict[str, dict[str, torch.Tensor]] = {
    "flax": {"params.wte.embedding": i0, "params.lm_head.kernel": o0.T},
    "a bias of one number per token": {"emb.weight": i0, "foo.weight": o0, "foo.bias": zeros(40)},
    "roberta": {"roberta.embeddings.word_embeddings.weight": i0, "lm_head.dense.weight": zeros(16, 16),
                "lm_head.decoder.weight": o0},
    "albert": {"albert.embeddings.word_embeddings.weight": i0, "predictions.decoder.weight": o0},
    "distilbert": {"distilbert.embeddings.word_embeddings.weight": i0, "vocab_projector.weight": o0},
    "whisper": {"model.decoder.embed_tokens.weight": i0, "proj_out.weight": o0},
    "chatglm": {"transformer.embedding.word_embeddings.weight": i0, "transformer.output_layer.weight": o0},
    "transposed, by the embedding": {"embed.W_E": i0, "unembed.W_U": o0.T},
    "transposed, by its bias": {"embed.weight": i0, "lm_head.weight": o0.T, "lm_head.bias": zeros(40)},
}  # fmt: skip


@pytest.mark.parametrize("name", OUTPUTS)
def test_the_output_layer_is_found(name: str, tmp_path: Path) -> None:
    save_file({k: v.contiguous() for k, v in OUTPUTS[name].items()}, tmp_path / "a.safetensors")
    found = opened(tmp_path / "a.safetensors", tmp_path)
    equal(found["W"], OUT[:1])
    equal(found["E"], W[:1])


UNPROVEN: dict[str, dict[str, torch.Tensor]] = {
    "an unknown name": {"emb.weight": i0, "foo.weight": o0},
    "two decoders": {"encoder.embed_tokens.weight": i0, "decoder.embed_tokens.weight": o0},
    "in numbered layers": {"layers.0.wte.weight": i0, "layers.3.linear.weight": o0},
}


@pytest.mark.parametrize("name", UNPROVEN)
def test_what_nothing_proves_is_asked_about_and_the_answer_works(name: str, tmp_path: Path) -> None:
    save_file(UNPROVEN[name], tmp_path / "a.safetensors")
    message = refusal(tmp_path / "a.safetensors", tmp_path)
    first, second = UNPROVEN[name]
    assert first in message
    assert second in message
    assert "--key W=" in message
    assert "--key E=" in message
    found = opened(tmp_path / "a.safetensors", tmp_path, keys={"W": second, "E": first})
    equal(found["W"], OUT[:1])
    equal(found["E"], W[:1])


@pytest.mark.parametrize("tensors", [{"0.weight": i0, "2.weight": o0}, {f"layers.{k}.weight": i0 for k in range(3)}])
def test_layers_are_not_steps(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file({k: v.clone() for k, v in tensors.items()}, tmp_path / "a.safetensors")
    named = re.search(r"--key W=(\S+)", refusal(tmp_path / "a.safetensors", tmp_path))
    assert named
    assert opened(tmp_path / "a.safetensors", tmp_path, keys={"W": named[1]}).sizes["step"] == 1


Groups = Callable[[list[tuple[str, Any]]], list[dict[str, Any]]]
GROUPS: dict[str, Groups] = {
    "decay": lambda n: [{"params": [p for _, p in n if p.dim() > 1]}, {"params": [p for _, p in n if p.dim() < 2]}],
    "vectors first": lambda n: [
        {"params": [p for _, p in n if p.dim() < 2]}, {"params": [p for _, p in n if p.dim() > 1]}
    ],
    "one": lambda n: [{"params": [p for _, p in n]}],
}  # fmt: skip


def trained(folder: Path, groups: Groups, *, safe: bool, hint: bool = True) -> Any:
    """An untied model of transformers' order; return the moments of its output layer."""
    torch.manual_seed(0)
    model = Untied(40, 16).bfloat16()
    optimizer = torch.optim.AdamW(groups(list(model.named_parameters())), lr=1e-2)
    for _ in range(3):
        update(model, optimizer, 40)
    save_hugging_face(folder, model, optimizer, 3)
    if not safe:
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    if not hint:
        (folder / "trainer_state.json").unlink()
    return to_numpy(optimizer.state[model.lm_head.weight]["exp_avg"])


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("name", GROUPS)
def test_moments_of_an_untied_model(name: str, safe: bool, tmp_path: Path) -> None:
    expected = trained(tmp_path / "checkpoint-3", GROUPS[name], safe=safe)
    equal(opened(tmp_path / "checkpoint-3", tmp_path)["exp_avg"][0], expected)


@pytest.mark.parametrize("optimizer_at_0", [True, False])
def test_moments_of_an_untied_model_in_a_folder(optimizer_at_0: bool, tmp_path: Path) -> None:
    expected = trained(tmp_path / "run/checkpoint-3", GROUPS["decay"], safe=True)
    for step in (0, 6):  # nothing in trainer_state.json is the same in all
        folder = shutil.copytree(tmp_path / "run/checkpoint-3", tmp_path / f"run/checkpoint-{step}")
        (folder / "trainer_state.json").write_text(json.dumps({"epoch": step / 3, "global_step": step}))
        counted = torch.load(folder / "optimizer.pt")
        for state in counted["state"].values():
            state["step"] = torch.tensor(float(step))
        torch.save({**counted, "state": counted["state"] if step else {}}, folder / "optimizer.pt")
    if not optimizer_at_0:
        (tmp_path / "run/checkpoint-0/optimizer.pt").unlink()
    found = opened(tmp_path / "run", tmp_path)
    assert found["step"].values.tolist() == [0, 3, 6]
    assert np.isnan(found["exp_avg"][0]).all()
    equal(found["exp_avg"][2], expected)


def test_moments_that_nothing_proves_are_left_out_and_can_be_named(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-3"
    expected = trained(folder, GROUPS["decay"], safe=True, hint=False)
    warned = " ".join(convert(folder, tmp_path / "a.zarr"))
    assert re.search(
        r"moments are left out: nothing proves that 'optimizer.state.0.exp_avg', 'optimizer.state.2.exp", warned
    )
    assert "exp_avg" not in dx.open_recording(tmp_path / "a.zarr")
    assert "'optimizer.state.2.exp_avg'" in warned
    assert "--key exp_avg=NAME" in warned  # never a state that is not proven
    for number, right in ((0, False), (2, True)):
        key = f"optimizer.state.{number}.exp_avg"
        found = opened(folder, tmp_path / str(number), keys={"exp_avg": key})
        assert found["exp_avg_sq"].attrs["source_key"] == f"{key}_sq"
        assert np.array_equal(bits(found["exp_avg"][0]), bits(expected)) == right


def test_states_of_other_kinds(tmp_path: Path) -> None:
    model = {"embed.weight": to_torch(W[0]), "body.weight": zeros(16, 16)}
    group = {"param_groups": [{"params": [0, 1], "lr": 0.1}]}
    momentum = {0: {"momentum_buffer": to_torch(W[1])}, 1: {"momentum_buffer": zeros(16, 16)}}
    save({"model": model, "optimizer": {"state": momentum, **group}}, tmp_path / "sgd.pt")
    equal(opened(tmp_path / "sgd.pt", tmp_path / "a")["momentum_buffer"][0], W[1])
    named = {"_fsdp_wrapped_module.embed.weight": {"exp_avg": to_torch(W[1]), "exp_avg_sq": to_torch(W[2])}}
    save({"model": model, "optimizer": {"state": named}}, tmp_path / "named.pt")
    equal(opened(tmp_path / "named.pt", tmp_path / "b")["exp_avg_sq"][0], W[2])
    codes = {0: {"step": 5, "state1": torch.zeros(40, 16, dtype=torch.uint8), "absmax1": torch.zeros(3)}}
    save({"model": model, "optimizer": {"state": codes, **group}}, tmp_path / "codes.pt")
    assert any("8-bit codes" in text for text in convert(tmp_path / "codes.pt", tmp_path / "codes.zarr"))


def test_labels_of_our_own_kind_in_hdf5(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["W"], file["step"], file["token"] = WIDE, np.arange(4) * 5.0, np.arange(200, 240)
        file["dead"] = np.arange(40) < 5
    found = opened(tmp_path / "a.h5", tmp_path)
    assert found["step"].values.tolist() == [0, 5, 10, 15]
    assert found["token"].values[found["dead"]].tolist() == [200, 201, 202, 203, 204]


def test_dead_as_ids(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", W=WIDE, dead=np.array([3, 5, 7]))
    found = opened(tmp_path / "a.npz", tmp_path)
    assert found["token"].values[found["dead"]].tolist() == [3, 5, 7]


def test_lists_under_unknown_names_are_warned_of_and_can_be_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", W=WIDE, iters=np.array(TIMES), words=np.arange(60, 100))
    warned = " ".join(convert(tmp_path / "a.npz", tmp_path / "a.zarr"))
    assert "--key step=iters" in warned
    assert "--key token=words" in warned
    found = opened(tmp_path / "a.npz", tmp_path, keys={"step": "iters", "token": "words"})
    assert found["step"].values.tolist() == [*TIMES]
    assert found["token"].values.tolist() == [*range(60, 100)]


def test_axes_by_their_names_in_any_order(tmp_path: Path) -> None:
    labels = {"time": np.array(TIMES), "vocab": np.arange(50, 90)}
    sizes = {"vocab": 40, "time": 4, "embed_dim": 16}
    write_netcdf(tmp_path / "a.nc", sizes, labels, {"W": ([*sizes], WIDE.transpose(1, 0, 2))})
    found = opened(tmp_path / "a.nc", tmp_path)
    equal(found["W"], W)
    assert found["step"].values.tolist() == [*TIMES]
    assert found["token"].values.tolist() == [*range(50, 90)]


def test_axes_with_unknown_names_are_asked_about_and_the_answer_works(tmp_path: Path) -> None:
    labels = {"foo": np.array(TIMES), "bar": np.arange(50, 90)}
    write_netcdf(tmp_path / "a.nc", {"foo": 4, "bar": 40, "baz": 16}, labels, {"W": (["foo", "bar", "baz"], WIDE)})
    message = refusal(tmp_path / "a.nc", tmp_path)
    assert "--dims W=step,token,dim" in message
    found = opened(tmp_path / "a.nc", tmp_path, dims={"W": ("step", "token", "dim")})
    equal(found["W"], W)
    assert found["step"].values.tolist() == [*TIMES]
    assert found["token"].values.tolist() == [*range(50, 90)]


@pytest.mark.parametrize("name", ["W_step{}", "epoch_{}", "iter{}/emb", "checkpoint-{}/embedding", "{}"])
@pytest.mark.parametrize("suffix", [".npz", ".h5", ".zarr"])
def test_an_array_per_step(name: str, suffix: str, tmp_path: Path) -> None:
    arrays = {name.format(step): x for step, x in zip(TIMES, WIDE, strict=True)}
    path = tmp_path / f"a{suffix}"
    if suffix == ".npz":
        np.savez(path, **arrays)
    elif suffix == ".h5":
        with h5py.File(path, "w") as file:
            for key, values in arrays.items():
                file[key] = values
    else:
        group = zarr.open_group(path, mode="w")
        for key, values in arrays.items():
            group.create_array(key, data=values, chunks=(7, 16))
    found = opened(path, tmp_path)
    equal(found["W"], W)
    assert found["step"].values.tolist() == [*TIMES]


@pytest.mark.parametrize("word", ["rank", "layer", "head"])
def test_numbered_arrays_that_are_no_steps(word: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **{f"{word}_{i}": x for i, x in enumerate(WIDE)})
    assert "numpy.stack" in refusal(tmp_path / "a.npz", tmp_path)


def zarr_group(path: Path) -> Path:
    group = zarr.open_group(path, mode="w")
    group.create_array("W", data=WIDE, chunks=(2, 7, 16), shards=(2, 14, 16))
    group.create_array("steps", data=np.arange(4) * 9)
    return path


def test_zarr_with_shards(tmp_path: Path) -> None:
    found = opened(zarr_group(tmp_path / "a.zarr"), tmp_path)
    equal(found["W"], W)
    assert found["step"].values.tolist() == [0, 9, 18, 27]


def lose_steps(path: Path) -> None:
    shutil.rmtree(path / "W" / "c" / "1")


def cut_chunk(path: Path) -> None:
    chunk = next(p for p in sorted((path / "W" / "c").rglob("*")) if p.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-9])


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "lost chunks": (lose_steps, "'W' was never written at positions 2..3"),
    "a truncated chunk": (cut_chunk, "'W'.* cannot be read as Zarr"),
    "damaged metadata": (lambda path: (path / "W" / "zarr.json").write_text("{"), "metadata cannot be read as Zarr"),
    "negative sizes": (
        lambda path: (path / "W" / "zarr.json").write_text(
            (path / "W" / "zarr.json").read_text().replace("40", "-40")
        ), "cannot be read as Zarr",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_zarr_is_refused(name: str, tmp_path: Path) -> None:
    damage, sentence = DAMAGE[name]
    damage(zarr_group(tmp_path / "a.zarr"))
    assert re.search(sentence, refusal(tmp_path / "a.zarr", tmp_path))


def test_a_recording_store_is_not_converted(recording: Path, tmp_path: Path) -> None:
    assert re.search("is a recording store already.*open_recording", refusal(recording, tmp_path))


def test_packed_numbers_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["W"] = W.view(np.int16)
        file["W"].attrs["scale_factor"] = 0.01
    assert "packed with a scale" in refusal(tmp_path / "a.h5", tmp_path)


def test_a_hugging_face_cache_is_read_and_links_out_of_it_are_not(tmp_path: Path) -> None:
    cache = tmp_path / "models--a--b"
    snapshot, blobs = cache / "snapshots" / "abc", cache / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    names = {"model-00001-of-00002.safetensors": "model.embed_tokens.weight",
             "model-00002-of-00002.safetensors": "lm_head.weight"}  # fmt: skip
    for i, (file, key) in enumerate(names.items()):
        save_file({key: (i0, o0)[i]}, blobs / str(i))
        (snapshot / file).symlink_to(f"../../blobs/{i}")
    (blobs / "index").write_text(json.dumps({"weight_map": {key: file for file, key in names.items()}}))
    (snapshot / "model.safetensors.index.json").symlink_to("../../blobs/index")
    equal(opened(snapshot, tmp_path)["W"], OUT[:1])
    shutil.move(blobs / "0", tmp_path / "outside")
    (snapshot / "model-00001-of-00002.safetensors").unlink()
    (snapshot / "model-00001-of-00002.safetensors").symlink_to(tmp_path / "outside")
    assert "not in its own folder" in refusal(snapshot, tmp_path)


def run(*arguments: str | Path) -> tuple[int, str]:
    """The exit status of the command line, and what it printed."""
    command = [sys.executable, "-m", "deadtok_xr", *map(str, arguments)]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    return found.returncode, found.stdout + found.stderr


def test_info_of_a_zarr_group_that_is_no_recording(tmp_path: Path) -> None:
    status, output = run("info", zarr_group(tmp_path / "a.zarr"))
    assert status == 2
    assert re.search("a Zarr group, but not a recording.*`deadtok convert` makes a recording of it", output)
    assert run("convert", tmp_path / "a.zarr", tmp_path / "b.zarr")[0] == 0


def test_gaps_are_refused_with_the_option_that_allows_them(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", W=WIDE, steps=np.array(TIMES))
    convert(tmp_path / "a.npz", tmp_path / "a.zarr")
    analyze = ("analyze", tmp_path / "a.zarr", "-o", tmp_path / "r.zarr", "--tokens", "all", "--only", "phases")
    status, output = run(*analyze)
    assert status == 2
    assert re.search(r"missing.*--allow-gaps", output)
    assert run(*analyze, "--allow-gaps")[0] == 0


def test_info_separates_its_columns(tmp_path: Path) -> None:
    long = "a_name_that_is_longer_than_every_column_of_the_table_may_ever_be"
    np.savez(tmp_path / "a.npz", W=WIDE, **{long: np.arange(4.0)})
    convert(tmp_path / "a.npz", tmp_path / "a.zarr")
    lines = run("info", tmp_path / "a.zarr")[1].splitlines()
    rows = [line for line in lines if line.strip().startswith((long, "W "))]
    assert len(rows) == 2
    for row in rows:
        assert len(re.split(r"\s{2,}", row.strip())) == 7
