"""Read token ids or texts from the Arrow files of the library `datasets`, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.errors import InputError

_IDS = ("input_ids", "tokens", "token_ids", "ids")
_TEXT = "text"
_IPC_FILE = b"ARROW1"


def read(path: Path, at_most: int) -> Iterator[NDArray[Any] | list[str]]:
    """Yield the token ids of a file as arrays, or its texts as lists, in parts of some ``at_most`` ids or characters.

    Ids are those of the column `input_ids`, or else `tokens`, `token_ids` or `ids`, lists or single numbers; texts
    those of `text`. Rows without a value are left out.

    Raises
    ------
    InputError
        If `pyarrow` is not installed, or there is no such column.
    """
    with _batches(path) as (schema, batches):
        name = _column(path, schema)
        for batch in batches:
            values = batch.column(name).drop_null()
            if name == _TEXT:
                yield from _texts(values, at_most)
            else:
                yield from _ids(values, at_most)


@contextmanager
def _batches(path: Path) -> Iterator[tuple[Any, Iterator[Any]]]:
    """Open a file, which is mapped into memory: `datasets` writes the format for streams, others that for files."""
    try:
        import pyarrow as pa
    except ImportError:
        raise InputError(
            f"{path} is an Arrow file, which the library pyarrow reads: pip install 'deadtok_xr[arrow]'"
        ) from None
    with path.open("rb") as file:
        in_file_format = file.read(len(_IPC_FILE)) == _IPC_FILE
    with pa.memory_map(str(path)) as source:
        if in_file_format:
            reader = pa.ipc.open_file(source)
            yield reader.schema, (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            reader = pa.ipc.open_stream(source)
            yield reader.schema, iter(reader)


def _column(path: Path, schema: Any) -> str:
    import pyarrow.types as kinds

    def holds_ids(kind: Any) -> bool:
        return kinds.is_integer(kind) or (hasattr(kind, "value_type") and kinds.is_integer(kind.value_type))

    for name in _IDS:
        if name in schema.names and holds_ids(schema.field(name).type):
            return name
    if _TEXT in schema.names and _is_text(schema.field(_TEXT).type):
        return _TEXT
    columns = ", ".join(f"{field.name} ({field.type})" for field in schema) or "none"
    raise InputError(
        f"{path} has the columns {columns}; expected: integers in {', '.join(_IDS[:-1])} or {_IDS[-1]}, or a column "
        f"{_TEXT!r}"
    )


def _is_text(kind: Any) -> bool:
    import pyarrow.types as kinds

    return bool(kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind))


def _ids(values: Any, at_most: int) -> Iterator[NDArray[Any]]:
    import pyarrow.types as kinds

    if not kinds.is_integer(values.type):
        values = values.flatten().drop_null()  # of slices of lists, and not of what lies around these
    for begin in range(0, len(values), at_most):
        yield np.asarray(values[begin : begin + at_most].to_numpy(zero_copy_only=False))


def _texts(values: Any, at_most: int) -> Iterator[list[str]]:
    texts: list[str] = []
    length = 0
    for value in values:
        texts.append(value.as_py())
        length += len(texts[-1])
        if length >= at_most:
            yield texts
            texts, length = [], 0
    if texts:
        yield texts
