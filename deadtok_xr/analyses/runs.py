"""Results of several runs: one tree whose groups have a leading dimension `run`, and the results of one of them.

In: a tree of results for each run. Out: one tree. What a run alone says (its source, settings, why an analysis was left
out) is in the attribute `per_run`, by label, wherever runs differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from deadtok_xr import attributes
from deadtok_xr.attributes import plain, portable
from deadtok_xr.dask_arrays import stacked
from deadtok_xr.errors import InputError
from deadtok_xr.recording.runs import run_labels
from deadtok_xr.schema import RUN

RUNS = "runs"
"""The attribute of a tree of several runs: their labels."""
PER_RUN = "per_run"
COMPARISON = "compare_runs"
"""The group that compares the recordings with the first."""
REFERENCE = "reference"
"""The attribute of this group: the label of the first."""
_SHORT = 24
_ALIGNED = ("step", "token")


def labels_of(tree: xr.DataTree) -> list[Any]:
    """Return the labels of the runs of a tree; none if it holds the results of one run."""
    return list(attributes.read(tree.attrs, RUNS) or [])


def stack_runs(trees: Mapping[Any, xr.DataTree], *, join: str = "exact") -> xr.DataTree:
    """Stack results of several runs along a new leading dimension `run`.

    Parameters
    ----------
    trees
        The results of each run, by label. A group holds the runs that have this analysis.
    join
        ``"exact"``: groups have the same steps and tokens in all runs. ``"inner"``: those that all runs have.

    Raises
    ------
    InputError
        If a group has other steps or tokens in another run, and ``join`` is "exact".
    """
    names = list(dict.fromkeys(name for tree in trees.values() for name in tree.children))
    groups, left_out = {}, {}
    for name in names:
        datasets = {label: tree[name].to_dataset() for label, tree in trees.items() if name in tree.children}
        aligned = _aligned(name, datasets, join)
        if different := _different_sizes(aligned):
            left_out[name] = f"{name}: the runs have different sizes along {different}"
        else:
            groups[name] = stack_datasets(aligned)
    if not groups:
        raise InputError(f"the runs cannot be compared: {next(iter(left_out.values()), 'they have no results')}")
    attrs = _shared({label: plain(tree.attrs) for label, tree in trees.items()})
    if left_out:
        attrs["left_out"] = {**(attrs.get("left_out") or {}), **left_out}
    root = xr.Dataset(attrs=portable({**attrs, RUNS: list(trees)}))
    return xr.DataTree.from_dict({"/": root, **groups})


def with_labels(tree: xr.DataTree, recordings: xr.Dataset) -> xr.DataTree:
    """Return a tree of several runs whose groups have the coordinates along `run` of the recordings, such as a seed.

    Long texts are left out.
    """
    labels = {
        str(name): c.reset_coords(drop=True)
        for name, c in recordings.coords.items()
        if c.dims == (RUN,) and name != RUN and (c.dtype.kind in "biuf" or max(map(len, map(str, c.values))) <= _SHORT)
    }
    groups = {}
    for name, node in tree.children.items():
        ds = node.to_dataset()
        new = {key: c for key, c in labels.items() if key not in ds.variables and key not in ds.dims}
        known = [i for i, label in enumerate(run_labels(recordings)) if label in ds[RUN].values.tolist()]
        groups[name] = ds.assign_coords({key: (RUN, c.values[known], c.attrs) for key, c in new.items()})
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=tree.attrs), **groups})


def select_run(tree: xr.DataTree, label: Any) -> xr.DataTree:
    """Return the results of one run of a tree of several, as `analyze` returns them for the run alone."""
    known = labels_of(tree)
    if str(label) not in map(str, known):
        choose = f"choose one of {', '.join(map(str, known))}" if known else "they are of one run, without a label"
        raise InputError(f"these results hold no run {label!r}: {choose}")
    groups = {}
    for name, node in tree.children.items():
        ds = node.to_dataset()
        at = [i for i, known_label in enumerate(ds[RUN].values.tolist()) if str(known_label) == str(label)]
        if at and name != COMPARISON:
            groups[name] = ds.isel({RUN: at[0]})
            groups[name].attrs = portable(_own(ds.attrs, label))
    attrs = {k: v for k, v in _own(tree.attrs, label).items() if k != RUNS}
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=portable(attrs)), **groups})


def sources(tree: xr.DataTree) -> list[str]:
    """Return the recordings that a tree of results describes, as far as they are known."""
    labels = labels_of(tree)
    attrs = [_own(tree.attrs, label) for label in labels] if labels else [plain(tree.attrs)]
    return list(dict.fromkeys(str(a["source"]) for a in attrs if isinstance(a.get("source"), str)))


def _own(attrs: Mapping[Any, Any], label: Any) -> dict[str, Any]:
    """Return the attributes of one run: those that all share, and its own."""
    own = (attributes.read(attrs, PER_RUN) or {}).get(str(label), {})
    return {**{str(k): v for k, v in plain(attrs).items() if k != PER_RUN}, **own}


def _shared(attrs: Mapping[Any, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the attributes that are equal in all runs, and the others by run."""
    first = next(iter(attrs.values()))
    shared = {k: v for k, v in first.items() if all(k in a and a[k] == v for a in attrs.values())}
    own = {str(label): {k: v for k, v in a.items() if k not in shared} for label, a in attrs.items()}
    return {**shared, PER_RUN: own} if any(own.values()) else shared


def _aligned(name: str, datasets: Mapping[Any, xr.Dataset], join: str) -> dict[Any, xr.Dataset]:
    """Align the steps and tokens of a group, and let other labels be those of any run."""
    first_label, first = next(iter(datasets.items()))
    for dim in _ALIGNED:
        for label, ds in datasets.items():
            if join == "exact" and dim in first.coords and not _equal(first, ds, dim):
                raise InputError(
                    f"{name} has other {dim}s in the run {label} than in {first_label}: say join='inner' for those "
                    "that all runs have"
                )
    common = xr.align(*datasets.values(), join="inner", copy=False, exclude=_other_dims(datasets.values()))
    if empty := next((dim for dim in _ALIGNED if common[0].sizes.get(dim) == 0), None):
        raise InputError(f"the runs have no {empty} of {name} in common: choose others")
    aligned = xr.align(*common, join="outer", copy=False)
    return dict(zip(datasets, aligned, strict=True))


def _equal(one: xr.Dataset, other: xr.Dataset, dim: str) -> bool:
    return dim in other.coords and np.array_equal(one[dim].values, other[dim].values)


def _other_dims(datasets: Any) -> set[Any]:
    return {dim for ds in datasets for dim in ds.dims} - set(_ALIGNED)


def _different_sizes(datasets: Mapping[Any, xr.Dataset]) -> str:
    """Return a dimension whose size differs between runs, which labels do not tell apart; "" for none."""
    sizes: dict[Any, int] = {}
    for ds in datasets.values():
        for dim, n in ds.sizes.items():
            if sizes.setdefault(dim, n) != n:
                return str(dim)
    return ""


def stack_datasets(datasets: Mapping[Any, xr.Dataset]) -> xr.Dataset:
    """Stack datasets of equal sizes, by label, along `run`: all variables, and the coordinates that differ."""
    labels = np.asarray(list(datasets))
    index = xr.Variable(RUN, labels.astype(object) if labels.dtype.kind in "US" else labels)
    every = [ds.drop_vars(RUN, errors="ignore") for ds in datasets.values()]
    variables = {str(name): _variable(str(name), every) for name in _names(every, "data_vars")}
    coords: dict[str, xr.Variable] = {RUN: index}
    for name in map(str, _names(every, "coords")):
        first = every[0].get(name)
        same = first is not None and first.ndim and all(name in ds and _identical(ds[name], first) for ds in every)
        coords[name] = first.variable if first is not None and same else _variable(name, every)
    attrs = _shared({label: plain(ds.attrs) for label, ds in datasets.items()})
    return xr.Dataset(variables, coords, portable(attrs))


def _identical(one: xr.DataArray, other: xr.DataArray) -> bool:
    return one is other or one.variable.equals(other.variable)


def _names(datasets: Sequence[xr.Dataset], kind: str) -> list[Any]:
    return list(dict.fromkeys(name for ds in datasets for name in getattr(ds, kind)))


def _variable(name: str, datasets: Sequence[xr.Dataset]) -> xr.Variable:
    """Return a variable of all runs, with NaN, or "", for a run that does not have it."""
    found = [ds[name].variable if name in ds.variables else None for ds in datasets]
    like = next(v for v in found if v is not None)
    parts = [_missing(like) if v is None else v.transpose(*like.dims) for v in found]
    shared = {k: v for k, v in like.attrs.items() if all(p.attrs.get(k) == v for p in parts)}
    datas = [part.data for part in parts]
    lazy = any(isinstance(data, da.Array) for data in datas)
    data = stacked([_as_dask(x) for x in datas]) if lazy else np.stack([np.asarray(x) for x in datas])
    return xr.Variable((RUN, *like.dims), data, shared)


def _missing(like: xr.Variable) -> xr.Variable:
    if like.dtype.kind in "OUT":
        return xr.full_like(like, "", dtype=object)
    return xr.full_like(like, np.nan, dtype=like.dtype if like.dtype.kind == "f" else np.float64)


def _as_dask(x: Any) -> da.Array:
    return x if isinstance(x, da.Array) else da.from_array(np.asarray(x))
