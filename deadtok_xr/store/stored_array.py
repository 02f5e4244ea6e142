"""Where the values of a lazy array lie in a store, and their chunks decoded step by step, side by side.

Dask knows a lazy array as tasks. A sweep wants more: to decode the chunks of the same steps together, a few steps at
a time, and the one step that follows without the rest of its chunk. For that it must know the place of the array,
which is kept under the array's name. Dask's names tell contents apart, so an array that was changed has another.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, BinaryIO

import dask.array as da
import numpy as np
import zarr
from numpy.typing import NDArray
from zstandard import ZstdDecompressor, ZstdError

from deadtok_xr.store import motion_index
from deadtok_xr.store.reading import ChunkReader, chunk_reader

_KEPT = 4096
_BROKEN = (ZstdError, RuntimeError, ValueError, OSError)
_places: OrderedDict[str, Stored] = OrderedDict()


@dataclass(frozen=True)
class Stored:
    """A part of an array (step, token, dim) of a store, or of one run of (run, step, token, dim).

    Attributes
    ----------
    array
        The array.
    n_steps
        How many of its steps, from the first.
    tokens
        Its rows on disk, in the order in which they are wanted.
    run
        Which run, where it holds several.
    """

    array: zarr.Array[Any]
    n_steps: int
    tokens: NDArray[np.int64]
    run: int | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Steps, tokens, dims."""
        return self.n_steps, len(self.tokens), self.array.shape[-1]

    @property
    def chunk_steps(self) -> int:
        """Steps of a chunk."""
        return int(self.array.chunks[-3])


def remember(x: da.Array, place: Stored) -> None:
    """Keep the place of a lazy array that holds a part of a store as it is."""
    _places[str(x.name)] = place
    while len(_places) > _KEPT:
        _places.popitem(last=False)


def carry(before: Any, after: Any, **changed: Any) -> None:
    """What was said of ``before`` holds of ``after``, which is a part of it or the same values decoded."""
    place = place_of(before)
    if place is not None and isinstance(after, da.Array):
        remember(after, replace(place, **changed))


def place_of(x: Any) -> Stored | None:
    """Where a lazy array lies, if it holds the values of a store and nothing was done to them."""
    return _places.get(str(x.name)) if isinstance(x, da.Array) else None


class RowReader:
    """The values of one row of chunks, decoded together, a few steps at a time."""

    def __init__(self, place: Stored, first: int) -> None:
        self.place = place
        self._left = min(place.chunk_steps, place.n_steps - first)
        self._parts = _parts(place, first // place.chunk_steps)
        self._order = _order(place.tokens)
        self._room: NDArray[Any] | None = None

    def read(self, out: NDArray[Any]) -> None:
        """The next steps, (t, n, d)."""
        self._left -= len(out)
        rows = out
        if self._order is not None:
            if self._room is None or len(self._room) < len(out):
                self._room = np.empty_like(out)
            rows = self._room[: len(out)]
        for part in self._parts:
            part.read(rows)
        if self._order is not None:
            np.take(rows, self._order, axis=1, out=out)
        if not self._left:
            self.finish()

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


def _parts(place: Stored, row: int) -> list[_Part]:
    """The chunks of a row that hold wanted tokens, each with its rows and their places."""
    height = place.array.chunks[-2]
    on_disk = np.sort(place.tokens)
    reader = chunk_reader(place.array)
    leading = () if place.run is None else (place.run,)
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
