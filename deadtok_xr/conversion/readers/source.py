"""The interface of a source: named arrays in one file or several, read part by part."""

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

_READ_BYTES = 16 * 2**20
_DAMAGE = (
    OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, OverflowError, EOFError, MemoryError,
    zipfile.BadZipFile, zlib.error, pickle.UnpicklingError,
)  # fmt: skip
"""Exceptions that readers raise for a damaged file."""

PACKED = {"scale_factor", "add_offset"}
"""Attributes of an array whose numbers are not its values (CF conventions)."""

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
        The name of the type in the file, for messages.
    buffer_bytes
        Memory that reading in order needs besides the values, for instance for chunks of the file.
    in_order
        Whether reading an earlier part again means reading everything before it again.
    late
        In stacked files: the number of steps at the beginning that do not have it.
    reason
        Why it cannot be read, if that is not its type.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any] | None
    type_name: str
    buffer_bytes: int = 0
    in_order: bool = False
    late: int = 0
    reason: str = ""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * (self.dtype.itemsize if self.dtype is not None else 0)

    def __str__(self) -> str:
        return self.reason or f"{self.type_name} {self.shape}"


class Source(Protocol):
    """Open files of named arrays. A context manager."""

    path: Path
    format: str
    entries: Mapping[str, Entry]
    attributes: Mapping[str, Any]
    aliases: Mapping[str, str] = MappingProxyType({})
    """Entries that share their memory with another (tied weights): the later name -> the first."""
    dims: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    """The names that the file gives to the axes of an entry."""
    varying: frozenset[str] = frozenset()
    """Attributes that every checkpoint of a run has, with different values."""
    ordered: bool = False
    """Whether the entries of a model are in the order of its parameters; many formats sort them by name."""
    notes: tuple[str, ...] = ()
    """What a user should know about how the source was read."""

    def read(self, name: str, *where: slice) -> NDArray[Any]:
        """Read a part of an array: a slice (with a start and a stop, inside the array) for each leading axis."""
        ...

    def unwritten(self, name: str) -> list[range]:
        """Return parts of the first axis that the file has reserved but that were never written."""
        ...

    def files(self) -> list[Path]:
        """Return every file that is read."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class PlainFile(Source):
    """One file in which arrays lie as they are, uncompressed; a subclass reads where each begins."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("rb", buffering=0)
        self._begins: dict[str, int] = {}
        try:
            with explaining_damage(path, "its header", self.format):
                self._read_header()
        except BaseException:
            self.close()
            raise

    def _read_header(self) -> None:
        """Set ``entries``, ``attributes`` and ``_begins``: the first byte of each array in the file."""
        raise NotImplementedError

    def _require_bytes(self, name: str, end: int, size: int) -> None:
        """Check that a file of so many bytes holds all of an array."""
        if end > size:
            raise InputError(
                f"{self.path} is truncated: {name!r} ends at byte {end}, but the file has {size} bytes; copy it again "
                "from the original"
            )

    def read(self, name: str, *where: slice) -> NDArray[Any]:
        entry = self.entries[name]
        with explaining_damage(self.path, describe_part(name, where), self.format):
            assert entry.dtype is not None
            return read_slab(self._file, self._begins[name], entry.dtype, entry.shape, where)

    def files(self) -> list[Path]:
        return [self.path]

    def unwritten(self, name: str) -> list[range]:
        return []

    def close(self) -> None:
        self._file.close()


class Wrapped(Source):
    """A source that delegates to another one; its subclasses change some entries."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.path, self.format = source.path, source.format
        self.attributes, self.varying, self.aliases = source.attributes, source.varying, source.aliases
        self.dims, self.ordered, self.notes = source.dims, source.ordered, source.notes
        self.entries: Mapping[str, Entry] = source.entries

    def read(self, name: str, *where: slice) -> NDArray[Any]:
        return self.source.read(name, *where)

    def unwritten(self, name: str) -> list[range]:
        return self.source.unwritten(name)

    def files(self) -> list[Path]:
        return self.source.files()

    def close(self) -> None:
        self.source.close()


class Renamed(Wrapped):
    """A source with other names for some entries: the new name -> that of the source."""

    def __init__(self, source: Source, names: Mapping[str, str]) -> None:
        super().__init__(source)
        self._names = names
        new = {old: name for name, old in names.items()}
        self.entries = {new.get(key, key): entry for key, entry in source.entries.items()}
        self.dims = {new.get(key, key): dims for key, dims in source.dims.items()}
        self.aliases = {new.get(a, a): new.get(b, b) for a, b in source.aliases.items()}

    def read(self, name: str, *where: slice) -> NDArray[Any]:
        return self.source.read(self._names.get(name, name), *where)

    def unwritten(self, name: str) -> list[range]:
        return self.source.unwritten(self._names.get(name, name))


def read_all(source: Source, name: str) -> NDArray[Any]:
    """Read all of a small array."""
    return source.read(name, *(slice(0, n) for n in source.entries[name].shape[:1]))


def dtype_of(source: Source, name: str) -> np.dtype[Any]:
    """Return the dtype of an entry, or raise an InputError if it cannot be read."""
    entry = source.entries[name]
    if entry.dtype is None:
        raise InputError(
            f"{source.path}: variable {name!r} cannot be read: it is {entry}; expected: plain numbers; save it as such"
        )
    return entry.dtype


def unreadable_type(name: str) -> str:
    """Describe a type whose values cannot be read as weights, with what can be done."""
    lower = name.lower().replace("_", "")
    if "float8" in lower or lower.startswith("f8e") or lower in ("void8", "v1", "|v1", "<f1", "|f1", "f1"):
        said = name if "8" in name else f"{name}, one byte an element, as float8 has"
        return f"{said} (float8: cast it where it was made, with its scale, and save bfloat16 or float32)"
    return name


def describe_part(name: str, where: tuple[slice, ...]) -> str:
    """Describe a part of an array, for messages."""
    return ", ".join([f"variable {name!r}", *(f"{s.start}..{s.stop - 1}" for s in where[:1])])


def slabs(shape: tuple[int, ...], itemsize: int, max_bytes: int) -> Iterator[tuple[slice, ...]]:
    """Divide an array into parts of at most ``max_bytes``, in order, each as arguments for `Source.read`."""
    row = max(1, math.prod(shape[1:]) * itemsize)
    if row <= max_bytes or len(shape) == 1:
        step = max(1, max_bytes // row)
        yield from ((slice(i, min(i + step, shape[0])),) for i in range(0, shape[0], step))
        return
    for i in range(shape[0]):
        yield from ((slice(i, i + 1), *rest) for rest in slabs(shape[1:], itemsize, max_bytes))


def read_slab(
    file: BinaryIO, begin: int, dtype: np.dtype[Any], shape: tuple[int, ...], where: tuple[slice, ...]
) -> NDArray[Any]:
    """Read a part of an array that lies in a file as plain bytes in C order, from the byte ``begin``.

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
    buffer = memoryview(cast(Any, values.view(np.uint8)))
    n = len(buffer) // max(1, math.prod(sizes[:cut]))
    for i, index in enumerate(np.ndindex(*sizes[:cut])):
        at = (*(s.start + i for s, i in zip(where, index, strict=False)), *(s.start for s in where[cut:]))
        file.seek(begin + dtype.itemsize * sum(a * s for a, s in zip(at, strides, strict=True)))
        _fill(file, buffer[i * n : (i + 1) * n])
    return values.reshape(sizes)


def _fill(file: BinaryIO, buffer: memoryview) -> None:
    while buffer:  # the system reads at most 2 GB at a time, and a decompressed file keeps a copy of what it reads
        n = file.readinto(buffer[:_READ_BYTES])  # type: ignore[attr-defined]
        if not n:
            raise OSError("the file has become shorter")
        buffer = buffer[n:]


def list_entries(source: Source) -> str:
    """List what a source holds, for messages."""
    names = [f"{name} {entry}" for name, entry in source.entries.items()]
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return (", ".join(names[:20]) + more) or "nothing"


@contextmanager
def explaining_damage(path: Path, what: str, format_: str) -> Iterator[None]:
    """Turn any exception that a reader raises for a damaged file into an InputError of one sentence."""
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
