"""The entry of a chunk: its size, and the checksum at its end, which zstd computed of its content."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec
from zarr.storage import LocalStore, ObjectStore

from deadtok_xr.store import chunk_bytes, location

Entry = tuple[int, int]
"""The size of a chunk modulo 2^32, and its last four bytes as a number."""
_PARALLEL_REQUESTS = 32


def entry_of(size: int, end: bytes) -> Entry:
    """Return the entry of a chunk, from its size and its last four bytes."""
    return size % 2**32, int.from_bytes(end[-4:], "little")


def grid(array: zarr.Array[Any]) -> tuple[int, ...]:
    """Return the number of entries along each axis: one for each chunk, or for each file of other codecs."""
    sizes = array.chunks if ends_with_checksum(array) else array.shards or array.chunks
    return tuple(math.ceil(n / max(1, c)) for n, c in zip(array.shape, sizes, strict=True))


def ends_with_checksum(array: zarr.Array[Any]) -> bool:
    """Return whether each chunk of an array ends with zstd's checksum of its content, as all that we write do."""
    shards = chunk_bytes.sharding_codec(array)
    codecs: Any = shards.codecs if shards else array.metadata.codecs  # type: ignore[union-attr]
    return isinstance(codecs[-1], ZstdCodec) and bool(codecs[-1].checksum)


def read_entry(array: zarr.Array[Any], position: tuple[int, ...]) -> Entry:
    """Read the entry at a position of the `grid`; for a file of other codecs its size and CRC-32C.

    Raises
    ------
    OSError, ValueError
        If the chunk is missing, or the index of its shard is damaged.
    """
    if ends_with_checksum(array) and chunk_bytes.has_direct_access(array):
        return entry_of(*chunk_bytes.read_end(array, position))
    data = read_key(array.store, f"{array.path}/{array.metadata.encode_chunk_key(position)}")
    if data is None:
        raise FileNotFoundError("the file is missing")
    if ends_with_checksum(array):
        return entry_of(len(data), data)
    import google_crc32c  # a dependency of zarr

    return len(data) % 2**32, int(google_crc32c.value(data))


def read_entries(array: zarr.Array[Any], positions: list[tuple[int, ...]]) -> list[Entry | Exception]:
    """Read many entries, from an object store in parallel; in place of those that cannot be read, the errors."""

    def read(position: tuple[int, ...]) -> Entry | Exception:
        try:
            return read_entry(array, position)
        except (OSError, ValueError) as error:
            return error

    if isinstance(array.store, LocalStore) or len(positions) < 2:
        return [read(position) for position in positions]
    with ThreadPoolExecutor(_PARALLEL_REQUESTS) as pool:
        return list(pool.map(read, positions))


def positions_of(array: zarr.Array[Any]) -> list[tuple[int, ...]]:
    """List the positions of the `grid`."""
    return list(np.ndindex(*grid(array)))


def read_key(store: Any, key: str) -> bytes | None:
    """Read a file or object of a zarr store; None if there is none."""
    if isinstance(store, LocalStore):
        try:
            return Path(store.root, key).read_bytes()
        except FileNotFoundError:
            return None
    if isinstance(store, ObjectStore):
        return location.read(location.address_of(store), key)
    from zarr.core.buffer import default_buffer_prototype
    from zarr.core.sync import sync

    found = sync(store.get(key, default_buffer_prototype()))
    return None if found is None else bytes(found.to_bytes())
