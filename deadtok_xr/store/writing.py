"""Write blocks of values as whole chunks, compressed and written where the task runs, like `reading` reads them.

zarr-python passes every chunk to an event loop and a pool of threads, which for the small chunks of results costs more
than compressing and writing them. zarr writes blocks that do not fill their chunks, and other codecs or stores.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import zarr
from numcodecs.zstd import Zstd
from numpy.typing import NDArray
from zarr.storage import LocalStore

from deadtok_xr.store import chunk_bytes
from deadtok_xr.store.chunk_entries import Entry, ends_with_checksum, entry_of, read_entry
from deadtok_xr.store.chunk_reader import is_plain

Region = tuple[slice, ...]


def write_block(
    array: zarr.Array[Any], start: Sequence[int], block: NDArray[Any]
) -> list[tuple[tuple[int, ...], Entry]]:
    """Write a block of values into an array, directly if it fills whole chunks.

    Parameters
    ----------
    array
        The array, of any store.
    start
        Where the block begins along the leading dimensions; 0 along the others.
    block
        The values, with as many dimensions as the array.

    Returns
    -------
    The grid positions and entries of the chunks that were written, in a folder; in an object store, where a chunk is
    written whole or not at all, nothing.
    """
    starts = (*start, *(0,) * (array.ndim - len(start)))
    region = tuple(slice(a, a + n) for a, n in zip(starts, block.shape, strict=True))
    direct = isinstance(array.store, LocalStore) and array.shards is None and is_plain(array)
    if direct and _fills_chunks(array, region):
        return [(position, _write_chunk(array, position, block[part])) for position, part in _chunks(array, region)]
    array[region] = block
    if not isinstance(array.store, LocalStore) or not ends_with_checksum(array):
        return []
    return [(position, read_entry(array, position)) for position, _ in _chunks(array, region)]


def _fills_chunks(array: zarr.Array[Any], region: Region) -> bool:
    """Return whether a region begins and ends at chunk borders or at the end of the array."""
    sizes = zip(region, array.chunks, array.shape, strict=True)
    return array.ndim > 0 and all(s.start % c == 0 and (s.stop % c == 0 or s.stop == n) for s, c, n in sizes)


def _chunks(array: zarr.Array[Any], region: Region) -> Iterator[tuple[tuple[int, ...], Region]]:
    """Yield the grid position of each chunk of a region, and the part of the region that it holds."""
    ranges = [range(s.start // c, -(-s.stop // c)) for s, c in zip(region, array.chunks, strict=True)]
    for position in itertools.product(*ranges):
        sizes = zip(position, array.chunks, region, strict=True)
        yield position, tuple(slice(i * c - s.start, (i + 1) * c - s.start) for i, c, s in sizes)


def _write_chunk(array: zarr.Array[Any], position: tuple[int, ...], values: NDArray[Any]) -> Entry:
    if values.shape != array.chunks:  # the last chunk along a dimension is padded
        padded = np.full(array.chunks, array.fill_value, array.dtype)
        padded[tuple(slice(n) for n in values.shape)] = values
        values = padded
    data = encode_chunk(array, np.ascontiguousarray(values, array.dtype))
    chunk_bytes.write_chunk(array, position, data)
    return entry_of(len(data), data)


def encode_chunk(array: zarr.Array[Any], chunk: NDArray[Any]) -> bytes:
    """Compress a whole chunk, contiguous, for an array that `is_plain` accepts."""
    codec: Any = array.metadata.codecs[1]  # type: ignore[union-attr]
    return bytes(Zstd(level=codec.level, checksum=codec.checksum).encode(chunk.reshape(-1).view(np.uint8)))
