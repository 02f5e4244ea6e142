"""Compare a store with its manifest, and say in words what differs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import zarr

from deadtok_xr.errors import DamagedStoreError, StorageError
from deadtok_xr.store import chunk_entries, location, manifest
from deadtok_xr.store.arrays import dimensions
from deadtok_xr.store.manifest import Manifest, WrongChunkError

Arrays = Mapping[str, "zarr.Array[Any]"]


def check(root: zarr.Group, arrays: Arrays, read_now: Iterable[str], groups: Iterable[zarr.Group] = ()) -> None:
    """Compare a store with its manifest, if it has one: its arrays, their layout, the attributes, and some chunks.

    Parameters
    ----------
    root
        The root group.
    arrays
        The arrays that belong to it, by their paths.
    read_now
        The arrays whose chunks are compared, because they are read at once. Other chunks are compared when they are
        read.
    groups
        The groups inside the root group in which arrays lie.

    Raises
    ------
    DamagedStoreError
        If anything differs, or the manifest is missing or damaged.
    """
    found = manifest.load(root)
    if found is None:
        return
    where = location.address_of(root)
    for problem in problems(found, root, arrays, groups):
        raise DamagedStoreError(f"{where}: {problem}: {manifest.remedy(root)}")
    for name in read_now:
        for problem in chunk_problems(found, arrays[name], missing=False) if name in arrays else ():
            raise DamagedStoreError(f"{where}: {problem}")


def problems(found: Manifest, root: zarr.Group, arrays: Arrays, groups: Iterable[zarr.Group] = ()) -> Iterator[str]:
    """Yield in words what differs from a manifest, apart from chunks."""
    for name, states in found.members.items():
        if name not in arrays and None not in states:
            yield f"the array {name!r}, which belongs to it, is missing"
    for name, array in arrays.items():
        if name not in found.members:
            yield f"the array {name!r} does not belong to it"
            continue
        facts, states = manifest.facts_of(array), found.states(name)
        state = next((s for s in states if s.facts == facts), None)
        if state is None:
            what = next(key for key, value in states[0].facts.items() if facts.get(key) != value)
            yield f"the {what} of {name!r} is {facts.get(what)}, but {states[0].facts[what]} was written"
            continue
        for attribute in manifest.changed_attributes(state.attributes, array.attrs.asdict()):
            yield f"the attribute {attribute!r} of {name!r} is not the one that was written"
    attributes = {**root.attrs.asdict(), **manifest.of_groups(groups)}
    for attribute in manifest.changed_attributes(found.attributes, attributes):
        yield f"the attribute {attribute!r} is not the one that was written"


def chunk_problems(found: Manifest, array: zarr.Array[Any], *, missing: bool = True) -> Iterator[str]:
    """Yield in words which chunks of an array are missing, unless ``missing`` is false, or are not the right ones."""
    positions, states = chunk_entries.positions_of(array), found.states(array.path)
    for position, entry in zip(positions, chunk_entries.read_entries(array, positions), strict=True):
        if isinstance(entry, StorageError):
            raise entry
        if isinstance(entry, FileNotFoundError) and not missing:
            continue
        if isinstance(entry, Exception):
            where, reason = _place(array, position), " ".join(str(entry).split())
            yield f"the chunk of {where} is missing or damaged ({reason}): restore the file from a copy"
        elif entry not in [state.entry(position) for state in states]:
            yield wrong_chunk(found, array, position, WrongChunkError(entry))


def wrong_chunk(found: Manifest, array: zarr.Array[Any], position: tuple[int, ...], error: WrongChunkError) -> str:
    """Say that a chunk is not the one that was written at its position, and which chunk of the store it is."""
    others = (f"{name!r} at {_where(member.facts, at)}" for name, member, at in found.with_entry(error.found))
    other = next(others, None)
    holds = "what no chunk of this store held" if other is None else f"what belongs to {other}"
    return (
        f"the chunk of {_place(array, position)} is not the one that was written there: it holds {holds}: restore the "
        "file from a copy"
    )


def _place(array: zarr.Array[Any], position: tuple[int, ...]) -> str:
    facts = {"dims": dimensions(array), "chunks": array.chunks, "shape": array.shape}
    return f"{array.path!r} at {_where(facts, position)}"


def _where(facts: Mapping[str, Any], position: tuple[int, ...]) -> str:
    """Say which part of an array a chunk holds, along the dims that are divided into chunks."""
    parts = list(zip(facts["dims"], position, facts["chunks"], facts["shape"], strict=True))
    divided = [part for part in parts if part[2] < part[3]] or parts[:1]
    return ", ".join(f"{dim} positions {i * c}..{min((i + 1) * c, n) - 1}" for dim, i, c, n in divided) or "its place"
