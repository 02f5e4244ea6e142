"""Start or connect to a Dask cluster, and check that its workers can do the work."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dask.system import CPU_COUNT

from deadtok_xr._version import __version__
from deadtok_xr.errors import InputError
from deadtok_xr.store import location

if TYPE_CHECKING:
    from distributed import Client

T = TypeVar("T")
R = TypeVar("R")
_TIMEOUT = "10s"  # for a scheduler to answer
_INSTALL = "pip install 'deadtok_xr[cluster]'"


def current() -> Client | None:
    """Return the client of the cluster with which Dask computes now, if any."""
    if "distributed" not in sys.modules:
        return None
    import dask.base
    from distributed import Client

    get: Any = dask.base.get_scheduler()
    owner = getattr(get, "__self__", None)
    return owner if isinstance(owner, Client) else None


@contextmanager
def connected(address: str) -> Iterator[Client]:
    """Connect to a scheduler that is already running, and check that its workers have the same software.

    Raises
    ------
    InputError
        If it cannot connect, there are no workers, or they have other versions.
    """
    try:
        from distributed import Client
    except ImportError:
        raise InputError(f"--scheduler ADDRESS needs dask.distributed: {_INSTALL}") from None
    try:
        client = Client(address, timeout=_TIMEOUT)
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot connect to a Dask scheduler at {address!r} ({error}): start one, or give its address"
        ) from error
    with client:
        _check_workers(client, address)
        yield client


@contextmanager
def local_cluster(n_workers: int) -> Iterator[Client]:
    """Start a cluster of processes with one thread each on this machine, closed at the end.

    With one thread per process, code that holds Python's lock runs in parallel too.

    Raises
    ------
    InputError
        If dask.distributed is not installed, or ``n_workers`` is less than 1.
    """
    if n_workers < 1:
        raise InputError(f"--workers {n_workers}: expected 1 or more processes")
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        raise InputError(f"--workers N needs dask.distributed: {_INSTALL}") from None
    options: dict[str, Any] = {"dashboard_address": ":0", "silence_logs": "CRITICAL"}  # any port; failures are raised
    with LocalCluster(n_workers=n_workers, threads_per_worker=1, **options) as cluster, Client(cluster) as client:
        yield client


def _check_workers(client: Client, address: str) -> None:
    """Check that the workers have the same software as this process."""
    own = _software()
    try:
        found: dict[str, dict[str, str]] = client.run(_software)
    except Exception as error:
        raise InputError(
            f"the workers at {address!r} cannot import deadtok_xr ({type(error).__name__}: {error}): install "
            f"deadtok_xr {__version__} where they run"
        ) from error
    if not found:
        raise InputError(f"the scheduler at {address!r} has no workers: start some with `dask worker {address}`")
    for worker, versions in found.items():
        for name, version in versions.items():
            if version != own[name]:
                raise InputError(
                    f"the worker {worker} has {name} {version}, and this process has {own[name]}: install the same "
                    "version in both places"
                )
    _check_libraries(client)


def _check_libraries(client: Client) -> None:
    try:
        client.get_versions(check=True)
    except ValueError as error:
        text = " ".join(str(error).split())
        raise InputError(f"the workers have other versions than this process: {text}; install the same ones") from error


def _software() -> dict[str, str]:
    from deadtok_xr import store

    python = ".".join(map(str, sys.version_info[:2]))
    return {**store.software_versions(), "deadtok_xr": __version__, "Python": python}


def check_places(results: str | Path, recordings: Sequence[str | Path]) -> None:
    """Check that every worker sees the recordings and the results.

    Raises
    ------
    InputError
        If a worker sees nothing, or something else, there.
    """
    client = current()
    if client is None:
        return
    places = {location.absolute(recording): "the recording" for recording in recordings}
    places[location.absolute(results)] = "the results"
    for place, what in places.items():
        known = location.read(place, "zarr.json")
        for worker, seen in client.run(location.read, place, "zarr.json").items():
            if known is not None and seen != known:
                other = "nothing" if seen is None else "something else"
                raise InputError(
                    f"the worker {worker} sees {other} at {place}, where {what} lie: workers need the same disk or an "
                    "object store, such as s3://bucket/run.zarr; see docs/cluster.md"
                )


def check_writing(results: str | Path, place: str) -> None:
    """Check that every worker can write beside the results.

    Raises
    ------
    InputError
        If a worker cannot, with the reason.
    """
    client = current()
    for worker, reason in {} if client is None else client.run(_refused, location.absolute(place)).items():
        if reason is not None:
            raise InputError(
                f"the worker {worker} cannot write {results} ({reason}): let it write there, or choose another "
                "destination, which all workers may write; see docs/cluster.md"
            )


def _refused(place: str) -> str | None:
    """Return, on a worker, why nothing can be written to a place; None if it can."""
    try:
        location.write(place, "tried", b"")
    except OSError as error:
        return error.strerror or str(error)
    return None


def map_items(work: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """Yield ``work(item)`` for each item, in order: on a cluster if Dask uses one, else on the cores of this machine.

    ``work`` must be picklable and without side effects, and return little.
    """
    client = current()
    if client is not None:
        for future in client.map(work, items, pure=False):
            yield future.result()
        return
    with ThreadPoolExecutor(CPU_COUNT) as pool:
        try:
            yield from pool.map(work, items)
        finally:
            pool.shutdown(cancel_futures=True)
