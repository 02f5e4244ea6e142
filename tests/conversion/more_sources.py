"""Checkpoints of torch.distributed.checkpoint, and GGUF files, as their own libraries write them."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import metadata as md
from torch.distributed.checkpoint.filesystem import _StorageInfo

EMBEDDING = "model.embed_tokens.weight"


def write_dcp(folder: Path, state: dict[str, Any]) -> Path:
    """Write a checkpoint of one process."""
    with warnings.catch_warnings(action="ignore"):  # that there is one process
        dcp.save(state, checkpoint_id=folder, no_dist=True)
    return folder


def write_dcp_of_ranks(folder: Path, tensors: Mapping[str, tuple[torch.Tensor, int]], n_ranks: int) -> Path:
    """Write a checkpoint of several processes, each tensor split along an axis, as fully_shard leaves it."""
    folder.mkdir(parents=True)
    files = [bytearray() for _ in range(n_ranks)]
    found: dict[str, Any] = {}
    stored: dict[Any, Any] = {}
    for name, (tensor, axis) in tensors.items():
        chunks = []
        at = 0
        for rank, part in enumerate(torch.tensor_split(tensor, n_ranks, axis)):
            offsets = torch.Size([at if i == axis else 0 for i in range(tensor.ndim)])
            at += part.shape[axis]
            chunks.append(md.ChunkStorageMetadata(offsets, part.shape))
            content = _saved(part.contiguous().clone())
            info = _StorageInfo(f"__{rank}_0.distcp", len(files[rank]), len(content))
            stored[md.MetadataIndex(name, offsets, rank)] = info
            files[rank] += content
        properties = md.TensorProperties(dtype=tensor.dtype)
        found[name] = md.TensorStorageMetadata(properties, tensor.shape, chunks)
    for rank, content in enumerate(files):
        (folder / f"__{rank}_0.distcp").write_bytes(content)
    (folder / ".metadata").write_bytes(pickle.dumps(md.Metadata(found, {}, stored)))
    return folder


def _saved(tensor: torch.Tensor) -> bytes:
    import io

    buffer = io.BytesIO()
    torch.save(tensor, buffer)
    return buffer.getvalue()


def write_gguf(
    path: Path, tensors: Mapping[str, Any], kinds: Mapping[str, str], *, tokens: Sequence[str] = (), model: str = "gpt2"
) -> Path:
    """Write a model of llama.cpp: arrays as they are, or as the bytes of a type that NumPy lacks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    if tokens:
        writer.add_tokenizer_model(model)
        writer.add_token_list(list(tokens))
    for name, values in tensors.items():
        kind = kinds.get(name)
        raw = None if kind is None else gguf.GGMLQuantizationType[kind]
        data = np.ascontiguousarray(values)
        if kind == "BF16":
            data = data.view(np.uint8)
        writer.add_tensor(name, data, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_orbax(folder: Path, arrays: Mapping[str, Any], *, driver: str = "zarr") -> Path:
    """Write arrays into one database, as Orbax does into the folder of an item."""
    import tensorstore

    for name, values in arrays.items():
        values = np.asarray(values)
        base = {"driver": "file", "path": f"{folder.absolute()}/"}
        shape = [max(1, n // 2) for n in values.shape]
        chunks: dict[str, Any] = {"chunks": shape}
        if driver == "zarr3":
            chunks = {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shape}}}
        spec = {
            "driver": driver, "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"},
            "metadata": {"shape": list(values.shape), **chunks}, "dtype": values.dtype.name,
        }  # fmt: skip
        tensorstore.open(spec, create=True).result().write(values).result()
    return folder
