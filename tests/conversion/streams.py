"""Streams of sparse updates, written and read by the layouts of prime-rl and TRL alone, with torch and safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import zstandard
from safetensors import safe_open
from safetensors.torch import load, save, save_file

State = dict[str, torch.Tensor]
EMBEDDING = "model.embed_tokens.weight"
MANIFEST, PATCH = "sparse_update_manifest.json", "sparse_update_patch.safetensors"


def history(n_steps: int = 6, n_tokens: int = 20, n_dims: int = 4) -> list[State]:
    """The states of a tied model of which a few bfloat16 values change at each step, and none at step 3."""
    torch.manual_seed(0)
    now = {
        EMBEDDING: torch.randn(n_tokens, n_dims).bfloat16(),
        "model.layers.0.mlp.up_proj.weight": torch.randn(8, n_dims).bfloat16(),
        "model.norm.weight": torch.ones(n_dims).bfloat16(),
    }
    states = [{name: x.clone() for name, x in now.items()}]
    for step in range(1, n_steps):
        if step != 3:
            for x in now.values():
                flat = x.reshape(-1)
                at = torch.randperm(len(flat))[: max(1, len(flat) // 10)]
                flat[at] = (flat[at].float() * 1.5 + 0.25).bfloat16()
            now[EMBEDDING][0, 0] = -0.0 if step % 2 else 0.0
        states.append({name: x.clone() for name, x in now.items()})
    return states


def hash_of(x: torch.Tensor) -> int:
    """The XOR of all values as 64-bit floats or integers, a value at a time."""
    found = 0
    for value in x.double() if x.is_floating_point() else x.long():
        found ^= int(value.view(torch.int64)) & (2**64 - 1)
    return found


def write_prime_rl(
    folder: Path, states: list[State], *, steps: list[int] | None = None, compress: bool = False, base: bool = True
) -> Path:
    """Write a stream; without ``base``, as prime-rl does, the first state is not among its folders."""
    steps = steps or [*range(len(states))]
    folder.mkdir(parents=True)
    for i, (step, state) in enumerate(zip(steps, states, strict=True)):
        place = folder / f"step_{step}"
        if i == 0:
            if base:
                place.mkdir()
                save_file(state, place / "model.safetensors")
            continue
        place.mkdir()
        (place / "STABLE").touch()
        write_update(place, states[i - 1], state, step=step, base_step=steps[i - 1], compress=compress)
    return folder


def write_update(folder: Path, before: State, after: State, *, step: int, base_step: int, compress: bool) -> None:
    patch: State = {}
    tensors: list[dict[str, Any]] = []
    for i, (name, x) in enumerate(after.items()):
        changed = (x.view(torch.int16) != before[name].view(torch.int16)).reshape(-1)
        at = changed.nonzero().reshape(-1).int()
        if not len(at):
            continue
        values = x.reshape(-1)[at.long()]
        patch |= {f"tensor_{i}.indices": at, f"tensor_{i}.values": values}
        tensors.append(
            {
                "name": name, "shape": [*x.shape], "dtype": "bfloat16", "indices": f"tensor_{i}.indices",
                "values": f"tensor_{i}.values", "numel": x.numel(), "changed_numel": len(at),
                "checksum": hash_of(at) ^ hash_of(values),
            }
        )  # fmt: skip
    if patch:
        content = save(patch, metadata={"format": "pt"})
        (folder / PATCH).write_bytes(zstandard.compress(content) if compress else content)
    manifest = {
        "format": "prime-rl-sparse-update", "version": 1, "step": step, "base_step": base_step,
        "compute_dtype": "bfloat16", "compressed": compress and bool(patch), "patch_file": PATCH if patch else None,
        "tensors": tensors, "stats": {},
    }  # fmt: skip
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True))


def read_prime_rl(folder: Path) -> dict[int, State]:
    """Read a stream as a receiver does: full checkpoints are loaded, updates are checked and applied in order."""
    places = sorted(folder.iterdir(), key=lambda place: int(place.name.removeprefix("step_")))
    found: dict[int, State] = {}
    now: State = {}
    at = 0
    for place in places:
        if not (place / MANIFEST).exists():
            at = int(place.name.removeprefix("step_"))
            now = load((place / "model.safetensors").read_bytes())
        else:
            at = apply_update(now, place, at)
        found[at] = {name: x.clone() for name, x in now.items()}
    return found


def apply_update(now: State, place: Path, at: int) -> int:
    manifest = json.loads((place / MANIFEST).read_text())
    assert (manifest["format"], manifest["version"]) == ("prime-rl-sparse-update", 1)
    assert manifest["base_step"] == at
    patch: State = {}
    if manifest["patch_file"]:
        content = (place / manifest["patch_file"]).read_bytes()
        patch = load(zstandard.decompress(content) if content.startswith(b"\x28\xb5\x2f\xfd") else content)
    assert manifest["stats"]["patched_tensors"] == len(manifest["tensors"])
    for tensor in manifest["tensors"]:
        x = now[tensor["name"]]
        assert [*x.shape] == tensor["shape"]
        assert str(x.dtype) == f"torch.{tensor['dtype']}"
        indices, values = patch[tensor["indices"]].long(), patch[tensor["values"]].to(x.dtype)
        assert len(indices) == tensor["changed_numel"]
        assert hash_of(indices) ^ hash_of(values) == tensor["checksum"]
        x.view(-1).index_copy_(0, indices, values)
    return int(manifest["step"])


def write_trl(folder: Path, states: list[State], *, encoding: str | None = None, every: int = 4) -> Path:
    """Write anchors and deltas; without an encoding, in the layout of the first version."""
    (folder / "anchors").mkdir(parents=True)
    (folder / "deltas").mkdir()
    for step, state in enumerate(states, 1):
        if (step - 1) % every == 0:
            metadata = {"sparse": "False", "model_version": str(step)}
            save_file(state, folder / "anchors" / f"step_{step:06d}.safetensors", metadata=metadata)
            continue
        tensors = trl_delta(states[step - 2], state, encoding)
        n = sum(len(x) for name, x in tensors.items() if name.endswith((".val", ".values")))
        metadata = {"sparse": "True", "model_version": str(step), "total_changed_elements": str(n)}
        metadata |= {"encoding": encoding} if encoding else {}
        save_file(tensors, folder / "deltas" / f"step_{step:06d}.safetensors", metadata=metadata)
    return folder


def trl_delta(before: Mapping[str, torch.Tensor], after: State, encoding: str | None) -> State:
    tensors: State = {}
    for name, x in after.items():
        at = (x.view(torch.int16) != before[name].view(torch.int16)).reshape(-1).nonzero().reshape(-1)
        values = x.reshape(-1)[at]
        if encoding is None:
            tensors |= {f"{name}.indices": at.int(), f"{name}.values": values}
            continue
        if encoding == "gap_delta":
            at = (torch.diff(at, prepend=torch.tensor([-1])) - 1).to(torch.uint16)
        tensors |= {f"{name}.idx": at if encoding == "gap_delta" else at.int(), f"{name}.val": values}
    return tensors


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())
