"""Open a recording of samples: one dataset (step, element) for each parameter."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import xarray as xr
import zarr

from deadtok_xr import store
from deadtok_xr.attributes import portable
from deadtok_xr.errors import DamagedStoreError
from deadtok_xr.store import destination, location, manifest, manifest_check
from deadtok_xr.store.chunk_reader import read_values
from deadtok_xr.store.members import attribute_error, check_format, lost, open_members
from deadtok_xr.store.sample import ELEMENTS, FORMAT, KIND, PART, PART_MANIFESTS


def is_sample(path: str | Path) -> bool:
    """Return whether a path holds a recording of samples."""
    return KIND in destination.root_attributes(path)


def open_sample(path: str | Path, open_one: Any) -> xr.DataTree:
    """Open a recording of samples as a tree with a group per parameter.

    ``open_one`` opens the recording store of a part.
    """
    group = store.open_root(path, "a recording of samples")
    found: dict[str, Any] = dict(group.attrs.asdict())
    check_format(path, found[KIND], FORMAT)
    array = open_members(group, path, location.key_sizes(group.store)).get(ELEMENTS)
    if array is None:
        raise lost(path, ELEMENTS)
    manifest_check.check(group, {ELEMENTS: array}, [ELEMENTS])
    elements = read_values(array)
    _check_parts(path, group, len(elements))
    nodes: dict[str, xr.Dataset] = {}
    first = 0
    for i, members in enumerate(found["parts"]):
        part, row = open_one(Path(str(path)) / PART.format(i)), 0
        _check_part(path, i, part, members, found.get(PART_MANIFESTS))
        for member in members:
            n = member["n_elements"]
            chosen = part.isel(token=slice(row, row + n))
            nodes[member["name"]] = _of_parameter(chosen, member, elements[first : first + n])
            first, row = first + n, row + n
    root = {k: v for k, v in found.items() if k not in ("parts", PART_MANIFESTS, manifest.FLAG)}
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=portable({**root, "source": str(path)})), **nodes})


def _check_parts(path: str | Path, group: zarr.Group, n_elements: int) -> None:
    """Check what the attribute `parts` says of each parameter."""
    try:
        members: list[Any] = [member for part in cast(Any, group.attrs["parts"]) for member in part]
        right = sum(member["n_elements"] for member in members) == n_elements
        for member in members:
            right &= isinstance(member["name"], str) and member["n_elements"] >= 0
            right &= math.prod(member["shape"]) == member["numel"] and min(member["shape"], default=1) > 0
    except (KeyError, TypeError, ValueError, AttributeError):
        right = False
    if not right:
        raise attribute_error(path, group, "parts", f"the parameters of {n_elements} elements, with name and shape")


def _check_part(path: str | Path, i: int, part: xr.Dataset, members: Any, digests: Any) -> None:
    """Check that a part is the one that was written there, and not one of another store."""
    digest = manifest.digest_at(Path(str(path)) / PART.format(i))
    right = part.sizes["token"] == sum(member["n_elements"] for member in members)
    if not right or (digests is not None and digests[i] != digest):
        raise DamagedStoreError(
            f"{path}: {PART.format(i)} is not the one that was written there: restore the folder from a copy"
        )


def _of_parameter(ds: xr.Dataset, member: dict[str, Any], elements: Any) -> xr.Dataset:
    """Return the rows of one parameter with the dimension `element` and the position of each element."""
    ds = ds.isel(dim=0, drop=True).rename(token="element").assign_coords(element=elements)
    ds["element"].attrs["long_name"] = "flat index of the element in the parameter"
    if len(member["shape"]) > 1:
        for axis, index in enumerate(np.unravel_index(elements, member["shape"])):
            ds = ds.assign_coords({f"index_{axis}": ("element", index, {"long_name": f"index along axis {axis}"})})
    for variable in ds.data_vars.values():
        if variable.attrs.get("precision") == "none" and "element" in variable.dims:
            variable.attrs["precision"] = "float32"  # what an optimizer updates lies on the grid of its dtype
    of_sample = {"parameter": member["name"], "parameter_shape": member["shape"], "numel": member["numel"]}
    return ds.assign_attrs(portable({**ds.attrs, **of_sample}))
