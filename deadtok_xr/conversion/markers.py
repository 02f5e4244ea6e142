"""What is done of a conversion: markers beside the store, so that interrupted work goes on.

While DEST is written, `.DEST.progress` lies beside it and holds

    lock            held by the process that writes; the system lets go of it when the process dies
    plan.json       what is being converted and how, part by part
    skeleton.json   what the store was when it was still empty
    done            a line per finished chunk: its key, size, BLAKE3, and what was noticed in it
    *.part          files that are being written; renamed into the store when whole

A chunk counts as done only if its line is whole and its file in the store has that size and hash. The folder
is removed when the store is complete, so a copied store carries no trace of it.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zarr
from blake3 import blake3
from filelock import FileLock, Timeout

from deadtok_xr.conversion.plan import fingerprint
from deadtok_xr.conversion.units import Finds
from deadtok_xr.errors import DestinationExistsError
from deadtok_xr.store import location, motion_index


def folder_of(dest: Path) -> Path:
    """Where the markers of a destination lie."""
    return dest.absolute().parent / f".{dest.absolute().name}.progress"


def markers_of(dest: Path | str) -> Markers:
    """The markers of a destination in a folder, or of one behind an address."""
    if location.is_address(dest):
        from deadtok_xr.conversion.object_markers import ObjectMarkers

        return ObjectMarkers(str(dest))
    return Markers(Path(dest))


class Markers:
    """The markers of one destination, held by one process."""

    def __init__(self, dest: Path) -> None:
        self.dest = dest
        self.folder = folder_of(dest)
        self._journal: int | None = None
        self._opening = threading.Lock()
        self.done: dict[str, Finds] = {}
        """Finished chunks by their keys in the store."""

    @contextmanager
    def held(self) -> Iterator[Markers]:
        """Keep other conversions away from the destination.

        Raises
        ------
        DestinationExistsError
            If another process is converting to it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / "lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise DestinationExistsError(
                f"{self.dest} is being written by another conversion: wait for it, or choose another destination"
            ) from None
        try:
            yield self
        finally:
            self._close()
            lock.release()

    def begun(self) -> bool:
        """Whether work was begun and not finished."""
        return (self.folder / "plan.json").exists()

    def tidy(self) -> None:
        """Refuse, at once, a destination that another process writes; remove what is left of a removal broken off."""
        if self.folder.exists():
            with self.held():
                if not self.begun():
                    self.remove()

    def read(self, name: str) -> bytes:
        """What a file of the markers holds; an OSError if it is not there."""
        return (self.folder / name).read_bytes()

    def is_intact(self, name: str, size: int, known: str) -> bool:
        """Whether a file is in the store as it was written."""
        return is_intact(self.dest / name, size, known)

    def install(self, made: Path) -> None:
        """Put an empty store in the place of whatever is there."""
        replaced = self.folder / "replaced"
        shutil.rmtree(replaced, ignore_errors=True)
        if self.dest.exists():
            self.dest.replace(replaced)  # it is there whole or not at all
        made.replace(self.dest)
        shutil.rmtree(replaced, ignore_errors=True)

    def put_back(self, made: Path, names: Sequence[str]) -> None:
        """Put some files of an empty store into the store."""
        for name in names:
            (self.dest / name).parent.mkdir(parents=True, exist_ok=True)
            (made / name).replace(self.dest / name)

    def put_root(self, text: str) -> None:
        """Replace the root's metadata, whole or not at all."""
        self.put("root", text).replace(self.dest / "zarr.json")

    def put_bounds(self, array: zarr.Array[Any], position: tuple[int, ...], steps: Any, chunk: bytes) -> None:
        """Keep when each token moves in a chunk."""
        motion_index.put(self.dest, array, position, steps, chunk)

    def differs(self, facts: Mapping[str, Any]) -> list[str] | None:
        """In which parts begun work is another than ``facts``; [] if it is the same, None if there is none."""
        try:
            begun = json.loads(self.read("plan.json"))
            theirs = dict(begun["facts"])
            if fingerprint(theirs) != begun["fingerprint"]:
                return None  # damaged: of what it says nothing can be believed
        except (OSError, ValueError, TypeError, KeyError):
            return None
        ours = json.loads(json.dumps(facts, default=str))
        return [part for part in ours if theirs.get(part) != ours[part]]

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Forget earlier work, and then say what will be done."""
        self._close()
        for name in ("skeleton.json", "done"):  # before the plan: they must never be taken for the new one's
            (self.folder / name).unlink(missing_ok=True)
        self.done = {}
        self.put("plan.json", json.dumps({"fingerprint": fingerprint(facts), "facts": facts}, default=str))

    def put(self, name: str, text: str) -> Path:
        """Write a file of the markers, whole or not at all."""
        part = self.folder / f"{name}.part"
        with part.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        return part.replace(self.folder / name)

    def resume(self) -> None:
        """Read what is done, believing only chunks that lie in the store as they were written."""
        for part in self.folder.glob("*.part"):
            part.unlink()
        for line in self._lines():
            try:
                key, size, known, n_bad, first = json.loads(line)
                if self.is_intact(key, size, known):
                    self.done[key] = Finds(n_bad, None if first is None else tuple(first))
            except (ValueError, TypeError):
                continue  # torn, as by a power cut

    def _lines(self) -> list[str]:
        try:
            text = (self.folder / "done").read_bytes().decode("utf-8", "replace")
        except FileNotFoundError:
            return []
        return text.split("\n")[:-1]  # what follows the last newline was being written

    def finish_chunk(self, key: str, data: bytes, finds: Finds) -> None:
        """Put a chunk into the store and note it."""
        part = self.folder / f"{threading.get_ident()}.part"
        part.write_bytes(data)
        path = self.dest / key
        path.parent.mkdir(parents=True, exist_ok=True)
        part.replace(path)
        self._append(json.dumps([key, len(data), digest(data), finds.n_bad, finds.first]))
        self.done[key] = finds

    def _append(self, line: str) -> None:
        with self._opening:
            if self._journal is None:
                self._journal = os.open(self.folder / "done", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
                if os.fstat(self._journal).st_size:
                    line = "\n" + line  # ends what was torn
        data = f"{line}\n".encode()
        if os.write(self._journal, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder / "done"))

    def remove(self) -> None:
        """Remove all markers: the plan first, without which the others mean nothing, and the lock last."""
        self._close()
        (self.folder / "plan.json").unlink(missing_ok=True)
        for path in self.folder.iterdir():
            if path.name != "lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _close(self) -> None:
        if self._journal is not None:
            os.close(self._journal)
            self._journal = None


def is_intact(path: Path, size: int, known: str) -> bool:
    """Whether a file is there with that size and BLAKE3."""
    try:
        data = path.read_bytes()
    except OSError:
        return False
    return len(data) == size and digest(data) == known


def digest(data: bytes) -> str:
    """What tells a file that was torn; less work than a CRC."""
    return blake3(data).hexdigest(length=8)
