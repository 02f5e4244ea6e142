"""Results that are small: made by one task of all that was found, or computed block by block in order of steps, each
from the result of the one before (a scan)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from numpy.typing import NDArray

from deadtok_xr.dask_arrays import Tasks, from_tasks
from deadtok_xr.engine.block_pass import uniform

Arrays = dict[str, NDArray[Any]]
"""Several results of one task, by name."""
Shapes = dict[str, tuple[tuple[str, ...], tuple[int, ...], str]]
"""Dims, shape and dtype of results, by name."""


def compute_together(
    inputs: dict[str, da.Array], kernel: Callable[..., Arrays], shapes: Shapes, attrs: dict[str, dict[str, Any]],
    **options: Any,
) -> dict[str, xr.Variable]:  # fmt: skip
    """Make variables of what is small, all by one task from all blocks of its inputs.

    ``kernel(blocks, **options)`` gets a list of the blocks of each input, and returns an array for each of ``shapes``.
    """
    arrays = list(inputs.values())
    name = f"together-{tokenize([x.name for x in arrays], tuple(inputs), kernel, options)}"

    def task(names: list[str]) -> Tasks:
        keys = [[(n, *at) for at in np.ndindex(*x.numblocks)] for n, x in zip(names, arrays, strict=True)]
        return {(name, 0): (_compute, kernel, tuple(inputs), options, keys)}

    made = from_tasks(name, task, ((1,),), np.empty(0, object), arrays)
    return {key: xr.Variable(d, _one_of(made, key, s, t), attrs[key]) for key, (d, s, t) in shapes.items()}


def _compute(kernel: Callable[..., Arrays], names: tuple[str, ...], options: Any, blocks: list[list[Any]]) -> Arrays:
    return kernel({name: _flat(x) for name, x in zip(names, blocks, strict=True)}, **options)


def _flat(x: Any) -> list[Any]:
    return [block for part in x for block in _flat(part)] if isinstance(x, list) else [x]


def _one_of(made: da.Array, key: str, shape: tuple[int, ...], dtype: str) -> da.Array:
    name = f"one-{tokenize(made.name, key)}"
    meta = np.zeros((0,) * len(shape), dtype)
    at = (0,) * len(shape)
    chunks = tuple((n,) for n in shape)
    return from_tasks(name, lambda names: {(name, *at): (_take, (names[0], 0), key, dtype)}, chunks, meta, [made])


def _take(made: Arrays, key: str, dtype: str) -> NDArray[Any]:
    return np.asarray(made[key], dtype)


def scan_blocks(
    arrays: dict[str, da.Array], kernel: Callable[..., Any], dtype: np.dtype[Any], **options: Any
) -> da.Array:
    """Return per step and token, (step, token), the fields of ``dtype``, where each step builds on the one before.

    ``kernel(parts, state, out, **options)`` gets a dict of blocks, and what it returned for the block of steps before,
    None at first. Arrays may have one value along an axis. Blocks of tokens run beside each other, blocks of steps one
    after the other.
    """
    first = next(iter(arrays.values()))
    same = [_in_chunks_of(x, first) for x in arrays.values()]
    name = f"scan-{tokenize([x.name for x in same], kernel, dtype, options)}"

    def tasks(names: list[str]) -> Tasks:
        made: Tasks = {}
        for j in range(first.numblocks[1]):
            state: Any = None
            for i in range(first.numblocks[0]):
                keys = [
                    (n, min(i, x.numblocks[0] - 1), min(j, x.numblocks[1] - 1), 0)
                    for n, x in zip(names, same, strict=True)
                ]
                made[name, i, j] = (_run_block, kernel, tuple(arrays), dtype, options, state, *keys)
                state = (f"state-{name}", i, j)
                made[state] = (_field, (name, i, j), "state")
        return made

    return from_tasks(name, tasks, first.chunks[:2], np.empty((0, 0), dtype), same)


def _in_chunks_of(x: da.Array, first: da.Array) -> da.Array:
    """Return an array in the chunks of another one, but for the axes along which there is one value alone."""
    return x.rechunk({k: c for k, c in enumerate(first.chunks) if x.shape[k] == first.shape[k]})


def _run_block(
    kernel: Callable[..., Any], names: tuple[str, ...], dtype: Any, options: Any, state: Any, *blocks: Any
) -> Any:
    # an array for each field instead of a structured one: what uses one field reads no other
    shape = blocks[0].shape[:2]
    out = {name: np.empty(shape + dtype[name].shape, dtype[name].base) for name in dtype.names or ()}
    out["state"] = kernel(dict(zip(names, blocks, strict=True)), state, out, **options)
    return out


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
            meta=np.empty((0,) * (x.ndim + len(inner)), base),
        )
        variables[name] = xr.Variable((*dims, "dim") if inner else dims, uniform(data), attrs[name])
    return variables


def _field(block: Any, name: str) -> NDArray[Any]:
    return block[name]  # type: ignore[no-any-return]
