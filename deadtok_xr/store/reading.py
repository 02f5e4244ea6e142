"""Arrays of a store as lazy Dask arrays, one task per chunk."""

from __future__ import annotations

import math
from typing import Any

import dask.array as da
import numpy as np
import zarr
from dask.base import tokenize
from numpy.typing import NDArray

from deadtok_xr.bfloat16 import decode
from deadtok_xr.dask_arrays import empty_meta, origin_of, traced, with_all_functions
from deadtok_xr.store.chunk_reader import ChunkReader, chunk_reader


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
