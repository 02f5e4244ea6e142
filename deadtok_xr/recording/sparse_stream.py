"""Write one matrix of a store as a stream of prime-rl's sparse updates: its first step in full, then what changes.

The stream is written under a temporary name in the same folder and renamed when it is complete. Values are compared by
their bits, so that a zero that changes its sign is among the changes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deadtok_xr.bfloat16 import BFLOAT16
from deadtok_xr.errors import DestinationExistsError, InputError
from deadtok_xr.recording.plain_files import Member, write_safetensors
from deadtok_xr.sparse_updates import FORMAT, MANIFEST, PATCH, VERSION, index_dtype, tensor_hash

_METADATA = {"format": "pt"}
Tick = Callable[[int], None]


def write_stream(out: Path, x: xr.DataArray, parameter: str, *, compress: bool, overwrite: bool, tick: Tick) -> None:
    """Write a lazy matrix (step, token, dim) as the folders ``step_N`` in ``out``.

    Parameters
    ----------
    out
        The folder to make.
    x
        The matrix, in the order of its rows in the model.
    parameter
        The name of the parameter in the checkpoints.
    compress
        Whether to write each patch as one zstd frame.
    overwrite
        Replace another stream at ``out``.
    tick
        Called with the bytes of each step.

    Raises
    ------
    InputError
        If the rows are not all rows of a parameter.
    DestinationExistsError
        If ``out`` exists, unless it is a stream and ``overwrite``.
    """
    ids = x["token"].values
    if not np.array_equal(ids, np.arange(len(ids))):
        raise InputError(
            f"{out}: a stream holds positions in a whole parameter, but the tokens are {ids[0]} to {ids[-1]}, "
            f"{len(ids)} of them; expected: a store of all tokens 0, 1, 2, ..., with tokens='all' (--tokens all)"
        )
    _check_destination(out, overwrite=overwrite)
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir()
        _write_steps(unfinished, x, parameter, compress=compress, tick=tick)
        if out.exists():
            shutil.rmtree(out)
        unfinished.replace(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _check_destination(out: Path, *, overwrite: bool) -> None:
    if not out.exists() and not out.is_symlink():
        return
    if not overwrite:
        raise DestinationExistsError(
            f"{out} exists already and is left as it is: choose another name, or say --overwrite (overwrite=True)"
        )
    if out.is_symlink() or not out.is_dir() or not any((item / MANIFEST).is_file() for item in out.iterdir()):
        raise DestinationExistsError(f"{out} is not a stream of sparse updates, so it is not replaced: name another")


def _write_steps(folder: Path, x: xr.DataArray, parameter: str, *, compress: bool, tick: Tick) -> None:
    before: tuple[int, NDArray[Any]] | None = None
    for step, values in _states(x):
        place = folder / f"step_{step}"
        place.mkdir()
        if before is None:
            member = Member(parameter, values.dtype, values.shape, [values])
            write_safetensors(place / "model.safetensors", [member], _METADATA, None, lambda n: None)
        else:
            _write_update(place, parameter, before, (step, values), compress=compress)
        before = step, values.copy()
        tick(values.nbytes)


def _states(x: xr.DataArray) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield each step with its values, a chunk of steps at a time."""
    n = x.chunks[0][0] if x.chunks else len(x)
    for start in range(0, len(x), n):
        block = x[start : start + n].values
        yield from zip(x["step"].values[start : start + n].tolist(), block, strict=True)


def _write_update(
    folder: Path, parameter: str, before: tuple[int, NDArray[Any]], after: tuple[int, NDArray[Any]], *, compress: bool
) -> None:
    """Write the manifest of an update, and the patch if anything changed."""
    (base_step, old), (step, new) = before, after
    words = f"u{new.dtype.itemsize}"
    at = np.flatnonzero(new.reshape(-1).view(words) != old.reshape(-1).view(words)).astype(index_dtype(new.size))
    values = new.reshape(-1)[at]
    patch = folder / PATCH
    if len(at):
        members = [
            Member(f"tensor_0.{name}", v.dtype, v.shape, [v]) for name, v in (("indices", at), ("values", values))
        ]
        write_safetensors(patch, members, _METADATA, None, lambda n: None)
        if compress:
            _compress(patch)
    tensor = {
        "name": parameter, "shape": list(new.shape), "dtype": new.dtype.name, "indices": "tensor_0.indices",
        "values": "tensor_0.values", "numel": new.size, "changed_numel": len(at),
        "checksum": tensor_hash(at) ^ tensor_hash(values),
    }  # fmt: skip
    stats = {
        "total_tensors": 1, "patched_tensors": int(len(at) > 0), "total_numel": new.size, "changed_numel": len(at),
        "sparsity": 1 - len(at) / new.size, "patch_bytes": patch.stat().st_size if len(at) else 0,
    }  # fmt: skip
    manifest = {
        "format": FORMAT, "version": VERSION, "step": step, "base_step": base_step,
        "compute_dtype": new.dtype.name if new.dtype == BFLOAT16 else None,
        "compressed": compress and len(at) > 0, "patch_file": PATCH if len(at) else None,
        "tensors": [tensor] if len(at) else [], "stats": stats,
    }  # fmt: skip
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _compress(path: Path) -> None:
    import zstandard

    path.write_bytes(zstandard.ZstdCompressor().compress(path.read_bytes()))


def size_of(out: Path) -> int:
    """Return the bytes of a file, or of all files of a folder."""
    return out.stat().st_size if out.is_file() else sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
