"""Open a recording store for reading, after checking its format and that no chunk is missing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import zarr

from deadtok_xr import schema
from deadtok_xr.errors import IncompleteStoreError, InputError, MissingFileError
from deadtok_xr.store import location, zarr_dtype
from deadtok_xr.store.arrays import dimensions, file_shape
from deadtok_xr.store.sample import KIND

Holes = Mapping[str, list[tuple[int, ...]]]
"""The grid positions of missing chunks, by array."""


def open_group(path: str | Path, *, partial: bool = False) -> tuple[zarr.Group, int]:
    """Open a store for reading, after checking that it is complete.

    Parameters
    ----------
    path
        A folder or an address.
    partial
        Also open a store that is still being written or has lost chunks.

    Returns
    -------
    The group, and the number of complete steps from the first: all of them unless ``partial``.

    Raises
    ------
    MissingFileError
        If there is nothing at ``path``.
    InputError
        If it is not a recording, or has a newer format.
    IncompleteStoreError
        If writing has not finished or a chunk is missing, unless ``partial``; with ``partial``, if no step is complete.
    """
    zarr_dtype.register()
    group = _open_zarr_group(path)
    _check_format(path, group)
    arrays = dict(group.arrays())
    keys = location.key_sizes(group.store, f"{group.path}/" if group.path else "")  # one listing for all arrays
    holes = {name: missing for name, array in arrays.items() if (missing := missing_chunks(array, group, keys))}
    if partial:
        return group, _complete_steps(path, group, arrays, holes)
    _check_complete(path, group, arrays, holes)
    return group, int(arrays["step"].shape[0]) if "step" in arrays else 0


def missing_chunks(
    array: zarr.Array[Any], group: zarr.Group, keys: Container[str] | None = None
) -> list[tuple[int, ...]]:
    """Return the grid positions of the chunks, or shards if it has any, of an array that are not in the store.

    Parameters
    ----------
    array, group
        An array and its group.
    keys
        All keys of the store, where they have been listed already.
    """
    prefix = f"{array.path}/" if array.path else ""
    if keys is None:
        keys = location.key_sizes(group.store, prefix)
    grid = [math.ceil(n / max(c, 1)) for n, c in zip(array.shape, file_shape(array), strict=True)]
    encode = array.metadata.encode_chunk_key
    return [i for i in itertools.product(*map(range, grid)) if prefix + encode(i) not in keys]


def _open_zarr_group(path: str | Path) -> zarr.Group:
    if not location.exists(path):
        what = "object or bucket" if location.is_address(path) else "file or folder"
        raise MissingFileError(f"{path}: no such {what}")
    try:
        with location.translate_errors(path):
            return zarr.open_group(location.zarr_store(path), mode="r", zarr_format=3)
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError) as error:
        raise InputError(
            f"{path} is not a Zarr v3 group ({type(error).__name__}); expected a recording store: "
            "`deadtok convert` makes one of other files, and of Zarr arrays"
        ) from error


def _check_format(path: str | Path, group: zarr.Group) -> None:
    found = group.attrs.get("deadtok_format")
    if found is None and "deadtok_results" in group.attrs:
        raise InputError(f"{path} holds results, not a recording: open it with open_results, or `deadtok report`")
    if KIND in group.attrs:
        raise InputError(
            f"{path} holds samples of many parameters, a recording for each: open_recording returns a tree of them, "
            "and dx.mechanism(tree), dx.motion(tree) and the like take it; analyze takes tree[name].to_dataset()"
        )
    if "deadtok_monitor" in group.attrs:
        raise InputError(f"{path} was written by a Monitor, and is no recording: open it with open_monitor")
    if found is None:
        raise InputError(
            f"{path} is a Zarr group, but not a recording: the attribute 'deadtok_format' is "
            "missing; `deadtok convert` makes a recording of it"
        )
    if str(found).split(".")[0] != schema.FORMAT_VERSION.split(".")[0]:
        raise InputError(
            f"{path} has the recording format {found}; this version of deadtok_xr reads "
            f"{schema.FORMAT_VERSION.split('.')[0]}.x: update deadtok_xr"
        )


def _complete_steps(path: str | Path, group: zarr.Group, arrays: Mapping[str, zarr.Array[Any]], holes: Holes) -> int:
    """Count the steps, from the first, that are complete in every variable and in every run."""
    lengths = [a.shape[dimensions(a).index("step")] for a in arrays.values() if "step" in dimensions(a)]
    n_steps = min(lengths, default=0)  # while a store is being written, its arrays grow one after the other
    for name, positions in holes.items():
        dims = dimensions(arrays[name])
        if "step" not in dims:
            raise IncompleteStoreError(f"{path}: the coordinate {name!r} is missing; the store cannot be read")
        axis = dims.index("step")
        n_steps = min(n_steps, min(position[axis] for position in positions) * file_shape(arrays[name])[axis])
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


def _check_complete(path: str | Path, group: zarr.Group, arrays: Mapping[str, zarr.Array[Any]], holes: Holes) -> None:
    remedy = "open it with partial=True (--partial) to read the steps that are complete"
    if not group.attrs.get("complete"):
        raise IncompleteStoreError(f"{path} was not written to its end: finish writing it, or {remedy}")
    for name, positions in holes.items():
        array, (first, *_) = arrays[name], positions
        where = ", ".join(
            f"{dim} positions {i * c}..{min((i + 1) * c, n) - 1}"
            for dim, i, c, n in zip(dimensions(array), first, file_shape(array), array.shape, strict=True)
        )
        raise IncompleteStoreError(
            f"{path}: {len(positions)} chunk(s) of variable {name!r} are missing, the first at {where}: "
            f"restore the file from a copy, or {remedy}"
        )
