"""Start or connect to a Dask cluster, and check that its workers can do the work."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import dask
from dask.system import CPU_COUNT

from deadtok_xr._version import __version__
from deadtok_xr.errors import InputError, WorkersError
from deadtok_xr.store import location

if TYPE_CHECKING:
    from distributed import Client

T = TypeVar("T")
R = TypeVar("R")
_TIMEOUT = "10s"  # for a scheduler to answer
_PATIENCE_S = 180.0
"""How long a computation on this machine goes on when all workers have ended, and none could be started again."""
_POLL_S = 1.0
_ADVICE = "they may have run out of memory or disk space; use fewer of them, or none"
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
    WorkersError
        If the workers cannot be started, or all have ended and cannot be started again.
    """
    if n_workers < 1:
        raise InputError(f"--workers {n_workers}: expected 1 or more processes")
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        raise InputError(f"--workers N needs dask.distributed: {_INSTALL}") from None
    options: dict[str, Any] = {"dashboard_address": ":0", "silence_logs": "CRITICAL"}  # any port; failures are raised
    # a worker that takes longer than 15 s to start again, on a busy machine, would be given up for good
    started = {"distributed.deploy.lost-worker-timeout": "1 day"}
    with dask.config.set(started), ExitStack() as stack:
        try:
            made = stack.enter_context(LocalCluster(n_workers=n_workers, threads_per_worker=1, **options))
            client = stack.enter_context(Client(made))
        except RuntimeError as error:
            reason = " ".join(str(error.__cause__ or error).split())
            raise WorkersError(f"the worker processes could not be started ({reason}): {_ADVICE}") from error
        with _losing_patience(made, client):
            yield client


@contextmanager
def _losing_patience(made: Any, client: Client) -> Iterator[None]:
    """Cancel what is computed when there have been no workers for `_PATIENCE_S`, which it would wait for for ever."""
    from distributed import Future

    ended, lost = threading.Event(), threading.Event()

    def watch() -> None:
        last = time.monotonic()
        while not ended.wait(_POLL_S):
            if made.scheduler.workers:
                last = time.monotonic()
            elif time.monotonic() - last > _PATIENCE_S:
                lost.set()
                client.cancel([Future(key, client) for key in list(client.futures)])

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    except Exception as error:
        if not lost.is_set():
            raise
        explained = WorkersError(
            f"all worker processes ended, and none could be started again within {_PATIENCE_S:.0f} s: {_ADVICE}"
        )
        for note in getattr(error, "__notes__", ()):
            explained.add_note(note)
        raise explained from error
    finally:
        ended.set()
        thread.join()


def _check_workers(client: Client, address: str) -> None:
    """Check that the workers have the same software as this process."""
    own = _software()
    try:
        found: dict[str, dict[str, str]] = _on_workers(client, _software)
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


def _on_workers(client: Client, function: Callable[..., R], *given: Any) -> dict[str, R]:
    """Call a function on every worker; one that is lost meanwhile is left out."""
    from distributed.comm import CommClosedError

    found: dict[str, Any] = client.run(function, *given, on_error="return")
    for answer in found.values():
        if isinstance(answer, Exception) and not isinstance(answer, CommClosedError):
            raise answer
    return {worker: answer for worker, answer in found.items() if not isinstance(answer, CommClosedError)}


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
        for worker, seen in _on_workers(client, location.read, place, "zarr.json").items():
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
    if client is None:
        return
    for worker, reason in _on_workers(client, _refused, location.absolute(place)).items():
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
