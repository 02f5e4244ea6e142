"""Results on disk: a Zarr store with a group per analysis, written in one pass over the recording."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
import zarr

from deadtok_xr import cluster, destination, storage, store, zarr_dtype
from deadtok_xr.analyses.kinematics import PER_TOKEN
from deadtok_xr.blocks import uniform
from deadtok_xr.errors import DamagedStoreError, IncompleteStoreError, InputError, MissingFileError, StorageError
from deadtok_xr.sweep.writing import writing

RESULTS = "deadtok_results"
RESULTS_VERSION = "1.0"


def save_results(
    tree: xr.DataTree,
    path: str | Path,
    *,
    overwrite: bool = False,
    full: bool = False,
    progress: AbstractContextManager[Any] | None = None,
) -> xr.DataTree:
    """Compute a tree of results and write it, reading every chunk of the recording once.

    Parameters
    ----------
    tree
        From `analyze`.
    path
        The results store to write; it must not exist unless ``overwrite``.
    full
        Also write the large `position` and `thermal_velocity` (step, token, dim) of `kinematics`.
    progress
        A context in which the computation runs, such as a Dask progress bar.

    Returns
    -------
    xarray.DataTree
        The tree, reopened from ``path``.

    Raises
    ------
    DestinationExistsError
        If something is there already.
    """
    zarr_dtype.register()
    if not isinstance(tree, xr.DataTree):
        raise InputError(f"save_results takes the tree that analyze makes, not a {type(tree).__name__}")
    _keep_the_recording(tree, path)
    destination.refuse_existing(path, overwrite=overwrite, kind=RESULTS)
    if storage.exists(path):
        storage.remove(path)
    with _writing(path):
        root = zarr.create_group(
            storage.opened(path), attributes={**_plain(tree.attrs), **_provenance(), "groups": list(tree.children)}
        )
        pairs = {name: _prepare(root, name, node.to_dataset(), full) for name, node in tree.children.items()}
        cluster.check_places(path, tree.attrs.get("source"))
        with progress or nullcontext():
            # one call for all groups: a graph of its own for each would read the recording once for each
            writing([pair for found in pairs.values() for pair in found]).compute()
        _refuse_holes(path, root)  # a worker on another machine may have written to a disk of its own
        root.attrs["complete"] = True
    return open_results(path)


def _keep_the_recording(tree: xr.DataTree, path: str | Path) -> None:
    source = str(tree.attrs.get("source", ""))
    if storage.is_address(path) != storage.is_address(source):
        return
    recording, results = (PurePosixPath(p) if storage.is_address(p) else Path(p).resolve() for p in (source, str(path)))
    if "source" in tree.attrs and (recording == results or recording in results.parents):
        raise InputError(f"{path} is or lies in the recording {tree.attrs['source']}: choose another destination")


@contextmanager
def _writing(path: str | Path) -> Iterator[None]:
    """Say which store could not be written. What reading raises is a DamagedStoreError or an InputError."""
    try:
        yield
    except (InputError, DamagedStoreError, StorageError):
        raise
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(
            error.errno,
            f"{path} cannot be written: {os.strerror(error.errno)}; it is left incomplete and will not open; "
            "make room, or choose another destination, and analyse again with --overwrite (overwrite=True)",
        ) from error


def _refuse_holes(path: str | Path, root: zarr.Group) -> None:
    keys = storage.objects(root.store)
    for name, group in root.groups():
        for key, array in group.arrays():
            if holes := store.missing_chunks(array, root, keys):
                raise IncompleteStoreError(
                    f"{path}: {len(holes)} chunk(s) of {key!r} of {name} are missing: run the analysis again with "
                    "--overwrite; workers on other machines need the same disk"
                )


def _provenance() -> dict[str, Any]:
    return {
        RESULTS: RESULTS_VERSION,
        "complete": False,
        "analysed": datetime.now(UTC).isoformat(timespec="seconds"),
        "analysed_with": store.software(),
    }


def _prepare(root: zarr.Group, name: str, ds: xr.Dataset, full: bool) -> list[tuple[da.Array, zarr.Array[Any]]]:
    """Create a group's arrays; write the small ones now, return the lazy ones with their targets."""
    if not full:
        ds = ds.drop_vars(PER_TOKEN, errors="ignore")
    group = root.create_group(name, attributes={**_plain(ds.attrs), "variables": list(map(str, ds.data_vars))})
    pairs = []
    for key, variable in ds.variables.items():
        lazy = variable.chunks is not None
        source: Any = uniform(variable.data) if lazy else variable.values
        text = source.dtype.kind in "UOT"
        array = store.create_array(
            group, str(key), source.shape, variable.dims, "string" if text else source.dtype,  # type: ignore[arg-type]
            source.chunksize if lazy else "auto", attrs={**_plain(variable.attrs), **_coordinates(ds, str(key))},
        )  # fmt: skip
        if lazy:
            pairs.append((source, array))
        elif source.size:
            array[...] = source.astype(object) if text else source
    return pairs


def _coordinates(ds: xr.Dataset, key: str) -> dict[str, str]:
    if key in ds.coords:
        return {}
    other = [str(c) for c in ds.coords if c not in ds.dims and set(ds[c].dims) <= set(ds[key].dims)]
    return {"coordinates": " ".join(other)} if other else {}


def _plain(attrs: Any) -> Any:
    """Attributes as JSON holds them."""
    if isinstance(attrs, dict):
        return {str(k): _plain(v) for k, v in attrs.items()}
    if isinstance(attrs, (list, tuple)):
        return [_plain(v) for v in attrs]
    return attrs.tolist() if isinstance(attrs, (np.generic, np.ndarray)) else attrs


def open_results(path: str | Path) -> xr.DataTree:
    """Open saved results as a lazy tree.

    Raises
    ------
    MissingFileError, InputError, IncompleteStoreError
        If there is nothing at ``path``, if it holds no results, or if they were not written to the end.
    """
    if not storage.exists(path):
        raise MissingFileError(f"{path}: nothing is there; needed: results that `deadtok analyze` wrote")
    try:
        with storage.reaching(path):
            root = zarr.open_group(storage.opened(path), mode="r")
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError) as error:
        raise InputError(f"{path} is not a Zarr group; needed: results that `deadtok analyze` wrote") from error
    attrs = root.attrs
    if RESULTS not in attrs:
        raise InputError(f"{path} holds no results: the attribute 'deadtok_results' is missing")
    if not attrs.get("complete"):
        raise IncompleteStoreError(f"{path} was not written to its end: run the analysis again with --overwrite")
    _refuse_holes(path, root)
    tree = xr.open_datatree(storage.opened(path), engine="zarr", consolidated=False, chunks={})
    groups: Any = attrs["groups"]  # Zarr lists in no order
    ordered = {name: tree[name].to_dataset()[tree[name].attrs["variables"]] for name in groups}
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=tree.attrs), **ordered})
