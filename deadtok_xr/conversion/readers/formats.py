"""Recognise the format of a file by its content, and open it."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from deadtok_xr.conversion.readers.parts import refuse_lone_part
from deadtok_xr.conversion.readers.source import Source, explaining_damage
from deadtok_xr.errors import InputError, MissingFileError

NEEDED = (
    "expected: an HDF5, NetCDF-4, safetensors, .npz, torch or GGUF file, a Zarr array or group, or a folder of "
    "checkpoints"
)
_HEAD = 16
_ZIP = b"PK\x03\x04"
_LOOKS_LIKE = {
    _ZIP: "a zip archive that holds neither .npy arrays nor a torch checkpoint; unpack it first",
    b"\x80": "a pickle that is not a torch checkpoint, and is not loaded; save one stacked array where it was made, "
    "with numpy.save or as safetensors",
    b"\x1f\x8b": "a gzip archive; unpack it first",
    b"version https://": "a Git LFS pointer instead of the file itself; fetch it with `git lfs pull`",
}


def _open_hdf5(path: Path) -> Source:
    from deadtok_xr.conversion.readers.hdf5 import Hdf5Source

    return Hdf5Source(path)


def _open_safetensors(path: Path) -> Source:
    from deadtok_xr.conversion.readers.safetensors import SafetensorsSource

    return SafetensorsSource(path)


def _open_npz(path: Path) -> Source:
    from deadtok_xr.conversion.readers.npz import NpzSource

    return NpzSource(path)


def _open_torch(path: Path) -> Source:
    from deadtok_xr.conversion.readers.torch_checkpoint import TorchSource

    return TorchSource(path)


def _open_gguf(path: Path) -> Source:
    from deadtok_xr.conversion.readers.gguf import GgufSource

    return GgufSource(path)


def _open_shards(path: Path) -> Source:
    from deadtok_xr.conversion.readers.merged import open_sharded

    return open_sharded(path, open_file)


def _is_hdf5(path: Path, head: bytes) -> bool:
    signature = b"\x89HDF\r\n\x1a\n"
    if head.startswith(signature):
        return True
    with path.open("rb") as file:  # behind a user block the signature is at 512, 1024, 2048, ...
        return any(file.seek(at) == at and file.read(8) == signature for at in (512, 1024, 2048, 4096))


def _is_safetensors(path: Path, head: bytes) -> bool:
    # a length below 2^32 and then JSON; a file with a truncated header is safetensors as well
    return len(head) > 8 and head[4:8] == b"\0\0\0\0" and head[8:9] == b"{"


def _is_torch(path: Path, head: bytes) -> bool:
    if head.startswith(_ZIP):
        return any(re.fullmatch(r"[^/]+/data\.pkl", name) for name in _zip_names(path))
    return head.startswith(b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19")  # before torch 1.6


def _is_npz(path: Path, head: bytes) -> bool:
    if head.startswith(_ZIP):
        return any(name.endswith(".npy") for name in _zip_names(path))
    return head.startswith(b"\x93NUMPY")


def _zip_names(path: Path) -> list[str]:
    with explaining_damage(path, "its table of contents", "a zip archive"), zipfile.ZipFile(path) as archive:
        return archive.namelist()


def _is_gguf(path: Path, head: bytes) -> bool:
    return head.startswith(b"GGUF")


def _is_index(path: Path, head: bytes) -> bool:
    return path.name.endswith(".index.json")


FORMATS: tuple[tuple[Callable[[Path, bytes], bool], Callable[[Path], Source]], ...] = (
    (_is_hdf5, _open_hdf5),
    (_is_safetensors, _open_safetensors),
    (_is_torch, _open_torch),
    (_is_npz, _open_npz),
    (_is_gguf, _open_gguf),
    (_is_index, _open_shards),
)
"""How each file format is recognised, by content, and opened."""


def open_source(path: str | Path, *, steps: Literal["names", "content"] | None = None) -> Source:
    """Open a file in the format that its content shows, whatever its name, or a folder of checkpoints.

    Parameters
    ----------
    path
        A file, or a folder as `deadtok_xr.conversion.readers.folders.open_folder` reads it.
    steps
        For checkpoints whose names and contents contradict each other: which of them gives the steps.

    Raises
    ------
    MissingFileError
        If there is no such file.
    InputError
        If its format cannot be read, or it is damaged.
    """
    path = Path(path)
    if not path.exists():
        raise MissingFileError(f"{path}: no such file; {NEEDED}")
    if not path.is_dir():
        refuse_lone_part(path, told=steps == "names")
        return open_file(path)
    if any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zarray")):
        from deadtok_xr.conversion.readers.zarr_store import ZarrSource

        return ZarrSource(path)
    from deadtok_xr.conversion.readers.folders import open_folder

    return open_folder(path, open_file, steps)


def open_file(path: Path) -> Source:
    """Open a file in the format that its content shows."""
    if not path.is_file():
        raise InputError(f"{path} is not a regular file; {NEEDED}")
    with explaining_damage(path, "the file", "bytes"), path.open("rb") as file:
        head = file.read(_HEAD)
    for matches, open_ in FORMATS:
        if matches(path, head):
            return open_(path)
    raise InputError(f"{path} looks like {_looks_like(head)}; {NEEDED}")


def _looks_like(head: bytes) -> str:
    if not head:
        return "an empty file"
    for signature, kind in _LOOKS_LIKE.items():
        if head.startswith(signature[:_HEAD]):
            return kind
    if all(b in b"\t\r\n" or 32 <= b < 127 for b in head):
        return f"text (it begins with {head.decode('ascii')!r})"
    return f"no known format (it begins with the bytes {head[:8].hex(' ')})"
