"""The compressed bytes of a chunk as a file that is read from its beginning, wherever they lie.

In a folder that is the chunk's own file, or its part of a shard. Of an object store the bytes come in requests of
growing size, each asked for while the one before is used: whoever needs the first step of a chunk fetches little else.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec
from zarr.codecs.sharding import ShardingCodecIndexLocation
from zarr.storage import LocalStore, ObjectStore

from deadtok_xr.store import location

_FIRST, _MOST = 2**17, 2**20
_REQUESTS = 32
_ABSENT = 2**64 - 1


def sharding(array: zarr.Array[Any]) -> ShardingCodec | None:
    """How an array is sharded, if it is, in a way that is read here: the index at the end, with its checksum."""
    codecs: Any = array.metadata.codecs  # type: ignore[union-attr]
    if len(codecs) != 1 or not isinstance(codecs[0], ShardingCodec):
        return None
    codec = codecs[0]
    index: Any = codec.index_codecs
    plain = len(index) == 2 and isinstance(index[0], BytesCodec) and isinstance(index[1], Crc32cCodec)
    at_end = codec.index_location == ShardingCodecIndexLocation.end
    return codec if plain and at_end and index[0].endian.value == "little" else None


def is_reachable(array: zarr.Array[Any]) -> bool:
    """Whether the bytes of its chunks can be had without zarr."""
    return isinstance(array.store, (LocalStore, ObjectStore))


def open_chunk(array: zarr.Array[Any], position: tuple[int, ...]) -> BinaryIO:
    """The compressed bytes of the chunk at a position of the grid.

    Raises
    ------
    OSError, ValueError
        If it is not there, or the index of its shard is damaged.
    """
    if array.shards is None:
        return _open(array, array.metadata.encode_chunk_key(position), 0, None)
    per_shard = _per_shard(array)
    shard = tuple(i // k for i, k in zip(position, per_shard, strict=True))
    inner = np.ravel_multi_index([i % k for i, k in zip(position, per_shard, strict=True)], per_shard)
    key = array.metadata.encode_chunk_key(shard)
    n = int(np.prod(per_shard))
    index = np.frombuffer(_checked(_end(array, key, 16 * n + 4)), "<u8").reshape(n, 2)
    start, length = (int(x) for x in index[inner])
    if start == _ABSENT:
        raise FileNotFoundError(f"it is not in the shard {key}")
    return _open(array, key, start, length)


def file_key(array: zarr.Array[Any], position: tuple[int, ...]) -> str:
    """The key, within its array, of the file or object that holds the chunk at a position of the grid."""
    if array.shards is not None:
        position = tuple(i // k for i, k in zip(position, _per_shard(array), strict=True))
    return str(array.metadata.encode_chunk_key(position))


def shard_of(chunks: Sequence[bytes], n: int) -> bytes:
    """A shard with room for so many chunks: those given, in order, and the index with its checksum."""
    import google_crc32c

    index = np.full((n, 2), _ABSENT, "<u8")
    starts = np.cumsum([0, *map(len, chunks)])
    index[: len(chunks), 0], index[: len(chunks), 1] = starts[:-1], np.diff(starts)
    end = index.tobytes()
    return b"".join([*chunks, end, struct.pack("<I", google_crc32c.value(end))])


def put(array: zarr.Array[Any], position: tuple[int, ...], data: bytes) -> None:
    """Put the file of a chunk of an array in a folder in place at a stroke."""
    location.put_file(_path(array, array.metadata.encode_chunk_key(position)), data)


def _per_shard(array: zarr.Array[Any]) -> tuple[int, ...]:
    assert array.shards is not None
    return tuple(s // c for s, c in zip(array.shards, array.chunks, strict=True))


def _checked(index: bytes) -> bytes:
    import google_crc32c  # of zarr, which needs it for shards as well

    if len(index) < 4 or struct.pack("<I", google_crc32c.value(index[:-4])) != index[-4:]:
        raise ValueError("the index of its shard does not agree with its checksum")
    return index[:-4]


def _path(array: zarr.Array[Any], key: str) -> Path:
    return Path(cast(LocalStore, array.store).root) / array.path / key


def _name(array: zarr.Array[Any], key: str) -> str:
    return f"{array.path}/{key}" if array.path else key


def _open(array: zarr.Array[Any], key: str, start: int, length: int | None) -> BinaryIO:
    if isinstance(array.store, LocalStore):
        file = _path(array, key).open("rb", buffering=0)
        return file if length is None else cast(BinaryIO, _Part(file, start, length))
    return cast(BinaryIO, _Fetched(cast("ObjectStore[Any]", array.store), _name(array, key), start, length))


def _end(array: zarr.Array[Any], key: str, n: int) -> bytes:
    """The last bytes of a file or object."""
    if isinstance(array.store, LocalStore):
        with _path(array, key).open("rb", buffering=0) as file:
            file.seek(-min(n, file.seek(0, 2)), 2)
            return file.read(n)
    import obstore

    inner: Any = cast("ObjectStore[Any]", array.store).store
    with location.reaching(location.place_of(array.store)):
        return bytes(obstore.get(inner, _name(array, key), options={"range": {"suffix": n}}).bytes())


class _Part:
    """A part of a file, as a file."""

    def __init__(self, file: Any, start: int, length: int) -> None:
        self._file, self._left = file, length
        file.seek(start)

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        return data

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> _Part:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()


class _Fetched:
    """An object, or a part of one, fetched as it is read; the next request is under way while one is used."""

    def __init__(self, store: ObjectStore[Any], name: str, start: int, length: int | None) -> None:
        self._store, self._name, self._at = store, name, start
        self._end = None if length is None else start + length
        self._size, self._data = _FIRST, memoryview(b"")
        self._next: Future[tuple[bytes, int]] | None = self._ask()

    def _ask(self) -> Future[tuple[bytes, int]] | None:
        stop = self._at + self._size if self._end is None else min(self._at + self._size, self._end)
        if stop <= self._at:
            return None
        asked = _requests().submit(_range, self._store, self._name, self._at, stop)
        self._at, self._size = stop, min(2 * self._size, _MOST)
        return asked

    def _fetch(self) -> bool:
        """Take what was asked for, and ask for more; whether there was any."""
        if self._next is None:
            return False
        data, n_bytes = self._next.result()
        self._end = n_bytes if self._end is None else self._end
        self._data, self._next = memoryview(data), self._ask()
        return True

    def read(self, size: int = -1) -> bytes:
        """So many bytes, or fewer where more would mean to wait; everything if no size is given."""
        if size < 0:
            return b"".join(iter(lambda: self.read(_MOST), b""))
        if not len(self._data) and not self._fetch():
            return b""
        part, self._data = self._data[:size], self._data[size:]
        return bytes(part)

    def close(self) -> None:
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def __enter__(self) -> _Fetched:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()


def _range(store: ObjectStore[Any], name: str, start: int, stop: int) -> tuple[bytes, int]:
    """Some bytes of an object, and how many it has."""
    import obstore

    with location.reaching(location.place_of(store)):
        found = obstore.get(store.store, name, options={"range": (start, stop)})
        return bytes(found.bytes()), int(found.meta["size"])


@functools.cache
def _requests() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_REQUESTS, "fetch")
