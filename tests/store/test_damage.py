"""Every damage of a store is one sentence that names the store, the file, what was found and what to do.

The list of what was found once; `python -m tests.fuzz_store` damages stores at random.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import deadtok_xr as dx
from deadtok_xr.errors import DamagedStoreError, InputError
from deadtok_xr.explorer.opening import open_source
from tests.fuzz_store import command, fuzz

KEPT = Path(__file__).parents[1] / "data" / "format-1.0"
Damage = Callable[[Path], object]


def edited(file: str, **changes: Any) -> Damage:
    """Return a function that changes what a file of metadata says."""

    def damage(path: Path) -> None:
        metadata = json.loads((path / file).read_text())
        (path / file).write_text(json.dumps(metadata | changes))

    return damage


def written(file: str, text: str) -> Damage:
    return lambda path: (path / file).write_text(text)


def without(name: str) -> Damage:
    return lambda path: shutil.rmtree(path / name)


def completed(path: Path) -> None:
    edited("zarr.json", attributes={"deadtok_format": "1.0", "complete": "no"})(path)


def flipped(file: str) -> Damage:
    def damage(path: Path) -> None:
        content = bytearray((path / file).read_bytes())
        content[len(content) // 2] ^= 1
        (path / file).write_bytes(content)

    return damage


RESTORE = "restore this file from a copy, and check the store with `deadtok verify`$"
GROUP = '{"zarr_format": 3, "node_type": "group"}'
DAMAGES: dict[str, tuple[Damage, str]] = {
    "empty root": (written("zarr.json", ""), f"zarr.json are empty; expected those of a Zarr v3 group: {RESTORE}"),
    "list as root": (written("zarr.json", "[]"), "in zarr.json are a JSON list, not an object"),
    "empty member": (written("W/zarr.json", ""), f"W/zarr.json are empty; expected .*: {RESTORE}"),
    "no JSON": (written("W/zarr.json", "{"), "in W/zarr.json are not JSON"),
    "deep member": (written("W/zarr.json", "[" * 10**5), "in W/zarr.json are nested too deeply"),
    "list as member": (written("dead/zarr.json", "[1]"), "in dead/zarr.json are a JSON list"),
    "attributes are a list": (edited("W/zarr.json", attributes=[]), "W/zarr.json cannot be used"),
    "no metadata": (lambda path: (path / "W" / "zarr.json").unlink(), "in W/zarr.json are missing"),
    "a group": (written("W/zarr.json", GROUP), "W/zarr.json cannot be used.*a group"),
    "no step": (without("step"), "'step' is missing: restore the folder step from a copy"),
    "no token": (without("token"), "'token' is missing"),
    "no dead": (without("dead"), "'dead' is missing, which 'W' names as its coordinate"),
    "sizes": (edited("token/zarr.json", shape=[7]), "has the size .* along token, and .* expected the same size"),
    "huge": (edited("W/zarr.json", shape=[10**18, 10**18, 10**18]), "'W' has the size 1000000000000000000 along"),
    "negative": (edited("W/zarr.json", shape=[-1, 1, 1]), "W/zarr.json cannot be used"),
    "data type": (edited("W/zarr.json", data_type="float17"), "W/zarr.json cannot be used.*float17"),
    "codec": (edited("W/zarr.json", codecs=[{"name": "zip"}]), "W/zarr.json cannot be used.*zip"),
    "no dimensions": (edited("W/zarr.json", dimension_names=None), "have the dimension names .*; expected 3 different"),
    "exchanged dimensions": (
        edited("W/zarr.json", dimension_names=["step", "dim", "token"]), "has the size .* along (dim|token)",
    ),
    "other dimensions": (edited("lr/zarr.json", dimension_names=["s"]), r"the dimensions \(s\); expected \(step\)"),
    "complete is a word": (completed, "'complete' in zarr.json is 'no'; expected true or false"),
    "damaged coordinate": (flipped("token/c/0"), "token: the chunk at token positions .* is missing or damaged"),
    "empty coordinate": (written("dead/c/0", ""), "dead: the chunk .* does not begin as zstd"),
    "chunk of another size": (
        lambda path: shutil.copy(path / "lr/c/0", path / "dead/c/0"), "dead: the chunk .*it holds .* bytes; expected",
    ),
}  # fmt: skip


def test_every_damage_is_a_sentence(tmp_path: Path) -> None:
    for name, (damage, expected) in DAMAGES.items():
        path = shutil.copytree(KEPT / "recorded.zarr", tmp_path / f"{name}.zarr")
        damage(path)
        with pytest.raises(DamagedStoreError, match=expected) as error:
            dx.open_recording(path)
        assert str(error.value).startswith(str(path)), name
        assert str(error.value).isprintable(), name


def test_damaged_results_are_refused(tmp_path: Path) -> None:
    for name, damage, expected in (
        ("metadata", written("motion/lattice_l2/zarr.json", ""), "in motion/lattice_l2/zarr.json are empty"),
        ("group", written("phases/zarr.json", "[]"), "in phases/zarr.json are a JSON list"),
        ("variable", without("motion/moved_dims"), "'motion/moved_dims' is missing"),
        (
            "chunk",
            flipped("census/n_black_holes/c/0"),
            "n_black_holes: the chunk at step positions .* is missing or damaged",
        ),
    ):
        path = shutil.copytree(KEPT / "results.zarr", tmp_path / f"{name}.zarr")
        damage(path)
        with pytest.raises(DamagedStoreError, match=expected):
            dx.open_results(path, load=True)


def test_results_of_another_format_are_refused_by_all_readers(tmp_path: Path) -> None:
    path = shutil.copytree(KEPT / "results.zarr", tmp_path / "results.zarr")
    metadata = (path / "zarr.json").read_text()
    assert metadata.count('"deadtok_results": "1.0"') == 1
    (path / "zarr.json").write_text(metadata.replace('"deadtok_results": "1.0"', '"deadtok_results": "2.0"'))
    report, compare = command("report", "STORE", "-o", "OUT.html"), command("compare", "STORE", "STORE")
    for reader in (dx.open_results, open_source, report, compare):
        with pytest.raises((DamagedStoreError, InputError), match=r"format '?2.0'?; this version .* reads 1.x: update"):
            reader(path)


def test_damaged_stores_are_refused_or_have_the_same_values() -> None:
    outcomes = fuzz(tries=40, seed=3, stores=("runs",), slow=False)
    assert not outcomes.wrong, "\n".join(outcomes.wrong)
    assert outcomes.ends["refused"] > 20
