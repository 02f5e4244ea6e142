"""Put groups of a tree of results together as one dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr

from deadtok_xr.errors import InputError

_SHARED = ("step", "token", "dim")
"""The dimensions that mean the same in every group; others, such as `phase`, are those of one group."""


def combine(tree: xr.DataTree, groups: Sequence[str], *, join: Literal["inner", "outer"] = "inner") -> xr.Dataset:
    """Combine groups of a tree of results into one dataset, aligned by step and token.

    A variable, a coordinate or a dimension that occurs in one group alone keeps its name. One that occurs in several,
    and is not the same there, gets the name of its group in front: `freezing_n_frozen`. Attributes of the datasets are
    kept if they are the same in all groups that have them, and else get the name of their group in the same way.

    Parameters
    ----------
    tree
        From `analyze`, `save_results` or `open_results`.
    groups
        Their names. One that has selected steps only, such as `connectivity`, leaves these steps to all (``"inner"``).
    join
        Motion begins at the step after the first, states at the first. ``"inner"``: the steps that all groups have,
        which keeps dtypes. ``"outer"``: the steps that any has, with NaN elsewhere, so that integers become floats.

    Returns
    -------
    xarray.Dataset
        The dataset, lazy where the groups are.

    Raises
    ------
    InputError
        If a group does not exist, or the groups have no step or token in common.

    Examples
    --------
        ds = dx.combine(dx.open_results("results.zarr"), ["motion", "lifecycle"])
        ds.displacement.groupby(ds.thaw_count > 0).mean("token")
    """
    groups = [groups] if isinstance(groups, str) else groups
    names = list(dict.fromkeys(groups))
    if unknown := [name for name in names if name not in tree.children]:
        raise InputError(f"the tree has no group {unknown[0]!r}: choose from {', '.join(tree.children)}")
    if join not in ("inner", "outer"):
        raise InputError(f"join={join!r}: choose 'inner' or 'outer'")
    if not names:
        raise InputError("combine: no group is named; name two or more")
    datasets = {name: tree[name].to_dataset() for name in names}
    renamed = [_renamed(name, datasets) for name in names]
    aligned = xr.align(*renamed, join=join, copy=False)
    if empty := next((dim for ds in aligned for dim in _SHARED if ds.sizes.get(dim) == 0), None):
        raise InputError(f"the groups {', '.join(names)} have no {empty} in common: combine fewer, or say join='outer'")
    combined = xr.merge(aligned, compat="override", combine_attrs="drop")
    combined.attrs = _attributes(datasets)
    return combined


def _renamed(name: str, datasets: dict[str, xr.Dataset]) -> xr.Dataset:
    """Return a group with its name in front of what other groups call the same."""
    ds = datasets[name]
    others = [other for key, other in datasets.items() if key != name]
    clashing = {
        key
        for key in [*ds.variables, *ds.dims]
        for other in others
        if key not in _SHARED and key in [*other.variables, *other.dims] and not _same(str(key), ds, other)
    }
    return ds.rename({key: f"{name}_{key}" for key in clashing})


def _same(key: str, a: xr.Dataset, b: xr.Dataset) -> bool:
    """Return whether a name means the same in two groups: equal coordinates, or a dimension of the same size."""
    if key not in a.coords or key not in b.coords:
        return key not in a.variables and key not in b.variables and a.sizes.get(key) == b.sizes.get(key)
    one, other = a[key].reset_coords(drop=True), b[key].reset_coords(drop=True)
    if one.dims != other.dims:
        return False
    if set(one.dims) & {"step"}:
        one, other = xr.align(one, other, join="inner")
    return one.dtype.kind == other.dtype.kind and np.array_equal(one.values, other.values)


def _attributes(datasets: dict[str, xr.Dataset]) -> dict[str, Any]:
    values: dict[str, list[Any]] = {}
    for ds in datasets.values():
        for key, value in ds.attrs.items():
            values.setdefault(str(key), []).append(value)
    same = {key: found[0] for key, found in values.items() if all(np.array_equal(v, found[0]) for v in found)}
    counted = Counter(key for ds in datasets.values() for key in ds.attrs)
    own = {
        f"{name}_{key}": value
        for name, ds in datasets.items()
        for key, value in ds.attrs.items()
        if counted[key] > 1 and key not in same
    }
    return {**same, **own}
