"""Arrays of a store as lazy Dask arrays, one task per chunk, read as directly as the codecs allow.

zarr-python reads a chunk through an event loop in a thread of its own. For what we write ourselves (little
endian, zstd, in shards or not) a task reads and decompresses its chunk where it runs, from a folder or from an object
store, which takes less than half the time; any other codec or store goes through zarr. A chunk that is missing or
damaged is an error, never data.
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
from deadtok_xr.dask_arrays import origin_of, traced
from deadtok_xr.errors import DamagedStoreError, StorageError
from deadtok_xr.store import chunk_bytes, location


@dataclass(frozen=True)
class ChunkReader:
    """Reads the chunks of one array; small, so that it travels with every task."""

    array: zarr.Array[Any]
    direct: bool

    def __call__(self, block_id: tuple[int, ...]) -> NDArray[Any]:
        """The chunk at a grid position, cut at the array's edge."""
        return self._direct(block_id) if self.direct else self._through_zarr(block_id)

    def _region(self, block_id: tuple[int, ...]) -> tuple[slice, ...]:
        sizes = zip(block_id, self.array.chunks, self.array.shape, strict=True)
        return tuple(slice(i * c, min((i + 1) * c, n)) for i, c, n in sizes)

    def _through_zarr(self, block_id: tuple[int, ...]) -> NDArray[Any]:
        try:
            return np.asarray(self.array[self._region(block_id)])
        except (RuntimeError, ValueError, OSError) as error:
            raise self.damaged(block_id, error) from error

    def open(self, block_id: tuple[int, ...]) -> BinaryIO:
        """The compressed bytes of a chunk, where chunks are read directly."""
        return chunk_bytes.open_chunk(self.array, block_id)

    def _direct(self, block_id: tuple[int, ...]) -> NDArray[Any]:
        array = self.array
        try:
            with self.open(block_id) as file:
                chunk = np.frombuffer(Zstd().decode(file.read()), array.dtype).reshape(array.chunks)
        except (RuntimeError, ValueError, OSError) as error:
            raise self.damaged(block_id, error) from error
        return chunk[tuple(slice(0, s.stop - s.start) for s in self._region(block_id))]

    def damaged(self, block_id: tuple[int, ...], error: Exception) -> OSError:
        """What a chunk that cannot be read means to a user."""
        if isinstance(error, StorageError):
            return error  # nothing is known of the chunk
        dims = self.array.metadata.dimension_names or ()  # type: ignore[union-attr]
        where = ", ".join(
            f"{dim} positions {s.start}..{s.stop - 1}" for dim, s in zip(dims, self._region(block_id), strict=True)
        )
        return DamagedStoreError(
            f"{place(self.array)}: the chunk at {where} is missing or damaged ({' '.join(str(error).split())}): "
            "restore the file from a copy"
        )


def place(node: zarr.Array[Any] | zarr.Group) -> str:
    """Where an array or group lies, as a user writes it."""
    return "/".join(part for part in (location.place_of(node.store), node.path) if part)


def is_plain(array: zarr.Array[Any]) -> bool:
    """Whether chunks, in shards or not, are little-endian values under zstd and nothing else."""
    shards = chunk_bytes.sharding(array)
    codecs: Any = shards.codecs if shards else array.metadata.codecs  # type: ignore[union-attr]
    plain = len(codecs) == 2 and isinstance(codecs[0], BytesCodec) and isinstance(codecs[1], ZstdCodec)
    little = plain and (array.dtype.itemsize == 1 or codecs[0].endian.value == "little")
    return little and array.dtype.kind in "biufV"


def chunk_reader(array: zarr.Array[Any]) -> ChunkReader:
    """The reader of an array's chunks that its codecs and its store allow."""
    return ChunkReader(array, is_plain(array) and chunk_bytes.is_reachable(array))


def lazy(array: zarr.Array[Any], identity: object) -> da.Array:
    """An array of a store as a Dask array, one task per chunk.

    Parameters
    ----------
    array
        The array.
    identity
        What tells this content from any other, for the names of tasks.
    """
    chunks = tuple(
        tuple(min(c, n - start) for start in range(0, n, c)) for n, c in zip(array.shape, array.chunks, strict=True)
    )
    if math.prod(array.shape) == 0:
        return da.zeros(array.shape, array.dtype)
    reader = chunk_reader(array)
    name = f"read-{array.basename}-{tokenize(identity, array.path, array.metadata.to_dict())}"
    meta = np.empty((0,) * array.ndim, array.dtype)
    return da.map_blocks(_read, reader, chunks=chunks, dtype=array.dtype, meta=meta, name=name)


def decoded(x: da.Array) -> da.Array:
    """Decode 16-bit values to float32, lazily; the array keeps its origin."""
    name = f"decoded-{x.dtype.name}-{tokenize(x.name)}"
    meta = np.empty((0,) * x.ndim, np.float32)
    return traced(x.map_blocks(decode, dtype=np.float32, meta=meta, name=name), origin_of(x))


def _read(reader: ChunkReader, block_id: tuple[int, ...] = ()) -> NDArray[Any]:
    return reader(block_id)
