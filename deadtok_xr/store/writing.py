"""Blocks of arrays written by whole chunks, as directly as `reader` reads them.

zarr-python hands every chunk to an event loop and a pool of threads, which for the small chunks of results costs more
than to compress and write them. What the block does not fill to the edge of its chunks, and any other codec or store,
goes through zarr.
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
from deadtok_xr.store.reading import is_plain

Region = tuple[slice, ...]


def write(array: zarr.Array[Any], start: Sequence[int], block: NDArray[Any]) -> None:
    """Write a block of values into an array, by whole chunks where it fills them.

    Parameters
    ----------
    array
        Of a store of ours or any other.
    start
        Where the block begins, in as many of the leading dimensions as do not begin at 0.
    block
        As many dimensions as the array has.
    """
    starts = (*start, *(0,) * (array.ndim - len(start)))
    region = tuple(slice(a, a + n) for a, n in zip(starts, block.shape, strict=True))
    if isinstance(array.store, LocalStore) and array.shards is None and is_plain(array) and _is_whole(array, region):
        for position, part in _chunks(array, region):
            _put(array, position, block[part])
    else:
        array[region] = block


def _is_whole(array: zarr.Array[Any], region: Region) -> bool:
    """Whether a region ends where chunks end."""
    sizes = zip(region, array.chunks, array.shape, strict=True)
    return array.ndim > 0 and all(s.start % c == 0 and (s.stop % c == 0 or s.stop == n) for s, c, n in sizes)


def _chunks(array: zarr.Array[Any], region: Region) -> Iterator[tuple[tuple[int, ...], Region]]:
    """Positions in the grid of chunks, with what of the region each takes."""
    ranges = [range(s.start // c, -(-s.stop // c)) for s, c in zip(region, array.chunks, strict=True)]
    for position in itertools.product(*ranges):
        sizes = zip(position, array.chunks, region, strict=True)
        yield position, tuple(slice(i * c - s.start, (i + 1) * c - s.start) for i, c, s in sizes)


def _put(array: zarr.Array[Any], position: tuple[int, ...], values: NDArray[Any]) -> None:
    if values.shape != array.chunks:
        whole = np.full(array.chunks, array.fill_value, array.dtype)
        whole[tuple(slice(n) for n in values.shape)] = values
        values = whole
    chunk_bytes.put(array, position, encoded(array, np.ascontiguousarray(values, array.dtype)))


def encoded(array: zarr.Array[Any], chunk: NDArray[Any]) -> bytes:
    """A whole chunk, contiguous, compressed as an array that `is_plain` says."""
    codec: Any = array.metadata.codecs[1]  # type: ignore[union-attr]
    return bytes(Zstd(level=codec.level, checksum=codec.checksum).encode(chunk.reshape(-1).view(np.uint8)))
