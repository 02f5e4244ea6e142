"""Options that refusals and warnings of conversions name are followed, as they stand there, and do what they say."""

from __future__ import annotations

import json
import shlex
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.torch import save_file

import deadtok_xr as dx
from deadtok_xr.cli import cli
from deadtok_xr.errors import InputError
from tests.conversion import streams

RNG = np.random.default_rng(5)
W = (RNG.normal(size=(6, 8, 4)).astype("f4").view("u4") & np.uint32(0xFFFF0000)).view("f4")
Right = Callable[[xr.Dataset], bool]


@dataclass(frozen=True)
class Advice:
    """A file, the options that its refusal names, and what is right after each.

    Attributes
    ----------
    save
        Makes the source in a folder.
    follow
        The option as the message names it -> whether the recording is right. ``FILE`` and ``NAME`` are what the
        message leaves to the user: the path ``given`` in the folder, and the parameter ``told``.
    before
        Options of the first attempt.
    warned
        Whether the first attempt is a conversion with a warning.
    """

    save: Callable[[Path], Path]
    follow: dict[str, Right]
    before: Sequence[str] = ()
    warned: bool = False


def npz(**arrays: np.ndarray) -> Callable[[Path], Path]:
    def save(folder: Path) -> Path:
        np.savez(folder / "a.npz", **arrays)
        np.save(folder / "given.npy", np.arange(100, 108))
        return folder / "a.npz"

    return save


def folder_of_steps(folder: Path) -> Path:
    (folder / "run").mkdir()
    for name, step in ((0, 0), (1, 500), (2, 1000)):
        torch.save({"embed.weight": torch.from_numpy(W[name].copy()), "step": step}, folder / "run" / f"ckpt_{name}.pt")
    return folder / "run"


def stream(folder: Path) -> Path:
    states = streams.history()
    (folder / "given").mkdir()
    save_file(states[0], folder / "given" / "model.safetensors")
    return streams.write_prime_rl(folder / "stream", states, base=False)


def unnamed_stream(folder: Path) -> Path:
    states = [{"a": torch.ones(6, 4).bfloat16() * i, "b": torch.ones(6, 4).bfloat16()} for i in range(1, 4)]
    return streams.write_prime_rl(folder / "stream", states)


def model(folder: Path) -> Path:
    tensors = {"emb.weight": torch.from_numpy(W[0].copy()), "foo.weight": torch.from_numpy(W[1].copy())}
    save_file(tensors, folder / "a.safetensors")
    return folder / "a.safetensors"


def turned(folder: Path) -> Path:
    tensors = {"embed.weight": torch.from_numpy(W[0].copy()), "head.weight": torch.from_numpy(W[1].T.copy())}
    save_file(tensors, folder / "a.safetensors")
    return folder / "a.safetensors"


def steps_are(*steps: int) -> Right:
    return lambda rec: rec.step.values.tolist() == [*steps]


def weights_are(values: np.ndarray) -> Right:
    return lambda rec: np.array_equal(rec.W.values, values)


REPEATED = np.concatenate([W[:1], W])
DRIFT = np.array([*range(30), *range(31, 61)])
LONG = np.broadcast_to(np.arange(60, dtype="f4")[:, None, None], (60, 3, 2)) + 1
CASES = {
    "an unknown name": Advice(npz(table=W, other=W[0, 0]), {"--key W=table": weights_are(W)}),
    "a matrix that nothing proves": Advice(model, {"--key W=emb.weight": weights_are(W[:1])}),
    "two names of one thing": Advice(npz(W=W, g=W, grads=W), {"--drop g": lambda rec: rec.grad.source_key == "grads"}),
    "labels that may drift": Advice(
        npz(W=np.ascontiguousarray(LONG), steps=DRIFT),
        {"--steps recorded": steps_are(*DRIFT), "--steps position": steps_are(*range(60))},
    ),
    "two equal states": Advice(
        npz(W=REPEATED),
        {"--recorded before": weights_are(W), "--recorded after": weights_are(REPEATED)},
    ),
    "a list of steps or tokens": Advice(
        npz(W=W[:, :6], odd=np.arange(6.0) / 3),
        {"--dims odd=step": lambda rec: rec.odd.dims == ("step",),
         "--dims odd=token": lambda rec: rec.odd.dims == ("token",)},
    ),
    "rows that a mask does not explain": Advice(
        npz(W=W, dead_mask=np.arange(200) < 3),
        {"--token-ids FILE": lambda rec: rec.token.values.tolist() == [*range(100, 108)]},
    ),
    "names and contents that disagree": Advice(
        folder_of_steps, {"--steps names": steps_are(0, 1, 2), "--steps content": steps_are(0, 500, 1000)}
    ),
    "steps without labels": Advice(npz(W=W), {"--steps recorded": steps_are(*range(6))}, ("--steps", "recorded")),
    "no bits": Advice(npz(W=W), {"--bits": weights_are(W)}, ("--bits", "float16")),
    "too little memory": Advice(npz(W=W), {"--memory": weights_are(W)}, ("--memory", "1MB")),
    "labels under another name": Advice(
        npz(W=W, iters=np.arange(6) * 7), {"--key step=iters": steps_are(*range(0, 42, 7))}, warned=True
    ),
    "a turned layer": Advice(
        turned, {"--dims head.weight=dim,token": weights_are(W[1:2]), "--key W=embed.weight": weights_are(W[:1])}
    ),
    "a stream without its base": Advice(stream, {"--initial MODEL": steps_are(*range(6))}),
    "a stream without known names": Advice(unnamed_stream, {"--parameter NAME": lambda rec: rec.W.source_key == "a"}),
    "a parameter that is no matrix": Advice(
        lambda folder: streams.write_prime_rl(folder / "stream", streams.history()),
        {"--parameter NAME": lambda rec: rec.W.source_key == streams.EMBEDDING}, ("--parameter", "model.norm.weight"),
    ),
}  # fmt: skip
LEFT_OUT = {"--bits", "--steps recorded", "--memory"}
"""Options that a message asks to leave out, or to give another value."""
TOLD = {"a stream without known names": "a", "a parameter that is no matrix": streams.EMBEDDING}


def command(source: Path, dest: Path, *words: str) -> None:
    cli(["convert", str(source), str(dest), "-q", *words], standalone_mode=False)


def first_answer(case: Advice, source: Path, dest: Path) -> str:
    if not case.warned:
        with pytest.raises(InputError) as caught:
            command(source, dest, *case.before)
        return caught.value.advice
    with pytest.warns(UserWarning, match="--") as said:
        command(source, dest, *case.before)
    return " ".join(str(warning.message) for warning in said)


@pytest.mark.parametrize("name", CASES)
def test_options_that_a_message_names_do_what_it_says(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    source = case.save(tmp_path)
    message = first_answer(case, source, tmp_path / "first.zarr")
    for i, (option, right) in enumerate(case.follow.items()):
        assert option in message
        words = shlex.split(option)
        words = [str(next(tmp_path.glob("given*"))) if w in ("FILE", "MODEL") else TOLD[name] if w == "NAME" else w
                 for w in words]  # fmt: skip
        if case.before:
            words = words if option not in LEFT_OUT else []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            command(source, tmp_path / f"{i}.zarr", *words)
        assert right(dx.open_recording(tmp_path / f"{i}.zarr")), option


def test_existing_destinations_and_included_tensors(tmp_path: Path) -> None:
    tensors = {"embed.weight": torch.from_numpy(W[0].copy()), "blocks.0.w": torch.ones(3, 3)}
    torch.save(tensors, tmp_path / "a.pt")
    with pytest.warns(UserWarning, match=r"other tensors.*--include KEY"):
        command(tmp_path / "a.pt", tmp_path / "out.zarr")
    with pytest.raises(InputError, match="--overwrite|overwrite=True"):
        command(tmp_path / "a.pt", tmp_path / "out.zarr", "--include", "blocks.0.w")
    command(tmp_path / "a.pt", tmp_path / "out.zarr", "--include", "blocks.0.w", "--overwrite")
    assert "blocks.0.w" in dx.open_recording(tmp_path / "out.zarr")


def test_a_list_of_dead_tokens_beside_a_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", W=W)
    (tmp_path / "dead_tokens.json").write_text(json.dumps([1, 5]))
    command(tmp_path / "a.npz", tmp_path / "out.zarr", "--dead-ids", str(tmp_path / "dead_tokens.json"))
    assert dx.open_recording(tmp_path / "out.zarr", tokens="dead").token.values.tolist() == [1, 5]
