"""Damage sources of many files at random, convert them, and count what comes out.

    python -m tests.damage_sources --cases 300 --seed 0

Streams of sparse updates, DCP folders, GGUF files, Orbax databases, ranks, sharded models, Zarr groups and checkpoint
folders are each damaged once: a file is cut, flipped, emptied, removed, doubled, exchanged with another or made a link
that leads out, or a number in its metadata becomes absurd. Right is an error of one sentence, or a store that `verify`
finds equal to what the source now holds. Anything else is printed, and is wrong: other exceptions, more than 20 s, more
than 300 MB.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
import zarr
from safetensors.torch import save_file

import deadtok_xr as dx
from deadtok_xr.bfloat16 import BFLOAT16
from deadtok_xr.errors import InputError
from tests.conversion import streams
from tests.conversion.more_sources import write_dcp, write_dcp_of_ranks, write_gguf, write_orbax
from tests.damages import Outcomes, bounded, flipped, overwritten

STATES = streams.history()
EMBEDDING = streams.EMBEDDING
Random = random.Random


def _ranks(folder: Path) -> Path:
    folder.mkdir()
    whole = STATES[0][EMBEDDING]
    for rank, part in enumerate(whole.tensor_split(2)):
        torch.save(
            {"embed.weight": part.clone(), "norm.weight": torch.ones(4)}, folder / f"consolidated.{rank:02d}.pth"
        )
    (folder / "config.json").write_text(json.dumps({"hidden_size": 4, "vocab_size": len(whole)}))
    return folder


def _sharded(folder: Path) -> Path:
    folder.mkdir()
    names = {f"model-{i}-of-3.safetensors": name for i, name in enumerate(STATES[0])}
    for file, name in names.items():
        save_file({name: STATES[0][name]}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, name in names.items()}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({"hidden_size": 4, "tie_word_embeddings": True}))
    return folder


def _zarr(folder: Path) -> Path:
    group = zarr.open_group(folder, mode="w")
    values = np.stack([state[EMBEDDING].float().numpy() for state in STATES])
    group.create_array("W", data=values, chunks=(2, 5, 4), shards=(2, 10, 4))
    group.create_array("steps", data=np.arange(len(STATES)) * 10)
    return folder


def _checkpoints(folder: Path) -> Path:
    folder.mkdir()
    for step, state in enumerate(STATES):
        torch.save({"model": state, "step": step}, folder / f"step_{step}.pt")
    return folder


def _dcp_run(folder: Path) -> Path:
    for step in (10, 20):
        write_dcp(folder / f"step-{step}", {"model": STATES[step // 10], "step": step})
    return folder


def _gguf(folder: Path) -> Path:
    values = STATES[0][EMBEDDING].view(torch.uint16).numpy().view(BFLOAT16)
    tensors = {"token_embd.weight": values, "output_norm.weight": np.ones(4, np.float32)}
    tokens = [f"t{i}" for i in range(len(values))]
    return write_gguf(folder / "model.gguf", tensors, {"token_embd.weight": "BF16"}, tokens=tokens)


SOURCES: dict[str, Callable[[Path], Path]] = {
    "prime-rl": lambda folder: streams.write_prime_rl(folder, STATES),
    "prime-rl, compressed": lambda folder: streams.write_prime_rl(folder, STATES, compress=True),
    "TRL": lambda folder: streams.write_trl(folder, STATES),
    "TRL, gap_delta": lambda folder: streams.write_trl(folder, STATES, encoding="gap_delta"),
    "DCP": _dcp_run,
    "DCP of ranks": lambda folder: write_dcp_of_ranks(folder, {"embed.weight": (STATES[0][EMBEDDING], 0)}, 3),
    "GGUF": _gguf,
    "Orbax": lambda folder: write_orbax(folder, {"params.wte.embedding": STATES[0][EMBEDDING].float().numpy()}),
    "ranks": _ranks,
    "sharded": _sharded,
    "Zarr": _zarr,
    "checkpoints": _checkpoints,
}


def cut(file: Path, rng: Random) -> None:
    file.write_bytes(file.read_bytes()[: rng.randrange(max(1, file.stat().st_size))])


def flip(file: Path, rng: Random) -> None:
    file.write_bytes(flipped(file.read_bytes(), rng))


def flip_header(file: Path, rng: Random) -> None:
    content = bytearray(file.read_bytes())
    content[rng.randrange(min(200, len(content)))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def overwrite(file: Path, rng: Random) -> None:
    file.write_bytes(overwritten(file.read_bytes(), rng))


def empty(file: Path, rng: Random) -> None:
    file.write_bytes(b"")


def remove(file: Path, rng: Random) -> None:
    file.unlink()


def exchange(file: Path, rng: Random) -> None:
    others = [other for other in sorted(file.parent.parent.rglob("*")) if other.is_file() and other != file]
    if others:
        other = rng.choice(others)
        one, two = file.read_bytes(), other.read_bytes()
        file.write_bytes(two)
        other.write_bytes(one)


def double(file: Path, rng: Random) -> None:
    file.write_bytes(file.read_bytes() * 2)


def lead_out(file: Path, rng: Random) -> None:
    outside = file.parents[1] / "outside"
    shutil.copy(file, outside)
    file.unlink()
    file.symlink_to(outside)


def absurd(file: Path, rng: Random) -> None:
    """Replace a number in the text of a file: a size, an offset, a step."""
    content = file.read_bytes()
    numbers = list(re.finditer(rb"(?<=[\[:, ])\d+(?=[\],} \n])", content))
    if not numbers:
        flip_header(file, rng)
        return
    match = rng.choice(numbers)
    number = rng.choice([b"-1", b"0", b"7", b"2147483648", b"99999999999999999999", b"1e999", b"null", b"[]"])
    file.write_bytes(content[: match.start()] + number + content[match.end() :])


def renamed(file: Path, rng: Random) -> None:
    place = file.parent if file.parent.name.startswith("step") else file
    numbers = list(re.finditer(r"\d+", place.name))
    if numbers:
        match = rng.choice(numbers)
        name = place.name[: match.start()] + rng.choice(["3", "007", "999999"]) + place.name[match.end() :]
        if not place.with_name(name).exists():
            place.rename(place.with_name(name))


DAMAGES = (cut, flip, flip, flip_header, overwrite, empty, remove, exchange, double, lead_out, absurd, absurd, renamed)


def convert(source: Path, dest: Path) -> str:
    """Convert a damaged source; return how it ended, and raise an AssertionError if that is not right."""
    message = ""
    with bounded(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dx.convert(source, dest)
        except InputError as error:
            message = error.advice
        if not message:
            problems = dx.verify(dest, source).problems
            assert not problems, problems
    assert "\n" not in message, message
    assert len(message) < 1500, message
    return "refused" if message else "converted"


def damage(cases: int, seed: int) -> Outcomes:
    """Damage and convert so many sources."""
    outcomes = Outcomes()
    with tempfile.TemporaryDirectory() as temporary:
        whole = {name: make(Path(temporary) / f"whole {i}") for i, (name, make) in enumerate(SOURCES.items())}
        for source in whole.values():  # loads what is only loaded once
            convert(source, Path(temporary) / "whole.zarr")
            shutil.rmtree(Path(temporary) / "whole.zarr")
        for i in range(cases):
            rng = Random(seed * 1_000_003 + i)
            name = rng.choice([*SOURCES])
            place = Path(temporary) / f"case {i}"
            place.mkdir()
            copied = shutil.copytree(whole[name] if whole[name].is_dir() else whole[name].parent, place / "source")
            kind = rng.choice(DAMAGES)
            outcomes.damages[kind.__name__] += 1
            kind(rng.choice([f for f in sorted(copied.rglob("*")) if f.is_file() and f.stat().st_size]), rng)
            source = copied if whole[name].is_dir() else copied / whole[name].name
            try:
                outcomes.ends[convert(source, place / "out.zarr")] += 1
            except Exception:
                outcomes.ends["wrong"] += 1
                outcomes.wrong.append(f"case {i}: {name}, {kind.__name__}\n{traceback.format_exc(limit=-4)}")
            shutil.rmtree(place)
    return outcomes


@click.command()
@click.option("--cases", default=300, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(cases: int, seed: int) -> None:
    """Damage sources at random, and convert them."""
    outcomes = damage(cases, seed)
    click.echo("\n".join([*outcomes.wrong, str(outcomes)]))
    raise SystemExit(bool(outcomes.wrong))


if __name__ == "__main__":
    main()
