"""Where stores lie: in a folder, or as the objects behind an address such as ``s3://bucket/run.zarr``.

S3 is accessed with obstore, which is optional. Every process takes its settings from its own environment, so that no
secret travels with a task: ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_SESSION_TOKEN``, ``AWS_REGION`` and
``AWS_ENDPOINT_URL``; without keys, those of the machine's role. Other addresses are left to zarr and fsspec.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import zarr
from zarr.buffer import default_buffer_prototype
from zarr.storage import LocalStore, ObjectStore

from deadtok_xr.errors import InputError, StorageError

_S3 = "s3://"
_RETRIES = {"max_retries": 6, "retry_timeout": timedelta(seconds=60)}
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_DENIED = "access is denied: ask for permission, or use other credentials"
_EXPLANATIONS = {
    "NoSuchBucket": "the bucket does not exist: create it, or correct the name",
    "AccessDenied": _DENIED,
    "InvalidAccessKeyId": "the access key is unknown: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "SignatureDoesNotMatch": "the secret key does not belong to the access key: set AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "the credentials have expired: fetch new ones",
    "169.254.169.254": "no credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "error sending request": "cannot connect: check the network and AWS_ENDPOINT_URL, then try again",
    "Forbidden": _DENIED,
}
"""What a user can do, by a text that obstore's error contains."""


def is_address(path: str | Path) -> bool:
    """Return whether a store is named by an address instead of a path on this machine."""
    return "://" in str(path)


def absolute(path: str | Path) -> str:
    """Return an absolute path, which workers in other folders understand; an address is returned unchanged."""
    return str(path) if is_address(path) else str(Path(path).absolute())


def as_path(path: str | Path) -> Path | str:
    """Return a path as a Path; an address stays text, because a Path would remove one of its slashes."""
    return str(path) if is_address(path) else Path(path)


def zarr_store(path: str | Path) -> Any:
    """Return what zarr accepts as the store at a path or address."""
    return S3ObjectStore(_s3(str(path))) if str(path).startswith(_S3) else absolute(path)


class S3ObjectStore(ObjectStore[Any]):
    """zarr's store of objects, with errors that say what a user can do."""

    async def get(self, *args: Any, **kwargs: Any) -> Any:
        with translate_errors(address_of(self)):
            return await super().get(*args, **kwargs)

    async def set(self, *args: Any, **kwargs: Any) -> None:
        with translate_errors(address_of(self)):
            await super().set(*args, **kwargs)

    async def list_dir(self, *args: Any, **kwargs: Any) -> AsyncIterator[str]:  # type: ignore[override]
        with translate_errors(address_of(self)):
            async for name in super().list_dir(*args, **kwargs):
                yield name


def _s3(address: str) -> Any:
    try:
        from obstore.store import S3Store
    except ImportError:
        raise InputError(f"{address} is on S3, which needs obstore: pip install 'deadtok_xr[s3]'") from None
    bucket, _, prefix = address.removeprefix(_S3).rstrip("/").partition("/")
    if not bucket or not prefix:
        raise InputError(f"{address}: expected a bucket and a name in it, such as s3://bucket/run.zarr")
    endpoint = next((os.environ[name] for name in _ENDPOINTS if os.environ.get(name)), None)
    # obstore takes all other settings from the environment of the process that uses the store
    options: Any = {"endpoint": endpoint} if endpoint else {}
    client: Any = {"allow_http": bool(endpoint and endpoint.startswith("http://"))}
    return S3Store(bucket, prefix=prefix, client_options=client, retry_config=cast(Any, _RETRIES), **options)


def address_of(node: Any) -> str:
    """Return the path or address of a zarr store, array or group, as a user writes it."""
    if isinstance(node, (zarr.Array, zarr.Group)):
        return "/".join(part for part in (address_of(node.store), node.path) if part)
    if isinstance(node, ObjectStore):
        inner: Any = node.store
        prefix = f"/{inner.prefix}" if inner.prefix else ""
        return f"{_S3}{inner.config.get('bucket', '')}{prefix}"
    return str(node).removeprefix("file://")


def key_sizes(store: Any, prefix: str = "") -> dict[str, int]:
    """Return every key of a zarr store below a prefix with its size in bytes, or -1 where listing does not tell it."""
    if isinstance(store, LocalStore):
        return {p.relative_to(store.root).as_posix(): -1 for p in _files(store.root / prefix)}
    if isinstance(store, ObjectStore):
        return {item["path"]: item["size"] for item in _list_objects(store, prefix)}
    # zarr has no public synchronous listing of a store
    from zarr.core.sync import sync

    async def collect() -> dict[str, int]:
        return {key: -1 async for key in store.list_prefix(prefix)}

    return sync(collect())


def object_versions(store: Any) -> dict[str, tuple[int, str]]:
    """Return every key of a zarr store with its size in bytes and its version (mtime or ETag).

    Stores that are neither in a folder nor on S3 have no versions: the result is empty.
    """
    if isinstance(store, LocalStore):
        files = {path.relative_to(store.root).as_posix(): path.stat() for path in _files(store.root)}
        return {key: (stat.st_size, str(stat.st_mtime_ns)) for key, stat in files.items()}
    if isinstance(store, ObjectStore):
        return {
            item["path"]: (item["size"], item["e_tag"] or str(item["last_modified"]))
            for item in _list_objects(store, "")
        }
    return {}


def _list_objects(store: ObjectStore[Any], prefix: str) -> list[Any]:
    import obstore

    with translate_errors(address_of(store)):  # one request per thousand keys
        return [item for batch in obstore.list(store.store, prefix or None) for item in batch]


def _files(root: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(root):
        for name in names:
            yield Path(folder, name)


def exists(path: str | Path) -> bool:
    """Return whether there is anything at a path or S3 address; any other address is assumed to exist."""
    if not is_address(path):
        return Path(path).exists()
    if not str(path).startswith(_S3):
        return True
    import obstore

    store = zarr_store(path)
    with translate_errors(path):
        return any(batch for batch in obstore.list(store.store, chunk_size=1))


def read(path: str | Path, name: str) -> bytes | None:
    """Read a small file of a store; None if there is no such file."""
    if not is_address(path):
        file = Path(path) / name
        return file.read_bytes() if file.is_file() else None
    import obstore

    try:
        with translate_errors(path):
            return bytes(obstore.get(zarr_store(path).store, name).bytes())
    except FileNotFoundError:
        return None


def read_key(store: Any, key: str) -> bytes | None:
    """Read what lies under a key of a zarr store, wherever that is; None if there is no such key."""
    from zarr.core.sync import sync  # zarr has no public synchronous reading of a key

    found = sync(store.get(key, default_buffer_prototype()))
    return None if found is None else bytes(found.to_bytes())


def write_atomically(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Write a file under another name and rename it; its folder is created where it is missing.

    With ``durable`` its content has reached the disk before it is renamed, and its name when this returns.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")  # a task believed lost may still write it too
    try:
        with part.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        part.replace(path)
        if durable:
            _sync_folder(path.parent)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def flush(path: Path) -> None:
    """Let the content of a file reach the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def flush_files(folder: Path) -> None:
    """Let the content of all files below a folder reach the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            flush(path)


def _sync_folder(folder: Path) -> None:
    """Let the names in a folder reach the disk, where folders can be opened for that."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def placed_at_once(path: Path) -> Iterator[Path]:
    """Yield a hidden folder beside a path; a store that is made in it takes the place of whatever is at the path.

    A kill leaves the path without a folder, or with one that has its root metadata, so that it is recognised.
    """
    new, old = _beside(path)
    for folder in (new, old):
        shutil.rmtree(folder, ignore_errors=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield new
        flush(new / "zarr.json")
        if path.exists():
            path.replace(old)
        new.replace(path)
    finally:
        for folder in (new, old):
            shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(path: Path) -> None:
    """Remove what a kill has left of a store that is written: files half written, and folders beside it."""
    for folder in _beside(path):
        shutil.rmtree(folder, ignore_errors=True)
    remove_partial_files(path)


def remove_partial_files(path: Path) -> None:
    """Remove the files below a folder that were being written when a process was killed."""
    for part in path.rglob("*.partial"):
        part.unlink(missing_ok=True)


def _beside(path: Path) -> tuple[Path, Path]:
    """Return the folders in which `placed_at_once` keeps a new store and an old one."""
    return path.with_name(f".{path.name}.new"), path.with_name(f".{path.name}.old")


def write(path: str | Path, name: str, data: bytes, *, durable: bool = False) -> None:
    """Write a small file of a store atomically; requests to S3 are repeated when the connection breaks."""
    if not is_address(path):
        write_atomically(Path(path) / name, data, durable=durable)
        return
    import obstore

    with translate_errors(path):
        obstore.put(zarr_store(path).store, name, data)


def remove(path: str | Path, *, keep: Collection[str] = ()) -> None:
    """Remove a store; on S3 its metadata first, so that a removal that is interrupted leaves nothing that opens.

    On S3, objects of the names ``keep`` stay.
    """
    if not is_address(path):
        shutil.rmtree(path)
        return
    import obstore

    store = zarr_store(path)
    names = sorted({*key_sizes(store)} - {*keep}, key=lambda name: name not in ("zarr.json", "job.json"))
    with translate_errors(path):
        for start in range(0, len(names), 1000):
            obstore.delete(store.store, names[start : start + 1000])


@contextmanager
def translate_errors(path: str | Path) -> Iterator[None]:
    """Raise errors of an object store as a StorageError that says what to do.

    Raises
    ------
    StorageError
        With the address, the reason, and what to do. A single missing object stays a FileNotFoundError.
    """
    try:
        yield
    except Exception as error:
        translated = storage_error(error, path)
        if translated is None:
            raise
        raise translated from error


def storage_error(error: BaseException, path: str | Path = "the store") -> StorageError | None:
    """Translate an error of obstore; None for any other error, and for a missing object."""
    if not type(error).__module__.startswith("obstore") and not _is_bucket_error(error):
        return None
    text = " ".join(str(error).split())
    for sign, explanation in _EXPLANATIONS.items():
        if sign in text:
            return StorageError(f"{path}: {explanation}")
    status = re.search(r"status code: (\d+ [A-Za-z ]+)", text)
    reason = status.group(1) if status else text[:200]
    return StorageError(f"{path}: unexpected answer of the object store: {reason}: check the address and try again")


def _is_bucket_error(error: BaseException) -> bool:
    # obstore raises Python's own errors for what is missing or denied, with the server's answer as the text
    return isinstance(error, (FileNotFoundError, PermissionError)) and any(
        sign in str(error) for sign in ("NoSuchBucket", "AccessDenied", "Forbidden")
    )
