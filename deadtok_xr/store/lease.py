"""A lock in an object store: an object that one of several writers creates, and renews while it writes.

It is created by a conditional put (``If-None-Match: *``), and renewed or taken over by one that names the version to
replace (``If-Match``), so that of two writers exactly one succeeds. A lock is taken over if its process is known to be
dead, or if it was not renewed for `LEASE_SECONDS`, by the clock of the object store. Object stores without conditional
puts have no locks.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from deadtok_xr.errors import DestinationExistsError
from deadtok_xr.store import location

RENEW_SECONDS = 15.0
LEASE_SECONDS = 60.0
"""After so long without renewal, another writer may take over."""
NAME = "lock"
_PROBE = "lock.probe"


class Lease:
    """The lock of one writer.

    Parameters
    ----------
    place
        The address under which the lock lies.
    subject
        What is written, for messages: "s3://... is being written by another conversion".
    """

    def __init__(self, place: str, subject: str) -> None:
        self._place, self._subject = place, subject
        self._store: Any = location.zarr_store(place).store
        self._owner = {"id": uuid.uuid4().hex, **_this_process()}
        self._version: Any = None  # None without a lock
        self._lost = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Create the lock, or take over one whose writer is gone.

        Raises
        ------
        DestinationExistsError
            If another process writes.
        """
        from obstore.exceptions import AlreadyExistsError, NotSupportedError, PreconditionError

        with location.translate_errors(self._place):
            try:
                self._put("create")
            except (AlreadyExistsError, PreconditionError):
                self._take_over()
            except (NotImplementedError, NotSupportedError):
                return
        _held.add(self._owner["id"])
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise an error if another process has taken over, because this one did not renew the lock in time."""
        if self._lost:
            raise DestinationExistsError(
                f"{self._subject}, which took over because this process had stopped for more than "
                f"{LEASE_SECONDS:.0f} s: wait for it, or choose another destination"
            )

    def release(self, *, reachable: bool = True) -> None:
        """Remove the lock, if it is still held; one that cannot be removed is taken over later."""
        self._stop.set()
        _held.discard(self._owner["id"])
        if self._thread is not None:
            self._thread.join()
        if self._version is not None and not self._lost and reachable:
            import obstore
            from obstore.exceptions import BaseError

            with suppress(BaseError, OSError):
                obstore.delete(self._store, NAME)

    def _put(self, mode: Any) -> None:
        import obstore

        self._owner["renewed"] = int(self._owner.get("renewed", -1)) + 1  # another content, another version
        self._version = obstore.put(self._store, NAME, json.dumps(self._owner).encode(), mode=mode)["e_tag"]

    def _take_over(self) -> None:
        import obstore
        from obstore.exceptions import PreconditionError

        try:
            found = obstore.get(self._store, NAME)
        except FileNotFoundError:  # released this moment
            self._put("create")
            return
        owner, meta = _parsed(bytes(found.bytes())), found.meta
        seconds = self._age(meta)
        if not _is_dead(owner) and seconds < LEASE_SECONDS:
            where = f"process {owner.get('pid')} on {owner.get('host')}"
            raise DestinationExistsError(
                f"{self._subject} ({where}, {seconds:.0f} s ago): wait for it, or choose another destination; if it "
                f"has stopped, the same command takes over {LEASE_SECONDS:.0f} s after its last sign of life"
            )
        try:
            self._put({"e_tag": meta["e_tag"]})
        except PreconditionError:
            raise DestinationExistsError(f"{self._subject}: wait for it, or choose another destination") from None

    def _age(self, meta: Any) -> float:
        """Return how long ago the lock was renewed, by the clock of the object store."""
        import obstore

        obstore.put(self._store, _PROBE, b"")
        now = obstore.head(self._store, _PROBE)["last_modified"]
        obstore.delete(self._store, _PROBE)
        return float((now - meta["last_modified"]).total_seconds())

    def _renew(self) -> None:
        while not self._lost and not self._stop.wait(RENEW_SECONDS):
            self._renew_once()

    def _renew_once(self) -> None:
        from obstore.exceptions import BaseError, PreconditionError

        try:
            self._put({"e_tag": self._version})
        except (PreconditionError, FileNotFoundError):
            self._lost = True
        except (BaseError, OSError):
            pass  # the network; tried again


_held: set[str] = set()
"""The locks that this process holds."""


def _this_process() -> dict[str, Any]:
    return {"host": socket.gethostname(), "system": _system(), "pid": os.getpid()}


def _system() -> str:
    """Return what identifies the running system, and the namespace of its process numbers; empty if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _is_dead(owner: dict[str, Any]) -> bool:
    """Return whether a process is known to have ended."""
    here = _this_process()
    if not here["system"] or any(owner.get(name) != here[name] for name in ("host", "system")):
        return False
    if owner.get("pid") == here["pid"]:
        return owner.get("id") not in _held
    try:
        os.kill(int(owner["pid"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, KeyError, ValueError):
        return False
    return False


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(content))
    except (ValueError, TypeError):
        return {}
