"""Read one step of a matrix in blocks of tokens, more than once, in the memory of a few blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import dask.array as da
import numpy as np
from dask.base import tokenize
from numpy.typing import NDArray

from deadtok_xr.dask_arrays import Tasks, compute_block, from_tasks, tasks_of_blocks, with_all_functions
from deadtok_xr.store.stored_array import first_step, stored_array


class TokenBlocks:
    """One step of a matrix, (1, token, dim), in blocks of tokens that tasks read by themselves.

    If the tasks of two readings took the blocks from the graph, Dask would keep all blocks from the first reading to
    the second. No dataclass, because Dask would traverse it.
    """

    def __init__(self, x: da.Array) -> None:
        self._x = x
        ends = np.cumsum(x.chunks[1]).tolist()
        self.bounds: list[tuple[int, int]] = list(zip([0, *ends[:-1]], ends, strict=True))
        self.n_tokens, self.n_dims = x.shape[1:]

    def __dask_tokenize__(self) -> str:
        return str(self._x.name)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_whole_blocks"}

    @cached_property
    def _whole_blocks(self) -> tuple[Tasks, dict[tuple[int, int], Any]]:
        """The optimized tasks of all blocks, and the key of each: slicing and optimizing take longer than a read."""
        if stored_array(self._x) is not None:  # whose chunks are not its blocks
            return {}, {}
        tasks, keys = tasks_of_blocks(self._x[:1])
        return tasks, dict(zip(self.bounds, keys, strict=True))

    def read(self, begin: int, end: int) -> NDArray[Any]:
        """Read consecutive tokens of one block, (n, d), as they were recorded; the values must not be changed."""
        tasks, keys = self._whole_blocks
        if (key := keys.get((begin, end))) is not None:
            return np.asarray(compute_block(tasks, key))[0]
        part = with_all_functions(first_step(self._x[:, begin:end]))
        (block,) = part.to_delayed().ravel()  # an array would be copied when it is computed
        return np.asarray(block.compute(scheduler="synchronous"))[0]

    def rows(self, at: Sequence[int]) -> NDArray[Any]:
        """Read some tokens by position, (n, d)."""
        found = [self.read(i, i + 1) for i in at]
        return np.concatenate(found) if found else np.empty((0, self.n_dims), self._x.dtype)

    def each(self, work: Callable[..., Any], *options: Any, after: Sequence[da.Array] = ()) -> da.Array:
        """Return one object per block, (block,): ``work(rows, begin, *options, *results)``.

        The results are the objects of the arrays ``after``, (1,), which are computed first.
        """
        name = f"{work.__name__.strip('_')}-{tokenize(self, work, options, [x.name for x in after])}"
        task = f"{name}-task"

        def tasks(names: list[str]) -> Tasks:
            first = [(n, 0) for n in names]
            blocks = {(name, i): (_call, task, *bounds, *first) for i, bounds in enumerate(self.bounds)}
            return {task: _BlockWork(self, work, options), **blocks}

        return from_tasks(name, tasks, ((1,) * len(self.bounds),), np.empty(0, object), list(after))


class HeldTokens:
    """A matrix in memory, (token, dim), as one block of tokens."""

    def __init__(self, rows: NDArray[Any]) -> None:
        self._rows = rows
        self.n_tokens, self.n_dims = rows.shape
        self.bounds = [(0, self.n_tokens)]

    def read(self, begin: int, end: int) -> NDArray[Any]:
        """Return consecutive tokens, (n, d)."""
        return self._rows[begin:end]

    def rows(self, at: Sequence[int]) -> NDArray[Any]:
        """Return some tokens by position, (n, d)."""
        return self._rows[list(at)]


@dataclass(frozen=True, eq=False)
class _BlockWork:
    """What all tasks of a reading have in common: one object of the graph, and not a part of each task."""

    blocks: TokenBlocks
    work: Callable[..., Any]
    options: tuple[Any, ...]

    def __dask_tokenize__(self) -> str:
        return tokenize(self.blocks, self.work, self.options)


def _call(task: _BlockWork, begin: int, end: int, *results: list[Any]) -> list[Any]:
    # an array of objects has its object in a list
    return [task.work(task.blocks.read(begin, end), begin, *task.options, *(found[0] for found in results))]
