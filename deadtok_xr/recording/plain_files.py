"""Write arrays given in blocks as safetensors, HDF5 or npz; each writer holds one block at a time."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.bfloat16 import BFLOAT16

_SAFETENSORS = {
    np.dtype(bool): "BOOL",
    BFLOAT16: "BF16",
    **{np.dtype(f"f{n}"): f"F{8 * n}" for n in (2, 4, 8)},
    **{np.dtype(f"i{n}"): f"I{8 * n}" for n in (1, 2, 4, 8)},
    **{np.dtype(f"u{n}"): f"U{8 * n}" for n in (1, 2, 4, 8)},
}
Tick = Callable[[int], None]


@dataclass(frozen=True)
class Member:
    """One array of a file; its blocks, in order along the first axis, are iterated once."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    blocks: Iterable[NDArray[Any]]
    attrs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def _write_blocks(file: Any, member: Member, tick: Tick) -> None:
    for block in member.blocks:
        little = block.astype(block.dtype.newbyteorder("<"), copy=False) if block.dtype.kind in "iuf" else block
        octets: Any = np.ascontiguousarray(little).reshape(-1).view(np.uint8)
        file.write(memoryview(octets))
        tick(block.nbytes)


def write_safetensors(
    path: Path, members: Sequence[Member], metadata: Mapping[str, str], texts: list[str] | None, tick: Tick
) -> None:
    """Write the header, which needs only the shapes, then the arrays in the order of the header."""
    members = sorted(members, key=lambda m: -m.dtype.itemsize)  # each array is then aligned to its item size
    begin, header = 0, {"__metadata__": {**metadata, **({} if texts is None else {"token_text": json.dumps(texts)})}}
    entries: dict[str, Any] = dict(header)
    for m in members:
        offsets = [begin, begin := begin + m.nbytes]
        entries[m.name] = {"dtype": _SAFETENSORS[m.dtype], "shape": list(m.shape), "data_offsets": offsets}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for m in members:
            _write_blocks(file, m, tick)


def write_hdf5(
    path: Path, members: Sequence[Member], metadata: Mapping[str, str], texts: list[str] | None, tick: Tick
) -> None:
    """Write one contiguous dataset per array with its attributes; the metadata become attributes of the file."""
    import h5py

    with h5py.File(path, "w") as file:
        file.attrs.update(metadata)
        if texts is not None:
            file.create_dataset("token_text", data=np.array(texts, object), dtype=h5py.string_dtype())
        for m in members:
            dataset = file.create_dataset(m.name, m.shape, m.dtype)
            dataset.attrs.update(
                {k: v if isinstance(v, (int, float, str)) else json.dumps(v) for k, v in m.attrs.items()}
            )
            start = 0
            for block in m.blocks:
                dataset[start : start + len(block)] = block
                start += len(block)
                tick(block.nbytes)


def write_npz(
    path: Path, members: Sequence[Member], metadata: Mapping[str, str], texts: list[str] | None, tick: Tick
) -> None:
    """Write an uncompressed archive like that of `numpy.savez`, each array streamed into its member."""
    extra = {"metadata": np.array(json.dumps(dict(metadata)))}
    extra |= {} if texts is None else {"token_text": np.array(texts, str)}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for m in [*members, *(Member(name, v.dtype, v.shape, [v]) for name, v in extra.items())]:
            with archive.open(f"{m.name}.npy", "w", force_zip64=True) as file:
                _write_npy_header(file, m)
                if m.name in extra:
                    file.write(extra[m.name].tobytes())
                else:
                    _write_blocks(file, m, tick)


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a file that one of the writers wrote; empty for any other file."""
    try:
        if path.suffix == ".safetensors":
            with path.open("rb") as file:
                found = json.loads(file.read(int.from_bytes(file.read(8), "little"))).get("__metadata__", {})
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                found = json.loads(str(archive["metadata"]))
        else:
            import h5py

            with h5py.File(path, "r") as h5:
                found = dict(h5.attrs)
    except (OSError, ValueError, KeyError, AttributeError, zipfile.BadZipFile, MemoryError, OverflowError):
        return {}
    return {str(name): str(value) for name, value in found.items() if name != "token_text"}


def _write_npy_header(file: Any, member: Member) -> None:
    stream: BinaryIO = file
    header = {"descr": np.lib.format.dtype_to_descr(member.dtype), "fortran_order": False, "shape": member.shape}
    np.lib.format.write_array_header_1_0(stream, header)


WRITERS = {".safetensors": write_safetensors, ".h5": write_hdf5, ".hdf5": write_hdf5, ".npz": write_npz}
