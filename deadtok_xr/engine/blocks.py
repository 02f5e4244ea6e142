"""What analyses share beside the sweep: checks of a dataset, and graphs for what is small or goes on from step to step.

`at_once` makes variables of what fits into one task; `running` hands each block what the one before it left.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph
from numpy.typing import NDArray

from deadtok_xr.errors import InputError
from deadtok_xr.store.reading import recorded

Block = dict[str, NDArray[Any]]
"""Several results of one task, by name."""


def as_dask(data: Any) -> da.Array:
    """An array of (step, token, dim) as a Dask array whose blocks hold all dims, as recorded if possible."""
    array = recorded(data) if isinstance(data, da.Array) else da.from_array(data)
    return array if array.numblocks[2] == 1 else array.rechunk({2: -1})


def fitting(x: da.Array, steps: tuple[int, ...]) -> da.Array:
    """An array of (step, token, dim) cut into the given steps, its blocks holding all dims."""
    if x.chunks[0] == steps and x.numblocks[2] == 1:
        return x
    return x.rechunk({0: steps, 2: -1})


def as_series(x: xr.DataArray) -> da.Array:
    """A variable of (step) or (step, ...) as a Dask array, steps first; eager values stay one block.

    Raises
    ------
    InputError
        If it has no steps.
    """
    if "step" not in x.dims:
        raise InputError(f"{x.name!r} has the dimensions {x.dims}; needed: one value, or one vector, per step")
    data = x.transpose("step", ...).data
    return data if isinstance(data, da.Array) else da.from_array(np.asarray(data))


def neighbour(x: da.Array, offset: int) -> da.Array:
    """For each block along the first axis, the touching step of the next (1) or previous (-1) block.

    One step per block, so that nothing of a neighbour is read or kept but that step. The last block has
    no step after it, and gets none; before the first block stands NaN.
    """
    touching = slice(0, 1) if offset > 0 else slice(-1, None)
    ends = x.map_blocks(_copy, touching, chunks=((1,) * x.numblocks[0], *x.chunks[1:]), dtype=x.dtype)
    edge = np.full((0 if offset > 0 else 1, 1, 1), np.nan, x.dtype)
    name = f"neighbour-{tokenize(ends.name, offset)}"
    graph: dict[Any, Any] = {
        (name, i, j, k): (ends.name, i + offset, j, k)
        if 0 <= i + offset < x.numblocks[0]
        else np.broadcast_to(edge, (edge.shape[0], x.chunks[1][j], x.chunks[2][k]))
        for i, j, k in np.ndindex(*x.numblocks)
    }
    layers = HighLevelGraph.from_collections(name, graph, dependencies=[ends])
    return da.Array(layers, name, ends.chunks, meta=x._meta)


def _copy(block: NDArray[Any], edge: slice) -> NDArray[Any]:
    return block[edge].copy()  # a view would keep the whole block in memory


def running(arrays: dict[str, da.Array], kernel: Callable[..., Any], dtype: np.dtype[Any], **options: Any) -> da.Array:
    """Per step and token, (step, token), the fields of ``dtype``, where each step builds on the one before.

    ``kernel(parts, state, out, **options)`` gets a dict of blocks, and what it returned for the block of steps
    before, None at first. Arrays may have one value along an axis. Blocks of tokens run beside each other, blocks of
    steps one after the other.
    """
    first = next(iter(arrays.values()))
    same = [_like(x, first) for x in arrays.values()]
    names = tuple(arrays)
    name = f"running-{tokenize([x.name for x in same], kernel, dtype, options)}"
    graph: dict[Any, Any] = {}
    for j in range(first.numblocks[1]):
        state: Any = None
        for i in range(first.numblocks[0]):
            keys = [(x.name, min(i, x.numblocks[0] - 1), min(j, x.numblocks[1] - 1), 0) for x in same]
            graph[name, i, j] = (_run_block, kernel, names, dtype, options, state, *keys)
            state = (f"state-{name}", i, j)
            graph[state] = (_field, (name, i, j), "state")
    layers = HighLevelGraph.from_collections(name, graph, dependencies=same)
    return da.Array(layers, name, first.chunks[:2], meta=np.empty((0, 0), dtype))


def _like(x: da.Array, first: da.Array) -> da.Array:
    """In the chunks of another array, but for the axes along which there is one value alone."""
    return x.rechunk({k: c for k, c in enumerate(first.chunks) if x.shape[k] == first.shape[k]})


def _run_block(
    kernel: Callable[..., Any], names: tuple[str, ...], fields: Any, options: Any, state: Any, *blocks: Any
) -> Any:
    out = _empty(fields, blocks[0].shape[:2])
    out["state"] = kernel(dict(zip(names, blocks, strict=True)), state, out, **options)
    return out


def _empty(fields: np.dtype[Any], shape: tuple[int, ...]) -> dict[str, NDArray[Any]]:
    # an array for each field instead of a structured one: what uses one field reads no other
    return {name: np.empty(shape + fields[name].shape, fields[name].base) for name in fields.names or ()}


def at_once(
    inputs: dict[str, da.Array],
    kernel: Callable[..., Block],
    shapes: dict[str, tuple[tuple[str, ...], tuple[int, ...], str]],
    attrs: dict[str, dict[str, Any]],
    **options: Any,
) -> dict[str, xr.Variable]:
    """Variables of what is small, all made by one task from all blocks of its inputs.

    ``kernel(blocks, **options)`` gets a list of the blocks of each input, and returns an array for each of
    ``shapes``: dims, shape and dtype by name.
    """
    letters = iter("abcdefghijklmnopqrstuvwxy")
    pairs = [(x, "".join(next(letters) for _ in range(x.ndim))) for x in inputs.values()]
    made = da.blockwise(
        _make_once, "z", *(part for pair in pairs for part in pair), kernel=kernel, names=tuple(inputs),
        options=options, new_axes={"z": 1}, dtype=object, meta=np.empty(0, object), concatenate=None,
    )  # fmt: skip
    variables = {}
    for name, (dims, shape, dtype) in shapes.items():
        # a name is made of it: the value of an empty array of no dims would be another each time
        meta = np.zeros((0,) * len(shape), dtype)
        data = da.blockwise(
            _named, "abc"[: len(shape)], made, "z", name_of=name, dtype_of=dtype, dtype=dtype, concatenate=None,
            new_axes=dict(zip("abc", shape, strict=False)), meta=meta,
        )  # fmt: skip
        variables[name] = xr.Variable(dims, data, attrs[name])
    return variables


def _make_once(*inputs: Any, kernel: Callable[..., Block], names: tuple[str, ...], options: Any) -> Block:
    return kernel({name: _flat(x) for name, x in zip(names, inputs, strict=True)}, **options)


def _flat(x: Any) -> list[Any]:
    return [block for part in x for block in _flat(part)] if isinstance(x, list) else [x]


def _named(made: list[Block], name_of: str, dtype_of: str) -> NDArray[Any]:
    return np.asarray(made[0][name_of], dtype_of)


def fields(x: da.Array, dims: tuple[str, ...], attrs: dict[str, dict[str, Any]]) -> dict[str, xr.Variable]:
    """The fields of such a result, that have attributes, as variables; one with a shape of its own adds `dim`."""
    variables = {}
    for name in (n for n in x.dtype.names if n in attrs):
        inner, base = x.dtype[name].shape, x.dtype[name].base
        data = x.map_blocks(
            _field,
            name,
            dtype=base,
            chunks=x.chunks + tuple((n,) for n in inner),
            new_axis=list(range(x.ndim, x.ndim + len(inner))) or None,
            meta=np.empty((0,) * (x.ndim + len(inner)), base),
        )
        variables[name] = xr.Variable((*dims, "dim") if inner else dims, uniform(data), attrs[name])
    return variables


def _field(block: Any, name: str) -> NDArray[Any]:
    return block[name]


def uniform(x: da.Array) -> da.Array:
    """Chunks that a Zarr array can have: equal, but for a smaller last one."""
    chunks = {}
    for axis, sizes in enumerate(x.chunks):
        if len(set(sizes[:-1])) > 1 or sizes[-1] > sizes[0]:
            chunks[axis] = max(sizes)
    return x.rechunk(chunks) if chunks else x


def require(ds: xr.Dataset, variable: str, purpose: str) -> xr.DataArray:
    """The variable of a recording that an analysis needs, or an error that says what there is.

    Raises
    ------
    InputError
        If the variable is missing or has other dimensions.
    """
    if not isinstance(ds, xr.Dataset):
        raise InputError(
            f"{purpose} takes a recording's dataset, not a {type(ds).__name__}: give it what open_recording returned"
        )
    if variable not in ds:
        raise InputError(
            f"{purpose} needs the variable {variable!r}; this dataset has "
            f"{', '.join(map(str, ds.data_vars)) or 'none'}"
            + (": it holds displacements without an initial W, and absolute positions are not known"
               if variable == "W" and "delta" in ds else "")
        )  # fmt: skip
    if "run" in ds[variable].dims:
        labels = ", ".join(map(repr, ds["run"].values.tolist()[:8])) if "run" in ds.coords else ds.sizes["run"]
        raise InputError(
            f"{purpose} takes one run at a time; {variable!r} holds several along the dimension run ({labels}): select "
            "one with .isel(run=0) or .sel(run=...) (--run)"
        )
    if set(ds[variable].dims) != {"step", "token", "dim"}:
        raise InputError(f"{purpose}: {variable!r} has the dimensions {ds[variable].dims}; needed: (step, token, dim)")
    if ds.sizes["token"] == 0 or ds.sizes["step"] == 0:
        raise InputError(f"{purpose}: the dataset is empty ({dict(ds.sizes)}); select other steps or tokens")
    return _lazily(ds[variable]).transpose("step", "token", "dim")


def _lazily(x: xr.DataArray) -> xr.DataArray:
    """A variable as Dask array: one that xarray would load at the first look is cut as its file is."""
    if x.chunks is not None:
        return x
    preferred = x.encoding.get("preferred_chunks", {})
    return x.chunk({dim: preferred.get(dim, "auto") for dim in x.dims})


def result_attrs(ds: xr.Dataset, **options: Any) -> dict[str, Any]:
    """The attributes of a result: which recording it is of, and the options that made it."""
    known = {k: ds.attrs[k] for k in ("source", "tokens") if k in ds.attrs}
    n_tokens = {"n_tokens": ds.sizes["token"]} if "token" in ds.sizes else {}
    return {**known, **n_tokens, **options}


def check_steps(ds: xr.Dataset, purpose: str, *, allow_gaps: bool) -> dict[str, xr.Variable]:
    """Check that transitions between consecutive rows are single updates.

    Returns
    -------
    ``{"step_span": ...}``, the updates that each transition spans, when gaps are allowed; else nothing.

    Raises
    ------
    InputError
        If there is only one step, or steps are missing and gaps are not allowed.
    """
    steps = ds["step"].values
    if len(steps) < 2:
        raise InputError(f"{purpose} needs at least two steps; this dataset has one (step {steps[0]})")
    span = np.diff(steps)
    if (span <= 0).any():
        raise InputError(f"{purpose}: the steps must ascend; step {steps[1:][span <= 0][0]} does not")
    if allow_gaps:
        attrs = {"long_name": "optimizer updates that the transition spans", "units": "1"}
        return {"step_span": xr.Variable("step", span.astype(np.int64), attrs)}
    if (span > 1).any():
        i = int(np.argmax(span > 1))
        raise InputError(
            f"{purpose}: steps {steps[i] + 1}..{steps[i + 1] - 1} are missing"
            + (f", and {int((span > 1).sum()) - 1} more gaps" if (span > 1).sum() > 1 else "")
            + "; a transition across a gap is not one update: say allow_gaps=True to measure it all the same"
        )
    return {}


def from_the_first(extra: dict[str, xr.Variable]) -> dict[str, xr.Variable]:
    """`step_span` of a result that begins at the first step, before which nothing was spanned."""
    return {name: xr.Variable("step", np.concatenate([[0], x.values]), x.attrs) for name, x in extra.items()}
