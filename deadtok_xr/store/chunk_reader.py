"""Read the chunks of an array as directly as the codecs allow, and every damage of a chunk as one error.

zarr-python reads a chunk through an event loop in a separate thread. Chunks of our own layout (little endian, zstd,
in shards or not) are read and decompressed in the thread of the task, from a folder or from an object store, which
takes less than half the time; any other codec or store is read by zarr. A chunk that is missing or damaged raises an
error and never becomes data, and its size is checked before memory is taken for it.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import numpy as np
import zarr
import zstandard
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, ZstdCodec

from deadtok_xr.errors import DamagedStoreError, StorageError
from deadtok_xr.store import chunk_bytes, chunk_entries, location, manifest
from deadtok_xr.text import shortened

BROKEN = (zstandard.ZstdError, RuntimeError, ValueError, OSError, MemoryError, OverflowError)
"""What decoders and files raise for damaged bytes."""
_FRAME_HEADER = 18  # bytes; the longest header of a zstd frame
SMALL = 2**26
"""Bytes that may be taken whatever the size of a file is: other compressors write few bytes for equal values."""


@dataclass(frozen=True)
class ChunkReader:
    """Reads the chunks of one array; small, because every task carries one."""

    array: zarr.Array[Any]
    direct: bool

    def __call__(self, block_id: tuple[int, ...]) -> NDArray[Any]:
        """Read the chunk at a grid position, without the padding beyond the end of the array."""
        return self._read_directly(block_id) if self.direct else self._read_by_zarr(block_id)

    def _region(self, block_id: tuple[int, ...]) -> tuple[slice, ...]:
        sizes = zip(block_id, self.array.chunks, self.array.shape, strict=True)
        return tuple(slice(i * c, min((i + 1) * c, n)) for i, c, n in sizes)

    @property
    def nbytes(self) -> int:
        """The bytes of a chunk before compression."""
        return math.prod(self.array.chunks) * self.array.dtype.itemsize

    def _read_by_zarr(self, block_id: tuple[int, ...]) -> NDArray[Any]:
        try:
            if manifest.lists(self.array):
                self._check_entry(block_id)
            return np.asarray(self.array[self._region(block_id)])
        except Exception as error:  # codecs raise errors of any type for damaged bytes
            raise self.damaged(block_id, error) from error

    def open(self, block_id: tuple[int, ...]) -> BinaryIO:
        """Open the compressed bytes of a chunk; for arrays whose chunks are read directly."""
        return cast(BinaryIO, _Frame(chunk_bytes.open_chunk(self.array, block_id, self._check(block_id)), self.nbytes))

    def _check(self, block_id: tuple[int, ...]) -> chunk_bytes.Check | None:
        """Return what compares a chunk with the manifest; None if the store has none, or it is compared already."""
        if not manifest.lists(self.array):
            return None
        if chunk_entries.ends_with_checksum(self.array):
            return functools.partial(manifest.check_chunk, self.array, block_id)
        self._check_entry(block_id)
        return None

    def _check_entry(self, block_id: tuple[int, ...]) -> None:
        """Compare a chunk with the manifest that is read as a whole for this."""
        array = self.array
        if not chunk_entries.ends_with_checksum(array) and array.shards is not None:
            block_id = tuple(i * c // s for i, c, s in zip(block_id, array.chunks, array.shards, strict=True))
        manifest.check_entry(array, block_id, chunk_entries.read_entry(array, block_id))

    def _read_directly(self, block_id: tuple[int, ...]) -> NDArray[Any]:
        array = self.array
        try:
            with self.open(block_id) as file:
                data = _read_up_to(file, self.nbytes + self.nbytes // 128 + 1024)  # zstd never writes more
                chunk = np.frombuffer(chunk_bytes.decompress(data), array.dtype).reshape(array.chunks)
        except BROKEN as error:
            raise self.damaged(block_id, error) from error
        return chunk[tuple(slice(0, s.stop - s.start) for s in self._region(block_id))]

    def damaged(self, block_id: tuple[int, ...], error: Exception) -> OSError:
        """Return the error for a chunk that cannot be read: where it is and what to do."""
        if isinstance(error, (StorageError, DamagedStoreError)):
            return error  # the chunk itself may be undamaged
        dims = self.array.metadata.dimension_names or ()  # type: ignore[union-attr]
        where = ", ".join(
            f"{dim} positions {s.start}..{s.stop - 1}" for dim, s in zip(dims, self._region(block_id), strict=True)
        )
        return DamagedStoreError(
            f"{location.address_of(self.array)}: the chunk{f' at {where}' if where else ''} is missing or damaged "
            f"({shortened(error)}): restore the file from a copy"
        )


class _Frame:
    """A file of one zstd frame, whose header must say the expected size of the content, or none."""

    def __init__(self, file: BinaryIO, nbytes: int) -> None:
        self._file = file
        self._start = file.read(_FRAME_HEADER)
        try:
            found = zstandard.frame_content_size(self._start)
            if found not in (-1, nbytes):
                raise ValueError(f"it holds {found:,} bytes; expected {nbytes:,}")
        except BaseException as error:
            file.close()
            if isinstance(error, zstandard.ZstdError):
                raise ValueError("it does not begin as zstd") from error
            raise

    def read(self, size: int = -1) -> bytes:
        if not self._start:
            return self._file.read(size)
        start, self._start = (self._start, b"") if size < 0 else (self._start[:size], self._start[size:])
        rest = size - len(start)
        return start if rest == 0 else start + self._file.read(rest if size >= 0 else -1)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> _Frame:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()


def _read_up_to(file: BinaryIO, limit: int) -> bytes:
    parts: list[bytes] = []
    while limit > 0 and (part := file.read(limit)):
        parts.append(part)
        limit -= len(part)
    return b"".join(parts)


def is_plain(array: zarr.Array[Any]) -> bool:
    """Return whether chunks, in shards or not, are little-endian values compressed with zstd and nothing else."""
    shards = chunk_bytes.sharding_codec(array)
    codecs: Any = shards.codecs if shards else array.metadata.codecs  # type: ignore[union-attr]
    plain = len(codecs) == 2 and isinstance(codecs[0], BytesCodec) and isinstance(codecs[1], ZstdCodec)
    little = plain and (array.dtype.itemsize == 1 or chunk_bytes.byte_order(codecs[0]) == "little")
    return little and array.dtype.kind in "biufV"


def chunk_reader(array: zarr.Array[Any]) -> ChunkReader:
    """Return a reader of an array's chunks: direct where its codecs and its store allow that, else by zarr."""
    return ChunkReader(array, is_plain(array) and chunk_bytes.has_direct_access(array))


def read_region(array: zarr.Array[Any], region: tuple[slice, ...]) -> NDArray[Any]:
    """Read a part of an array; every slice has a start and a stop within the array."""
    out = np.empty([s.stop - s.start for s in region], array.dtype)
    if not out.size:
        return out
    reader = chunk_reader(array)
    grid = [range(s.start // c, -(-s.stop // c)) for s, c in zip(region, array.chunks, strict=True)]
    for position in itertools.product(*grid):
        chunk = reader(position)
        starts = [max(s.start, i * c) for s, i, c in zip(region, position, array.chunks, strict=True)]
        stops = [min(s.stop, (i + 1) * c) for s, i, c in zip(region, position, array.chunks, strict=True)]
        into = tuple(slice(a - s.start, b - s.start) for a, b, s in zip(starts, stops, region, strict=True))
        part = zip(starts, stops, position, array.chunks, strict=True)
        out[into] = chunk[tuple(slice(a - i * c, b - i * c) for a, b, i, c in part)]
    return out


def read_values(array: zarr.Array[Any], n_first: int | None = None) -> NDArray[Any]:
    """Read all values of an array, or the first ones along its first axis."""
    shape = array.shape if n_first is None else (min(n_first, array.shape[0]), *array.shape[1:])
    return read_region(array, tuple(slice(0, n) for n in shape))
