"""Scans and folds: results computed block by block in the order of the steps, each from the one before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import dask.array as da
import numpy as np
from dask.base import tokenize
from numpy.typing import NDArray

from deadtok_xr.dask_arrays import Tasks, from_tasks

Work = Callable[..., Any]


def scan(
    arrays: Sequence[da.Array],
    work: Work,
    state_of: Work | None = None,
    chunks: tuple[tuple[int, ...], ...] | None = None,
    meta: NDArray[Any] | None = None,
) -> da.Array:
    """Compute ``work(state, *blocks)`` for the blocks of arrays (step, ...) or (step, token, ...), in order of steps.

    The state is ``state_of(previous result)``, None for the first block. Without ``state_of``, the previous result
    itself is the state, and only the last result is returned: an object per block of tokens, (block,). Blocks of tokens
    are computed in parallel. An array with a single block along an axis is used for all blocks of the others.
    """
    n_rows, n_columns = (*arrays[0].numblocks, 1)[:2]
    chunks = chunks or ((1,) * n_columns,)
    name = f"scan-{tokenize([x.name for x in arrays], work, state_of)}"

    def key(i: int, j: int) -> tuple[Any, ...]:
        if state_of is not None:
            return (name, i, j, *[0] * (len(chunks) - 2))
        return (name, j) if i == n_rows - 1 else (f"{name}-part", i, j)

    def tasks(names: list[str]) -> Tasks:
        made: Tasks = {}
        for j in range(n_columns):
            state: Any = None
            for i in range(n_rows):
                blocks = [(n, *_position(x, i, j)) for n, x in zip(names, arrays, strict=True)]
                made[key(i, j)] = (work, state, *blocks)
                state = key(i, j)
                if state_of is not None:
                    state = (f"{name}-state", i, j)
                    made[state] = (state_of, key(i, j))
        return made

    return from_tasks(name, tasks, chunks, np.empty(0, object) if meta is None else meta, arrays)


def _position(x: da.Array, i: int, j: int) -> tuple[int, ...]:
    at = (i, j, *[0] * (x.ndim - 2))[: x.ndim]
    return tuple(min(k, n - 1) for k, n in zip(at, x.numblocks, strict=True))


def fold(objects: da.Array, merge: Callable[[Any, Any], Any], start: Callable[[Any], Any] | None = None) -> da.Array:
    """Reduce objects, (block,), to one, (1,), by ``merge(state, object)`` in order.

    The first state is the first object, or ``start(object)``. Each object is merged as soon as it is computed, so that
    few are kept in memory.
    """
    return scan([objects], partial(_merge, merge, start))


def _merge(
    merge: Callable[[Any, Any], Any], start: Callable[[Any], Any] | None, state: list[Any] | None, block: list[Any]
) -> list[Any]:
    if state is not None:
        return [merge(state[0], block[0])]
    return block if start is None else [start(block[0])]


def scan_fields(
    arrays: dict[str, da.Array], kernel: Callable[..., Any], dtype: np.dtype[Any], **options: Any
) -> da.Array:
    """Compute the fields of ``dtype`` per step and token, (step, token), where each step depends on the one before.

    ``kernel(parts, state, out, **options)`` gets a dict of blocks, the value that it returned for the block of steps
    before, None at first, and the arrays to fill. Arrays may have one value along an axis.
    """
    first = next(iter(arrays.values()))
    same = [_in_chunks_of(x, first) for x in arrays.values()]
    work = partial(_fill_block, kernel, tuple(arrays), dtype, options)
    return scan(same, work, _state, first.chunks[:2], np.empty((0, 0), dtype))


def _in_chunks_of(x: da.Array, first: da.Array) -> da.Array:
    """Return an array in the chunks of another one, except along axes of length 1."""
    return x.rechunk({k: c for k, c in enumerate(first.chunks) if x.shape[k] == first.shape[k]})


def _fill_block(
    kernel: Callable[..., Any], names: tuple[str, ...], dtype: Any, options: Any, state: Any, *blocks: Any
) -> Any:
    # an array for each field instead of a structured array, so that a task that uses one field reads no other
    shape = blocks[0].shape[:2]
    out = {name: np.empty(shape + dtype[name].shape, dtype[name].base) for name in dtype.names or ()}
    out["state"] = kernel(dict(zip(names, blocks, strict=True)), state, out, **options)
    return out


def _state(filled: dict[str, Any]) -> Any:
    return filled["state"]
