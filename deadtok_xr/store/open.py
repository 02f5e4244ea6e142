"""Open a recording store for reading, after checking its format, its metadata, and that no chunk is missing."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zarr

from deadtok_xr import schema
from deadtok_xr.errors import IncompleteStoreError, InputError
from deadtok_xr.schema import MONITOR, RECORDING, RESULTS
from deadtok_xr.store import location, manifest_check, zarr_dtype
from deadtok_xr.store.arrays import dimensions, file_shape
from deadtok_xr.store.members import Arrays, check_format, check_recording, is_complete, open_members, open_root
from deadtok_xr.store.sample import KIND

_READ_COMPLETE_STEPS = "open it with partial=True (--partial) to read the steps that are complete"


@dataclass(frozen=True)
class MissingChunks:
    """The chunks, or shards if it has any, of an array that are not in a store.

    Attributes
    ----------
    array
        The array.
    n
        How many there are, at least one.
    first
        The grid position of the first one.
    keys
        The keys of the store.
    """

    array: zarr.Array[Any]
    n: int
    first: tuple[int, ...]
    keys: Collection[str]

    def first_along(self, axis: int) -> int:
        """Return the smallest position along an axis of the grid at which a chunk is missing."""
        return next(_absent(self.array, self.keys, axis))[axis]


def open_group(path: str | Path, *, partial: bool = False) -> tuple[zarr.Group, int]:
    """Open a store for reading, after checking that it is complete; see `open_arrays`.

    Returns
    -------
    The group, and the number of complete steps from the first: all of them unless ``partial``.
    """
    group, _, n_steps = open_arrays(path, partial=partial)
    return group, n_steps


def open_arrays(
    path: str | Path, *, partial: bool = False, may_lack: Collection[str] = ()
) -> tuple[zarr.Group, Arrays, int]:
    """Open a store and its arrays for reading, after checking that it is complete.

    Parameters
    ----------
    path
        A folder or an address.
    partial
        Also open a store that is still being written or has lost chunks.
    may_lack
        Coordinates of tokens that may be missing although variables name them, because they are about to be written.

    Returns
    -------
    The group, its arrays, and the number of complete steps from the first: all of them unless ``partial``.

    Raises
    ------
    MissingFileError
        If there is nothing at ``path``.
    InputError
        If it is not a recording, or has a newer format.
    DamagedStoreError
        If metadata cannot be read or disagree with each other; if metadata or coordinates of a complete store are not
        those of its manifest.
    IncompleteStoreError
        If writing has not finished or a chunk is missing, unless ``partial``; with ``partial``, if no step is complete.
    """
    zarr_dtype.register()
    group = open_root(path, "a recording store: `deadtok convert` makes one of other files, and of Zarr arrays")
    _check_format(path, group)
    if not is_complete(path, group) and not partial:
        raise IncompleteStoreError(f"{path} was not written to its end: finish writing it, or {_READ_COMPLETE_STEPS}")
    keys = location.key_sizes(group.store, f"{group.path}/" if group.path else "")  # one listing for all arrays
    arrays = open_members(group, path, keys, growing=partial, may_lack=may_lack)
    check_recording(path, arrays)
    if is_complete(path, group):
        manifest_check.check(group, arrays, schema.COORDINATES)
    holes = {name: missing for name, array in arrays.items() if (missing := missing_chunks(array, keys))}
    if partial:
        return group, arrays, _complete_steps(path, group, arrays, holes)
    for name, missing in holes.items():
        raise _missing_error(path, name, missing)
    return group, arrays, int(arrays["step"].shape[0])


def missing_chunks(array: zarr.Array[Any], keys: Collection[str]) -> MissingChunks | None:
    """Return the chunks of an array that are not among the keys of its store; None if there are all.

    The work grows with the number of keys, not with the shape that the metadata say.
    """
    first = next(_absent(array, keys), None)
    if first is None:
        return None
    found = sum(_is_chunk(array, key) for key in keys if key.startswith(f"{array.path}/"))
    return MissingChunks(array, math.prod(_grid(array)) - found, first, keys)


def _grid(array: zarr.Array[Any]) -> list[int]:
    return [-(-n // max(c, 1)) for n, c in zip(array.shape, file_shape(array), strict=True)]


def _absent(array: zarr.Array[Any], keys: Collection[str], axis: int = 0) -> Iterator[tuple[int, ...]]:
    """Yield the grid positions of missing chunks, ascending along an axis."""
    grid = _grid(array)
    prefix, encode = f"{array.path}/" if array.path else "", array.metadata.encode_chunk_key
    if not grid:
        yield from () if prefix + encode(()) in keys else ((),)
        return
    sizes = [grid.pop(axis), *grid]
    for i, *rest in _positions(sizes):
        position = (*rest[:axis], i, *rest[axis:])
        if prefix + encode(position) not in keys:
            yield position


def _positions(grid: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield all positions of a grid; itertools.product would first keep every number of a huge range."""
    if not grid:
        yield ()
        return
    for i in range(grid[0]):
        for rest in _positions(grid[1:]):
            yield (i, *rest)


def _is_chunk(array: zarr.Array[Any], key: str) -> bool:
    """Return whether a key is that of a chunk within the grid of an array."""
    name = key.removeprefix(f"{array.path}/")
    position, grid = tuple(map(int, re.findall(r"\d+", name))), _grid(array)
    return (
        len(position) == len(grid)
        and all(i < n for i, n in zip(position, grid, strict=True))
        and array.metadata.encode_chunk_key(position) == name
    )


def _check_format(path: str | Path, group: zarr.Group) -> None:
    found = group.attrs.get(RECORDING)
    if found is None and RESULTS in group.attrs:
        raise InputError(f"{path} holds results, not a recording: open it with open_results, or `deadtok report`")
    if KIND in group.attrs:
        raise InputError(
            f"{path} holds samples of many parameters, a recording for each: open_recording returns a tree of them, "
            "and dx.mechanism(tree), dx.motion(tree) and the like take it; analyze takes tree[name].to_dataset()"
        )
    if MONITOR in group.attrs:
        raise InputError(f"{path} was written by a Monitor, and is no recording: open it with open_monitor")
    if found is None:
        raise InputError(
            f"{path} is a Zarr group, but not a recording: the attribute 'deadtok_format' is "
            "missing; `deadtok convert` makes a recording of it"
        )
    check_format(path, found, schema.FORMAT_VERSION, "the recording format")


def _complete_steps(path: str | Path, group: zarr.Group, arrays: Arrays, holes: Mapping[str, MissingChunks]) -> int:
    """Count the steps, from the first, that are complete in every variable and in every run."""
    lengths = [a.shape[dimensions(a).index("step")] for a in arrays.values() if "step" in dimensions(a)]
    n_steps = min(lengths, default=0)  # while a store is being written, its arrays grow one after the other
    for name, missing in holes.items():
        dims = dimensions(arrays[name])
        if "step" not in dims:
            raise IncompleteStoreError(f"{path}: the coordinate {name!r} is missing; the store cannot be read")
        axis = dims.index("step")
        n_steps = min(n_steps, missing.first_along(axis) * file_shape(arrays[name])[axis])
    if n_steps == 0:
        raise IncompleteStoreError(f"{path}: no step is complete yet, so nothing can be read{_when_to_look(group)}")
    return n_steps


def _when_to_look(group: zarr.Group) -> str:
    """Say when a Recorder will have written its first steps."""
    n, seconds = group.attrs.get("written_every_steps"), group.attrs.get("written_every_seconds")
    if n is None:
        return ""
    if seconds is not None:
        return f": the Recorder writes every {seconds:g} s, before the next update: look again then"
    return (
        f": the Recorder writes {n} steps at a time: look again when {n} updates are recorded, or let it write by time "
        "with flush_every=60 (seconds)"
    )


def _missing_error(path: str | Path, name: str, missing: MissingChunks) -> IncompleteStoreError:
    array = missing.array
    where = ", ".join(
        f"{dim} positions {i * c}..{min((i + 1) * c, n) - 1}"
        for dim, i, c, n in zip(dimensions(array), missing.first, file_shape(array), array.shape, strict=True)
    )
    return IncompleteStoreError(
        f"{path}: {missing.n} chunk(s) of variable {name!r} are missing, the first at {where}: "
        f"restore the file from a copy, or {_READ_COMPLETE_STEPS}"
    )
