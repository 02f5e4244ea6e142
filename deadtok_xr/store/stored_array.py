"""Where the values of a lazy array lie in a store, and their chunks decoded step by step, side by side.

Dask knows a lazy array as tasks. The engine decodes the chunks of the same steps together, a few steps at a time, and
the one step that follows without the rest of its chunk. For that it must know where the values lie: a `StoredArray`,
which travels with the array (`dask_arrays.TracedArray`) through selections.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, BinaryIO

import dask.array as da
import numpy as np
import zarr
from numpy.typing import NDArray
from zstandard import ZstdDecompressor, ZstdError

from deadtok_xr.dask_arrays import Index, origin_of
from deadtok_xr.store import motion_index
from deadtok_xr.store.reading import ChunkReader, chunk_reader

_BROKEN = (ZstdError, RuntimeError, ValueError, OSError)
_SKIPPED_AT_ONCE = 8


@dataclass(frozen=True, eq=False)
class StoredArray:
    """A selection of a matrix of a store: (step, token, dim), or (run, step, token, dim).

    Attributes
    ----------
    array
        The array of the store.
    index
        For each of its axes the position, or the positions in the order in which they are wanted.
    axes
        For each axis of the selection, which axis of the store it is.
    """

    array: zarr.Array[Any]
    index: tuple[int | NDArray[np.int64], ...]
    axes: tuple[int, ...]

    @classmethod
    def whole(cls, array: zarr.Array[Any]) -> StoredArray:
        """Return all of an array."""
        return cls(array, tuple(np.arange(n) for n in array.shape), tuple(range(array.ndim)))

    def select(self, index: tuple[Index, ...]) -> StoredArray:
        """Return a selection of the selection, one index per axis."""
        wanted = list(self.index)
        for axis, positions in zip(self.axes, index, strict=True):
            chosen: Any = self.index[axis][positions]  # type: ignore[index]
            wanted[axis] = int(chosen) if np.ndim(chosen) == 0 else chosen
        axes = tuple(axis for axis, i in zip(self.axes, index, strict=True) if not isinstance(i, int))
        return replace(self, index=tuple(wanted), axes=axes)

    def transpose(self, axes: tuple[int, ...]) -> StoredArray:
        """Return the same selection with its axes in another order."""
        return replace(self, axes=tuple(self.axes[k] for k in axes))

    @property
    def is_readable(self) -> bool:
        """Whether it is (step, token, dim) of one run, with ascending steps and all dims: `StepReader` reads these."""
        n = self.array.ndim
        if self.axes != (n - 3, n - 2, n - 1) or not len(self.tokens) or not len(self.steps):
            return False
        dims = self.index[-1]
        return bool((np.diff(self.steps) > 0).all() and np.array_equal(dims, np.arange(self.array.shape[-1])))

    @property
    def steps(self) -> NDArray[np.int64]:
        """Positions of the steps in the store."""
        return self.index[-3]  # type: ignore[return-value]

    @property
    def tokens(self) -> NDArray[np.int64]:
        """Positions of the tokens in the store."""
        return self.index[-2]  # type: ignore[return-value]

    @property
    def leading(self) -> tuple[int, ...]:
        """Position of the run, where the array holds several."""
        return self.index[:-3]  # type: ignore[return-value]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Steps, tokens, dims."""
        return len(self.steps), len(self.tokens), self.array.shape[-1]

    @property
    def chunk_steps(self) -> int:
        """Steps of a chunk."""
        return int(self.array.chunks[-3])


def stored_array(x: Any) -> StoredArray | None:
    """Return where a lazy array (step, token, dim) lies, if the engine can read it from there."""
    origin = origin_of(x)
    return origin if isinstance(origin, StoredArray) and origin.is_readable else None


def stored_dtype(x: Any) -> np.dtype[Any]:
    """Return the dtype in which the values of an array were recorded: bfloat16 of decoded float32."""
    origin = origin_of(x)
    return np.dtype(origin.array.dtype if isinstance(origin, StoredArray) else x.dtype)


def first_step(x: da.Array) -> da.Array:
    """Return the first step, (1, token, dim), of which no more is decoded than that where it lies in a store."""
    stored = stored_array(x)
    if stored is None:
        return x[:1]
    chunks = ((1,), *((n,) for n in stored.shape[1:]))
    return da.map_blocks(
        _read_first, stored, dtype=stored.array.dtype, chunks=chunks, meta=np.empty((0, 0, 0), x.dtype)
    )


def _read_first(stored: StoredArray) -> NDArray[Any]:
    out = np.empty((1, *stored.shape[1:]), stored.array.dtype)
    reader = StepReader(stored, 0, 1)
    try:
        reader.read(out)
    finally:
        reader.close()
    return out


class StepReader:
    """The steps of a selection from one position to another, and the one after them, in order.

    Every chunk of which one of the steps themselves is read is read to its end, so that its checksum is checked. Of the
    step after them no more is decoded than that.
    """

    def __init__(self, stored: StoredArray, start: int, stop: int) -> None:
        self.dtype = stored.array.dtype
        self._stored, self._n_own = stored, stop - start
        self._positions = stored.steps[start : stop + 1]
        self._next = 0
        self._row: RowReader | None = None

    def read(self, out: NDArray[Any]) -> None:
        """Fill ``out`` (t, n, d) with the next steps."""
        height = self._stored.chunk_steps
        filled = 0
        while filled < len(out):
            ahead = self._positions[self._next : self._next + len(out) - filled]
            row, offset = divmod(int(ahead[0]), height)
            n = int(np.argmin(ahead == ahead[0] + np.arange(len(ahead)))) or len(ahead)  # positions without a gap
            n = min(n, height - offset)
            if self._row is None:
                self._row = RowReader(self._stored, row)
            self._row.skip(offset - self._row.position)
            self._row.read(out[filled : filled + n])
            filled, self._next = filled + n, self._next + n
            self._leave(row)

    def _leave(self, row: int) -> None:
        """Finish a row of chunks unless its next steps are wanted."""
        height = self._stored.chunk_steps
        if self._row is None or (self._next < len(self._positions) and self._positions[self._next] // height == row):
            return
        own = self._positions[: self._n_own] // height
        if (own == row).any():
            self._row.finish()
        self.close()

    def close(self) -> None:
        """Let go of the files."""
        if self._row is not None:
            self._row.close()
            self._row = None


class RowReader:
    """The values of one row of chunks, decoded together, a few steps at a time."""

    def __init__(self, stored: StoredArray, row: int) -> None:
        self.position = 0
        self._parts = _parts(stored, row)
        self._order = _order(stored.tokens)
        self._shape, self._dtype = stored.shape[1:], stored.array.dtype
        self._room: NDArray[Any] | None = None

    def skip(self, n: int) -> None:
        """Pass over steps; they are decoded, since a stream has no other way."""
        if n:
            unused = np.empty((min(n, _SKIPPED_AT_ONCE), *self._shape), self._dtype)
        while n:
            self._read_parts(unused[:n])
            n -= len(unused[:n])

    def read(self, out: NDArray[Any]) -> None:
        """Fill ``out`` (t, n, d) with the next steps."""
        rows = out
        if self._order is not None:
            if self._room is None or len(self._room) < len(out):
                self._room = np.empty_like(out)
            rows = self._room[: len(out)]
        self._read_parts(rows)
        if self._order is not None:
            np.take(rows, self._order, axis=1, out=out)

    def _read_parts(self, out: NDArray[Any]) -> None:
        for part in self._parts:
            part.read(out)
        self.position += len(out)

    def finish(self) -> None:
        """Read what is left of the chunks, so that their checksums are checked, and let go of them."""
        for part in self._parts:
            part.finish()
            part.chunk.close()

    def close(self) -> None:
        """Let go of the files."""
        for part in self._parts:
            part.chunk.close()


def _order(tokens: NDArray[np.int64]) -> NDArray[np.intp] | None:
    """Where each wanted row is among those rows in the order of the disk; None where that is the same."""
    by_disk = np.argsort(tokens)
    return None if (np.diff(by_disk) == 1).all() else np.argsort(by_disk)


def _parts(stored: StoredArray, row: int) -> list[_Part]:
    """The chunks of a row that hold wanted tokens, each with its rows and their places."""
    height = stored.array.chunks[-2]
    on_disk = np.sort(stored.tokens)
    reader = chunk_reader(stored.array)
    leading = stored.leading
    parts = []
    for chunk in np.unique(on_disk // height).tolist():
        begin, end = np.searchsorted(on_disk, [chunk * height, (chunk + 1) * height]).tolist()
        rows = on_disk[begin:end] - chunk * height
        parts.append(_Part(reader, (*leading, row, chunk, 0), rows, slice(begin, end)))
    return parts


class _Part:
    """One chunk, opened when it is first read."""

    def __init__(self, reader: ChunkReader, block_id: tuple[int, ...], rows: NDArray[np.int64], into: slice) -> None:
        self.chunk = _Stream(reader, block_id) if reader.direct else _Whole(reader, block_id)
        self._into = into
        self._whole = len(rows) == reader.array.chunks[-2]
        self._rows: Any = slice(int(rows[0]), int(rows[-1]) + 1) if (np.diff(rows) == 1).all() else rows
        self._room = None if self._whole else np.empty((1, *reader.array.chunks[-2:]), reader.array.dtype)
        self._where, self._wanted = (reader.array, block_id), rows
        self._height, self._at = reader.array.chunks[-3], 0
        self._still: NDArray[Any] | None = None

    def read(self, out: NDArray[Any]) -> None:
        """Fill these rows of ``out`` with the next steps; those after the last motion without decoding them."""
        stop = self._at + len(out)
        n = len(out) if stop == 1 else max(0, min(stop, self._n_moving) - self._at)
        if n:
            self._decode(out[:n])
            if stop == 1 or stop >= self._n_moving:
                self._still = out[n - 1, self._into].copy()
        if n < len(out):
            out[n:, self._into] = self._still
        self._at = stop

    @cached_property
    def _n_moving(self) -> int:
        """How many steps there are up to the last motion of a wanted row; all, where nothing is kept of that."""
        bounds = motion_index.read(*self._where)
        return self._height if bounds is None else int(bounds[1, self._wanted].max()) + 1

    def finish(self) -> None:
        """Look at the checksum at the end, unless the end was not needed."""
        if self._n_moving == self._height:
            self.chunk.finish()

    def _decode(self, out: NDArray[Any]) -> None:
        if self._room is None:
            self.chunk.read(out, self._into)
            return
        for step in out:
            self.chunk.read(self._room, slice(0, self._room.shape[1]))
            step[self._into] = self._room[0, self._rows]


_idle: list[ZstdDecompressor] = []
"""Decompressors between two chunks: their windows of half a megabyte are not given back and taken anew."""


class _Stream:
    """A chunk of plain bytes and zstd, decompressed as far as it is asked for."""

    def __init__(self, reader: ChunkReader, block_id: tuple[int, ...]) -> None:
        self._reader, self._id = reader, block_id
        self._source: Any = None
        self._decompressor: ZstdDecompressor | None = None

    def read(self, out: NDArray[Any], rows: slice) -> None:
        """Fill these rows of ``out``, contiguous (t, n, d), with the next steps."""
        room = out.view(np.uint8).reshape(-1).data
        begin, size = rows.start * out.strides[1], (rows.stop - rows.start) * out.strides[1]
        try:
            source = self._open()
            for at in range(begin, len(room), out.strides[0]):
                if source.readinto(room[at : at + size]) != size:
                    raise ValueError("the chunk ends too early")
        except _BROKEN as error:
            raise self._reader.damaged(self._id, error) from error

    def _open(self) -> Any:
        if self._source is None:
            file: Any = _Ended(self._reader.open(self._id))
            self._decompressor = _idle.pop() if _idle else ZstdDecompressor()
            self._source = self._decompressor.stream_reader(file, read_size=2**17)
        return self._source

    def finish(self) -> None:
        """Read to the end: the checksum is there."""
        try:
            while self._source is not None and self._source.read(2**17):
                pass
        except _BROKEN as error:
            raise self._reader.damaged(self._id, error) from error

    def close(self) -> None:
        """Let go of the file."""
        if self._source is not None and self._decompressor is not None:
            self._source.close()
            _idle.append(self._decompressor)
            self._source = self._decompressor = None


class _Whole:
    """A chunk with other codecs, decoded at once."""

    def __init__(self, reader: ChunkReader, block_id: tuple[int, ...]) -> None:
        self._reader, self._id = reader, block_id
        self._steps: Any = None

    def read(self, out: NDArray[Any], rows: slice) -> None:
        if self._steps is None:
            block = self._reader(self._id)
            self._steps = iter(block[0] if block.ndim == 4 else block)
        for step in out[:, rows]:
            values = next(self._steps)
            step[: len(values)] = values  # the last chunk of an array ends with it

    def finish(self) -> None:
        pass

    def close(self) -> None:
        pass


class _Ended:
    """A file with an empty skippable frame after it.

    Where the last bytes of a file are missing, a decoder waits for them without a word, its checksum unread. These
    bytes then take their place and are none.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._end = file, b"\x50\x2a\x4d\x18" + bytes(4)

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        if not data:
            data, self._end = self._end, b""
        return data

    def close(self) -> None:
        self._file.close()
