"""What a conversion reads from: named arrays in a file or several, read by parts."""

from __future__ import annotations

import math
import pickle
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, BinaryIO, Protocol, Self, cast

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.errors import InputError

_PIECE = 16 * 2**20
_DAMAGE = (
    OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, OverflowError, EOFError, MemoryError,
    zipfile.BadZipFile, zlib.error, pickle.UnpicklingError,
)  # fmt: skip
"""What readers raise over a damaged file."""


TEXTS = "token_text"
"""The attribute of a source that holds the text of each row's token."""


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
    late
        How many of the first steps it is not there for, among stacked files.
    in_order
        Whether reading part of it again means reading everything before that part again.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any] | None
    type_name: str
    buffer_bytes: int = 0
    in_order: bool = False
    late: int = 0

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * (self.dtype.itemsize if self.dtype is not None else 0)

    def __str__(self) -> str:
        return f"{self.type_name} {self.shape}"


class Source(Protocol):
    """Open files of named arrays. A context manager."""

    path: Path
    format: str
    entries: Mapping[str, Entry]
    attributes: Mapping[str, Any]
    aliases: Mapping[str, str] = MappingProxyType({})
    """Entries that are the very same numbers as another (tied weights): the later name -> the first."""

    def read(self, name: str, *where: slice) -> NDArray[Any]:
        """Part of an array: a slice (with a start and a stop, inside the array) per leading axis; of a scalar none."""
        ...

    def unwritten(self, name: str) -> list[range]:
        """Parts of the first axis that the file makes room for but that nobody ever wrote."""
        ...

    def files(self) -> list[Path]:
        """Every file that is read."""
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
    return source.read(name, *(slice(0, n) for n in source.entries[name].shape[:1]))


def readable(source: Source, name: str) -> np.dtype[Any]:
    """The dtype of an entry that can be read, or an error."""
    entry = source.entries[name]
    if entry.dtype is None:
        raise InputError(
            f"{source.path}: variable {name!r} cannot be read: it is {entry}; needed: plain numbers; save it as such"
        )
    return entry.dtype


def part_of(name: str, where: tuple[slice, ...]) -> str:
    """What is read, for messages."""
    return ", ".join([f"variable {name!r}", *(f"{s.start}..{s.stop - 1}" for s in where[:1])])


def slabs(shape: tuple[int, ...], itemsize: int, most: int) -> Iterator[tuple[slice, ...]]:
    """An array in parts of no more than ``most`` bytes, in order: what `Source.read` takes for each."""
    row = max(1, math.prod(shape[1:]) * itemsize)
    if row <= most or len(shape) == 1:
        step = max(1, most // row)
        yield from ((slice(i, min(i + step, shape[0])),) for i in range(0, shape[0], step))
        return
    for i in range(shape[0]):
        yield from ((slice(i, i + 1), *rest) for rest in slabs(shape[1:], itemsize, most))


def read_slab(
    file: BinaryIO, begin: int, dtype: np.dtype[Any], shape: tuple[int, ...], where: tuple[slice, ...]
) -> NDArray[Any]:
    """Part of an array that lies in a file as plain bytes in C order, beginning at a byte.

    Raises
    ------
    OSError
        If the file has become shorter.
    """
    where = (*where, *(slice(0, n) for n in shape[len(where) :]))
    sizes = [s.stop - s.start for s in where]
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    cut = max((i for i, (size, n) in enumerate(zip(sizes, shape, strict=True)) if size < n), default=0)
    values = np.empty(math.prod(sizes), dtype)
    room = memoryview(cast(Any, values.view(np.uint8)))
    n = len(room) // max(1, math.prod(sizes[:cut]))
    for i, index in enumerate(np.ndindex(*sizes[:cut])):
        at = (*(s.start + i for s, i in zip(where, index, strict=False)), *(s.start for s in where[cut:]))
        file.seek(begin + dtype.itemsize * sum(a * s for a, s in zip(at, strides, strict=True)))
        _fill(file, room[i * n : (i + 1) * n])
    return values.reshape(sizes)


def _fill(file: BinaryIO, room: memoryview) -> None:
    while room:  # a file of the system gives 2 GB at most, and one that is unpacked holds a copy of what it gives
        n = file.readinto(room[:_PIECE])  # type: ignore[attr-defined]
        if not n:
            raise OSError("the file has become shorter")
        room = room[n:]


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
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"{path}: {what} cannot be read as {format_} ({reason}): the file is damaged, truncated or still "
            "being written; copy it again from the original"
        ) from error
