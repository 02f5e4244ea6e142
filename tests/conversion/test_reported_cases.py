"""Problems of conversions that users and testers reported: wrong labels, false alarms, lost arrays, unclear errors."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import deadtok_xr as dx
from deadtok_xr.errors import InputError
from deadtok_xr.store.token_ids import read_ids

RNG = np.random.default_rng(3)
W = RNG.normal(size=(6, 12, 4)).astype("f4")


def bfloat16_steps(n: int = 6) -> np.ndarray:
    """Weights on the bfloat16 grid that move at every step."""
    w = RNG.normal(size=(n, 12, 4)).astype("f4").view(np.uint32)
    return (w & np.uint32(0xFFFF0000)).view(np.float32)


def convert(path: Path, dest: Path, **options: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return dx.convert(path, dest, **options)


def saved(path: Path, **arrays: np.ndarray) -> Path:
    save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, path)
    return path


@pytest.mark.parametrize("lost", [["p1.h5"], ["p0.h5", "p1.h5"], []])
def test_virtual_datasets_without_their_files_are_refused(tmp_path: Path, lost: list[str]) -> None:
    layout = h5py.VirtualLayout((6, 12, 4), "f4")
    for i in range(2):
        with h5py.File(tmp_path / f"p{i}.h5", "w") as file:
            file["W"] = W[3 * i : 3 * i + 3]
        layout[3 * i : 3 * i + 3] = h5py.VirtualSource(f"p{i}.h5", "W", (3, 12, 4))
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file.create_virtual_dataset("W", layout)
    for name in lost:
        (tmp_path / name).unlink()
    if lost:
        with pytest.raises(InputError, match=r"'W' consists of parts in .*p1.h5.*, which does not exist"):
            convert(tmp_path / "v.h5", tmp_path / "o.zarr")
        return
    rec = dx.open_recording(convert(tmp_path / "v.h5", tmp_path / "o.zarr"))
    np.testing.assert_array_equal(rec["W"], W)


def test_a_virtual_dataset_with_a_gap_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "p.h5", "w") as file:
        file["W"] = W[:3]
    layout = h5py.VirtualLayout((6, 12, 4), "f4")
    layout[:3] = h5py.VirtualSource("p.h5", "W", (3, 12, 4))
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file.create_virtual_dataset("W", layout)
    with pytest.raises(InputError, match="'W' was never written"):
        convert(tmp_path / "v.h5", tmp_path / "o.zarr")


def test_values_outside_the_folder_of_an_hdf5_file_are_not_read(tmp_path: Path) -> None:
    """A file from elsewhere could otherwise copy any file of the user into a store."""
    (tmp_path / "home").mkdir()
    secret, folder = tmp_path / "home" / "secret.h5", tmp_path / "given"
    folder.mkdir()
    with h5py.File(secret, "w") as file:
        file["W"], file["dead_ids"] = W, [1, 2]
    (tmp_path / "home" / "raw").write_bytes(W.tobytes())
    layouts = {name: h5py.VirtualLayout(W.shape, W.dtype) for name in ("absolute", "above", "nested")}
    layouts["absolute"][...] = h5py.VirtualSource(str(secret), "W", W.shape)
    layouts["above"][...] = h5py.VirtualSource("../home/secret.h5", "W", W.shape)
    layouts["nested"][...] = h5py.VirtualSource("absolute.h5", "W", W.shape)
    for name, layout in layouts.items():
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file.create_virtual_dataset("W", layout)
    with h5py.File(folder / "external.h5", "w") as file:
        file.create_dataset("W", W.shape, W.dtype, external=[(str(tmp_path / "home" / "raw"), 0, W.nbytes)])
        file["dead_ids"] = h5py.ExternalLink(str(secret), "/dead_ids")
    for name in (*layouts, "external"):
        with pytest.raises(InputError, match="W has values in .*; expected: in the file itself"):
            convert(folder / f"{name}.h5", tmp_path / "o.zarr")
    with pytest.raises(InputError, match="dead_ids has values in secret.h5"):
        read_ids(folder / "external.h5")


@pytest.mark.parametrize("dims", [("step",), ("a", "b", "c"), ("step", "step", "dim")])
def test_dims_that_the_weights_cannot_have_are_refused(tmp_path: Path, dims: tuple[str, ...]) -> None:
    path = saved(tmp_path / "a.safetensors", W=W)
    with pytest.raises(InputError, match=r"'W' .* cannot have the dimensions .*; expected: step, token, dim, in the"):
        convert(path, tmp_path / "o.zarr", dims={"W": dims})


@pytest.mark.parametrize("dims", [("token", "step", "dim"), ("dim", "token", "step"), ("step", "dim", "token")])
def test_dims_of_the_weights_turn_them(tmp_path: Path, dims: tuple[str, ...]) -> None:
    there = W.transpose([("step", "token", "dim").index(dim) for dim in dims])
    path = saved(tmp_path / "a.safetensors", W=there, grad=W, odd=np.arange(6))
    store = convert(path, tmp_path / "o.zarr", dims={"W": dims}, include="odd")
    rec = dx.open_recording(store)
    np.testing.assert_array_equal(rec["W"], W)
    np.testing.assert_array_equal(rec["grad"], W)
    assert not dx.verify(store, path).problems


def test_displacements_that_begin_with_update_1_are_labelled_so(tmp_path: Path) -> None:
    w = bfloat16_steps()
    delta = np.diff(w, axis=0)
    path = saved(tmp_path / "a.safetensors", deltas=delta, losses=np.arange(5, dtype="f4"))
    rec = dx.open_recording(convert(path, tmp_path / "o.zarr"))
    np.testing.assert_array_equal(rec["step"], np.arange(1, 6))
    np.testing.assert_array_equal(rec["delta"], delta)
    labelled = saved(tmp_path / "b.safetensors", deltas=delta, recorded_steps=np.arange(5))
    with pytest.raises(InputError, match="'deltas' is not zero at its first position, which 'recorded_steps' labels 0"):
        convert(labelled, tmp_path / "p.zarr")


@pytest.mark.parametrize("labels", [None, np.arange(1, 6)])
def test_initial_weights_and_displacements_from_update_1(tmp_path: Path, labels: np.ndarray | None) -> None:
    w = bfloat16_steps()
    more = {} if labels is None else {"recorded_steps": labels}
    path = saved(tmp_path / "a.safetensors", deltas=np.diff(w, axis=0), losses=np.arange(5, dtype="f4"), **more)
    initial = saved(tmp_path / "w0.safetensors", W=w[0])
    store = convert(path, tmp_path / "o.zarr", initial=initial)
    rec = dx.open_recording(store)
    np.testing.assert_array_equal(rec["step"], np.arange(6))
    np.testing.assert_array_equal(rec["W"], w)
    np.testing.assert_array_equal(rec["delta"][1:], np.diff(w, axis=0))
    np.testing.assert_array_equal(rec["loss"], [np.nan, 0, 1, 2, 3, 4])
    assert not dx.verify(store, path, initial=initial).problems


def test_verify_knows_the_order_of_dead_rows(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.safetensors", W=W[:, :5])
    store = convert(path, tmp_path / "o.zarr", dead_ids=[41, 3, 47, 7, 11])
    assert not dx.verify(store, path).problems
    np.testing.assert_array_equal(dx.open_recording(store)["W"].sel(token=41), W[:, 0])


def test_moments_of_checkpoints_after_the_first(tmp_path: Path) -> None:
    """An optimizer has no state before its first step, and the checkpoint of step 0 is written nevertheless."""
    model = torch.nn.Embedding(12, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    folder = tmp_path / "run"
    folder.mkdir()
    kept = []
    for step in range(3):
        if step:
            model.weight.sum().backward()
            optimizer.step()
            kept.append(optimizer.state[model.weight]["exp_avg"].numpy().copy())
        state = {
            "model": {"embedding.weight": model.weight.detach()},
            "optimizer": optimizer.state_dict(),
            "step": step,
        }
        torch.save(state, folder / f"step_{step}.pt")
    rec = dx.open_recording(convert(folder, tmp_path / "o.zarr"))
    assert np.isnan(rec["exp_avg"][0]).all()
    np.testing.assert_array_equal(rec["exp_avg"][1:], kept)
    assert rec["exp_avg"].attrs["valid_from"] == 1
    assert rec.attrs["hyperparameters"]["optimizer.param_groups.0.lr"] == 1e-3


def test_moments_one_step_short(tmp_path: Path) -> None:
    rec = dx.open_recording(convert(saved(tmp_path / "a.safetensors", W=W, momentum_W=W[1:]), tmp_path / "o.zarr"))
    np.testing.assert_array_equal(rec["exp_avg"][1:], W[1:])
    assert rec["exp_avg"].attrs["valid_from"] == 1


@pytest.mark.parametrize("suffix", [".safetensors", ".h5", ".npz"])
def test_exports_come_back_with_texts_and_settings(recording: Path, tmp_path: Path, suffix: str) -> None:
    out = dx.export(recording, tmp_path / f"plain{suffix}", tokens="dead")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is left out
        back = dx.open_recording(dx.convert(out, tmp_path / "o.zarr"), tokens="all")
    there = dx.open_recording(recording, tokens="dead")
    np.testing.assert_array_equal(back["token"], there["token"])
    assert back.attrs["hyperparameters"] == there.attrs["hyperparameters"]
    assert ("token_text" in back.coords) == ("token_text" in there.coords)
    labelled = dx.label(recording_copy(recording, tmp_path), token_text=[f"t{i}" for i in range(256)])
    assert labelled is not None
    out = dx.export(tmp_path / "copy.zarr", tmp_path / f"texts{suffix}")
    again = dx.open_recording(dx.convert(out, tmp_path / "p.zarr"))
    np.testing.assert_array_equal(again["token_text"], [f"t{i}" for i in range(256)])


def recording_copy(recording: Path, folder: Path) -> Path:
    import shutil

    return Path(shutil.copytree(recording, folder / "copy.zarr"))


def test_native_bfloat16_of_hdf5(tmp_path: Path) -> None:
    """A float of 2 bytes with 8 exponent bits, as HDF5 can describe it; h5py reads it as float32."""
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_fields(15, 7, 8, 0, 7)
    kind.set_size(2)
    kind.set_ebias(127)
    w = bfloat16_steps()
    with h5py.File(tmp_path / "a.h5", "w") as file:
        space = h5py.h5s.create_simple(w.shape)
        made = h5py.h5d.create(file.id, b"W", kind, space)
        made.write(h5py.h5s.ALL, h5py.h5s.ALL, w)
    rec = dx.open_recording(convert(tmp_path / "a.h5", tmp_path / "o.zarr"), raw=True)
    assert rec["W"].dtype == "bfloat16"
    np.testing.assert_array_equal(rec["W"].values.astype("f4"), w)


def test_empty_hdf5_attributes_are_accepted(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["W"] = W
        file.attrs["nothing"] = h5py.Empty("f4")
    convert(tmp_path / "a.h5", tmp_path / "o.zarr")


def test_json_list_beside_a_recording_is_not_metadata(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.safetensors", W=W)
    (tmp_path / "a.json").write_text(json.dumps(list(range(12))))
    convert(path, tmp_path / "o.zarr", token_ids=range(12))
    with pytest.raises(InputError, match="holds a list; expected: a JSON object"):
        convert(path, tmp_path / "p.zarr", metadata=tmp_path / "a.json")


def test_single_array_is_taken_as_the_weights(tmp_path: Path) -> None:
    np.save(tmp_path / "history.npy", W)
    torch.save(torch.from_numpy(W), tmp_path / "history.pt")
    with h5py.File(tmp_path / "group.h5", "w") as file:
        file["run/W"] = W
        file["run/other"] = W[0]
    for name in ("history.npy", "history.pt", "group.h5"):
        rec = dx.open_recording(convert(tmp_path / name, tmp_path / f"{name}.zarr"))
        np.testing.assert_array_equal(rec["W"], W)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no such variable": ({"keys": {"foo": "losses"}}, "keys: 'foo' is not a variable of a recording"),
    "no bits": ({"bits": "float16"}, "holds no bits as uint16"),
    "no labels": ({"steps": "recorded"}, "holds no step labels"),
    "no token in common": ({"token_ids": range(12), "dead_ids": [50]}, "have no token in common"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_invalid_options_are_refused(tmp_path: Path, case: str) -> None:
    options, sentence = REFUSED[case]
    with pytest.raises(InputError, match=sentence):
        convert(saved(tmp_path / "a.safetensors", W=W, losses=np.zeros(6, "f4")), tmp_path / "o.zarr", **options)


RECIPES = {
    'keep_dtype = "no"': "keep_dtype is 'no'; expected: true or false",
    'include = "W"': "include is 'W'; expected: a list of texts",
    "family = 3": "family is 3; expected: a text",
    "": "does not say what it is for",
    "nonsense = 1": "holds nonsense",
    "[": "cannot be read",
}


@pytest.mark.parametrize("text", RECIPES)
def test_recipes_of_a_wrong_type_are_refused(tmp_path: Path, text: str) -> None:
    recipe = tmp_path / "own.toml"
    recipe.write_text(text if not text or text.startswith(("family", "[")) else f'family = "mine"\n{text}')
    with pytest.raises(InputError, match=RECIPES[text]):
        convert(saved(tmp_path / "a.safetensors", W=W), tmp_path / "o.zarr", recipe=recipe)


def test_a_recipe_of_the_user(tmp_path: Path) -> None:
    recipe = tmp_path / "own.toml"
    recipe.write_text('family = "mine"\n[keys]\nW = "table"\n[hyperparameters]\nbegan = 2020-01-01\n')
    rec = dx.open_recording(convert(saved(tmp_path / "a.safetensors", table=W), tmp_path / "o.zarr", recipe=recipe))
    assert rec.attrs["hyperparameters"] == {"began": "2020-01-01"}


@pytest.mark.parametrize("name", ["grad", "m", "loss", "E", "gradients_over_time"])
def test_the_only_array_is_not_the_weights_if_its_name_says_otherwise(tmp_path: Path, name: str) -> None:
    w = bfloat16_steps()
    np.save(tmp_path / f"{name}.npy", w)
    with pytest.raises(InputError, match=f"holds no weights: .* if '{name}' are weights, say keys={{'W': '{name}'}}"):
        convert(tmp_path / f"{name}.npy", tmp_path / "o.zarr")
    assert not (tmp_path / "o.zarr").exists()
    rec = dx.open_recording(convert(tmp_path / f"{name}.npy", tmp_path / "o.zarr", keys={"W": name}))
    assert [*rec.data_vars] == ["W"]
    np.testing.assert_array_equal(rec.W, w)


def test_a_gradient_per_step_is_not_the_weights(tmp_path: Path) -> None:
    w = bfloat16_steps()
    saved(tmp_path / "a.safetensors", **{f"step_{i}.grad": w[i] for i in range(3)})
    with pytest.raises(InputError, match="holds no weights"):
        convert(tmp_path / "a.safetensors", tmp_path / "o.zarr")
    rec = dx.open_recording(convert(tmp_path / "a.safetensors", tmp_path / "o.zarr", keys={"W": "grad"}))
    np.testing.assert_array_equal(rec.W, w[:3])


@pytest.mark.parametrize("dtype", ["i8", "f8"])
@pytest.mark.parametrize("name", ["W", "table"])
def test_lists_that_may_be_labels_are_warned_of_with_and_without_keys(tmp_path: Path, name: str, dtype: str) -> None:
    steps, words = np.arange(6, dtype=dtype) * 10, np.arange(100, 112, dtype=dtype)
    source = saved(tmp_path / "a.safetensors", **{name: bfloat16_steps()}, iterations=steps, words=words)
    with (
        pytest.warns(UserWarning, match="'iterations' ascends.*--key step=iterations"),
        pytest.warns(UserWarning, match="'words' holds a different whole number.*--key token=words"),
    ):
        dx.convert(source, tmp_path / "o.zarr", keys={"W": name})
    keys = {"W": name, "step": "iterations", "token": "words"}
    rec = dx.open_recording(convert(source, tmp_path / "p.zarr", keys=keys))
    assert rec.step.values.tolist() == steps.tolist()
    assert rec.token.values.tolist() == words.tolist()


def test_dims_without_step_in_a_folder_of_checkpoints(tmp_path: Path) -> None:
    embed, head = bfloat16_steps(3), bfloat16_steps(3)
    (tmp_path / "run").mkdir()
    for i in range(3):
        saved(tmp_path / f"run/step_{i}.safetensors", **{"embed.weight": embed[i], "head.weight": head[i].T})
    with pytest.raises(InputError, match=r"whether 'head.weight' .* is the output layer, .* 'embed.weight'"):
        convert(tmp_path / "run", tmp_path / "o.zarr")
    dims = {"head.weight": ("dim", "token")}
    rec = dx.open_recording(convert(tmp_path / "run", tmp_path / "o.zarr", dims=dims))
    np.testing.assert_array_equal(rec.W, head)
    np.testing.assert_array_equal(rec.E, embed)
    assert not dx.verify(tmp_path / "o.zarr", tmp_path / "run").problems


@pytest.mark.parametrize(
    ("steps", "advice"),
    [([30, 20, 10, 0], "sort the labels"), ([0, 10, 5, 10], "occur again"), ([0, 5, 5, 9], "--steps position")],
)
def test_advice_for_labels_that_do_not_ascend(tmp_path: Path, steps: list[int], advice: str) -> None:
    path = saved(tmp_path / "a.safetensors", W=W[:4], steps=np.array(steps))
    with pytest.raises(InputError) as caught:
        convert(path, tmp_path / "o.zarr")
    assert advice in caught.value.advice
    assert ("--steps position" in caught.value.advice) == (advice == "--steps position")


def test_files_that_are_left_out_of_a_run_are_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for name in ("e1_s100", "e1_s200", "e2_s300", "latest"):
        saved(tmp_path / f"run/{name}.safetensors", W=bfloat16_steps(1)[0])
    reasons = (
        r"'e2_s300.safetensors' \(a file whose name differs from e1_s100.safetensors in more than the step; .*\)"
        r"; 'latest.safetensors' \(a file that is none of the numbered checkpoints\)$"
    )
    with pytest.warns(UserWarning, match=reasons):
        dx.convert(tmp_path / "run", tmp_path / "o.zarr")
    assert dx.open_recording(tmp_path / "o.zarr").step.values.tolist() == [100, 200]
