"""Results that are being written, and what is known of them, so that interrupted work goes on.

While RESULTS is written, `.RESULTS.progress` lies beside it, in the same folder or bucket, and holds

    lock            in a folder: held by the process that writes; the system lets go of it when the process dies
    job.json        what is being computed, of which recording, with which versions, part by part
    tried           written by workers, to see that they can
    SWEEP/ROW       what a row of chunks passed on, written when all else of the row is in the results

`job.json` is written when the results hold every array, still empty, and goes first when they are replaced. A row
counts as done if its file is whole, its chunks of the recording are those that it was made of, and its chunks of the
results are there. The folder is removed when the results are complete.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
import zarr
from dask.base import tokenize
from filelock import FileLock, Timeout

from deadtok_xr import store
from deadtok_xr.engine.block_task import BlockTask
from deadtok_xr.engine.journal import ResumeJournal
from deadtok_xr.engine.saving import passes_in
from deadtok_xr.errors import DestinationExistsError
from deadtok_xr.store import destination, location, motion_index
from deadtok_xr.store.chunk_bytes import file_key
from deadtok_xr.store.stored_array import StoredArray

RESULTS = "deadtok_results"
_JOB, _LOCK = "job.json", "lock"
GOES_ON = "the same command, or save_results with the same arguments, goes on from there"


def is_unfinished(path: str | Path) -> bool:
    """Whether results lie there that were not written to their end."""
    attrs = destination.root_attributes(path)
    return RESULTS in attrs and attrs.get("complete") is False


def beside(path: str | Path) -> str:
    """Where the notes on unfinished results lie."""
    if location.is_address(path):
        above, _, name = str(path).rstrip("/").rpartition("/")
        return f"{above}/.{name}.progress"
    whole = Path(path).absolute()
    return str(whole.parent / f".{whole.name}.progress")


class Work:
    """Results that one process writes, or goes on to write.

    Attributes
    ----------
    path
        The results.
    begun
        Whether there are notes to go on from.
    rows
        How many rows of all sweeps are done, and how many there are, as far as `journal` was asked for them.
    """

    def __init__(self, path: str | Path, tree: xr.DataTree) -> None:
        self.path, self.place, self._tree = path, beside(path), tree
        self.begun = False
        self.rows = (0, 0)

    @contextmanager
    def held(self) -> Iterator[Work]:
        """Keep other analyses away from a folder; an object store has no locks, and there two write the same bytes.

        Raises
        ------
        DestinationExistsError
            If another process is writing there.
        """
        lock = None if location.is_address(self.path) else _locked(Path(self.place), self.path)
        try:
            yield self
        finally:
            if lock is not None:
                self._leave_nothing()
                lock.release()

    def goes_on(self) -> bool:
        """Whether the results are there as far as the very same work had come.

        Raises
        ------
        DestinationExistsError
            If they are of other work: in which it differs, and what to do.
        """
        known = self._known()
        if known is None:
            return False
        theirs, ours = known["facts"], self._facts
        differs = [_in_words(part, theirs.get(part), ours[part]) for part in ours if theirs.get(part) != ours[part]]
        if differs:
            raise DestinationExistsError(
                f"{self.path} holds unfinished results that differ in {' and '.join(differs)}: give the command that "
                "began them again to go on, or say --overwrite (overwrite=True) to begin anew"
            )
        self.begun = True
        if not location.is_address(self.path):
            for part in Path(self.path).rglob("*.partial"):  # which zarr or we were writing
                part.unlink()
        return True

    def _known(self) -> dict[str, Any] | None:
        """What was noted when the results were begun, if it is whole and theirs."""
        try:
            known: dict[str, Any] = json.loads(location.read(self.place, _JOB) or b"")
            begun = destination.root_attributes(self.path)["begun"]
            return known if isinstance(known["facts"], dict) and known["begun"] == begun else None
        except (ValueError, TypeError, KeyError):
            return None

    def clear(self) -> None:
        """Forget earlier work."""
        if location.is_address(self.path):
            location.remove(self.place)
            return
        Path(self.place, _JOB).unlink(missing_ok=True)  # first: without it nothing else means anything
        for path in Path(self.place).iterdir():
            if path.name != _LOCK:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def begin(self, root: zarr.Group) -> None:
        """Say what will be done, once the results hold every array."""
        noted = {"begun": root.attrs["begun"], "facts": self._facts}
        location.write(self.place, _JOB, json.dumps(noted).encode())
        self.begun = True

    def finish(self) -> None:
        """Remove all notes."""
        self.begun = False
        if location.is_address(self.path):
            location.remove(self.place)
        else:
            shutil.rmtree(self.place, ignore_errors=True)

    def _leave_nothing(self) -> None:
        """Leave no folder behind in which there is nothing but the lock."""
        folder = Path(self.place)
        if folder.is_dir() and {path.name for path in folder.iterdir()} <= {_LOCK}:
            shutil.rmtree(folder, ignore_errors=True)

    def journal(
        self, name: str, task: BlockTask, targets: Sequence[zarr.Array[Any]]
    ) -> tuple[ResumeJournal, Collection[int]]:
        """Where a pass notes its blocks, and which of them are done."""
        chunks = tuple(self._chunks_of(task, i) for i in range(len(task.layout.n_states)))
        journal = ResumeJournal(location.absolute(self.place), name, chunks)
        written = location.marks(targets[0].store) if self.begun and targets else {}
        done = {i for i in range(len(chunks)) if _is_there(written, targets, i) and journal.passed_on(i) is not None}
        self.rows = (self.rows[0] + len(done), self.rows[1] + len(chunks))
        return journal, done

    def _chunks_of(self, job: BlockTask, i: int) -> str:
        """What tells the chunks that a block is made of from any others."""
        if job.held:  # which come through the graph, from nobody knows where
            return tokenize(sorted(self._marks.items()))
        start, n = job.layout.starts[i], job.layout.n_states[i]
        keys = [key for stored in job.stored.values() for key in _keys(stored, start, start + n)]
        return tokenize([(key, self._marks.get(key)) for key in keys])

    @cached_property
    def _marks(self) -> dict[str, tuple[int, str]]:
        """Every file of the recordings, with what is another when it is written again."""
        stores = {location.place_of(p.array.store): p.array.store for job in self._jobs for p in job.stored.values()}
        source = self._tree.attrs.get("source")
        if isinstance(source, str) and destination.root_attributes(source):
            opened = zarr.open_group(location.opened(source), mode="r").store
            stores.setdefault(location.place_of(opened), opened)
        return {
            f"{place}/{key}": mark for place, found in stores.items() for key, mark in location.marks(found).items()
        }

    @cached_property
    def _jobs(self) -> list[BlockTask]:
        datas = [v.data for node in self._tree.children.values() for v in node.to_dataset().variables.values()]
        return list(passes_in(datas).values())

    @cached_property
    def _facts(self) -> dict[str, str]:
        """What must be the same for the work to go on, part by part; chunks are looked at row by row."""
        swept = tuple(f"{_place(p)}/" for job in self._jobs for p in job.stored.values())
        small = {key: mark for key, mark in self._marks.items() if not key.startswith(swept) and not _is_bounds(key)}
        return {
            "the recording": tokenize(sorted(small.items())),
            "the analyses, their options or the tokens": tokenize(_asked(self._tree)),
            **store.software(),
        }


def _locked(folder: Path, path: str | Path) -> FileLock:
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise DestinationExistsError(
            f"{path} is being written by another analysis: wait for it, or choose another destination"
        ) from None
    except NotImplementedError:
        pass  # a file system without locks
    return lock


def _in_words(part: str, theirs: Any, ours: str) -> str:
    return part if part.startswith("the ") else f"the version of {part} ({theirs}, now {ours})"


def _is_bounds(key: str) -> bool:
    return f"/{motion_index.GROUP}/" in key  # a help alone


def _place(stored: StoredArray) -> str:
    return f"{location.place_of(stored.array.store)}/{stored.array.path}"


def _keys(stored: StoredArray, start: int, stop: int) -> Iterator[str]:
    """The files of a block of steps, and that of the step after it, which belongs to the last transition."""
    array, leading = stored.array, stored.leading
    rows = np.unique(stored.steps[start : stop + 1] // stored.chunk_steps).tolist()
    columns = np.unique(stored.tokens // array.chunks[-2]).tolist()
    for position in itertools.product(rows, columns):
        yield f"{_place(stored)}/{file_key(array, (*leading, *position, 0))}"


def _is_there(written: Mapping[str, tuple[int, str]], targets: Sequence[zarr.Array[Any]], i: int) -> bool:
    """Whether a row's chunks of results are there; one without bytes is what a power cut leaves."""
    for array in targets:
        rows, *others = array.cdata_shape
        for position in itertools.product((i,) if i < rows else (), *map(range, others)):
            if not written.get(f"{array.path}/{array.metadata.encode_chunk_key(position)}", (0, ""))[0]:
                return False
    return True


def _asked(tree: xr.DataTree) -> list[Any]:
    """What the results are made of: Dask's names tell contents, analyses and options apart."""
    found: list[Any] = [_said(tree.attrs)]
    for name, node in tree.children.items():
        ds = node.to_dataset()
        found.append((name, _said(ds.attrs), list(map(str, ds.data_vars))))
        for key, v in sorted(ds.variables.items(), key=lambda item: str(item[0])):
            values = v.data.name if isinstance(v.data, da.Array) else v.values
            found.append((str(key), v.dims, v.shape, values, _said(v.attrs)))
    return found


def _said(attrs: Mapping[Any, Any]) -> str:
    return json.dumps({str(k): v for k, v in attrs.items() if k != "source"}, default=str, sort_keys=True)
