"""DCP folders and GGUF files: read bit for bit, or refused; nothing in them runs."""

from __future__ import annotations

import io
import json
import os
import pickle
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import deadtok_xr as dx
from deadtok_xr.bfloat16 import BFLOAT16
from deadtok_xr.conversion.readers import dcp
from deadtok_xr.errors import InputError
from tests.conversion.more_sources import EMBEDDING, write_dcp, write_dcp_of_ranks, write_gguf, write_orbax

V, D = 31, 6


def weights(seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.randn(V, D).bfloat16()


def bits(x: torch.Tensor) -> np.ndarray:
    return x.view(torch.uint16).numpy()


def found(store: Any, name: str = "W") -> np.ndarray:
    values: np.ndarray = dx.open_recording(store, raw=True)[name].values
    return values.view(np.uint16)


def state(step: int) -> dict[str, Any]:
    moments = {
        "exp_avg": weights(step + 100),
        "exp_avg_sq": weights(step + 200).abs(),
        "step": torch.tensor(float(step)),
    }
    groups = [{"lr": 1e-3, "betas": (0.9, 0.95), "params": [EMBEDDING]}]
    return {
        "model": {EMBEDDING: weights(step), "model.norm.weight": torch.ones(D).bfloat16()},
        "optimizer": {"state": {EMBEDDING: moments}, "param_groups": groups},
        "iteration": step,
        "note": "a text",
    }


def test_dcp_folder_and_run(tmp_path: Path) -> None:
    for step in (10, 20, 100):
        write_dcp(tmp_path / "run" / f"step-{step}", state(step))
    out = dx.convert(tmp_path / "run", tmp_path / "run.zarr")
    rec = dx.open_recording(out)
    assert rec.step.values.tolist() == [10, 20, 100]
    assert rec.attrs["hyperparameters"]["optimizer.param_groups.0.betas"] == [0.9, 0.95]
    for name, seed in (("W", 0), ("exp_avg", 100)):
        np.testing.assert_array_equal(found(out, name), bits(torch.stack([weights(s + seed) for s in (10, 20, 100)])))
    assert not dx.verify(out, tmp_path / "run").problems
    one = dx.convert(tmp_path / "run" / "step-20", tmp_path / "one.zarr")
    assert dx.open_recording(one).step.values.tolist() == [20]
    np.testing.assert_array_equal(found(one)[0], bits(weights(20)))


@pytest.mark.parametrize("axis", [0, 1])
def test_dcp_parts_of_several_ranks_are_joined(tmp_path: Path, axis: int) -> None:
    tensors = {"model.embed_tokens.weight": (weights(1), axis), "model.layers.0.w.weight": (weights(2), 0)}
    folder = write_dcp_of_ranks(tmp_path / "ckpt", tensors, 4)
    out = dx.convert(folder, tmp_path / "out.zarr")
    np.testing.assert_array_equal(found(out)[0], bits(weights(1)))
    part = folder / "__2_0.distcp"
    part.write_bytes(part.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"__2_0.distcp is truncated"):
        dx.convert(folder, tmp_path / "x.zarr")
    part.unlink()
    with pytest.raises(InputError, match=r"lacks the file '__2_0.distcp'"):
        dx.convert(folder, tmp_path / "x.zarr")


@pytest.mark.parametrize("module", ["pathlib", "pathlib._local"])  # before Python 3.13, and since
def test_dcp_folders_of_any_python_are_read(module: str) -> None:
    saved = f"c{module}\nPosixPath\n(Vrun\nVstep-10\ntR."
    assert dcp._Unpickler(io.BytesIO(saved.encode())).load() == "run/step-10"


class Hostile:
    """What would run a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_dcp_folder_runs(tmp_path: Path) -> None:
    folder = write_dcp(tmp_path / "ckpt", state(1))
    whole = (folder / ".metadata").read_bytes()
    (folder / ".metadata").write_bytes(pickle.dumps(Hostile(tmp_path / "ran")))
    with pytest.raises(
        InputError, match=r"holds \w+.mkdir, which could run code and was not loaded; .*dcp_to_torch_save"
    ):
        dx.convert(folder, tmp_path / "out.zarr")
    (folder / ".metadata").write_bytes(whole.replace(b"__0_0.distcp", b"../0.distcp_"))
    with pytest.raises(InputError, match=r"names the file '../0.distcp_'"):
        dx.convert(folder, tmp_path / "out.zarr")
    (folder / ".metadata").write_bytes(whole[:-40])
    with pytest.raises(InputError, match=r".metadata cannot be read \(.*\): it is damaged"):
        dx.convert(folder, tmp_path / "out.zarr")
    assert not (tmp_path / "out.zarr").exists()
    folder = write_dcp(tmp_path / "object", {"model": {EMBEDDING: weights(1)}, "args": Hostile(tmp_path / "ran")})
    with pytest.warns(UserWarning, match=r"left out of the store: 'args' \(.*mkdir, which could run code"):
        out = dx.convert(folder, tmp_path / "out.zarr")
    np.testing.assert_array_equal(found(out)[0], bits(weights(1)))
    assert not (tmp_path / "ran").exists()


def test_the_advice_for_a_compressed_dcp_folder_works(tmp_path: Path) -> None:
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    folder = write_dcp(tmp_path / "ckpt", state(7))
    dcp_to_torch_save(folder, tmp_path / "one.pt")
    out = dx.convert(tmp_path / "one.pt", tmp_path / "out.zarr")
    np.testing.assert_array_equal(found(out)[0], bits(weights(7)))
    assert dx.open_recording(out).step.values.tolist() == [7]


def gguf_model(path: Path, kind: str, **options: Any) -> tuple[Path, np.ndarray]:
    values: np.ndarray = bits(weights(3)).view(BFLOAT16)
    if kind in ("F32", "F16"):
        values = values.astype({"F32": np.float32, "F16": np.float16}[kind])
    tensors = {"token_embd.weight": values, "blk.0.attn_q.weight": np.ones((D, D), np.float32)}
    return write_gguf(path, tensors, {"token_embd.weight": kind} if kind == "BF16" else {}, **options), values


@pytest.mark.parametrize("kind", ["BF16", "F32", "F16"])
def test_gguf(tmp_path: Path, kind: str) -> None:
    tokens = ["Ġthe", "Ã©", *(f"t{i}" for i in range(2, V))]
    path, values = gguf_model(tmp_path / "model.gguf", kind, tokens=tokens)
    rec = dx.open_recording(dx.convert(path, tmp_path / "out.zarr"), raw=True)
    expected = values if kind == "F16" else bits(weights(3)).view(BFLOAT16)  # float32 on the grid is stored as bfloat16
    np.testing.assert_array_equal(rec.W.values[0].view(np.uint16), expected.view(np.uint16))
    assert rec.token_text.values[:3].tolist() == [" the", "é", "t2"]
    assert rec.attrs["hyperparameters"]["general.architecture"] == "llama"
    assert not dx.verify(tmp_path / "out.zarr", path).problems


def test_untied_gguf_and_texts_of_other_tokenizers(tmp_path: Path) -> None:
    tensors = {
        "token_embd.weight": bits(weights(3)).view(BFLOAT16), "output.weight": bits(weights(4)).view(BFLOAT16),
        "output_norm.weight": np.ones(D, np.float32),
    }  # fmt: skip
    tokens = [f"▁{i}" for i in range(V)]
    path = write_gguf(
        tmp_path / "m.gguf", tensors, dict.fromkeys(["token_embd.weight", "output.weight"], "BF16"), tokens=tokens,
        model="llama",
    )  # fmt: skip
    out = dx.convert(path, tmp_path / "out.zarr")
    np.testing.assert_array_equal(found(out)[0], bits(weights(4)))
    np.testing.assert_array_equal(found(out, "E")[0], bits(weights(3)))
    assert dx.open_recording(out).token_text.values.tolist() == tokens


def test_gguf_that_is_refused(tmp_path: Path) -> None:
    import gguf

    packed = gguf.quants.quantize(np.ones((V, 32), np.float32), gguf.GGMLQuantizationType.Q8_0)
    path = write_gguf(tmp_path / "q.gguf", {"token_embd.weight": packed}, {"token_embd.weight": "Q8_0"})
    with pytest.raises(InputError, match=r"has the type Q8_0, quantized: .* convert the safetensors or torch files"):
        dx.convert(path, tmp_path / "out.zarr")
    path, _ = gguf_model(tmp_path / "model.gguf", "BF16", tokens=[f"t{i}" for i in range(V)])
    whole = path.read_bytes()
    path.write_bytes(whole[:-300])
    with pytest.raises(InputError, match=r"model.gguf is truncated|cannot be read as GGUF"):
        dx.convert(path, tmp_path / "out.zarr")
    at = whole.index(struct.pack("<Q", V), whole.index(b"tokenizer.ggml.tokens"))
    path.write_bytes(whole[:at] + struct.pack("<Q", 2**60) + whole[at + 8 :])  # an array that never ends
    with pytest.raises(InputError, match=r"its header cannot be read as GGUF"):
        dx.convert(path, tmp_path / "out.zarr")


def write_ranks(
    folder: Path, parts: list[dict[str, Any]], config: dict[str, Any] | None, name: str = "consolidated.{:02d}.pth"
) -> Path:
    folder.mkdir(parents=True)
    for rank, tensors in enumerate(parts):
        torch.save(tensors, folder / name.format(rank))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def split(axis: int, n: int = 2, **others: Any) -> list[dict[str, Any]]:
    """The parts of an output layer along an axis, and of an input embedding by columns."""
    norm = torch.ones(D)
    return [
        {"output.weight": one.clone(), "tok_embeddings.weight": other.clone(), "norm.weight": norm, **others}
        for one, other in zip(weights(1).tensor_split(n, axis), weights(2).tensor_split(n, 1), strict=True)
    ]


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("n", [2, 3])
def test_ranks_are_joined_where_the_config_proves_the_split(tmp_path: Path, axis: int, n: int) -> None:
    config = {"hidden_size": D, "vocab_size": V}
    folder = write_ranks(tmp_path / "model", split(axis, n), config)
    out = dx.convert(folder, tmp_path / "out.zarr")
    np.testing.assert_array_equal(found(out)[0], bits(weights(1)))
    np.testing.assert_array_equal(found(out, "E")[0], bits(weights(2)))
    assert not dx.verify(out, folder).problems
    for step in (10, 20):
        write_ranks(tmp_path / "run" / f"step_{step}", split(axis, n), config, "tp_rank_{}.pt")
    assert dx.open_recording(dx.convert(tmp_path / "run", tmp_path / "run.zarr")).step.values.tolist() == [10, 20]


def test_ranks_that_nothing_proves_are_refused(tmp_path: Path) -> None:
    def refused(name: str, parts: list[dict[str, Any]], config: dict[str, Any] | None, match: str) -> None:
        with pytest.raises(InputError, match=match):
            dx.convert(write_ranks(tmp_path / name, parts, config), tmp_path / "out.zarr")

    refused(
        "alone",
        split(0),
        None,
        r"parts \(ranks\).*joined here if a config.json beside them",
    )
    refused("nothing", split(0), {"vocab_size": V}, r"parts \(ranks\) of one checkpoint")
    refused("other", split(0), {"hidden_size": 7, "vocab_size": V}, r"split over ranks in a way that nothing proves")
    refused("more", split(0), {"hidden_size": D, "vocab_size": 99}, r"split over ranks in a way that nothing proves")
    one, other = split(0)
    refused("names", [one, {**other, "extra": torch.ones(3)}], {"hidden_size": D}, r"consolidated.01.pth does not hold")
    same = weights(1)
    folder = write_ranks(tmp_path / "same", [{"embed.weight": same}, {"embed.weight": same}], {"hidden_size": D})
    np.testing.assert_array_equal(found(dx.convert(folder, tmp_path / "same.zarr"))[0], bits(same))


DTENSORS = """
import os, sys, torch, torch.distributed as dist
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=sys.argv[2], RANK="0", WORLD_SIZE="1")
dist.init_process_group("gloo", rank=0, world_size=1)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
mesh = init_device_mesh("cpu", (1,))
torch.manual_seed(1)
whole = torch.randn(31, 6).bfloat16()
torch.save({"embed.weight": distribute_tensor(whole, mesh, [Shard(0)])}, sys.argv[1] + "/whole.pt")
part = DTensor.from_local(whole[:16], mesh, [Shard(0)], shape=whole.shape, stride=whole.stride(), run_check=False)
torch.save({"embed.weight": part}, sys.argv[1] + "/part.pt")
dist.destroy_process_group()
"""


@pytest.mark.parametrize("driver", ["zarr", "zarr3"])
def test_orbax_checkpoint(tmp_path: Path, driver: str) -> None:
    values = {
        "params.wte.embedding": bits(weights(1)).view(BFLOAT16),
        "params.lm_head.kernel": bits(weights(2)).view(BFLOAT16).T,
    }
    place = write_orbax(tmp_path / "5" / "items", values, driver=driver)
    for source in (place, place.parent):
        out = dx.convert(source, tmp_path / "out.zarr", overwrite=True)
        np.testing.assert_array_equal(found(out)[0], bits(weights(2)))
        np.testing.assert_array_equal(found(out, "E")[0], bits(weights(1)))
    for path in (place / "d").iterdir():
        path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(InputError, match=r"Orbax checkpoint \(OCDBT\), of which .* is not read .*np.savez"):
        dx.convert(place, tmp_path / "x.zarr")


@pytest.mark.slow
def test_dtensors(tmp_path: Path) -> None:
    """A DTensor that one device holds is read; a part of one is named, with what to save instead."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    subprocess.run([sys.executable, "-c", DTENSORS, str(tmp_path), port], check=True, capture_output=True)
    np.testing.assert_array_equal(found(dx.convert(tmp_path / "whole.pt", tmp_path / "out.zarr"))[0], bits(weights(1)))
    with pytest.raises(InputError, match=r"'embed.weight' has the type DTensors, .* save tensor.full_tensor\(\)"):
        dx.convert(tmp_path / "part.pt", tmp_path / "part.zarr")
