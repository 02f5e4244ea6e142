"""Create the empty store that chunks are written into, recognise it in a later attempt, and repair it.

The store is made in a temporary folder and put at the destination as a whole. Its files are recorded in the notes on
the work in progress, so that a later attempt can tell whether a store is the one that was begun, and whether a power
cut damaged it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import zarr
from blake3 import blake3

from deadtok_xr import store
from deadtok_xr.conversion.finished_chunks import FinishedChunks
from deadtok_xr.conversion.plan import ConversionPlan, PlannedVariable
from deadtok_xr.store import destination, location, manifest, manifest_write, motion_index
from deadtok_xr.store.in_progress import Facts, InProgress, file_record

MADE_BY = "convert"
_ROOT = "zarr.json"
_SET_LAST = ("complete", "sources", "fingerprint", manifest.FLAG)
MOST_SOURCES = 1000
"""More files than these are listed as one, since every reader of the store loads the list."""


def create(plan: ConversionPlan, facts: Facts, work: InProgress) -> None:
    """Put a new empty store at the destination, in place of what is there, and record what will be written."""
    work.forget()
    with _temporary_folder(work) as folder:
        _build(plan, folder, work)
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        records = {name: file_record(path.read_bytes()) for name, path in sorted(files.items()) if name != _ROOT}
        identity = {"root": _identity(destination.root_attributes(folder)), "files": records}
        work.remove_destination()
        work.begin(facts, identity)  # first, so that whatever a power cut leaves of the store is recognised
        if work.folder is not None:
            location.flush(folder / _ROOT)
            folder.replace(work.dest)
        else:  # the root first: it says that the store is incomplete
            for name in sorted(files, key=lambda name: name != _ROOT):
                location.write(work.dest, name, files[name].read_bytes())


def belongs_to(work: InProgress, finished: FinishedChunks) -> bool:
    """Return whether the store at the destination, or what is left of it, is the one that was begun."""
    recorded = work.identified()
    if recorded is None:
        return False
    if not location.exists(work.dest) and not (isinstance(work.dest, Path) and work.dest.is_symlink()):
        return True
    attributes = destination.root_attributes(work.dest)
    if not attributes:  # damaged or lost: any other file of the store shows which conversion made it
        return bool(finished.reports) or any(work.is_intact(*item) for item in recorded["files"].items())
    return _identity(attributes) == recorded["root"]


def repair(plan: ConversionPlan, work: InProgress) -> None:
    """Restore the files of the empty store that are lost or damaged. Finished chunks stay."""
    recorded = work.identified()
    lost = [name for name, record in recorded["files"].items() if not work.is_intact(name, record)]
    if not destination.root_attributes(work.dest):
        lost.append(_ROOT)
    if not lost:
        return
    with _temporary_folder(work) as folder:
        _build(plan, folder, work)
        for name in lost:
            content = (folder / name).read_bytes()
            if name == _ROOT:
                content = _with_attributes(content, recorded["root"])  # its time of creation, among others
            location.write(work.dest, name, content)


def complete(work: InProgress, sources: list[dict[str, Any]], fingerprint: str, finished: FinishedChunks) -> None:
    """Write the manifest and declare the store complete; only then does it open."""
    group = zarr.open_group(location.zarr_store(work.dest), mode="r+")
    attributes = {**group.attrs.asdict(), "sources": sources, "fingerprint": fingerprint}
    manifest_write.complete(group, dict(group.arrays()), attributes, finished.entries)


def declared(dest: Path | str) -> dict[str, Any]:
    """Return what a complete store was declared complete with, for `complete`."""
    attributes = destination.root_attributes(dest)
    return {"sources": attributes["sources"], "fingerprint": attributes.get("fingerprint", "")}


def listed_sources(path: Path, files: Sequence[Path], hashes: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """List the files of a source for its attribute; more than `MOST_SOURCES` of them as one, with one hash of all.

    Parameters
    ----------
    path, files
        The source, and its files.
    hashes
        The BLAKE3 hash of each file; None if they are not known yet.
    """
    sizes = [file.stat().st_size for file in files]
    if len(files) <= MOST_SOURCES:
        return [
            {"name": file.name, "bytes": size, "blake3": None if hashes is None else hashes[i]}
            for i, (file, size) in enumerate(zip(files, sizes, strict=True))
        ]
    digest = None if hashes is None else blake3("\n".join(hashes).encode()).hexdigest()
    return [{"name": path.name, "files": len(files), "bytes": sum(sizes), "blake3": digest}]


@contextmanager
def _temporary_folder(work: InProgress) -> Iterator[Path]:
    """Yield the path of a folder to be made, on the file system of the destination if that is a folder."""
    with TemporaryDirectory(dir=work.folder, prefix="empty-store-") as folder:
        yield Path(folder, "store")


def _build(plan: ConversionPlan, folder: Path, work: InProgress) -> None:
    """Make all arrays of the store, without data, and its coordinates."""
    attributes = {
        "made_by": MADE_BY,
        "created": datetime.now(UTC).isoformat(timespec="microseconds"),  # distinguishes stores of the same second
        "sources": listed_sources(plan.path, plan.files),
        "source_format": plan.format,
        "rows": plan.rows_reason,
        "hyperparameters": dict(plan.hyperparameters),
        **plan.attributes,
        **({"dropped": dict(plan.dropped)} if plan.dropped else {}),
    }
    writer = store.create(folder, plan.rows, attributes, runs=None if plan.runs is None else plan.runs.tolist())
    writer.extend(plan.steps)
    for v in plan.variables:
        array = writer.declare(v.name, v.dims, v.shape, v.dtype, v.chunks, v.attributes, shards=v.shards)
        if has_motion_index(v, work):
            motion_index.create(writer.group, array)


def has_motion_index(v: PlannedVariable, work: InProgress) -> bool:
    """Return whether the motion in the chunks of a variable is indexed: where a small file for each chunk is cheap."""
    return v.shards is None and work.folder is not None


def _with_attributes(root: bytes, attributes: dict[str, Any]) -> bytes:
    metadata = json.loads(root)
    metadata["attributes"] |= attributes
    return json.dumps(metadata, indent=2).encode()


def _identity(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return the root attributes that do not change while the store is written."""
    return {name: value for name, value in attributes.items() if name not in _SET_LAST}
