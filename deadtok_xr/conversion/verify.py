"""Verify a store: its chunks against their checksums, and its values against the source, bit by bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
from numpy.typing import NDArray

from deadtok_xr import store
from deadtok_xr.conversion.hub import is_hub_address
from deadtok_xr.conversion.opening import open_with_options
from deadtok_xr.conversion.options import Options
from deadtok_xr.conversion.plan import ConversionPlan
from deadtok_xr.conversion.planning import make_plan
from deadtok_xr.conversion.readers.source import Source
from deadtok_xr.conversion.units import Unit, divide, fill, word_type
from deadtok_xr.engine import cluster
from deadtok_xr.errors import DamagedStoreError, InputError
from deadtok_xr.store import destination, location, manifest, manifest_check, manifest_write, motion_index
from deadtok_xr.store.chunk_reader import chunk_reader
from deadtok_xr.store.location import address_of

Progress = Callable[[int, int], None]


@dataclass
class Verification:
    """What `verify` read and found.

    Attributes
    ----------
    n_chunks
        Chunks that were read, each against its checksum.
    compared
        Variables that were compared with the source, bit by bit.
    problems
        One sentence for each problem; empty for a good store.
    has_manifest
        Whether the store has a manifest, which says which arrays belong to it and which chunk belongs where.
    """

    n_chunks: int = 0
    compared: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    has_manifest: bool = False


def verify(
    path: str | Path,
    source: str | Path | None = None,
    *,
    initial: str | Path | None = None,
    write_manifest: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Verification:
    """Read every chunk of a store against its checksum and the manifest, and compare every bit with the source.

    Parameters
    ----------
    path
        A recording store.
    source
        The file or folder, or the model on the Hub, that it was converted from; None to check the store alone. It is
        read with the options that the store was converted with.
    initial
        File with the initial weights that displacements were added to; None if it lies beside the source.
    write_manifest
        Write the manifest of a store that has none, once every chunk is found to be good.
    overwrite
        With ``write_manifest``: replace a manifest, which accepts the store as it is now.
    progress
        Called with the chunks done and the chunks to do, then with the bytes compared and to compare.

    Returns
    -------
    Verification
        What was read and compared, and every problem found: damaged chunks by variable, steps and tokens, and where
        values differ from the source's.

    Raises
    ------
    InputError, IncompleteStoreError
        If the store or the source cannot be opened, or the source has other steps or tokens.
    """
    replaced = _set_aside_manifest(path) if write_manifest and overwrite else None
    group, arrays, _ = store.open_arrays(path)
    found = Verification(has_manifest=manifest.load(group) is not None)
    progress = progress or (lambda done, total: None)
    _check_chunks([*arrays.values()], found, progress)
    if source is not None and not found.problems:
        _compare(
            group,
            source if is_hub_address(source) else Path(source),
            found,
            None if initial is None else Path(initial),
            progress,
        )
    declared = found.has_manifest and manifest.FLAG in group.attrs
    if write_manifest and not declared and not found.problems:
        root = zarr.open_group(location.zarr_store(path), mode="r+")
        manifest_write.complete(root, dict(root.arrays()), root.attrs.asdict())
        found.has_manifest = True
    elif replaced is not None:
        manifest_write.put(zarr.open_group(location.zarr_store(path), mode="r+"), replaced)
    return found


def _set_aside_manifest(path: str | Path) -> manifest.Manifest | None:
    """Remove the manifest of a complete recording, so that the store as it is now can be checked; return it."""
    attributes = destination.root_attributes(path)
    if destination.RECORDING not in attributes or attributes.get("complete") is not True:
        return None
    root = zarr.open_group(location.zarr_store(path), mode="r+")
    try:
        found = manifest.load(root)
    except DamagedStoreError:
        found = None
    manifest_write.remove(root)
    return found


def _check_chunks(arrays: Sequence[zarr.Array[Any]], found: Verification, progress: Progress) -> None:
    total = sum(math.prod(array.cdata_shape) for array in arrays)
    rows = [(array, i) for array in arrays for i in range(array.cdata_shape[0] if array.cdata_shape else 1)]
    for n_chunks, problems in cluster.map_items(_check_chunk_row, rows):
        found.n_chunks += n_chunks
        found.problems += problems
        progress(found.n_chunks, total)


def _check_chunk_row(row: tuple[zarr.Array[Any], int]) -> tuple[int, list[str]]:
    """Check the chunks at one position along the first axis; return their number, and the problems."""
    array, i = row
    read, problems = chunk_reader(array), []
    rest = list(np.ndindex(*array.cdata_shape[1:]))
    for position in [(i, *at) for at in rest] if array.cdata_shape else [()]:
        try:
            chunk = read(position)
        except DamagedStoreError as error:
            problems.append(_problem(array, position, error))
        else:
            if not motion_index.matches(array, position, chunk):
                problems.append(
                    f"{address_of(array)}: the motion index of the chunk {position} does not agree with its values: "
                    f"remove {motion_index.bounds_key(array, position)}; the store is complete without it"
                )
    return len(rest), problems


def _problem(array: zarr.Array[Any], position: tuple[int, ...], error: DamagedStoreError) -> str:
    """Describe a chunk that cannot be read, or is another one."""
    listed = manifest.cached(array.store)
    if listed is None or not isinstance(error.__cause__, manifest.WrongChunkError):
        return str(error)
    text = manifest_check.wrong_chunk(listed, array, position, error.__cause__)
    return f"{address_of(array.store)}: {text}"


def _compare(
    group: zarr.Group, path: Path | str, found: Verification, initial: Path | None, progress: Progress
) -> None:
    with open_with_options(path, _options(group, path, initial)) as (source, options):
        plan = make_plan(source, options)
        for name, ours, theirs in (
            ("steps", store.read_coordinate(group, "step"), plan.steps),
            ("tokens", store.read_coordinate(group, "token"), plan.rows.tokens[plan.rows.disk_order()]),
        ):
            if not np.array_equal(ours, theirs):
                raise InputError(
                    f"{address_of(group)} has other {name} than {path}: it is not the source of this store, or was "
                    "converted with other options"
                )
        found.problems += _compared(group, plan, source, found, progress)


def _options(group: zarr.Group, path: Path | str, initial: Path | None) -> Options:
    """Return the options that the store was converted with; lists of ids are taken from its coordinates."""
    used: dict[str, Any] = dict(cast(Any, group.attrs.get("conversion", {})))
    id_lists = [name for name in ("token_ids", "dead_ids") if used.pop(name, None) is not None]
    ids: dict[str, Any] = {name: _ids_in(group, name) for name in id_lists}
    for name in ("initial", "metadata"):
        if name in used:
            used[name] = Path(path).parent / Path(used[name]).name
    if initial is not None:
        used["initial"] = initial
    for name, value in used.items():
        if isinstance(value, list):
            used[name] = tuple(value)
    if "dims" in used:
        used["dims"] = {key: tuple(dims) for key, dims in used["dims"].items()}
    return Options(**used, **ids)


def _ids_in(group: zarr.Group, name: str) -> list[int]:
    tokens = store.read_coordinate(group, "token")
    order = np.argsort(store.read_coordinate(group, "source_row") if "source_row" in group else tokens)
    kept = store.read_coordinate(group, "dead")[order] if name == "dead_ids" else np.ones(len(tokens), bool)
    return [int(t) for t in tokens[order][kept]]


def _compared(
    group: zarr.Group, plan: ConversionPlan, source: Source, found: Verification, progress: Progress
) -> Iterator[str]:
    done = 0
    for variable in plan.variables:
        array = group.get(variable.name)
        if not isinstance(array, zarr.Array) or array.shape != variable.shape or array.dtype != variable.dtype:
            yield (
                f"{address_of(group)}: {variable.name!r} has another shape or dtype than {source.path}'s "
                f"{variable.key!r} would have"
            )
            continue
        n_different, first = 0, None
        for unit in (u for u in divide(plan, plan.unit_bytes()) if u.variable is variable):
            different = _differences(unit, plan, source, array)
            n_different += len(different)
            if first is None and len(different):
                first = plan.steps[unit.steps.start + int(different[:, 1].min())]
            done += unit.nbytes
            progress(min(done, plan.nbytes), plan.nbytes)
        if n_different:
            yield (
                f"{address_of(group)}: {n_different} of {math.prod(array.shape)} values of {variable.name!r} differ "
                f"from {source.path}'s {variable.key!r}, the first at step {first}: convert it again"
            )
        found.compared.append(variable.name)


def _differences(unit: Unit, plan: ConversionPlan, source: Source, array: zarr.Array[Any]) -> NDArray[np.int64]:
    """Return where the values of a unit differ from the source's: (chunk, step, row, value) of each."""
    theirs = np.empty(unit.layout(), word_type(array.dtype))
    fill(unit, plan, source, theirs, array.fill_value)
    read, found = chunk_reader(array), []
    for k, position in enumerate(unit.positions()):
        chunk = np.ascontiguousarray(read(position)).view(theirs.dtype)
        rows = chunk.shape[unit.variable.dims.index("token")] if "token" in unit.variable.dims else 1
        ours = chunk.reshape(len(unit.steps), rows, unit.variable.width)
        at = np.argwhere(ours != theirs[k, : len(unit.steps), :rows])
        found.append(np.insert(at, 0, k, axis=1))
    return np.concatenate(found)
