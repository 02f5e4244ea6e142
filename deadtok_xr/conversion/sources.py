"""What a conversion reads from: named arrays in a file, read by parts along their first axis."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.errors import InputError


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
