"""The file formats that can be read, each told by a file's content."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from deadtok_xr.conversion.sources import Source
from deadtok_xr.errors import InputError, MissingFileError

NEEDED = "needed: an HDF5 or a safetensors file"
_HEAD = 16
_LOOKS_LIKE = {
    b"PK\x03\x04": "a zip archive, such as a torch checkpoint or .npz; save its tensors as safetensors first",
    b"\x80\x02": "a pickle, such as an old torch checkpoint; save its tensors as safetensors first",
    b"\x93NUMPY": "a single NumPy array (.npy); save it as safetensors under the name 'W' first",
    b"\x1f\x8b": "a gzip archive; unpack it first",
    b"version https://": "a Git LFS pointer instead of the file itself; fetch it with `git lfs pull`",
}


def _open_hdf5(path: Path) -> Source:
    from deadtok_xr.conversion.hdf5 import Hdf5Source

    return Hdf5Source(path)


def _open_safetensors(path: Path) -> Source:
    from deadtok_xr.conversion.safetensors import SafetensorsSource

    return SafetensorsSource(path)


def _is_hdf5(path: Path, head: bytes) -> bool:
    signature = b"\x89HDF\r\n\x1a\n"
    if head.startswith(signature):
        return True
    with path.open("rb") as file:  # behind a user block the signature is at 512, 1024, 2048, ...
        return any(file.seek(at) == at and file.read(8) == signature for at in (512, 1024, 2048, 4096))


def _is_safetensors(path: Path, head: bytes) -> bool:
    # A length below 2^32 and then JSON; a header that is cut off is safetensors as well.
    return len(head) > 8 and head[4:8] == b"\0\0\0\0" and head[8:9] == b"{"


FORMATS: tuple[tuple[Callable[[Path, bytes], bool], Callable[[Path], Source]], ...] = (
    (_is_hdf5, _open_hdf5),
    (_is_safetensors, _open_safetensors),
)
"""How each file format is recognised, by content, and opened."""


def open_source(path: str | Path) -> Source:
    """Open a file whose format is told by its content, whatever its name.

    Raises
    ------
    MissingFileError
        If there is no such file.
    InputError
        If it is a folder, or in a format that is not read, or damaged.
    """
    path = Path(path)
    _check_file(path)
    with path.open("rb") as file:
        head = file.read(_HEAD)
    for matches, open_ in FORMATS:
        if matches(path, head):
            return open_(path)
    raise InputError(f"{path} looks like {_looks_like(head)}; {NEEDED}")


def _check_file(path: Path) -> None:
    if not path.exists():
        raise MissingFileError(f"{path}: no such file; {NEEDED}")
    if path.is_dir():
        kind = "a Zarr store: open it with open_recording" if (path / "zarr.json").exists() else "a folder"
        raise InputError(f"{path} is {kind}; {NEEDED}")


def _looks_like(head: bytes) -> str:
    if not head:
        return "an empty file"
    for signature, kind in _LOOKS_LIKE.items():
        if head.startswith(signature[:_HEAD]):
            return kind
    if all(b in b"\t\r\n" or 32 <= b < 127 for b in head):
        return f"text (it begins with {head.decode('ascii')!r})"
    return f"nothing that is known here (it begins with the bytes {head[:8].hex(' ')})"
