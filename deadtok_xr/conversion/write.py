"""A plan, carried out: streamed into a store that is complete only when everything is there."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, cast

import numpy as np
import zarr
from blake3 import blake3
from dask.system import CPU_COUNT
from numcodecs.zstd import Zstd

from deadtok_xr import store
from deadtok_xr.conversion import empty_store
from deadtok_xr.conversion.markers import Markers, markers_of
from deadtok_xr.conversion.plan import IN_FLIGHT, Plan, PlannedVariable
from deadtok_xr.conversion.readers.source import Source, reading
from deadtok_xr.conversion.units import Finds, Unit, Words, divide, fill, word_type
from deadtok_xr.errors import DestinationExistsError, InputError, StorageError
from deadtok_xr.store import destination, location, zarr_dtype
from deadtok_xr.store.chunk_bytes import file_key, shard_of

_HASH_BLOCK = 2**18  # stays in a core's own cache between being read and being hashed
Progress = Callable[[int, int], None]


def check_destination(source: Source, dest: Path | str, *, overwrite: bool) -> None:
    """Refuse a destination that cannot be one.

    Raises
    ------
    InputError
        If replacing the destination would destroy the source, or its folder cannot be one.
    DestinationExistsError
        If something is there that is neither to be replaced nor an unfinished conversion.
    """
    outer = Path(dest).resolve()  # an address is resolved to what no source is
    for path in {source.path, *source.files()}:
        inner = path.resolve()
        if outer == inner or outer in inner.parents:
            raise InputError(
                f"the source {path} lies in the destination {dest}, which would be replaced; choose another destination"
            )
    blocking = next((p for p in outer.parents if p.exists() and not p.is_dir()), None)
    if blocking is not None:
        raise InputError(f"{dest} cannot be made: {blocking} is a file; choose another destination")
    markers = markers_of(dest)
    markers.tidy()
    if not markers.begun():  # what markers belong to is looked at under their lock
        destination.refuse_existing(dest, overwrite=overwrite or _is_unfinished(source.files(), dest))


def _is_unfinished(files: Sequence[Path], dest: Path | str) -> bool:
    """Whether a conversion of this source was broken off here, even if its markers are lost."""
    attrs = empty_store.root_attributes(dest) or {}
    ours = attrs.get("made_by") == empty_store.MADE_BY and attrs.get("complete") is False
    names = {s.get("name") for s in attrs.get("sources", ()) if isinstance(s, dict)}
    return ours and names == {path.name for path in files}


def write_plan(
    plan: Plan,
    source: Source,
    dest: Path | str,
    *,
    overwrite: bool = False,
    memory: int | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """Stream a plan into a store, or what is left of it to do.

    Parameters
    ----------
    plan, source
        A plan, and the open source that it was made from.
    dest
        The store to write.
    overwrite
        Replace a store that is there.
    memory
        Bytes of memory that may be used; None for the default.
    progress
        Called with the bytes done and the bytes to do.

    Returns
    -------
    What a user should know of the values and of what was left out: one sentence each.

    Raises
    ------
    InputError
        If the source turns out to be damaged, or changes meanwhile.
    DestinationExistsError
        If ``dest`` is being written by another process, holds something else, or other unfinished work.
    OSError
        If the store cannot be written. It is left incomplete, as it is by anything else that breaks in;
        the same conversion goes on from there.
    """
    zarr_dtype.register()
    room = plan.room() if memory is None else plan.room(memory)
    facts = plan.facts()
    counts = _Progress(plan.nbytes, progress)
    if not location.is_address(dest):
        Path(dest).absolute().parent.mkdir(parents=True, exist_ok=True)
    with _writing(dest, counts), markers_of(dest).held() as markers:
        _prepare(plan, facts, dest, markers, overwrite=overwrite)
        if (empty_store.root_attributes(dest) or {}).get("complete"):  # broken off at the very end, or damaged since
            _write_units(plan, source, dest, markers, room, counts)
        else:
            with _hashing(plan) as hashes:
                _write_units(plan, source, dest, markers, room, counts)
                _complete(plan, facts, dest, markers, hashes.result())
        finds = _noticed(plan, markers)
        store.open_group(dest)  # nothing is missing, as seen by a reader
        markers.remove()
    return [_sentence(plan, v, finds[v.name]) for v in plan.variables if finds[v.name].n_bad]


def _prepare(plan: Plan, facts: dict[str, Any], dest: Path | str, markers: Markers, *, overwrite: bool) -> None:
    """Bring the destination to where units can be written, keeping the chunks that are done."""
    differs = markers.differs(facts)
    if differs == []:
        markers.resume()
        if empty_store.is_ours(dest, markers):
            empty_store.mend(plan, dest, markers) if location.exists(dest) else empty_store.make(plan, dest, markers)
            return
    protected = (
        differs and "the source" not in differs and location.exists(dest)
    )  # of another source nothing can be used
    if protected and not overwrite and _is_unfinished(plan.files, dest):
        raise DestinationExistsError(
            f"{dest} holds an unfinished conversion that differs in {' and '.join(differs or ())}: give the command "
            "that began it again to go on, or say --overwrite (overwrite=True) to begin anew"
        )
    destination.refuse_existing(dest, overwrite=overwrite or _is_unfinished(plan.files, dest))
    markers.begin(facts)
    empty_store.make(plan, dest, markers)


def _write_units(plan: Plan, source: Source, dest: Path | str, markers: Markers, room: int, counts: _Progress) -> None:
    """Read units one after the other, while the one before is compressed and written."""
    group = zarr.open_group(location.opened(dest), mode="r")
    buffers: SimpleQueue[Words] = SimpleQueue()
    largest = max(unit.nbytes for unit in divide(plan, room))
    for _ in range(IN_FLIGHT):
        buffers.put(np.empty(largest, np.uint8))
    pending: list[tuple[Words, list[Future[int]]]] = []
    with ThreadPoolExecutor(CPU_COUNT, "encode") as pool:
        try:
            for unit in divide(plan, room):
                array = cast("zarr.Array[Any]", group[unit.variable.name])
                todo = _to_do(unit, array, markers)
                n_todo = sum(len(chunks) for chunks, _ in todo)
                counts.add(unit.nbytes * (1 - n_todo / len(unit.token_chunks)))
                if not todo:
                    continue
                if len(pending) == IN_FLIGHT:
                    _settle(pending.pop(0), buffers, counts)
                buffer = buffers.get()
                blocks = buffer[: unit.nbytes].view(word_type(unit.variable.dtype)).reshape(unit.layout())
                finds = fill(unit, plan, source, blocks, array.fill_value)
                tasks = [pool.submit(_finish, unit, blocks, chunks, array, key, markers, finds) for chunks, key in todo]
                pending.append((buffer, tasks))
            while pending:
                _settle(pending.pop(0), buffers, counts)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _to_do(unit: Unit, array: zarr.Array[Any], markers: Markers) -> list[tuple[list[int], str]]:
    """The files of a unit that are not in the store yet: which of the unit's chunks they hold, and their keys."""
    positions = unit.positions()
    keyed = [(chunks, f"{array.path}/{file_key(array, positions[chunks[0]])}") for chunks in unit.files()]
    return [(chunks, key) for chunks, key in keyed if key not in markers.done]


def _finish(
    unit: Unit, blocks: Words, chunks: list[int], array: zarr.Array[Any], key: str, markers: Markers, finds: list[Finds]
) -> int:
    """Compress and write one file: a chunk, or a shard of several."""
    encoded = [bytes(Zstd(level=store.ZSTD_LEVEL, checksum=True).encode(blocks[i])) for i in chunks]
    if unit.variable.per_file > 1:
        data = shard_of(encoded, unit.variable.per_file)
    else:
        (data,) = encoded
        markers.put_bounds(array, unit.positions()[chunks[0]], blocks[chunks[0]][: len(unit.steps)], data)
    markers.finish_chunk(key, data, sum((finds[i] for i in chunks), Finds()))
    return sum(blocks[i].nbytes for i in chunks)


def _settle(work: tuple[Words, list[Future[int]]], buffers: SimpleQueue[Words], counts: _Progress) -> None:
    buffer, tasks = work
    for task in tasks:
        counts.add(task.result())
    buffers.put(buffer)


def _complete(plan: Plan, facts: dict[str, Any], dest: Path | str, markers: Markers, hashes: list[str]) -> None:
    if plan.facts() != facts:
        raise InputError(f"{plan.path} changed while it was converted; convert it when nothing writes to it")
    if hasattr(os, "sync"):
        os.sync()  # a power cut must not leave a store that says it is complete and is not
    sources = [
        {"name": path.name, "bytes": path.stat().st_size, "blake3": digest}
        for path, digest in zip(plan.files, hashes, strict=True)
    ]
    empty_store.complete(dest, markers, sources)


@contextmanager
def _hashing(plan: Plan) -> Iterator[Future[list[str]]]:
    """The BLAKE3 of all files, worked out in the background; given up when the work in front fails."""
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        try:
            yield pool.submit(lambda: [_hash(path, stop) for path in plan.files])
        except BaseException:
            stop.set()
            raise


def _hash(path: Path, stop: threading.Event) -> str:
    # SHA-256 takes as long as compressing does on a CPU without instructions for it; BLAKE3 a tenth of that
    digest, block = blake3(), bytearray(_HASH_BLOCK)
    with reading(path, "the file", "bytes"), path.open("rb", buffering=0) as file:
        while (n := file.readinto(block)) and not stop.is_set():
            digest.update(memoryview(block)[:n])
    return digest.hexdigest()


@dataclass
class _Progress:
    total: int
    report: Progress | None
    done: float = 0

    def add(self, n: float) -> None:
        self.done = min(self.total, self.done + n)  # chunks reach beyond the array
        if self.report is not None:
            self.report(int(self.done), self.total)


@contextmanager
def _writing(dest: Path | str, counts: _Progress) -> Iterator[None]:
    """Say where writing stopped. What reading raises is an InputError, so an OSError is the store's."""
    try:
        yield
    except InputError:
        raise
    except StorageError as error:
        raise StorageError(f"{error}; what is written stays, and the same command goes on from there") from error
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise OSError(
            error.errno,
            f"{dest} cannot be written: {reason}, after {counts.done:.0f} of {counts.total} bytes; it is left "
            f"incomplete and will not open; {'make room' if full else 'mend that'} and give the same command again, "
            "which goes on from there",
        ) from error


def _noticed(plan: Plan, markers: Markers) -> dict[str, Finds]:
    """What was noticed in each variable, now or before an interruption."""
    found = {v.name: Finds() for v in plan.variables}
    for key, finds in markers.done.items():
        if finds.n_bad:
            found[key.partition("/")[0]] += finds
    return found


def _sentence(plan: Plan, v: PlannedVariable, finds: Finds) -> str:
    assert finds.first is not None
    step, token = finds.first
    known_as = "" if v.key == v.name else f" (there {v.key!r})"
    where = f"step {step}" + ("" if token is None else f", token {token}")
    return (
        f"{plan.path}: variable {v.name!r}{known_as} holds {finds.n_bad} values that are NaN or infinite, the first at "
        f"{where}; they are kept"
    )
