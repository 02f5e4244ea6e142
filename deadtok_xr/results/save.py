"""Results on disk: a Zarr store with a group per analysis, written in one pass over the recording."""

from __future__ import annotations

import errno
import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, cast

import dask.array as da
import xarray as xr
import zarr
from numpy.typing import NDArray

from deadtok_xr import store
from deadtok_xr.analyses.kinematics import PER_TOKEN
from deadtok_xr.analyses.runs import sources
from deadtok_xr.attributes import plain
from deadtok_xr.dask_arrays import chunk_sizes
from deadtok_xr.engine import cluster
from deadtok_xr.engine.block_pass import uniform
from deadtok_xr.engine.saving import write_all
from deadtok_xr.engine.worker_process import ending_with_parent
from deadtok_xr.errors import DamagedStoreError, InputError, StorageError
from deadtok_xr.results import in_progress as unfinished
from deadtok_xr.results.in_progress import Work
from deadtok_xr.results.opening import arrays_by_path, as_tree, open_results, opened_groups
from deadtok_xr.results.root import RESUMES
from deadtok_xr.schema import RESULTS, RESULTS_VERSION
from deadtok_xr.store import destination, location, manifest_write, zarr_dtype
from deadtok_xr.store.create import create_root

Arrays = dict[str, "zarr.Array[Any]"]
_log = logging.getLogger(__name__)


def save_results(
    tree: xr.DataTree,
    path: str | Path,
    *,
    overwrite: bool = False,
    full: bool = False,
    progress: AbstractContextManager[Any] | None = None,
) -> xr.DataTree:
    """Compute a tree of results and write it, reading every chunk of the recording once.

    After an interruption, even a kill, the same call resumes: blocks of steps whose results are written are not
    computed again, unless their chunks of the recording have been rewritten. The logger ``deadtok_xr.results.save``
    then says how many are finished.

    Parameters
    ----------
    tree
        From `analyze`.
    path
        The results store to write. It must not exist, unless ``overwrite`` is given or the same call left it
        unfinished.
    overwrite
        Replace existing results, and start again.
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
        If ``path`` exists: anything but results, unfinished results of a recording that has changed or with other
        analyses, options, tokens or versions, or results that another process is writing.
    OSError
        If the results cannot be written, or a chunk of the recording cannot be read. The same call resumes afterwards.
    """
    zarr_dtype.register()
    if not isinstance(tree, xr.DataTree):
        raise InputError(f"save_results takes the tree that analyze makes, not a {type(tree).__name__}")
    _refuse_recording(tree, path)
    tree = _select(tree, full)
    work = Work(path, tree)
    if not overwrite and work.is_finished():
        _log.info("%s is already complete", path)
        return open_results(path)
    _refuse_existing(path, overwrite)
    with _explaining_resume(work), _writing(path), work.held():
        root, created = _open_or_create(work, tree, overwrite)
        cluster.check_places(path, sources(tree))
        cluster.check_writing(path, work.place)
        task = write_all(_pairs(root, created, tree), work.journal)
        if not created and work.blocks[1]:
            _log.info("%s resumes: %d of %d blocks of steps are finished", path, *work.blocks)
        with progress or nullcontext(), ending_with_parent():
            # one graph for all groups, or the recording would be read once for each
            task.compute()
        # checks as well: a worker on another machine may have written its chunks to a disk of its own
        opened = opened_groups(path, root)
        work.check_held()
        attributes = {k: v for k, v in root.attrs.asdict().items() if k != "begun"}
        manifest_write.complete(
            root, arrays_by_path(opened), {**attributes, "fingerprint": work.fingerprint},
            groups=[group for group, _ in opened.values()],
        )  # fmt: skip
        work.finish()
    return as_tree(root, opened)


def _select(tree: xr.DataTree, full: bool) -> xr.DataTree:
    """Return the variables of a tree that are saved."""
    dropped = [] if full else PER_TOKEN
    groups = {name: node.to_dataset().drop_vars(dropped, errors="ignore") for name, node in tree.children.items()}
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=tree.attrs), **groups})


def _refuse_existing(path: str | Path, overwrite: bool) -> None:
    destination.refuse_existing(path, overwrite=overwrite or unfinished.is_unfinished(path), kind=RESULTS)


def _open_or_create(work: Work, tree: xr.DataTree, overwrite: bool) -> tuple[zarr.Group, Arrays]:
    """Open the results that the same work left, or create new ones with all arrays, without data."""
    if not overwrite and unfinished.is_unfinished(work.path) and work.resumes():
        root = zarr.open_group(location.zarr_store(work.path), mode="r+")
        if _rewrite_small(root, tree):
            return root, {}
        work.begun = False
    _refuse_existing(work.path, overwrite)  # under the lock: it may have been finished meanwhile
    work.clear()
    attributes = {**plain(tree.attrs), **_provenance(), "groups": list(tree.children)}
    root = create_root(work.path, attributes)
    created = _create_groups(root, tree)
    work.begin(root)
    return root, created


def _refuse_recording(tree: xr.DataTree, path: str | Path) -> None:
    """Refuse to write results over the recording, or into it."""
    for source in sources(tree):
        if location.is_address(path) != location.is_address(source):
            continue
        recording, results = (
            PurePosixPath(p) if location.is_address(p) else Path(p).resolve() for p in (source, str(path))
        )
        if recording == results or recording in results.parents:
            raise InputError(f"{path} is or lies in the recording {source}: choose another destination")


@contextmanager
def _explaining_resume(work: Work) -> Iterator[None]:
    """Add to an error how to resume; not to an InputError, which says itself what to do."""
    try:
        yield
    except InputError:
        raise
    except BaseException as error:
        if work.begun:
            error.add_note(f"{work.path} is left incomplete and will not open: {RESUMES}")
        raise


@contextmanager
def _writing(path: str | Path) -> Iterator[None]:
    """Name the store in errors of writing. Errors of reading are DamagedStoreError or InputError."""
    try:
        yield
    except (InputError, DamagedStoreError, StorageError):
        raise
    except OSError as error:
        if error.errno is None:
            raise
        by_worker = "" if cluster.current() is None else " by a worker"
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        what = f"{path} cannot be written{by_worker}: {os.strerror(error.errno)}"
        advice = "free disk space" if full else "correct that"
        raise OSError(error.errno, f"{what}; {advice}, or choose another destination") from error


def _provenance() -> dict[str, Any]:
    return {
        RESULTS: RESULTS_VERSION,
        "complete": False,
        "begun": uuid.uuid4().hex,
        "analysed": datetime.now(UTC).isoformat(timespec="seconds"),
        "analysed_with": store.software_versions(),
    }


def _create_groups(root: zarr.Group, tree: xr.DataTree) -> Arrays:
    """Create the groups and their arrays, write those in memory, and return the others by path."""
    groups, arrays, values = {}, {}, {}
    for name, node in tree.children.items():
        ds = node.to_dataset()
        groups[name] = {**plain(ds.attrs), "variables": list(map(str, ds.data_vars))}
        for key, variable in ds.variables.items():
            path, lazy = f"{name}/{key}", variable.chunks is not None
            source: Any = uniform(variable.data) if lazy else variable.values
            text = source.dtype.kind in "UOT"
            arrays[path] = store.NewArray(
                source.shape, list(map(str, variable.dims)), "string" if text else source.dtype.str,
                chunk_sizes(source) if lazy else [max(1, n) for n in source.shape],
                {**plain(variable.attrs), **_coordinates(ds, str(key))},
            )  # fmt: skip
            if not lazy and source.size:
                values[path] = _as_stored(source)
    created = store.create_arrays(root, groups, arrays)
    for path, source in values.items():
        store.write_block(created[path], (), source)
    return {path: array for path, array in created.items() if path not in values}


def _rewrite_small(root: zarr.Group, tree: xr.DataTree) -> bool:
    """Write again what was in memory, which a power cut may have damaged; return whether all arrays are there."""
    try:
        for name, node in tree.children.items():
            for key, variable in node.to_dataset().variables.items():
                array = cast("zarr.Array[Any]", root[f"{name}/{key}"])
                if array.shape != variable.shape:
                    return False
                if variable.chunks is None and variable.size:
                    store.write_block(store.writable(array), (), _as_stored(variable.values))
    except (KeyError, ValueError):
        return False
    return True


def _as_stored(values: NDArray[Any]) -> NDArray[Any]:
    return values.astype(object) if values.dtype.kind in "UOT" else values


def _pairs(root: zarr.Group, created: Arrays, tree: xr.DataTree) -> list[tuple[da.Array, zarr.Array[Any]]]:
    """Return the lazy arrays with their targets."""
    lazy = [
        (f"{name}/{key}", variable.data)
        for name, node in tree.children.items()
        for key, variable in node.to_dataset().variables.items()
        if variable.chunks is not None
    ]
    opened = {p: store.writable(cast("zarr.Array[Any]", root[p])) for p, _ in lazy if p not in created}
    targets = created | opened
    return [(uniform(data), targets[p]) for p, data in lazy]


def _coordinates(ds: xr.Dataset, key: str) -> dict[str, str]:
    if key in ds.coords:
        return {}
    other = [str(c) for c in ds.coords if c not in ds.dims and set(ds[c].dims) <= set(ds[key].dims)]
    return {"coordinates": " ".join(other)} if other else {}
