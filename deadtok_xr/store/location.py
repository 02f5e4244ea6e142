"""Where stores lie: in a folder, or as the objects behind an address such as ``s3://bucket/run.zarr``.

S3 is spoken by obstore, which is optional. Its settings are those of the environment wherever it is used, so that no
secret travels with a task: ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_SESSION_TOKEN``, ``AWS_REGION`` and
``AWS_ENDPOINT_URL``; without keys, those of the machine's role. Other addresses are left to zarr and fsspec.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

from zarr.storage import LocalStore, ObjectStore

from deadtok_xr.errors import InputError, StorageError

_S3 = "s3://"
_RETRIES = {"max_retries": 6, "retry_timeout": timedelta(seconds=60)}
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_MENDS = {
    "NoSuchBucket": "the bucket does not exist: create it, or mend the name",
    "AccessDenied": "access is denied: these credentials may not do that; ask for the right, or use others",
    "InvalidAccessKeyId": "the access key is not known there: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "SignatureDoesNotMatch": "the secret key is not that of the access key: set AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "the credentials have expired: fetch new ones",
    "169.254.169.254": "no credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "error sending request": "nobody answers there: check the network and AWS_ENDPOINT_URL, then try again",
    "Forbidden": "access is denied: these credentials may not do that; ask for the right, or use others",
}


def is_address(path: str | Path) -> bool:
    """Whether a store is named by an address and not by a path of this machine."""
    return "://" in str(path)


def absolute(path: str | Path) -> str:
    """A path that means the same to workers in other folders; an address as it is."""
    return str(path) if is_address(path) else str(Path(path).absolute())


def place_for(path: str | Path) -> Path | str:
    """A path as a Path, an address as it is: a Path would lose one of its slashes."""
    return str(path) if is_address(path) else Path(path)


def opened(path: str | Path) -> Any:
    """What zarr takes for the place of a store."""
    return Objects(_s3(str(path))) if str(path).startswith(_S3) else absolute(path)


class Objects(ObjectStore[Any]):
    """zarr's store of objects, whose errors are sentences."""

    async def get(self, *args: Any, **kwargs: Any) -> Any:
        with reaching(place_of(self)):
            return await super().get(*args, **kwargs)

    async def set(self, *args: Any, **kwargs: Any) -> None:
        with reaching(place_of(self)):
            await super().set(*args, **kwargs)

    async def list_dir(self, *args: Any, **kwargs: Any) -> AsyncIterator[str]:  # type: ignore[override]
        with reaching(place_of(self)):
            async for name in super().list_dir(*args, **kwargs):
                yield name


def _s3(address: str) -> Any:
    try:
        from obstore.store import S3Store
    except ImportError:
        raise InputError(f"{address} is on S3, which needs obstore: pip install 'deadtok_xr[s3]'") from None
    bucket, _, prefix = address.removeprefix(_S3).rstrip("/").partition("/")
    if not bucket or not prefix:
        raise InputError(f"{address}: needed: a bucket and a name in it, such as s3://bucket/run.zarr")
    endpoint = next((os.environ[name] for name in _ENDPOINTS if os.environ.get(name)), None)
    # what is not given here is taken from the environment of whichever process uses the store
    options: Any = {"endpoint": endpoint} if endpoint else {}
    plain: Any = {"allow_http": bool(endpoint and endpoint.startswith("http://"))}
    return S3Store(bucket, prefix=prefix, client_options=plain, retry_config=cast(Any, _RETRIES), **options)


def objects(store: Any, prefix: str = "") -> dict[str, int]:
    """Every key of a zarr store below a prefix, with its size in bytes where that is known, else -1."""
    if isinstance(store, LocalStore):
        root = store.root / prefix
        return {p.relative_to(store.root).as_posix(): -1 for p in _files(root)}
    if isinstance(store, ObjectStore):
        return {item["path"]: item["size"] for item in _items(store, prefix)}
    return _listed(store, prefix)


def marks(store: Any) -> dict[str, tuple[int, str]]:
    """Every key of a zarr store with its size in bytes, and with what is another when it is written again.

    Of stores that are neither in a folder nor on S3, nothing.
    """
    if isinstance(store, LocalStore):
        files = {path.relative_to(store.root).as_posix(): path.stat() for path in _files(store.root)}
        return {key: (stat.st_size, str(stat.st_mtime_ns)) for key, stat in files.items()}
    if isinstance(store, ObjectStore):
        return {item["path"]: (item["size"], item["e_tag"] or str(item["last_modified"])) for item in _items(store, "")}
    return {}


def _items(store: ObjectStore[Any], prefix: str) -> list[Any]:
    import obstore

    with reaching(place_of(store)):  # one request for a thousand keys
        return [item for batch in obstore.list(store.store, prefix or None) for item in batch]


def _files(root: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(root):
        for name in names:
            yield Path(folder, name)


def _listed(store: Any, prefix: str) -> dict[str, int]:
    # zarr has no public synchronous listing of a store
    from zarr.core.sync import sync

    async def collect() -> dict[str, int]:
        return {key: -1 async for key in store.list_prefix(prefix)}

    return sync(collect())


def place_of(store: Any) -> str:
    """Where a zarr store lies, as a user writes it."""
    if isinstance(store, ObjectStore):
        inner: Any = store.store
        prefix = f"/{inner.prefix}" if inner.prefix else ""
        return f"{_S3}{inner.config.get('bucket', '')}{prefix}"
    return str(store).removeprefix("file://")


def exists(path: str | Path) -> bool:
    """Whether there is anything at a path or address; addresses of other kinds are taken to be there."""
    if not is_address(path):
        return Path(path).exists()
    if not str(path).startswith(_S3):
        return True
    import obstore

    store = opened(path)
    with reaching(path):
        return any(batch for batch in obstore.list(store.store, chunk_size=1))


def read(path: str | Path, name: str) -> bytes | None:
    """A small file of a store, None if it is not there."""
    if not is_address(path):
        file = Path(path) / name
        return file.read_bytes() if file.is_file() else None
    import obstore

    try:
        with reaching(path):
            return bytes(obstore.get(opened(path).store, name).bytes())
    except FileNotFoundError:
        return None


def put_file(path: Path, data: bytes) -> None:
    """Put a file in place at a stroke, in a folder that is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")  # a lost task may be at work on it too
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def write(path: str | Path, name: str, data: bytes) -> None:
    """Write a small file of a store, whole or not at all; to S3 it is tried again where the connection breaks."""
    if not is_address(path):
        put_file(Path(path) / name, data)
        return
    import obstore

    with reaching(path):
        obstore.put(opened(path).store, name, data)


def remove(path: str | Path) -> None:
    """Remove a store, what names its kind first: what a kill leaves of it is nothing to anybody."""
    if not is_address(path):
        shutil.rmtree(path)
        return
    import obstore

    store = opened(path)
    names = sorted(objects(store), key=lambda name: name not in ("zarr.json", "job.json"))
    with reaching(path):
        for start in range(0, len(names), 1000):
            obstore.delete(store.store, names[start : start + 1000])


@contextmanager
def reaching(path: str | Path) -> Iterator[None]:
    """Say in one sentence why a store behind an address could not be reached.

    Raises
    ------
    StorageError
        With the address, the reason, and what to do. A single object that is not there stays a FileNotFoundError.
    """
    try:
        yield
    except Exception as error:
        found = explained(error, path)
        if found is None:
            raise
        raise found from error


def explained(error: BaseException, path: str | Path = "the store") -> StorageError | None:
    """What an error of obstore means to a user; None for any other error, and for an object that is not there."""
    if not type(error).__module__.startswith("obstore") and not _of_a_bucket(error):
        return None
    text = " ".join(str(error).split())
    for sign, mend in _MENDS.items():
        if sign in text:
            return StorageError(f"{path}: {mend}")
    status = re.search(r"status code: (\d+ [A-Za-z ]+)", text)
    return StorageError(f"{path}: {status.group(1) if status else text[:200]}: the store does not answer as one should")


def _of_a_bucket(error: BaseException) -> bool:
    # obstore gives Python's own errors for what is missing or denied, with the server's answer as the text
    return isinstance(error, (FileNotFoundError, PermissionError)) and any(
        sign in str(error) for sign in ("NoSuchBucket", "AccessDenied", "Forbidden")
    )
