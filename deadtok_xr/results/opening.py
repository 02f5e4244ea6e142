"""Open saved results: every group, array and chunk is checked, as those of a recording are."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray
from xarray.backends import BackendArray
from xarray.core import indexing

from deadtok_xr import store
from deadtok_xr.attributes import portable
from deadtok_xr.errors import IncompleteStoreError
from deadtok_xr.results.root import open_root
from deadtok_xr.store import location, manifest, manifest_check, members
from deadtok_xr.store.chunk_reader import read_region, read_values

LOADED_AS_A_WHOLE = 2**26
"""Bytes up to which a variable of opened results is no Dask array: xarray loads it when it is first used."""
_Arrays = dict[str, "zarr.Array[Any]"]
Opened = dict[str, tuple[zarr.Group, _Arrays]]


def open_results(path: str | Path, *, load: bool = False) -> xr.DataTree:
    """Open saved results as a tree.

    Coordinates are loaded now. Variables up to 64 MiB, and so all that have one value per token, are loaded when they
    are first used, and then kept; larger ones are Dask arrays in the chunks of the store.

    Parameters
    ----------
    path
        The results.
    load
        Load everything now.

    Returns
    -------
    xarray.DataTree
        A group per analysis, in the order in which they were computed.

    Raises
    ------
    MissingFileError, InputError, IncompleteStoreError, DamagedStoreError
        If there is nothing at ``path``, if it holds no results, if they are incomplete, or if their metadata, or any
        chunk, are not as they were written.
    """
    root = open_root(path)
    opened = opened_groups(path, root)
    arrays = arrays_by_path(opened)
    manifest_check.check(root, arrays, arrays, [group for group, _ in opened.values()])
    return as_tree(root, opened, load=load)


def open_some(path: str | Path, variables: Mapping[str, Collection[str]]) -> dict[str, xr.Dataset]:
    """Open some variables of some groups, those that there are, for a quick first view.

    They are read when they are used, and are no Dask arrays, because importing Dask takes a third of a second. Each
    chunk is compared with the manifest when it is read; `open_results` compares all of them at once.
    """
    root, found = open_root(path), {}
    for name, (group, arrays) in opened_groups(path, root, variables).items():
        chosen = {key: _stored(arrays[key]) for key in variables[name] if key in arrays}
        dims = {dim for x in chosen.values() for dim in x.dims}
        coords = {
            key: _variable(array, None, load=True)
            for key, array in arrays.items()
            if key not in members.names_in(path, group, "variables") and dims.issuperset(store.dimensions(array))
        }
        found[name] = xr.Dataset(chosen, {key: _index(key, x) for key, x in coords.items()})
    return found


def as_tree(root: zarr.Group, opened: Opened, *, load: bool = False) -> xr.DataTree:
    """Return the tree of opened results."""
    attrs = root.attrs.asdict()
    groups = {name: _dataset(group, arrays, attrs, load=load) for name, (group, arrays) in opened.items()}
    shown = {k: v for k, v in attrs.items() if k not in (manifest.FLAG, "fingerprint")}
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=portable(shown)), **groups})


def opened_groups(path: str | Path, root: zarr.Group, only: Collection[str] | None = None) -> Opened:
    """Open the groups of results, or ``only`` some, and their arrays, and check that no chunk is missing."""
    keys = location.key_sizes(root.store)
    opened = {}
    for name in members.names_in(path, root, "groups"):  # Zarr lists groups in no order
        if only is not None and name not in only:
            continue
        group = members.open_subgroup(path, root, name)
        arrays = members.open_members(group, path, keys)
        for key, array in arrays.items():
            if missing := store.missing_chunks(array, keys):
                raise IncompleteStoreError(
                    f"{path}: {missing.n} chunk(s) of {key!r} of {name} are missing: give the same command again, "
                    "with --overwrite if it says that results exist; workers on other machines need the same disk"
                )
        for key in members.names_in(path, group, "variables"):
            if key not in arrays:
                raise members.lost(path, f"{name}/{key}")
        opened[name] = group, arrays
    return opened


def arrays_by_path(opened: Opened) -> _Arrays:
    """Return the arrays of all groups that `opened_groups` returned, by their paths."""
    return {f"{name}/{key}": array for name, (_, arrays) in opened.items() for key, array in arrays.items()}


def _dataset(group: zarr.Group, arrays: _Arrays, identity: object, *, load: bool) -> xr.Dataset:
    """Return a group with its variables in their order, in memory as far as `open_results` says."""
    attrs: dict[str, Any] = dict(group.attrs.asdict())
    # without the order of the variables: scipy cannot write NetCDF with an attribute of this name
    names: list[str] = attrs.pop("variables")
    coords = {name: _variable(array, identity, load=True) for name, array in arrays.items() if name not in names}
    variables = {name: _variable(arrays[name], identity, load=load) for name in names}
    return xr.Dataset(variables, coords, portable(attrs))


def _variable(array: zarr.Array[Any], identity: object, *, load: bool) -> xr.Variable:
    data: Any
    if load or array.dtype.kind in "TO":
        values = read_values(array)
        # NetCDF and other libraries do not take numpy's new dtype for text
        data = values.astype(object) if values.dtype.kind == "T" else values
    elif array.nbytes > LOADED_AS_A_WHOLE:
        from deadtok_xr.dask_arrays import with_all_functions
        from deadtok_xr.store import reading

        data = with_all_functions(reading.lazy(array, (str(array.store), identity)))
    else:
        lazily: Any = indexing.LazilyIndexedArray(_StoredValues(array))
        data = indexing.MemoryCachedArray(indexing.CopyOnWriteArray(lazily))
    return xr.Variable(store.dimensions(array), data, _attributes(array), fastpath=True)  # else xarray imports Dask


def _stored(array: zarr.Array[Any]) -> xr.Variable:
    """Return a variable that is read when it is used, and not kept."""
    lazily: Any = indexing.LazilyIndexedArray(_StoredValues(array))
    chunks = {"preferred_chunks": dict(zip(store.dimensions(array), array.chunks, strict=True))}
    return xr.Variable(store.dimensions(array), lazily, _attributes(array), chunks, fastpath=True)


def _index(name: str, x: xr.Variable) -> xr.Variable:
    """Return a coordinate of a dimension as an index; else xarray imports Dask to make one."""
    if x.dims != (name,):
        return x
    import pandas as pd

    return xr.IndexVariable(name, pd.Index(x.values), x.attrs, fastpath=True)


def _attributes(array: zarr.Array[Any]) -> dict[str, Any]:
    return portable({k: v for k, v in array.attrs.asdict().items() if k != "coordinates"})


class _StoredValues(BackendArray):
    """The values of an array of a store, which xarray reads when they are used."""

    def __init__(self, array: zarr.Array[Any]) -> None:
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._values)

    def _values(self, key: tuple[int | slice, ...]) -> NDArray[Any]:
        chosen = [range(n)[k] for n, k in zip(self.shape, key, strict=True)]
        region, within = [], []
        for k in chosen:
            low, high = (k, k) if isinstance(k, int) else (min(k, default=0), max(k, default=-1))
            region.append(slice(low, high + 1))
            within.append(k - low if isinstance(k, int) else np.arange(k.start - low, k.stop - low, k.step))
        found: NDArray[Any] = read_region(self.array, tuple(region))
        for axis in reversed(range(len(within))):
            found = np.take(found, within[axis], axis)
        return found
