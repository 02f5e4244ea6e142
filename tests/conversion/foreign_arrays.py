"""Files of arrays: NumPy, HDF5, NetCDF-4 and Zarr, with types and labels under the names of other programs."""

from __future__ import annotations

import gzip
import json
import pickle
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from safetensors.torch import save_file

Array = NDArray[Any]
BF16 = np.dtype(ml_dtypes.bfloat16)
STEPS = (0, 100, 200, 1000)


def moving(seed: int, n_steps: int, n_tokens: int, n_dims: int) -> Array:
    """Weights in bfloat16, (step, token, dim), that differ at every step."""
    rng = np.random.default_rng(seed)
    start = rng.normal(0, 0.02, (n_tokens, n_dims))
    moves = rng.normal(0, 0.002, (n_steps, n_tokens, n_dims)).cumsum(0)
    return (start + moves).astype(BF16)


def to_torch(values: Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values).view(np.int16).copy()).view(torch.bfloat16)


def npz(at: Path) -> dict[str, Array]:
    w, grad = moving(1, 6, 40, 8), moving(2, 6, 40, 8)
    arrays: dict[str, Any] = {"W": w, "grad": grad, "steps": np.arange(6), "dead_ids": np.arange(30, 40)}
    np.savez(at / "recording.npz", **arrays)
    np.savez_compressed(at / "compressed.npz", **arrays)
    np.save(at / "W.npy", w)
    with (at / "workaround.npy").open("wb") as file:
        header = {"descr": "bfloat16", "fortran_order": False, "shape": w.shape}
        np.lib.format.write_array_header_1_0(file, header)  # type: ignore[attr-defined]
        w.tofile(file)
    np.savez(at / "float8_e4m3.npz", W=w.astype(ml_dtypes.float8_e4m3fn))
    np.savez(at / "float8_e5m2.npz", W=w.astype(ml_dtypes.float8_e5m2))
    return {"W": w, "grad": grad}


def hdf5(at: Path) -> dict[str, Array]:
    w = moving(1, 6, 40, 8)
    with h5py.File(at / "opaque.h5", "w") as file:
        file["W"] = w
    with h5py.File(at / "model.weights.h5", "w") as file:
        for name, values in (("embedding", w[5]), ("dense", np.zeros((8, 3), BF16))):
            file.create_dataset(f"layers/{name}/vars/0", data=values).attrs["dtype"] = "bfloat16"
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_fields(15, 7, 8, 0, 7)
    kind.set_size(2)
    kind.set_ebias(127)
    with h5py.File(at / "float_of_16_bits.h5", "w") as file:
        made = h5py.h5d.create(file.id, b"W", kind, h5py.h5s.create_simple(w.shape))
        made.write(h5py.h5s.ALL, h5py.h5s.ALL, np.ascontiguousarray(w.astype(np.float32)))
    for name, values in (("int16", w.view(np.int16)), ("big_endian", w.astype(">f4"))):
        with h5py.File(at / f"{name}.h5", "w") as file:
            file["W"] = values
    return {"W": w}


def _zarr_v2(at: Path, values: Array, dtype: str, *, packed: bool = False) -> None:
    at.mkdir(parents=True)
    content = np.ascontiguousarray(values).tobytes()
    metadata = {
        "zarr_format": 2, "shape": values.shape, "chunks": values.shape, "dtype": dtype, "fill_value": None,
        "order": "C", "filters": None, "dimension_separator": ".",
        "compressor": {"id": "gzip", "level": 1} if packed else None,
    }  # fmt: skip
    (at / ".zarray").write_text(json.dumps(metadata))
    (at / ".".join("0" * values.ndim)).write_bytes(gzip.compress(content) if packed else content)


def _zarr_v3(at: Path, values: Array) -> None:
    chunk = at / "c" / Path(*"0" * values.ndim)
    chunk.parent.mkdir(parents=True)
    chunk.write_bytes(np.ascontiguousarray(values).tobytes())
    metadata = {
        "zarr_format": 3, "node_type": "array", "shape": values.shape, "data_type": "bfloat16", "fill_value": 0.0,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": values.shape}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
    }  # fmt: skip
    (at / "zarr.json").write_text(json.dumps(metadata))


def labelled(values: Array) -> xr.Dataset:
    n_steps, n_tokens = values.shape[:2]
    return xr.Dataset(
        {
            "W": (("step", "token", "dim"), values.astype(np.float32)),
            "loss": ("step", np.linspace(4, 3, n_steps)),
        },
        {
            "step": np.arange(n_steps) * 10,
            "token": np.arange(100, 100 + n_tokens),
            "dead": ("token", np.arange(n_tokens) >= n_tokens - 10),
        },
    )


def zarr(at: Path) -> dict[str, Array]:
    w = moving(1, 6, 40, 8)
    _zarr_v2(at / "void.zarr" / "W", w, "<V2")
    (at / "void.zarr" / ".zgroup").write_text('{"zarr_format": 2}')
    _zarr_v3(at / "tensorstore" / "W", w)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for version in (2, 3):
            labelled(w).to_zarr(at / f"xarray_v{version}.zarr", zarr_format=version)
    for i, step in enumerate((0, 1000)):
        one = at / "t5x" / f"checkpoint_{step}"
        _zarr_v2(one / "target.token_embedder.embedding", w[i], "bfloat16", packed=True)
        _zarr_v2(one / "target.encoder.layers_0.mlp.wi.kernel", np.zeros((8, 32), BF16), "bfloat16", packed=True)
        _zarr_v2(one / "state.param_states.token_embedder.embedding.v_row", np.ones(40, "f4"), "<f4", packed=True)
        (one / "checkpoint").write_bytes(b"\x82\xa7version\x03\xa9optimizer\x80")
    one = at / "orbax" / "100" / "default"
    for place in (one, one / "ocdbt.process_0"):
        (place / "d").mkdir(parents=True)
        (place / "d" / "5f1f7d4b").write_bytes(bytes(200))
        (place / "manifest.ocdbt").write_bytes(b"\x0c\xdb\x3a\x2a" + bytes(96))
    (one / "_METADATA").write_text('{"tree_metadata": {}, "use_zarr3": false}')
    return {"W": w, "W_t5x": w[:2]}


def per_step(at: Path) -> dict[str, Array]:
    w = moving(3, 4, 40, 16)
    wide, tensors = w.astype(np.float32), [to_torch(x) for x in w]
    by_step = dict(zip(STEPS, wide, strict=True))
    np.savez(at / "names.npz", **{f"step_{step}": x for step, x in by_step.items()})
    np.savez(at / "positions.npz", *wide)
    pairs = list(zip(STEPS, tensors, strict=True))
    save_file({f"step_{step:06d}": x for step, x in pairs}, at / "names.safetensors")
    save_file({f"embed.step_{step}": x for step, x in pairs}, at / "prefix.safetensors")
    torch.save(tensors, at / "list.pt")
    torch.save(dict(pairs), at / "dict.pt")
    torch.save([{"step": step, "emb": x} for step, x in pairs], at / "records.pt")
    torch.save({"W": tensors, "steps": list(STEPS)}, at / "list_and_steps.pt")
    with h5py.File(at / "groups.h5", "w") as groups, h5py.File(at / "datasets.h5", "w") as datasets:
        for step, x in by_step.items():
            groups[f"step_{step}/W"], groups[f"step_{step}/grad"] = x, 2 * x
            datasets[f"embeddings/{step:06d}"] = x
    objects = np.empty(4, object)
    objects[:] = list(wide)
    np.save(at / "objects.npy", objects, allow_pickle=True)
    (at / "list.pkl").write_bytes(pickle.dumps(list(wide)))
    (at / "npy").mkdir()
    (at / "npz").mkdir()
    for step, x in by_step.items():
        np.save(at / "npy" / f"embedding_{step}.npy", x)
        np.savez(at / "npz" / f"step{step}.npz", W=x, grad=2 * x)
    return {"W": w, "grad": (2 * wide).astype(BF16)}


def write_netcdf(
    path: Path,
    sizes: Mapping[str, int],
    labels: Mapping[str, Array],
    variables: Mapping[str, tuple[Sequence[str], Array]],
) -> None:
    """Write a NetCDF-4 file as xarray does: HDF5 with dimension scales."""
    with h5py.File(path, "w") as file:
        file.attrs["_NCProperties"] = np.bytes_("version=2,netcdf=4.9.2,hdf5=1.14.2")
        for i, (dim, size) in enumerate(sizes.items()):
            scale = file.create_dataset(dim, data=labels.get(dim, np.zeros(size, ">f4")))
            alone = f"This is a netCDF dimension but not a netCDF variable.{size:10d}"
            scale.make_scale(dim if dim in labels else alone)
            scale.attrs["_Netcdf4Dimid"] = np.int32(i)
        for name, (dims, values) in variables.items():
            made = file.create_dataset(name, data=values.astype(np.int8) if values.dtype == bool else values)
            if values.dtype == bool:
                made.attrs["dtype"] = np.bytes_("bool")
            for i, dim in enumerate(dims):
                made.dims[i].attach_scale(file[dim])


def labels(at: Path) -> dict[str, Array]:
    w = moving(3, 6, 40, 16)
    wide, step, token, dead = w.astype(np.float32), np.arange(6) * 10, np.arange(100, 140), np.arange(40) >= 30
    sizes = {"step": 6, "token": 40, "dim": 16}
    for name, dims in {
        "plain": ("step", "token", "dim"),
        "token_first": ("token", "step", "dim"),
        "dim_before_token": ("step", "dim", "token"),
    }.items():
        turned = wide.transpose([[*sizes].index(dim) for dim in dims])
        variables = {"W": (dims, turned), "loss": (["step"], np.linspace(4, 3, 6)), "dead": (["token"], dead)}
        write_netcdf(at / f"{name}.nc", {dim: sizes[dim] for dim in dims}, {"step": step, "token": token}, variables)
    others = ("checkpoint", "vocab", "hidden")
    write_netcdf(
        at / "other_names.nc", dict(zip(others, (6, 40, 16), strict=True)), {"checkpoint": step, "vocab": token},
        {"W": (others, wide)},
    )  # fmt: skip
    np.savez(at / "token_dead.npz", W=wide, step=step, token=token, dead=dead)
    np.savez(at / "token.npz", W=wide, step=step, token=token)
    np.savez(at / "vocab_ids.npz", W=wide, step=step, vocab_ids=token)
    many = moving(4, 4, 100, 8)
    np.savez(
        at / "token_dead_100.npz", W=many.astype(np.float32), token=np.arange(1000, 1100), dead=np.arange(100) >= 90
    )
    return {"W": w, "W_100": many}
