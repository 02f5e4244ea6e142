"""Change the number of steps of a store in a folder, so that a kill or a power cut at any moment leaves it readable."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import zarr
from zarr.storage import LocalStore

from deadtok_xr.store.arrays import dimensions
from deadtok_xr.store.manifest_write import change_metadata


def set_n_steps(group: zarr.Group, arrays: Mapping[str, zarr.Array[Any]], n_steps: int) -> dict[str, zarr.Array[Any]]:
    """Give arrays another length along their first dimension, if that is `step`.

    A reader takes as many steps as every array has. Each length has reached the disk when this returns, and those of
    all arrays before a chunk beyond them is removed.

    Parameters
    ----------
    group
        The group of the arrays, in a folder.
    arrays
        Arrays of the group by name; those without `step` stay as they are.
    n_steps
        The new length.

    Returns
    -------
    The arrays as they are now.
    """
    root = cast(LocalStore, group.store).root / group.path
    growing = {name: array for name, array in arrays.items() if "step" in dimensions(array)}
    for name, array in growing.items():
        change_metadata(root / name / "zarr.json", shape=[n_steps, *array.shape[1:]])
    for name, array in growing.items():
        if n_steps < array.shape[0]:
            _remove_chunks(root / name / "c", -(-n_steps // array.chunks[0]))
    return {**arrays, **{name: cast("zarr.Array[Any]", group[name]) for name in growing}}


def _remove_chunks(folder: Path, first: int) -> None:
    """Remove the chunks from a position along the first dimension on."""
    for path in folder.glob("*"):
        if path.name.isdigit() and int(path.name) >= first:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
