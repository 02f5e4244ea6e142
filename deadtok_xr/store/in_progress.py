"""Keep track of unfinished work on a store, so that an interrupted conversion or analysis resumes.

While DEST is written, `.DEST.progress` lies beside it, in the same folder or bucket, and holds

    lock        held by the process that writes: a lock of the system, which releases it when the process dies, or in
                an object store an object (`store.lease`)
    job.json    the facts: what is written, from which source, with which options and versions
    journal/    one small file per finished part
    ...         temporary files

An attempt with the same facts resumes; an attempt with other facts is refused with a sentence that names what differs.
The directory is removed when the work is complete.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from blake3 import blake3
from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout
from zarr.storage import LocalStore

from deadtok_xr.errors import DestinationExistsError, StorageError
from deadtok_xr.store import destination, lease, location
from deadtok_xr.store.lease import Lease

Facts = Mapping[str, Any]
"""What must be equal for work to resume: a name for the user ("the source") -> a value that JSON can hold."""
FileRecord = Sequence[Any]
"""The size of a file and the BLAKE3 hash of its content."""
VERSION = "the version of "
"""How the names of facts begin whose values are versions: a message shows both values."""
_JOB, _LOCK, _JOURNAL = "job.json", "lock", "journal"
_OLDER_JOB = "plan.json"  # of conversions until 1.0


def progress_path(dest: str | Path) -> str:
    """Return where the notes on unfinished work on a store lie."""
    if location.is_address(dest):
        above, _, name = str(dest).rstrip("/").rpartition("/")
        return f"{above}/.{name}.progress"
    path = Path(dest).absolute()
    return str(path.parent / f".{path.name}.progress")


@dataclass(frozen=True)
class Journal:
    """Finished parts of the work, one file each; every process that has access to the place may write them.

    Attributes
    ----------
    place
        The folder or address that `progress_path` gives.
    """

    place: str

    def record(self, part: str, content: bytes) -> None:
        """Record that a part is finished. Recording it again replaces the content."""
        location.write(self.place, f"{_JOURNAL}/{part}", content)

    def read(self, part: str) -> bytes | None:
        """Return what was recorded for a part, None if nothing was. A power cut may have damaged it."""
        return location.read(self.place, f"{_JOURNAL}/{part}")

    def parts(self) -> list[str]:
        """List the parts that were recorded."""
        return [name.removeprefix(f"{_JOURNAL}/") for name in _sizes(self.place) if name.startswith(f"{_JOURNAL}/")]


class InProgress:
    """Unfinished work on one store.

    Attributes
    ----------
    dest
        The store.
    kind
        What writes it, for messages: "conversion" or "analysis".
    place
        The folder or address of the notes.
    folder
        The same as a Path; None in an object store.
    journal
        The finished parts.
    """

    def __init__(self, dest: str | Path, kind: str) -> None:
        self.dest, self.kind = location.as_path(dest), kind
        self.place = progress_path(dest)
        self.folder = None if location.is_address(dest) else Path(self.place)
        self.journal = Journal(self.place)
        self._lease: Lease | None = None

    # --- lock -------------------------------------------------------------------------------------

    @contextmanager
    def held(self) -> Iterator[Self]:
        """Hold the lock. An empty directory of notes is removed at the end.

        Raises
        ------
        DestinationExistsError
            If another process holds it.
        """
        if self.folder is None:
            with self._leased():
                yield self
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        lock: BaseFileLock = FileLock(self.folder / _LOCK, timeout=0)
        try:
            try:
                lock.acquire()
            except NotImplementedError:  # a file system without locks
                lock = SoftFileLock(self.folder / _LOCK, timeout=0)
                lock.acquire()
        except Timeout:
            raise DestinationExistsError(f"{self._being_written}: wait for it, or choose another destination") from None
        try:
            yield self
        finally:
            if self.folder.is_dir() and {path.name for path in self.folder.iterdir()} <= {_LOCK}:
                shutil.rmtree(self.folder, ignore_errors=True)
            lock.release()

    @contextmanager
    def _leased(self) -> Iterator[None]:
        """Hold the lock in an object store, where that is possible."""
        if not self.place.startswith("s3://"):
            yield
            return
        self._lease = Lease(self.place, self._being_written)
        self._lease.acquire()
        reachable = True
        try:
            yield
        except StorageError:
            reachable = False
            raise
        finally:
            self._lease.release(reachable=reachable)

    @property
    def _being_written(self) -> str:
        return f"{self.dest} is being written by another {self.kind}"

    def check_held(self) -> None:
        """Raise an error if another process has taken over the lock; called before a store is declared complete."""
        if self._lease is not None:
            self._lease.check()

    def check_free(self) -> None:
        """Refuse a destination that another process writes. Notes whose removal was interrupted are removed."""
        if self.folder is not None and self.folder.exists():
            with self.held():
                if not self.begun():
                    self.forget()

    def clear_finished(self) -> None:
        """Remove the notes on work that is finished, if a kill came before that, unless another process is writing."""
        if not location.exists(self.place):
            return
        try:
            with self.held():
                self.forget()
        except DestinationExistsError:
            pass

    # --- facts ------------------------------------------------------------------------------------

    def begin(self, facts: Facts, store: Any) -> None:
        """Record what is written, and what identifies the store that it is written to."""
        job = {"facts": facts, "store": store}
        content = json.dumps({**job, "checksum": _checksum(job)}, default=str).encode()
        location.write(self.place, _JOB, content, durable=True)

    def begun(self) -> bool:
        """Return whether work was begun and is not finished."""
        return any(location.read(self.place, name) is not None for name in (_JOB, _OLDER_JOB))

    def has_finished_parts(self) -> bool:
        """Return whether any part of the work is finished."""
        return any("/" in name for name in _sizes(self.place))

    def identified(self) -> Any:
        """Return what identifies the store, as `begin` recorded it; None if that is missing or damaged."""
        job = self._job()
        return None if job is None else job["store"]

    def differences(self, facts: Facts) -> list[str] | None:
        """Compare with the recorded facts.

        Returns
        -------
        list[str] | None
            The names of the facts that differ, those of versions with both values; None if nothing is recorded, or if
            it is damaged.
        """
        job = self._job()
        if job is None:
            return [f"{VERSION}deadtok_xr"] if self._is_older() else None
        recorded, now = job["facts"], json.loads(json.dumps(facts, default=str))
        changed = [name for name in now if recorded.get(name) != now[name]]
        return [f"{n} ({recorded.get(n)}, now {now[n]})" if n.startswith(VERSION) else n for n in changed]

    def refusal(self, differences: Sequence[str]) -> DestinationExistsError:
        """Return the error for work that differs from the recorded work."""
        return DestinationExistsError(
            f"{self.dest} holds an unfinished {self.kind} that differs in {' and '.join(differences)}: repeat the "
            "command that began it to resume, or say --overwrite (overwrite=True) to start again"
        )

    def _job(self) -> dict[str, Any] | None:
        try:
            job = json.loads(location.read(self.place, _JOB) or b"")
            checksum = job.pop("checksum")
            return job if checksum == _checksum(job) else None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None

    def _is_older(self) -> bool:
        """Return whether the notes are intact and of a version that wrote them in another form."""
        try:
            job = json.loads(location.read(self.place, _OLDER_JOB) or location.read(self.place, _JOB) or b"")
        except ValueError:
            return False
        return isinstance(job, dict) and "facts" in job and "checksum" not in job

    # --- files ------------------------------------------------------------------------------------

    def is_intact(self, name: str, record: FileRecord) -> bool:
        """Return whether a file of the store is as it was written. An object is written whole or not at all."""
        size, digest = record
        if self.folder is None:
            return self.stored.get(name) == size
        try:
            return [size, digest] == [*file_record(Path(self.dest, name).read_bytes())]
        except OSError:
            return False

    @cached_property
    def stored(self) -> dict[str, int]:
        """The files of the store with their sizes, where the listing gives them; listed once, at the first use."""
        return _sizes(self.dest)

    def remove_partial_files(self) -> None:
        """Remove files of the store that were being written when an attempt was interrupted."""
        if self.folder is not None:
            location.remove_partial_files(Path(self.dest))

    def remove_destination(self) -> None:
        """Remove the destination; in a folder by one rename first, so that a kill never leaves half of it."""
        if not location.exists(self.dest):
            return
        if self.folder is None:
            location.remove(self.dest)
            return
        replaced = self.folder / "replaced"
        shutil.rmtree(replaced, ignore_errors=True)
        Path(self.dest).replace(replaced)
        shutil.rmtree(replaced, ignore_errors=True)

    def forget(self) -> None:
        """Remove all notes: the facts first, because without them the rest means nothing."""
        if self.folder is None:
            location.remove(self.place, keep=(lease.NAME,))
            return
        for name in (_JOB, _OLDER_JOB):
            (self.folder / name).unlink(missing_ok=True)
        for path in self.folder.iterdir():
            if path.name != _LOCK:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def finish(self) -> None:
        """Remove all notes, once the store is complete."""
        self.forget()


def remove_leftovers(dest: str | Path) -> None:
    """Remove the notes beside a complete store in a folder, which a kill in the last moment of the work has left."""
    if location.is_address(dest) or not Path(progress_path(dest)).is_dir():
        return
    if destination.root_attributes(dest).get("complete") is True:
        InProgress(dest, "command").clear_finished()


def file_record(content: bytes) -> tuple[int, str]:
    """Return the size and the hash of a file's content."""
    return len(content), blake3(content).hexdigest(length=8)  # BLAKE3 is less work than a CRC


def _checksum(job: Any) -> str:
    return blake3(json.dumps(job, sort_keys=True, default=str).encode()).hexdigest()


def _sizes(place: str | Path) -> dict[str, int]:
    return location.key_sizes(location.zarr_store(place) if location.is_address(place) else LocalStore(place))
