"""A store of monitored updates that grows at its end and can be read meanwhile.

A Zarr v3 group of the variables (step, parameter) and their coordinates. Each chunk file is written under another name,
flushed to the disk and renamed, and only then are the arrays made longer: a reader takes as many updates as every array
has, also after a kill or a power cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import zarr

from deadtok_xr import store
from deadtok_xr.errors import InputError
from deadtok_xr.monitor import rows
from deadtok_xr.monitor.variables import COORDINATES, VARIABLES
from deadtok_xr.schema import MONITOR
from deadtok_xr.store import chunk_bytes, length, location, manifest, manifest_check, manifest_write, writing
from deadtok_xr.store.chunk_reader import read_values
from deadtok_xr.store.destination import refuse_existing
from deadtok_xr.store.members import attribute_error, check_format, is_complete, lost, open_members

if TYPE_CHECKING:
    import xarray as xr

FORMAT = "1.0"
_CHUNK_BYTES = 2**22
_LOADED_AS_A_WHOLE = 2**26


class GrowingStore:
    """Writes rows at the end of a store: `create` or `reopen`, then `write`, then `finish`."""

    def __init__(self, group: zarr.Group, fixed: rows.Columns) -> None:
        self._group, self._fixed = group, fixed
        self._arrays = {name: store.writable(array) for name, array in group.arrays()}
        self.chunk = self._arrays["step"].chunks[0]
        """The number of updates in a chunk."""

    def write(self, first: int, added: Sequence[rows.Row]) -> None:
        """Write rows from position ``first`` on, a multiple of `chunk`; later rows of the store are dropped."""
        found = rows.columns(added, self._fixed)
        for name in (*VARIABLES, "step"):
            array, values = self._arrays[name], found[name]
            for start in range(0, len(added), self.chunk):
                block = np.full(array.chunks, array.fill_value, array.dtype)
                part = values[start : start + self.chunk]
                block[: len(part)] = part
                key = ((first + start) // self.chunk, *(0,) * (array.ndim - 1))
                chunk_bytes.write_chunk(array, key, writing.encode_chunk(array, block), durable=True)
        self._arrays = length.set_n_steps(self._group, self._arrays, first + len(added))

    def rows_to_resume(self, step: int) -> tuple[int, list[rows.Row]]:
        """Drop the rows after an update; return those that are left in the last chunk, and the first one's position."""
        n = _n_steps(self._arrays)
        n = int(np.searchsorted(np.asarray(self._arrays["step"][:n]), step, "right"))
        first = n // self.chunk * self.chunk
        values = {name: np.asarray(self._arrays[name][first:n]) for name in (*VARIABLES, "step")}
        found: list[rows.Row] = [{name: value[i] for name, value in values.items()} for i in range(n - first)]
        self._arrays = length.set_n_steps(self._group, self._arrays, n)
        return first, found

    def finish(self) -> None:
        """Write the manifest of the store, and mark it as complete."""
        manifest_write.complete(self._group, self._arrays, self._group.attrs.asdict())


def last_step(path: Path) -> int:
    """Return the last monitored update of a store; 0 if there is none, or no store."""
    return int(open_monitor(path).step.values.max(initial=0)) if path.exists() else 0


def create(path: Path, fixed: rows.Columns, attrs: Mapping[str, Any], *, overwrite: bool) -> GrowingStore:
    """Create a store without rows.

    Raises
    ------
    DestinationExistsError
        If something exists at ``path``, unless ``overwrite`` and it is a store of this kind.
    """
    refuse_existing(path, overwrite=overwrite, kind=MONITOR)
    with location.placed_at_once(path.absolute()) as folder:
        _create(folder, fixed, attrs)
        location.flush_files(folder)
    return GrowingStore(zarr.open_group(location.zarr_store(path), mode="r+", zarr_format=3), fixed)


def _create(folder: Path, fixed: rows.Columns, attrs: Mapping[str, Any]) -> None:
    made = {"created": datetime.now(UTC).isoformat(timespec="seconds"), "software": store.software_versions()}
    group = zarr.create_group(
        location.zarr_store(folder), attributes={MONITOR: FORMAT, "complete": False, **made, **attrs}
    )
    sizes = {"step": 0, "parameter": len(fixed["parameter"]), "margin_bin": len(fixed["margin_bin"])}
    n = int(np.clip(_CHUNK_BYTES // (8 * sizes["parameter"] * sizes["margin_bin"]), 16, 1024))
    for name, (dims, text) in COORDINATES.items():
        values = np.empty(0, np.int64) if name == "step" else fixed[name]
        kind: Any = "string" if values.dtype == object else values.dtype
        chunks = (n,) if name == "step" else tuple(max(1, k) for k in values.shape)
        array = store.create_array(group, name, values.shape, dims, kind, chunks, attrs={"long_name": text})
        if values.size:
            array[...] = values
    for name, (dims, dtype, about) in VARIABLES.items():
        shape = [sizes[d] for d in dims]
        others = {"coordinates": "numel dtype group method"} if "parameter" in dims else {}  # for other readers
        store.create_array(group, name, shape, dims, dtype, (n, *shape[1:]), attrs={**about, **others})


def reopen(path: Path, fixed: rows.Columns) -> GrowingStore:
    """Open a store to append to it.

    Raises
    ------
    InputError
        If it holds other parameters.
    DamagedStoreError
        If it is not as it was written.
    """
    open_monitor(path)
    group = _open(path, "r+")
    for name in ("parameter", "numel"):
        if not np.array_equal(store.read_coordinate(group, name), fixed[name]):
            raise InputError(f"{path} holds other parameters than those to be watched: choose another store")
    remaining = {k: v for k, v in group.attrs.items() if k != manifest.FLAG}
    manifest_write.put_attributes(group, {**remaining, "complete": False})
    manifest_write.remove(group)
    location.remove_leftovers(path.absolute())
    return GrowingStore(group, fixed)


def open_monitor(path: str | Path) -> xr.Dataset:
    """Open what a Monitor has written, also while it is still writing.

    Parameters
    ----------
    path
        The store.

    Returns
    -------
    xarray.Dataset
        Dimensions (step, parameter), with one label of `step` per monitored update: the number of the update.

        Counts of elements, which add up to the coordinate `numel`: `moved`, `rounded_to_zero`, `no_gradient`,
        `unknown`. Further counts: `visible`, `stalled`, and `margin_count` over `margin_bin`. `exact` says whether
        they are proven. Lengths: `weight_norm`, `gradient_norm`, `update_norm`, `realised_norm`; `lr`. Per step:
        `skipped_before`. The attributes of each variable have its definition.

        Variables up to 64 MiB are loaded now; larger ones are Dask arrays. The attribute `complete` is false while the
        Monitor is writing, or after it was interrupted.

    Raises
    ------
    MissingFileError, InputError, DamagedStoreError
        If there is nothing at ``path``, it was not written by a Monitor, or it is not as it was written.
    """
    group = _open(path, "r")
    complete = is_complete(path, group)
    arrays = open_members(group, path, location.key_sizes(group.store), growing=not complete)
    for name in (*COORDINATES, *VARIABLES):
        if name not in arrays:
            raise lost(path, name)
    if manifest.FLAG in group.attrs and not complete:
        raise attribute_error(path, group, "complete", "true, as it has a manifest")
    manifest_check.check(group, arrays, arrays)
    n = _n_steps(arrays)
    values: dict[str, Any] = {}
    for name in (*COORDINATES, *VARIABLES):
        array = arrays[name]
        shape = (n, *array.shape[1:]) if store.dimensions(array)[0] == "step" else array.shape
        if array.dtype.kind in "OUT":
            values[name] = read_values(array).astype(object)
        elif np.prod(shape) * array.dtype.itemsize <= _LOADED_AS_A_WHOLE:
            values[name] = read_values(array, shape[0])
        else:
            import dask.array as da

            values[name] = da.from_zarr(array)[:n]
    return rows.to_dataset(values, values, {k: v for k, v in group.attrs.items() if k != manifest.FLAG})


def _open(path: str | Path, mode: Any) -> zarr.Group:
    group = store.open_root(path, "a store that Monitor writes", mode=mode)
    found = group.attrs.get(MONITOR)
    if found is None:
        raise InputError(f"{path} was not written by a Monitor; open_recording opens recordings, open_results results")
    check_format(path, found, FORMAT)
    return group


def _n_steps(arrays: Mapping[str, zarr.Array[Any]]) -> int:
    """Return the number of updates that every array has."""
    return min(cast(int, arrays[name].shape[0]) for name in (*VARIABLES, "step"))
