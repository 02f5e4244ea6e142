"""The chunks of a conversion that are in the store already, and the non-finite values that were found in each.

The journal has an entry for each chunk: the size and the hash of its file, and the report. The entry is written before
the chunk: a chunk counts as finished only if its file in the store has that size and that hash. An object in an object
store is written whole or not at all, so there an entry is only needed for a chunk with something to report.
"""

from __future__ import annotations

import json
from pathlib import Path

from deadtok_xr.conversion.units import NonFiniteReport
from deadtok_xr.store import location, motion_index
from deadtok_xr.store.chunk_entries import Entry
from deadtok_xr.store.in_progress import InProgress, file_record


class FinishedChunks:
    """The finished chunks of one conversion.

    Attributes
    ----------
    reports
        Key of a chunk in the store -> what was found in it.
    entries
        For the manifest: array -> grid position -> entry, of the chunks that this attempt wrote.
    """

    def __init__(self, work: InProgress) -> None:
        self._work = work
        self.reports: dict[str, NonFiniteReport] = {}
        self.entries: dict[str, dict[tuple[int, ...], Entry]] = {}

    def load(self) -> None:
        """Read which chunks an earlier attempt finished."""
        if self._work.folder is None:
            self.reports = {key: NonFiniteReport() for key in self._work.stored if "/c/" in key}
        for key in self._work.journal.parts():
            try:
                size, digest, n, first = json.loads(self._work.journal.read(key) or b"")
            except (ValueError, TypeError):
                continue  # damaged, as by a power cut
            if self._work.is_intact(key, (size, digest)) and self._has_motion_index(key):
                self.reports[key] = NonFiniteReport(n, None if first is None else tuple(first))

    def _has_motion_index(self, key: str) -> bool:
        """Return whether the entry of a chunk in the motion index, if its variable has one, is as it was written."""
        if self._work.folder is None:
            return True
        dest, entry = Path(self._work.dest), f"{motion_index.GROUP}/{key}"  # all dims are in one chunk
        if not (dest / motion_index.GROUP / key.partition("/")[0]).is_dir():
            return True
        data, chunk = location.read(dest, entry), location.read(dest, key)
        return data is not None and chunk is not None and motion_index.decode(data, chunk[-4:]) is not None

    def write(self, key: str, content: bytes, report: NonFiniteReport) -> None:
        """Write a chunk, or a shard of several, into the store, and record it."""
        if report.n or self._work.folder is not None:
            entry = [*file_record(content), report.n, report.first]
            self._work.journal.record(key, json.dumps(entry).encode())
        location.write(self._work.dest, key, content)
        self.reports[key] = report
