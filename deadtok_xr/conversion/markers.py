"""What is done of a conversion: markers beside the store, so that interrupted work goes on.

While DEST is written, `.DEST.progress` lies beside it and holds

    lock        held by the process that writes; the system lets go of it when the process dies
    plan.json   what is being converted and how, part by part
    done        a line per finished chunk: its key, size, CRC-32, and what was noticed in it
    *.part      chunks that are being written; renamed into the store when whole

A chunk counts as done only if its line is whole and its file in the store has that size and CRC. The folder
is removed when the store is complete, so a copied store carries no trace of it.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from deadtok_xr.conversion.plan import fingerprint
from deadtok_xr.conversion.units import Finds
from deadtok_xr.errors import DestinationExistsError

SKELETON = "skeleton"


def folder_of(dest: Path) -> Path:
    """Where the markers of a destination lie."""
    return dest.absolute().parent / f".{dest.name}.progress"


class Markers:
    """The markers of one destination, held by one process."""

    def __init__(self, dest: Path) -> None:
        self.dest = dest
        self.folder = folder_of(dest)
        self._journal: int | None = None
        self.done: dict[str, Finds] = {}
        """Finished chunks by their keys in the store."""
        self.has_skeleton = False

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

    def differs(self, facts: Mapping[str, Any]) -> list[str] | None:
        """In which parts begun work is another than ``facts``; [] if it is the same, None if there is none."""
        try:
            begun = json.loads((self.folder / "plan.json").read_text())
        except (OSError, ValueError):
            return None
        if begun.get("fingerprint") == fingerprint(facts):
            return []
        ours = json.loads(json.dumps(facts, default=str))
        theirs = begun.get("facts", {})
        return [part for part in ours if theirs.get(part) != ours[part]] or ["the settings"]

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Forget earlier work, and say what will be done."""
        self._close()
        (self.folder / "done").unlink(missing_ok=True)
        self.done, self.has_skeleton = {}, False
        text = json.dumps({"fingerprint": fingerprint(facts), "facts": facts}, default=str)
        part = self.folder / "plan.json.part"
        part.write_text(text)
        part.replace(self.folder / "plan.json")

    def resume(self) -> None:
        """Read what is done, believing only chunks that lie in the store as they were written."""
        for part in self.folder.glob("*.part"):
            part.unlink()
        for line in self._lines():
            if line == SKELETON:
                self.has_skeleton = True
                continue
            try:
                key, size, crc, n_bad, first = json.loads(line)
                finds = Finds(n_bad, None if first is None else tuple(first))
            except (ValueError, TypeError):
                continue  # torn, as by a power cut
            if _is_intact(self.dest / key, size, crc):
                self.done[key] = finds

    def _lines(self) -> list[str]:
        try:
            text = (self.folder / "done").read_bytes().decode("utf-8", "replace")
        except FileNotFoundError:
            return []
        whole = text.split("\n")[:-1]  # what follows the last newline was being written
        return whole if not whole or whole[0] == SKELETON else []

    def skeleton_is_there(self) -> None:
        """Note that the store has all its arrays, still empty."""
        self._append(SKELETON)
        self.has_skeleton = True

    def finish_chunk(self, key: str, data: bytes, finds: Finds) -> None:
        """Put a chunk into the store and note it."""
        part = self.folder / f"{key.replace('/', '-')}.part"
        part.write_bytes(data)
        path = self.dest / key
        path.parent.mkdir(parents=True, exist_ok=True)
        part.replace(path)
        self._append(json.dumps([key, len(data), zlib.crc32(data), finds.n_bad, finds.first]))
        self.done[key] = finds

    def _append(self, line: str) -> None:
        if self._journal is None:
            self._journal = os.open(self.folder / "done", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            if os.fstat(self._journal).st_size:
                line = "\n" + line  # ends what was torn
        data = f"{line}\n".encode()
        if os.write(self._journal, data) != len(data):
            raise OSError(28, os.strerror(28), str(self.folder / "done"))

    def set_aside(self, old: Path) -> None:
        """Remove what is to be replaced, by one rename first: it is there whole or not at all."""
        target = self.folder / "replaced"
        shutil.rmtree(target, ignore_errors=True)
        old.replace(target)
        shutil.rmtree(target)

    def remove(self) -> None:
        """Remove all markers; the lock last."""
        self._close()
        for path in self.folder.iterdir():
            if path.name != "lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _close(self) -> None:
        if self._journal is not None:
            os.close(self._journal)
            self._journal = None


def _is_intact(path: Path, size: int, crc: int) -> bool:
    try:
        data = path.read_bytes()
    except OSError:
        return False
    return len(data) == size and zlib.crc32(data) == crc
