"""Arrays of a store as lazy Dask arrays, one task per chunk, read as directly as the codecs allow.

zarr-python reads a chunk through an event loop in a separate thread. Chunks of our own layout (little endian, zstd,
in shards or not) are read and decompressed in the thread of the task, from a folder or from an object store, which
takes less than half the time; any other codec or store is read by zarr. A chunk that is missing or damaged raises an
error and never becomes data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, BinaryIO

import dask.array as da
import numpy as np
import zarr
from dask.base import tokenize
from numcodecs.zstd import Zstd
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, ZstdCodec

from deadtok_xr.bfloat16 import decode
from deadtok_xr.dask_arrays import empty_meta, origin_of, traced, with_all_functions
from deadtok_xr.errors import DamagedStoreError, StorageError
from deadtok_xr.store import chunk_bytes, location


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

    def _read_by_zarr(self, block_id: tuple[int, ...]) -> NDArray[Any]:
        try:
            return np.asarray(self.array[self._region(block_id)])
        except (RuntimeError, ValueError, OSError) as error:
            raise self.damaged(block_id, error) from error

    def open(self, block_id: tuple[int, ...]) -> BinaryIO:
        """Open the compressed bytes of a chunk; for arrays whose chunks are read directly."""
        return chunk_bytes.open_chunk(self.array, block_id)

    def _read_directly(self, block_id: tuple[int, ...]) -> NDArray[Any]:
        array = self.array
        try:
            with self.open(block_id) as file:
                chunk = np.frombuffer(Zstd().decode(file.read()), array.dtype).reshape(array.chunks)
        except (RuntimeError, ValueError, OSError) as error:
            raise self.damaged(block_id, error) from error
        return chunk[tuple(slice(0, s.stop - s.start) for s in self._region(block_id))]

    def damaged(self, block_id: tuple[int, ...], error: Exception) -> OSError:
        """Return the error for a chunk that cannot be read: where it is and what to do."""
        if isinstance(error, StorageError):
            return error  # the chunk itself may be undamaged
        dims = self.array.metadata.dimension_names or ()  # type: ignore[union-attr]
        where = ", ".join(
            f"{dim} positions {s.start}..{s.stop - 1}" for dim, s in zip(dims, self._region(block_id), strict=True)
        )
        return DamagedStoreError(
            f"{location.address_of(self.array)}: the chunk at {where} is missing or damaged "
            f"({' '.join(str(error).split())}): restore the file from a copy"
        )


def is_plain(array: zarr.Array[Any]) -> bool:
    """Return whether chunks, in shards or not, are little-endian values compressed with zstd and nothing else."""
    shards = chunk_bytes.sharding_codec(array)
    codecs: Any = shards.codecs if shards else array.metadata.codecs  # type: ignore[union-attr]
    plain = len(codecs) == 2 and isinstance(codecs[0], BytesCodec) and isinstance(codecs[1], ZstdCodec)
    little = plain and (array.dtype.itemsize == 1 or codecs[0].endian.value == "little")
    return little and array.dtype.kind in "biufV"


def chunk_reader(array: zarr.Array[Any]) -> ChunkReader:
    """Return a reader of an array's chunks: direct where its codecs and its store allow that, else by zarr."""
    return ChunkReader(array, is_plain(array) and chunk_bytes.has_direct_access(array))


def lazy(array: zarr.Array[Any], identity: object) -> da.Array:
    """Return an array of a store as a Dask array, with one task per chunk.

    Parameters
    ----------
    array
        The array.
    identity
        What identifies this content; it becomes part of the names of the tasks.
    """
    chunks = tuple(
        tuple(min(c, n - start) for start in range(0, n, c)) for n, c in zip(array.shape, array.chunks, strict=True)
    )
    if math.prod(array.shape) == 0:
        return with_all_functions(da.zeros(array.shape, array.dtype))
    reader = chunk_reader(array)
    name = f"read-{array.basename}-{tokenize(identity, array.path, array.metadata.to_dict())}"
    meta = empty_meta(array.ndim, array.dtype)
    return da.map_blocks(_read, reader, chunks=chunks, dtype=array.dtype, meta=meta, name=name)


def decoded(x: da.Array) -> da.Array:
    """Decode 16-bit values to float32, lazily; the array keeps its origin."""
    name = f"decoded-{x.dtype.name}-{tokenize(x.name)}"
    meta = empty_meta(x.ndim, np.float32)
    return traced(x.map_blocks(decode, dtype=np.float32, meta=meta, name=name), origin_of(x))


def _read(reader: ChunkReader, block_id: tuple[int, ...] = ()) -> NDArray[Any]:
    return reader(block_id)
