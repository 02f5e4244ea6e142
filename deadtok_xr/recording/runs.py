"""Several stores of one experiment as one lazy dataset with a leading dimension `run`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deadtok_xr.attributes import leaves_of, plain, portable, read
from deadtok_xr.dask_arrays import stacked, with_all_functions
from deadtok_xr.errors import InputError
from deadtok_xr.recording.opening import Tokens, open_recording
from deadtok_xr.schema import RUN

Join = Literal["exact", "inner", "outer"]
_JOINS = ("exact", "inner", "outer")
_ATTRIBUTE = "attribute"
"""The attribute of a coordinate along `run` that says which attribute of the recordings it was, as a path."""
_SAME_IN_ALL = ("precision", "valid_from")
"""Attributes that must be the same in all runs, because analyses depend on them."""


def concat_runs(
    paths: Sequence[str | Path],
    *,
    run: Sequence[int] | Sequence[str] | None = None,
    tokens: Tokens = "all",
    join: Join = "exact",
    **open_options: Any,
) -> xr.Dataset:
    """Open the stores of several runs as one lazy dataset, aligned by step and by token id.

    `analyze` analyses each run; single analyses take one run: ``dx.motion(ds.isel(run=0))`` gives the same as the store
    alone. (If stores are chunked differently, sums over tokens are taken in another order and may differ in the last
    digit.)

    Parameters
    ----------
    paths
        Recording stores, of one run each.
    run
        Their labels; by default the names of the stores without ``.zarr``.
    tokens
        As for `open_recording`, for each store by itself.
    join
        ``"exact"``: all must have the same steps, tokens and variables, in any order on disk. ``"inner"``: the steps,
        tokens and variables that all have. ``"outer"``: those that any has, with NaN elsewhere; a token that a run
        does not have is not dead there, and its text is "".
    **open_options
        For `open_recording`.

    Returns
    -------
    xarray.Dataset
        Dataset (run, step, token, dim). `dead` and `token_text` are (token), or (run, token) where runs differ.
        Attributes that are equal in all runs, at any depth, are attributes. Those that differ are coordinates along
        `run` if they are numbers or text (``init_scale (run)``), named by their key, or by their path (``model.seed``)
        if that name exists already; all others are in the attribute `per_run`, by label.

    Raises
    ------
    InputError
        If the stores cannot be combined; the message says which one differs, in what, and which ``join`` accepts it.
        Also as `open_recording` for each of them.

    Examples
    --------
    A sweep, each store one of its runs:

        ds = dx.concat_runs(sorted(Path("sweep").glob("*.zarr")), tokens="dead")
        ds.W.sel(step=100).isel(token=0).mean("dim").plot()
        tree = dx.analyze(ds)  # the groups have the dimension run
    """
    if isinstance(paths, (str, Path)) or not paths:
        raise InputError(f"concat_runs takes a list of stores, but got {paths!r}: give it two or more paths")
    if join not in _JOINS:
        raise InputError(f"join={join!r}: choose one of {', '.join(_JOINS)}")
    paths = list(paths)
    labels = _labels(paths, run)
    opened = [open_recording(path, tokens=tokens, **open_options) for path in paths]
    _refuse_incompatible(paths, opened)
    if join == "exact":
        _refuse_different(paths, opened)
    names = _names(opened, join)
    aligned = _aligned(opened, join)
    index = {dim: aligned[0][dim].values for dim in ("step", "token")}
    if empty := next((dim for dim, values in index.items() if not values.size), None):
        raise InputError(f"the {len(paths)} stores have no {empty} in common: use join='outer', or leave some out")
    variables = {name: _stacked(name, aligned) for name in names}
    coords: dict[str, Any] = {RUN: _along_run(labels), **{dim: _variable(opened[0], dim, index[dim]) for dim in index}}
    coords |= {
        name: v for name in ("dead", "token_text", "count") if (v := _label_of_tokens(name, aligned)) is not None
    }
    attrs, differing = _attributes(labels, [plain(ds.attrs) for ds in opened], {*variables, *coords, "dim"})
    return xr.Dataset(variables, coords | differing, portable(attrs))


def _labels(paths: Sequence[str | Path], run: Sequence[Any] | None) -> list[Any]:
    if run is not None and len(run) != len(paths):
        raise InputError(f"run= has {len(run)} labels for {len(paths)} stores; expected one for each")
    labels = [Path(path).name.removesuffix(".zarr") for path in paths] if run is None else list(run)
    repeated = next((label for label in labels if labels.count(label) > 1), None)
    if repeated is not None:
        raise InputError(f"two runs have the label {repeated!r}; expected all different; name them with run=[...]")
    return labels


def _along_run(values: Sequence[Any]) -> xr.Variable:
    array = np.asarray(values)
    return xr.Variable(RUN, array.astype(object) if array.dtype.kind in "US" else array)


def _refuse_incompatible(paths: Sequence[str | Path], opened: Sequence[xr.Dataset]) -> None:
    """Raise an error for runs that no join can combine."""
    for path, ds in zip(paths, opened, strict=True):
        if RUN in ds.dims:
            raise InputError(f"{path} holds several runs itself: open it with open_recording, or name one with run=")
        for name in set(ds.data_vars) & set(opened[0].data_vars):
            one, first = ds[name], opened[0][name]
            found = {"dimensions": (first.dims, one.dims), "dtype": (first.dtype, one.dtype)}
            found |= {a: (first.attrs.get(a), one.attrs.get(a)) for a in _SAME_IN_ALL}
            sizes = [[n for d, n in x.sizes.items() if d not in ("step", "token")] for x in (first, one)]
            found["sizes beside step and token"] = (sizes[0], sizes[1])
            for what, (expected, there) in found.items():
                if expected != there:
                    raise InputError(
                        f"{path}: {name!r} has the {what} {there}, and in {paths[0]} {expected}; expected the same in "
                        "every run; leave it out, or open it by itself"
                    )


def _refuse_different(paths: Sequence[str | Path], opened: Sequence[xr.Dataset]) -> None:
    remedy = "say join='inner' for what all runs have, or join='outer' for everything, with NaN for missing values"
    for path, ds in zip(paths[1:], opened[1:], strict=True):
        for dim in ("step", "token"):
            here, first = ds[dim].values, opened[0][dim].values
            more, less = np.setdiff1d(here, first), np.setdiff1d(first, here)
            if more.size or less.size:
                has = [f"has {_some(more)} more"] * bool(more.size) + [f"lacks {_some(less)}"] * bool(less.size)
                raise InputError(f"{path} has other {dim}s than {paths[0]}: it {' and '.join(has)}; {remedy}")
        names = set(map(str, ds.data_vars)) ^ set(map(str, opened[0].data_vars))
        if names:
            raise InputError(f"{path} and {paths[0]} do not both have {', '.join(sorted(names))}; {remedy}")


def _some(labels: NDArray[Any]) -> str:
    listed = ", ".join(map(str, labels[:3])) + (", ..." if labels.size > 3 else "")
    return f"{labels.size} ({listed})"


def _names(opened: Sequence[xr.Dataset], join: str) -> list[str]:
    every = list(dict.fromkeys(str(name) for ds in opened for name in ds.data_vars))
    return every if join == "outer" else [name for name in every if all(name in ds for ds in opened)]


def _variable(ds: xr.Dataset, name: str, values: Any) -> xr.Variable:
    return xr.Variable(ds[name].dims, values, ds[name].attrs)


def _aligned(opened: Sequence[xr.Dataset], join: Join) -> tuple[xr.Dataset, ...]:
    """Align the runs along steps and tokens, lazily; missing values are NaN, False, "", or the count -1."""
    fill: dict[Any, Any] = {"dead": False, "token_text": "", "count": -1}
    for ds in opened:
        fill |= {name: np.array(np.nan, v.dtype) for name, v in ds.data_vars.items() if v.dtype.kind in "fV"}
    others = {dim for ds in opened for dim in ds.dims} - {"step", "token"}
    return xr.align(*opened, join=join, copy=False, exclude=others, fill_value=fill)


def _stacked(name: str, aligned: Sequence[xr.Dataset]) -> xr.Variable:
    """Return one variable of all runs, with NaN for a run without it."""
    like = next(ds[name] for ds in aligned if name in ds)
    shared = {
        k: v for k, v in like.attrs.items() if all(name not in ds or ds[name].attrs.get(k) == v for ds in aligned)
    }
    none = xr.full_like(like.variable, np.nan, dtype=like.dtype if like.dtype.kind in "fV" else np.float64)
    none = none.copy(data=with_all_functions(none.data))
    parts = [ds[name].variable if name in ds else none for ds in aligned]
    if all(isinstance(part.data, da.Array) for part in parts):
        return xr.Variable((RUN, *like.dims), stacked([part.data for part in parts]), shared)
    together = xr.Variable.concat(parts, RUN, combine_attrs="drop")
    together.attrs = shared
    return together


def _label_of_tokens(name: str, aligned: Sequence[xr.Dataset]) -> xr.Variable | None:
    """Return `dead` or `token_text` if every run has it: (token), or (run, token) if they differ."""
    if not all(name in ds.coords for ds in aligned):
        return None
    values = [ds[name].values for ds in aligned]
    if all(np.array_equal(v, values[0]) for v in values):
        return _variable(aligned[0], name, values[0])
    return xr.Variable((RUN, "token"), np.stack(values), aligned[0][name].attrs)


def _attributes(
    labels: Sequence[Any], attrs: Sequence[Mapping[str, Any]], taken: set[str]
) -> tuple[dict[str, Any], dict[str, xr.Variable]]:
    """Return the attributes that all runs share, and those that differ as coordinates along `run`."""
    flat = [dict(leaves_of(a)) for a in attrs]
    common = {k: v for k, v in attrs[0].items() if all(k in a and a[k] == v for a in attrs)}
    paths = [p for p in dict.fromkeys(p for leaves in flat for p in leaves) if p[0] not in common]
    differing = [p for p in paths if any(p not in leaves or leaves[p] != flat[0].get(p) for leaves in flat)]
    shared = _nested({p: flat[0][p] for p in paths if p not in differing})
    coords: dict[str, xr.Variable] = {}
    per_run: dict[str, dict[str, Any]] = {}
    for p in differing:
        name = p[-1] if p[-1] not in taken and sum(q[-1] == p[-1] for q in differing) == 1 else ".".join(p)
        values = [leaves.get(p) for leaves in flat]
        if name not in taken and _are_labels(values):
            coords[name] = _along_run(values)
            coords[name].attrs = portable({_ATTRIBUTE: list(p)})
        else:
            for label, leaves in zip(labels, flat, strict=True):
                if p in leaves:
                    per_run.setdefault(str(label), {})[".".join(p)] = leaves[p]
    return {**common, **shared, **({"per_run": per_run} if per_run else {})}, coords


def run_labels(ds: xr.Dataset) -> list[Any]:
    """Return the labels of the runs of a dataset; their positions if it has none."""
    labels: list[Any] = ds[RUN].values.tolist() if RUN in ds.coords else list(range(ds.sizes[RUN]))
    return labels


def one_run(ds: xr.Dataset, position: int) -> xr.Dataset:
    """Return one run of a dataset of several, with the attributes of its recording, of which `concat_runs` made labels.

    Parameters
    ----------
    ds
        From `concat_runs`, or a store of several runs.
    position
        The position of the run.
    """
    one = ds.isel({RUN: position})
    attrs = plain(ds.attrs)
    own = attrs.pop("per_run", {})
    labels = [name for name, c in ds.coords.items() if c.dims == (RUN,) and _ATTRIBUTE in c.attrs]
    paths = {name: read(ds[name].attrs, _ATTRIBUTE) for name in labels}
    leaves = {tuple(path.split(".")): value for path, value in own.get(str(run_labels(ds)[position]), {}).items()}
    leaves |= {tuple(paths[name]): one[name].values.tolist() for name in labels}
    for path, value in leaves.items():
        inner = attrs
        for key in path[:-1]:
            inner = inner.setdefault(key, {})
        inner[path[-1]] = value
    one = one.drop_vars(labels)
    one.attrs = portable(attrs)
    return one


def _nested(leaves: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    root: dict[str, Any] = {}
    for path, value in leaves.items():
        inner = root
        for key in path[:-1]:
            inner = inner.setdefault(key, {})
        inner[path[-1]] = value
    return root


def _are_labels(values: Sequence[Any]) -> bool:
    return all(isinstance(v, str) for v in values) or all(isinstance(v, (bool, int, float)) for v in values)
