"""Resume interrupted analyses: which results are unfinished, and which blocks of steps they hold already.

The lock and the facts are those of `store.in_progress`. Its directory beside the results also holds

    tried           written by workers, to test that they can write there
    PASS/BLOCK      the small values that the task of a block of steps returned, written after the block's results

A block is finished if this file is intact, the block's chunks of the recording are those that it was computed from, and
its chunks of the results exist.
"""

from __future__ import annotations

import itertools
import json
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
from numcodecs.zstd import Zstd

from deadtok_xr import store
from deadtok_xr.analyses.runs import sources
from deadtok_xr.attributes import plain
from deadtok_xr.engine.block_task import BlockTask, WriteTarget
from deadtok_xr.engine.journal import ResumeJournal
from deadtok_xr.engine.saving import passes_in
from deadtok_xr.schema import RESULTS
from deadtok_xr.store import destination, location, manifest, motion_index
from deadtok_xr.store.chunk_bytes import file_key, open_chunk
from deadtok_xr.store.chunk_entries import entry_of, read_key
from deadtok_xr.store.in_progress import VERSION, InProgress
from deadtok_xr.store.stored_array import StoredArray


def is_unfinished(path: str | Path) -> bool:
    """Return whether there are results that were not completed."""
    attrs = destination.root_attributes(path)
    return RESULTS in attrs and attrs.get("complete") is False


class Work:
    """Results that one process is writing, from the beginning or after an interruption.

    Attributes
    ----------
    path
        The results.
    place
        The folder or address of the notes on the work in progress.
    begun
        Whether an interrupted analysis can be resumed.
    blocks
        How many blocks of steps are finished, and how many there are, in all passes for which `journal` was called.
    """

    def __init__(self, path: str | Path, tree: xr.DataTree) -> None:
        self._notes = InProgress(path, "analysis")
        self.path, self.place, self._tree = path, self._notes.place, tree
        self.begun = False
        self.blocks = (0, 0)

    @contextmanager
    def held(self) -> Iterator[Work]:
        """Hold the lock of the results.

        Raises
        ------
        DestinationExistsError
            If another process is writing there.
        """
        with self._notes.held():
            yield self

    def resumes(self) -> bool:
        """Return whether the same analysis left these results unfinished, so that it can be resumed.

        Raises
        ------
        DestinationExistsError
            If another analysis left them; the message says what differs, and what to do.
        """
        recorded = self._notes.identified()
        if recorded is not None and recorded != destination.root_attributes(self.path).get("begun"):
            return False
        differences = self._notes.differences(self._facts)
        if differences:
            if not self._notes.has_finished_parts():  # nothing would be lost: a user's own analysis failed immediately
                return False
            raise self._notes.refusal(differences)
        self.begun = differences is not None
        if not self.begun:
            return False
        self._notes.remove_partial_files()
        return True

    def check_held(self) -> None:
        """Raise an error if another process has taken over the lock."""
        self._notes.check_held()

    def is_finished(self) -> bool:
        """Return whether the same work is at the destination, complete; notes that it left are removed."""
        attributes = destination.root_attributes(self.path)
        if not (RESULTS in attributes and attributes.get("complete") is True and "fingerprint" in attributes):
            return False
        if attributes["fingerprint"] != self.fingerprint:
            return False
        self._notes.clear_finished()
        return True

    def clear(self) -> None:
        """Remove earlier notes and results."""
        self._notes.forget()
        self._notes.remove_destination()

    def begin(self, root: zarr.Group) -> None:
        """Record what will be computed, once the results hold every array."""
        self._notes.begin(self._facts, root.attrs["begun"])
        self.begun = True

    @property
    def fingerprint(self) -> str:
        """What identifies the work: the content of the recordings, the analyses, their options, and the versions."""
        facts = {name: value for name, value in self._facts.items() if name != "the recording"}
        contents = [(place, _content(found)) for place, found in sorted(self._stores.items())]
        return str(tokenize(facts, contents))

    def finish(self) -> None:
        """Remove all notes."""
        self.begun = False
        self._notes.finish()

    def journal(
        self, name: str, task: BlockTask, targets: Sequence[WriteTarget]
    ) -> tuple[ResumeJournal, Collection[int]]:
        """Return where the blocks of a pass are recorded, and which of them are finished."""
        chunks = tuple(self._chunks_of(task, i) for i in range(len(task.layout.n_states)))
        journal = ResumeJournal(location.absolute(self.place), name, chunks)
        written = location.object_versions(targets[0].array.store) if self.begun and targets else {}
        done = {i for i in range(len(chunks)) if _is_written(written, targets, i) and _is_intact(journal, targets, i)}
        self.blocks = (self.blocks[0] + len(done), self.blocks[1] + len(chunks))
        return journal, done

    def _chunks_of(self, job: BlockTask, i: int) -> str:
        """Return a fingerprint of the chunks that a block is computed from."""
        if job.held:  # values come through Dask's graph, from unknown chunks: use all chunks
            return tokenize(sorted(self._versions.items()))
        start, n = job.layout.starts[i], job.layout.n_states[i]
        keys = [key for name, x in job.stored.items() for key in _keys(x, start, start + n + job.n_after(name))]
        return tokenize([(key, self._versions.get(key)) for key in keys])

    @cached_property
    def _versions(self) -> dict[str, tuple[int, str]]:
        """Every file of the recordings, with its size and version (mtime or ETag)."""
        return {
            f"{place}/{key}": version
            for place, found in self._stores.items()
            for key, version in location.object_versions(found).items()
        }

    @cached_property
    def _stores(self) -> dict[str, Any]:
        """The recordings, by their places."""
        stores = {location.address_of(p.array.store): p.array.store for job in self._jobs for p in job.stored.values()}
        for source in filter(destination.root_attributes, sources(self._tree)):
            opened = zarr.open_group(location.zarr_store(source), mode="r").store
            stores.setdefault(location.address_of(opened), opened)
        return stores

    @cached_property
    def _jobs(self) -> list[BlockTask]:
        datas = [v.data for node in self._tree.children.values() for v in node.to_dataset().variables.values()]
        return list(passes_in(datas).values())

    @cached_property
    def _facts(self) -> dict[str, str]:
        """What must be equal for the analysis to resume. Chunks that a pass reads are compared block by block."""
        in_pass = tuple(f"{_place(p)}/" for job in self._jobs for p in job.stored.values())
        small = {k: v for k, v in self._versions.items() if not k.startswith(in_pass) and not _is_motion_index(k)}
        return {
            "the recording": tokenize(sorted(small.items())),
            "the analyses, their options or the tokens": tokenize(_determinants(self._tree)),
            **{f"{VERSION}{name}": version for name, version in store.software_versions().items()},
        }


def _content(found: Any) -> Any:
    """Return what identifies the content of a recording: its manifest, or else its files with their times."""
    listed = read_key(found, manifest.KEY)
    if listed is not None:
        return listed
    return [item for item in sorted(location.object_versions(found).items()) if not _is_motion_index(f"/{item[0]}")]


def _is_motion_index(key: str) -> bool:
    return f"/{motion_index.GROUP}/" in key  # it saves time and does not affect results


def _place(stored: StoredArray) -> str:
    return f"{location.address_of(stored.array.store)}/{stored.array.path}"


def _keys(stored: StoredArray, start: int, stop: int) -> Iterator[str]:
    """Yield the files of the steps that are read for a block."""
    array, leading = stored.array, stored.leading
    along_step = np.unique(stored.steps[start:stop] // stored.chunk_steps).tolist()
    along_token = np.unique(stored.tokens // array.chunks[-2]).tolist()
    for position in itertools.product(along_step, along_token):
        yield f"{_place(stored)}/{file_key(array, (*leading, *position, 0))}"


def _is_written(written: Mapping[str, tuple[int, str]], targets: Sequence[WriteTarget], i: int) -> bool:
    """Return whether all chunks of a block's results exist; one that a power cut left empty does not count."""
    for target in targets:
        array, leading = target.array, target.leading
        n_blocks, *others = array.cdata_shape[len(leading) :]
        for position in itertools.product(*((k,) for k in leading), (i,) if i < n_blocks else (), *map(range, others)):
            if not written.get(f"{array.path}/{array.metadata.encode_chunk_key(position)}", (0, ""))[0]:
                return False
    return True


def _is_intact(journal: ResumeJournal, targets: Sequence[WriteTarget], i: int) -> bool:
    """Return whether a block is finished, and the chunks of its results are those that were written."""
    written, arrays = journal.written(i), {target.array.path: target.array for target in targets}
    if written is None or any(path not in arrays for path, _, _ in written):
        return False
    try:
        for path, position, entry in written:
            array = arrays[path]
            with open_chunk(array, position) as file:
                data = file.read()
            if entry_of(len(data), data) != entry:
                return False
            Zstd().decode(data)  # a power cut may have left holes
    except (OSError, ValueError, RuntimeError):
        return False
    return True


def _determinants(tree: xr.DataTree) -> list[Any]:
    """List what determines the results. Names of Dask arrays depend on contents, analyses and options."""
    found: list[Any] = [_attributes_text(tree.attrs)]
    for name, node in tree.children.items():
        ds = node.to_dataset()
        found.append((name, _attributes_text(ds.attrs), list(map(str, ds.data_vars))))
        for key, v in sorted(ds.variables.items(), key=lambda item: str(item[0])):
            values = v.data.name if isinstance(v.data, da.Array) else v.values
            found.append((str(key), v.dims, v.shape, values, _attributes_text(v.attrs)))
    return found


def _attributes_text(attrs: Mapping[Any, Any]) -> str:
    return json.dumps(_without_source(plain(attrs)), default=str, sort_keys=True)


def _without_source(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {str(k): _without_source(v) for k, v in value.items() if k != "source"}
