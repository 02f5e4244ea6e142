"""What a conversion reads from: named arrays in a file, read by parts along their first axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

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


@dataclass(frozen=True)
class Entry:
    """One array of a source.

    Attributes
    ----------
    shape
        Its shape; () for a scalar.
    dtype
        The numpy dtype of what `Source.read` returns, in native byte order; None for anything but numbers.
    type_name
        What the file calls the type, for messages.
    buffer_bytes
        Memory that the file's own layout takes while it is read in order, beside the values.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any] | None
    type_name: str
    buffer_bytes: int = 0

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * (self.dtype.itemsize if self.dtype is not None else 0)

    def __str__(self) -> str:
        return f"{self.type_name} {self.shape}"


class Source(Protocol):
    """An open file of named arrays. A context manager."""

    path: Path
    format: str
    entries: Mapping[str, Entry]
    attributes: Mapping[str, Any]

    def read(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """The values ``start <= i < stop`` along the first axis; of a scalar, the scalar."""
        ...

    def unwritten(self, name: str) -> list[range]:
        """Parts of the first axis that the file makes room for but that nobody ever wrote."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def whole(source: Source, name: str) -> NDArray[Any]:
    """All of a small array."""
    shape = source.entries[name].shape
    return source.read(name, 0, shape[0] if shape else 1)


def listing(source: Source) -> str:
    """What a source holds, for messages."""
    names = [f"{name} {entry}" for name, entry in source.entries.items()]
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return (", ".join(names[:20]) + more) or "nothing"


@contextmanager
def reading(path: Path, what: str, format_: str) -> Iterator[None]:
    """Turn whatever a reader raises over a damaged file into one sentence."""
    try:
        yield
    except InputError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"{path}: {what} cannot be read as {format_} ({reason}): the file is damaged, truncated or still "
            "being written; copy it again from the original"
        ) from error


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
