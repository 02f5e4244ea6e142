"""The compressed bytes of a chunk as a file that is read from its beginning, in a folder or an object store.

In a folder that is the chunk's own file, or its part of a shard. From an object store the bytes are fetched by requests
of growing size, the next one sent while the last one is decoded, so that reading the first step of a chunk fetches
little more than that step.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Self, cast

import numpy as np
import zarr
import zstandard
from numcodecs.zstd import Zstd
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec
from zarr.storage import LocalStore, ObjectStore

from deadtok_xr.store import location

_FIRST_REQUEST, _LARGEST_REQUEST = 2**17, 2**20
_PARALLEL_REQUESTS = 32
_ABSENT = 2**64 - 1
LARGEST_RATIO = 2**17
"""More than zstd can compress: a block of three bytes stands for at most 128 KiB."""
_END = 4
Check = Callable[[int, bytes], None]
"""Called with the size of a chunk and its last four bytes, before it is read; raises if it is the wrong chunk."""


def decompress(data: bytes) -> bytes:
    """Decompress a frame of zstd, once its header is known to say a size that it can have.

    Raises
    ------
    RuntimeError, ValueError
        If it is damaged.
    """
    try:
        size = zstandard.frame_content_size(data)
    except zstandard.ZstdError as error:
        raise ValueError("it does not begin as zstd") from error
    if size > LARGEST_RATIO * len(data):
        raise ValueError(f"its {len(data):,} bytes cannot hold the {size:,} that its header says")
    return bytes(Zstd().decode(data))


def sharding_codec(array: zarr.Array[Any]) -> ShardingCodec | None:
    """Return an array's sharding codec if this module reads it: the index at the end of a shard, with its checksum."""
    codecs: Any = array.metadata.codecs  # type: ignore[union-attr]
    if len(codecs) != 1 or not isinstance(codecs[0], ShardingCodec):
        return None
    codec = codecs[0]
    index: Any = codec.index_codecs
    plain = len(index) == 2 and isinstance(index[0], BytesCodec) and isinstance(index[1], Crc32cCodec)
    place: Any = codec.index_location  # an enum up to Zarr 3.1, text in 3.4
    at_end = getattr(place, "value", place) == "end"
    return codec if plain and at_end and byte_order(index[0]) == "little" else None


def has_direct_access(array: zarr.Array[Any]) -> bool:
    """Return whether the bytes of an array's chunks can be read without zarr."""
    return isinstance(array.store, (LocalStore, ObjectStore))


def open_chunk(array: zarr.Array[Any], position: tuple[int, ...], check: Check | None = None) -> BinaryIO:
    """Open the compressed bytes of the chunk at a grid position.

    Raises
    ------
    OSError, ValueError
        If the chunk is missing, or the index of its shard is damaged; whatever ``check`` raises.
    """
    return _open(array, *_extent(array, position), check)


def read_end(array: zarr.Array[Any], position: tuple[int, ...]) -> tuple[int, bytes]:
    """Read the size of the chunk at a grid position, and its last four bytes.

    Raises
    ------
    OSError, ValueError
        If the chunk is missing, or the index of its shard is damaged.
    """
    key, start, length = _extent(array, position)
    if isinstance(array.store, LocalStore):
        with _path(array, key).open("rb", buffering=0) as file:
            return _end_of(file, start, length)
    store = cast("ObjectStore[Any]", array.store)
    return _end_of_object(store, _object_name(array, key), start, length)


def _extent(array: zarr.Array[Any], position: tuple[int, ...]) -> tuple[str, int, int | None]:
    """Return where a chunk is: a key, and the first byte and the number of bytes in it; None for all of it."""
    if array.shards is None:
        return array.metadata.encode_chunk_key(position), 0, None
    per_shard = _chunks_per_shard(array)
    key = file_key(array, position)
    inner = np.ravel_multi_index([i % k for i, k in zip(position, per_shard, strict=True)], per_shard)
    n = int(np.prod(per_shard))
    index = np.frombuffer(_without_checksum(_read_end(array, key, 16 * n + 4)), "<u8").reshape(n, 2)
    start, length = (int(x) for x in index[inner])
    if start == _ABSENT:
        raise FileNotFoundError(f"it is not in the shard {key}")
    return key, start, length


def file_key(array: zarr.Array[Any], position: tuple[int, ...]) -> str:
    """Return the key, within its array, of the file or object that holds the chunk at a grid position."""
    if array.shards is not None:
        position = tuple(i // k for i, k in zip(position, _chunks_per_shard(array), strict=True))
    return str(array.metadata.encode_chunk_key(position))


def encode_shard(chunks: Sequence[bytes], n: int) -> bytes:
    """Return a shard of ``n`` chunks: the given ones in order, the others absent, and the index with its checksum."""
    import google_crc32c

    index = np.full((n, 2), _ABSENT, "<u8")
    starts = np.cumsum([0, *map(len, chunks)])
    index[: len(chunks), 0], index[: len(chunks), 1] = starts[:-1], np.diff(starts)
    end = index.tobytes()
    return b"".join([*chunks, end, struct.pack("<I", google_crc32c.value(end))])


def write_chunk(array: zarr.Array[Any], position: tuple[int, ...], data: bytes, *, durable: bool = False) -> None:
    """Write the file of a chunk atomically, for an array in a folder and without shards; see `write_atomically`."""
    location.write_atomically(_path(array, array.metadata.encode_chunk_key(position)), data, durable=durable)


def _chunks_per_shard(array: zarr.Array[Any]) -> tuple[int, ...]:
    assert array.shards is not None
    return tuple(s // c for s, c in zip(array.shards, array.chunks, strict=True))


def _without_checksum(index: bytes) -> bytes:
    import google_crc32c  # a dependency of zarr, which also needs it for shards

    if len(index) < 4 or struct.pack("<I", google_crc32c.value(index[:-4])) != index[-4:]:
        raise ValueError("the index of its shard does not agree with its checksum")
    return index[:-4]


def _path(array: zarr.Array[Any], key: str) -> Path:
    return Path(cast(LocalStore, array.store).root) / array.path / key


def _object_name(array: zarr.Array[Any], key: str) -> str:
    return f"{array.path}/{key}" if array.path else key


def _open(array: zarr.Array[Any], key: str, start: int, length: int | None, check: Check | None) -> BinaryIO:
    if isinstance(array.store, LocalStore):
        file = _path(array, key).open("rb", buffering=0)
        try:
            if check is not None:
                check(*_end_of(file, start, length))
                file.seek(0)
        except BaseException:
            file.close()
            raise
        return file if length is None else cast(BinaryIO, _FileSection(file, start, length))
    store = cast("ObjectStore[Any]", array.store)
    return cast(BinaryIO, _ObjectSection(store, _object_name(array, key), start, length, check))


def _end_of(file: Any, start: int, length: int | None) -> tuple[int, bytes]:
    """Return the size of a file, or of a part of it, and its last bytes."""
    size = file.seek(0, 2) - start
    length = size if length is None else min(length, size)
    file.seek(start + max(0, length - _END))
    return length, file.read(min(_END, length))


def _end_of_object(store: ObjectStore[Any], name: str, start: int, length: int | None) -> tuple[int, bytes]:
    """Return the size of an object, or of a part of it, and its last bytes, by one request."""
    import obstore

    wanted: Any = {"suffix": _END} if length is None else (start + max(0, length - _END), start + length)
    with location.translate_errors(location.address_of(store)):
        found = obstore.get(store.store, name, options={"range": wanted})
        return int(found.meta["size"]) if length is None else length, bytes(found.bytes())


def _read_end(array: zarr.Array[Any], key: str, n: int) -> bytes:
    """Read the last bytes of a file or object."""
    if isinstance(array.store, LocalStore):
        with _path(array, key).open("rb", buffering=0) as file:
            file.seek(-min(n, file.seek(0, 2)), 2)
            return file.read(n)
    import obstore

    inner: Any = cast("ObjectStore[Any]", array.store).store
    with location.translate_errors(location.address_of(array.store)):
        return bytes(obstore.get(inner, _object_name(array, key), options={"range": {"suffix": n}}).bytes())


class _Section:
    """What files and objects share: a context manager that closes itself."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()


class _FileSection(_Section):
    """Reads a part of a file as if it were a file."""

    def __init__(self, file: Any, start: int, length: int) -> None:
        self._file, self._left = file, length
        file.seek(start)

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        return data

    def close(self) -> None:
        self._file.close()


class _ObjectSection(_Section):
    """Reads an object, or a part of one, as if it were a file; fetches the next range while one is used."""

    def __init__(
        self, store: ObjectStore[Any], name: str, start: int, length: int | None, check: Check | None = None
    ) -> None:
        self._store, self._name, self._position = store, name, start
        self._end = None if length is None else start + length
        self._size, self._data = _FIRST_REQUEST, memoryview(b"")
        self._next: Future[tuple[bytes, int]] | None = self._request()
        self._check = check
        self._end_bytes = _request_pool().submit(_end_of_object, store, name, start, length) if check else None

    def _request(self) -> Future[tuple[bytes, int]] | None:
        """Request the next range; None at the end."""
        stop = self._position + self._size if self._end is None else min(self._position + self._size, self._end)
        if stop <= self._position:
            return None
        request = _request_pool().submit(_read_range, self._store, self._name, self._position, stop)
        self._position, self._size = stop, min(2 * self._size, _LARGEST_REQUEST)
        return request

    def _receive(self) -> bool:
        """Take the range that was requested and request the next one; False at the end."""
        if self._end_bytes is not None and self._check is not None:
            self._check(*self._end_bytes.result())
            self._end_bytes = None
        if self._next is None:
            return False
        data, n_bytes = self._next.result()
        self._end = n_bytes if self._end is None else self._end
        self._data, self._next = memoryview(data), self._request()
        return True

    def read(self, size: int = -1) -> bytes:
        """Read up to ``size`` bytes, fewer if the rest has not been received yet; everything if it is negative."""
        if size < 0:
            return b"".join(iter(lambda: self.read(_LARGEST_REQUEST), b""))
        if not len(self._data) and not self._receive():
            return b""
        part, self._data = self._data[:size], self._data[size:]
        return bytes(part)

    def close(self) -> None:
        if self._next is not None:
            self._next.cancel()
            self._next = None


def _read_range(store: ObjectStore[Any], name: str, start: int, stop: int) -> tuple[bytes, int]:
    """Fetch a range of an object; also return the size of the object."""
    import obstore

    with location.translate_errors(location.address_of(store)):
        found = obstore.get(store.store, name, options={"range": (start, stop)})
        return bytes(found.bytes()), int(found.meta["size"])


@functools.cache
def _request_pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_PARALLEL_REQUESTS, "fetch")


def byte_order(codec: BytesCodec) -> str:
    """Return "little", "big", or "" for values of one byte: as in JSON, since the attribute is no enum in Zarr 3.4."""
    configuration: Any = codec.to_dict().get("configuration", {})
    return str(configuration.get("endian") or "")
