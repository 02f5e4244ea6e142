"""Write a plan: stream the source into a store that is declared complete only when every chunk is there."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator, Sequence
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
from deadtok_xr.conversion.finished_chunks import FinishedChunks
from deadtok_xr.conversion.plan import UNITS_IN_FLIGHT, ConversionPlan, PlannedVariable, Progress
from deadtok_xr.conversion.readers.source import Source, explaining_damage
from deadtok_xr.conversion.units import NonFiniteReport, Unit, Words, divide, fill, word_type
from deadtok_xr.errors import InputError, StorageError
from deadtok_xr.store import chunk_entries, destination, location, motion_index, zarr_dtype
from deadtok_xr.store.chunk_bytes import encode_shard, file_key
from deadtok_xr.store.in_progress import Facts, InProgress

_HASH_BLOCK = 2**18  # stays in a core's own cache between reading and hashing
KIND = "conversion"


def check_destination(source: Source, dest: Path | str, *, overwrite: bool) -> None:
    """Refuse an unsuitable destination.

    Raises
    ------
    InputError
        If replacing the destination would destroy the source, or a folder cannot be made there.
    DestinationExistsError
        If it exists, is not to be replaced, and is not an unfinished conversion.
    """
    outer = Path(dest).resolve()  # an address resolves to a path that no source has
    files = source.files()
    links = (path for path in files if path.is_symlink())
    for path in {source.path, *links, *(path.parent for path in files)}:  # a Zarr array has thousands of files
        inner = path.resolve()
        if outer == inner or outer in inner.parents:
            raise InputError(
                f"the source {path} lies in the destination {dest}, which would be replaced; choose another destination"
            )
    check_free(dest, overwrite=overwrite or _is_unfinished(source.path, files, dest))


def is_finished(dest: Path | str, fingerprint: str) -> bool:
    """Return whether the same conversion is complete at the destination; notes that it left are removed.

    Raises
    ------
    InputError, DamagedStoreError
        If it is complete, but does not open.
    """
    attributes = destination.root_attributes(dest)
    if attributes.get("complete") is not True or attributes.get("fingerprint") != fingerprint:
        return False
    work = InProgress(dest, KIND)
    if work.begun():  # interrupted at the very end: what is written is compared with the notes
        return False
    work.clear_finished()
    store.open_group(dest)
    return True


def check_free(dest: Path | str, *, overwrite: bool) -> None:
    """Refuse a destination that exists, or that another process writes; an unfinished conversion is let pass."""
    blocking = next((p for p in Path(dest).resolve().parents if p.exists() and not p.is_dir()), None)
    if blocking is not None:
        raise InputError(f"{dest} cannot be made: {blocking} is a file; choose another destination")
    work = InProgress(dest, KIND)
    work.check_free()
    if not work.begun():  # unfinished work is compared later, when the lock is held
        destination.refuse_existing(dest, overwrite=overwrite)


def _is_unfinished(source: Path, files: Sequence[Path], dest: Path | str) -> bool:
    """Return whether an unfinished conversion of this source is at the destination, even if its notes are lost."""
    attrs = destination.root_attributes(dest)
    ours = attrs.get("made_by") == empty_store.MADE_BY and attrs.get("complete") is False
    names = {s.get("name") for s in attrs.get("sources", ()) if isinstance(s, dict)}
    return ours and names == {item["name"] for item in empty_store.listed_sources(source, files)}


def write_plan(
    plan: ConversionPlan,
    source: Source,
    dest: Path | str,
    *,
    overwrite: bool = False,
    memory: int | None = None,
    fingerprint: str = "",
    progress: Progress | None = None,
) -> list[str]:
    """Write a plan to a store, or the part of it that an earlier attempt did not finish.

    Parameters
    ----------
    plan, source
        A plan, and the open source that it was made from.
    dest
        The store to write.
    overwrite
        Replace an existing store.
    memory
        Bytes of memory to use at most; None for the default.
    fingerprint
        What identifies the command; it becomes an attribute of the store, by which the same command is recognised.
    progress
        Called with the bytes written and the bytes to write.

    Returns
    -------
    list[str]
        One sentence for each variable with non-finite values.

    Raises
    ------
    InputError
        If the source turns out to be damaged, or changes during the conversion.
    DestinationExistsError
        If ``dest`` is being written by another process, holds something else, or other unfinished work.
    OSError
        If the store cannot be written. It stays incomplete, as after any other interruption; repeating the
        conversion resumes it.
    """
    zarr_dtype.register()
    unit_bytes = plan.unit_bytes() if memory is None else plan.unit_bytes(memory)
    facts = plan.facts()
    counts = _Progress(plan.nbytes, progress)
    work = InProgress(dest, KIND)
    finished = FinishedChunks(work)
    if work.folder is not None:
        work.folder.parent.mkdir(parents=True, exist_ok=True)
    with _explaining_failures(dest, counts), work.held():
        _prepare(plan, facts, work, finished, overwrite=overwrite)
        if destination.root_attributes(dest).get("complete"):  # interrupted at the very end, or damaged since
            _write_units(plan, source, finished, work, unit_bytes, counts)
            if finished.entries:
                work.check_held()
                empty_store.complete(work, **empty_store.declared(dest), finished=finished)
        else:
            with _hashing(plan) as hashes:
                _write_units(plan, source, finished, work, unit_bytes, counts)
                _complete(plan, facts, work, hashes.result(), fingerprint, finished)
        store.open_group(dest)  # checks that no chunk is missing, as any reader does
        work.finish()
    return _warnings(plan, finished)


def _prepare(
    plan: ConversionPlan, facts: Facts, work: InProgress, finished: FinishedChunks, *, overwrite: bool
) -> None:
    """Make or repair the store at the destination, so that chunks can be written; finished chunks stay."""
    dest, differences = work.dest, work.differences(facts)
    if differences == []:
        finished.load()
        if empty_store.belongs_to(work, finished):
            if location.exists(dest):
                work.remove_partial_files()
                empty_store.repair(plan, work)
            else:
                empty_store.create(plan, facts, work)
            return
    unfinished = _is_unfinished(plan.path, plan.files, dest)
    # an unfinished conversion of another source cannot be used
    if differences and "the source" not in differences and unfinished and not overwrite:
        raise work.refusal(differences)
    destination.refuse_existing(dest, overwrite=overwrite or unfinished)
    empty_store.create(plan, facts, work)
    finished.reports.clear()


def _write_units(
    plan: ConversionPlan, source: Source, finished: FinishedChunks, work: InProgress, unit_bytes: int, counts: _Progress
) -> None:
    """Read units one after the other, while those before are compressed and written."""
    group = zarr.open_group(location.zarr_store(work.dest), mode="r")
    buffers: SimpleQueue[Words] = SimpleQueue()
    largest = max(unit.nbytes for unit in divide(plan, unit_bytes))
    for _ in range(UNITS_IN_FLIGHT):
        buffers.put(np.empty(largest, np.uint8))
    pending: list[tuple[Words, list[Future[int]]]] = []
    with ThreadPoolExecutor(CPU_COUNT, "encode") as pool:
        try:
            for unit in divide(plan, unit_bytes):
                array = cast("zarr.Array[Any]", group[unit.variable.name])
                files = _missing_files(unit, array, finished)
                n_missing = sum(len(file.chunks) for file in files)
                counts.add(unit.nbytes * (1 - n_missing / len(unit.token_chunks)))
                if not files:
                    continue
                if len(pending) == UNITS_IN_FLIGHT:
                    _wait(pending.pop(0), buffers, counts)
                buffer = buffers.get()
                blocks = buffer[: unit.nbytes].view(word_type(unit.variable.dtype)).reshape(unit.layout())
                reports = fill(unit, plan, source, blocks, array.fill_value)
                filled = _FilledUnit(unit, blocks, reports)
                pending.append((buffer, [pool.submit(_write, file, filled, array, finished, work) for file in files]))
            while pending:
                _wait(pending.pop(0), buffers, counts)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


@dataclass(frozen=True)
class _File:
    """A file to write: its key in the store, and which chunks of a unit it holds."""

    key: str
    chunks: list[int]


@dataclass(frozen=True)
class _FilledUnit:
    """A unit with the words of its chunks, and the non-finite values of each."""

    unit: Unit
    blocks: Words
    reports: list[NonFiniteReport]


def _missing_files(unit: Unit, array: zarr.Array[Any], finished: FinishedChunks) -> list[_File]:
    """List the files of a unit that are not in the store yet."""
    positions = unit.positions()
    files = [_File(f"{array.path}/{file_key(array, positions[chunks[0]])}", chunks) for chunks in unit.files()]
    return [file for file in files if file.key not in finished.reports]


def _write(file: _File, filled: _FilledUnit, array: zarr.Array[Any], finished: FinishedChunks, work: InProgress) -> int:
    """Compress and write one file, a chunk or a shard of several; return the bytes before compression."""
    v, blocks = filled.unit.variable, filled.blocks
    encoded = [bytes(Zstd(level=store.ZSTD_LEVEL, checksum=True).encode(blocks[i])) for i in file.chunks]
    content = encode_shard(encoded, v.per_file) if v.shards is not None else encoded[0]
    if empty_store.has_motion_index(v, work):
        i = file.chunks[0]
        steps = blocks[i][: len(filled.unit.steps)]
        motion_index.write(Path(work.dest), array, filled.unit.positions()[i], steps, content)
    entries = finished.entries.setdefault(array.path, {})
    for i, data in zip(file.chunks, encoded, strict=True):
        entries[filled.unit.positions()[i]] = chunk_entries.entry_of(len(data), data)
    finished.write(file.key, content, sum((filled.reports[i] for i in file.chunks), NonFiniteReport()))
    return sum(blocks[i].nbytes for i in file.chunks)


def _wait(written: tuple[Words, list[Future[int]]], buffers: SimpleQueue[Words], counts: _Progress) -> None:
    """Wait until a unit is written, and release its buffer."""
    buffer, tasks = written
    for task in tasks:
        counts.add(task.result())
    buffers.put(buffer)


def _complete(
    plan: ConversionPlan, facts: Facts, work: InProgress, hashes: list[str], fingerprint: str, finished: FinishedChunks
) -> None:
    if plan.facts() != facts:
        raise InputError(f"{plan.path} changed during the conversion; convert it when nothing writes to it")
    work.check_held()
    sources = empty_store.listed_sources(plan.path, plan.files, hashes)
    empty_store.complete(work, sources, fingerprint, finished)


@contextmanager
def _hashing(plan: ConversionPlan) -> Iterator[Future[list[str]]]:
    """Compute the BLAKE3 hashes of all files in the background; stop if the conversion fails."""
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        try:
            yield pool.submit(lambda: [_hash(path, stop) for path in plan.files])
        except BaseException:
            stop.set()
            raise


def _hash(path: Path, stop: threading.Event) -> str:
    # SHA-256 takes as long as compressing on a CPU without instructions for it; BLAKE3 takes a tenth of that
    digest, block = blake3(), bytearray(_HASH_BLOCK)
    with explaining_damage(path, "the file", "bytes"), path.open("rb", buffering=0) as file:
        while (n := file.readinto(block)) and not stop.is_set():
            digest.update(memoryview(block)[:n])
    return digest.hexdigest()


@dataclass
class _Progress:
    total: int
    report: Progress | None
    done: float = 0

    def add(self, n: float) -> None:
        self.done = min(self.total, self.done + n)  # chunks extend beyond the edge of the array
        if self.report is not None:
            self.report(int(self.done), self.total)


@contextmanager
def _explaining_failures(dest: Path | str, counts: _Progress) -> Iterator[None]:
    """Add to an error of the store how far writing got. Errors of the source are InputErrors."""
    try:
        yield
    except InputError:
        raise
    except StorageError as error:
        raise StorageError(f"{error}; what is written stays, and the same command resumes") from error
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise OSError(
            error.errno,
            f"{dest} cannot be written: {reason}, after {counts.done:.0f} of {counts.total} bytes; it is left "
            f"incomplete and will not open; {'free disk space' if full else 'fix that'} and give the same command "
            "again, which resumes",
        ) from error


def _warnings(plan: ConversionPlan, finished: FinishedChunks) -> list[str]:
    """Describe the non-finite values of each variable, found now or before an interruption."""
    reports = {v.name: NonFiniteReport() for v in plan.variables}
    for key, report in finished.reports.items():
        if report.n:
            reports[key.partition("/")[0]] += report
    return [_warning(plan, v, reports[v.name]) for v in plan.variables if reports[v.name].n]


def _warning(plan: ConversionPlan, v: PlannedVariable, report: NonFiniteReport) -> str:
    assert report.first is not None
    step, token = report.first
    in_source = "" if v.key == v.name else f" ({v.key!r} in the source)"
    where = f"step {step}" + ("" if token is None else f", token {token}")
    return (
        f"{plan.path}: variable {v.name!r}{in_source} holds {report.n} values that are NaN or infinite, the first at "
        f"{where}; they are kept"
    )
