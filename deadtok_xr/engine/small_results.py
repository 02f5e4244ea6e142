"""Small results: computed by one task from all blocks of its inputs, and the fields of structured results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from numpy.typing import NDArray

from deadtok_xr.dask_arrays import Tasks, empty_meta, from_tasks, with_all_functions
from deadtok_xr.engine.block_pass import uniform

Arrays = dict[str, NDArray[Any]]
"""Several results of one task, by name."""
Shapes = dict[str, tuple[tuple[str, ...], tuple[int, ...], str]]
"""Dims, shape and dtype of results, by name."""


def gather(arrays: Sequence[da.Array], work: Callable[..., Any]) -> da.Array:
    """Compute one object, (1,), by ``work(*lists)``: a list of all blocks, or of all objects, for each array."""
    name = f"gathered-{tokenize([x.name for x in arrays], work)}"

    def task(names: list[str]) -> Tasks:
        keys = [[(n, *at) for at in np.ndindex(*x.numblocks)] for n, x in zip(names, arrays, strict=True)]
        return {(name, 0): (_gathered, work, *keys)}

    return from_tasks(name, task, ((1,),), np.empty(0, object), arrays)


def _gathered(work: Callable[..., Any], *parts: list[Any]) -> list[Any]:
    # an array of objects has its object in a list
    return [work(*([x[0] if isinstance(x, list) else x for x in part] for part in parts))]


def compute_together(
    inputs: dict[str, da.Array], kernel: Callable[..., Arrays], shapes: Shapes, attrs: dict[str, dict[str, Any]],
    **options: Any,
) -> dict[str, xr.Variable]:  # fmt: skip
    """Compute small variables together, by one task from all blocks of the inputs.

    ``kernel(blocks, **options)`` gets a list of the blocks of each input, and returns an array for each of ``shapes``.
    """
    made = gather(list(inputs.values()), partial(_compute, kernel, tuple(inputs), options))
    return {key: xr.Variable(d, _one_of(made, key, s, t), attrs[key]) for key, (d, s, t) in shapes.items()}


def _compute(kernel: Callable[..., Arrays], names: tuple[str, ...], options: Any, *blocks: list[Any]) -> Arrays:
    return kernel(dict(zip(names, blocks, strict=True)), **options)


def _one_of(made: da.Array, key: str, shape: tuple[int, ...], dtype: str) -> da.Array:
    dims = tuple(range(len(shape)))
    x = da.blockwise(
        _take, dims, made, (len(shape),), key, None, dtype, None, name=f"one-{tokenize(made.name, key)}",
        new_axes=dict(zip(dims, shape, strict=True)), concatenate=False,
        dtype=dtype, meta=empty_meta(len(shape), dtype),
    )  # fmt: skip
    return with_all_functions(x)  # arrays without dims have no meta that says so


def _take(blocks: list[list[Arrays]], key: str, dtype: str) -> NDArray[Any]:
    return np.asarray(blocks[0][0][key], dtype)


def field_variables(x: da.Array, dims: tuple[str, ...], attrs: dict[str, dict[str, Any]]) -> dict[str, xr.Variable]:
    """Return the fields of such a result that have attributes, as variables; one with a shape of its own adds `dim`."""
    variables = {}
    for name in (n for n in x.dtype.names if n in attrs):
        inner, base = x.dtype[name].shape, x.dtype[name].base
        data = x.map_blocks(
            _field,
            name,
            dtype=base,
            chunks=x.chunks + tuple((n,) for n in inner),
            new_axis=list(range(x.ndim, x.ndim + len(inner))) or None,
            meta=empty_meta(x.ndim + len(inner), base),
        )
        variables[name] = xr.Variable((*dims, "dim") if inner else dims, uniform(data), attrs[name])
    return variables


def _field(block: Any, name: str) -> NDArray[Any]:
    return block[name]  # type: ignore[no-any-return]
