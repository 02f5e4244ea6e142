"""Build one pass over a recording as Dask arrays: a task per block of steps, and an array for each output."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from numpy.typing import NDArray

from deadtok_xr.dask_arrays import (
    Index,
    Stacked,
    Tasks,
    chunk_sizes,
    empty_meta,
    from_tasks,
    origin_of,
    traced,
    with_all_functions,
)
from deadtok_xr.engine.block_task import BlockLayout, BlockTask, Pick
from deadtok_xr.engine.reduction import BlockResult, Reduction
from deadtok_xr.engine.scan import fold
from deadtok_xr.kernels import device as devices
from deadtok_xr.store.stored_array import StoredArray, stored_array

_logger = logging.getLogger("deadtok_xr")
_ROWS_AT_ONCE = 2
"""Chunks along `step` per block if the steps do not begin with a chunk. Chunks of two blocks are decoded twice."""


@dataclass(frozen=True, eq=False)
class BlockPass:
    """The tasks of a pass: for each block an object with the results of all reductions.

    Attributes
    ----------
    name
        The unique name of the pass.
    task
        The work of its tasks.
    dependencies
        For each variable that is read through Dask's graph, its values and the steps after each block.
    """

    name: str
    task: BlockTask
    dependencies: tuple[tuple[da.Array, da.Array], ...] = ()

    @cached_property
    def blocks(self) -> da.Array:
        """The results of the blocks, (block,)."""
        arrays = [x for pair in self.dependencies for x in pair]
        chunks = ((1,) * len(self.task.layout.n_states),)
        annotations = devices.resources(self.task.device)
        return from_tasks(self.name, self._tasks, chunks, np.empty(0, object), arrays, annotations)

    def _tasks(self, names: list[str]) -> Tasks:
        tasks: Tasks = {task_key(self.name): self.task}  # once, and not in every task
        counts = [x.numblocks[1] for pair in self.dependencies for x in pair]
        for i in range(len(self.task.layout.n_states)):
            held = [[(name, i, j, 0) for j in range(n)] for name, n in zip(names, counts, strict=True)]
            tasks[self.name, i] = (_call, task_key(self.name), i, [held[k : k + 2] for k in range(0, len(held), 2)])
        return tasks


@dataclass(frozen=True)
class PassOutput:
    """The origin of an array that is an unchanged output of a pass, which the tasks can write themselves."""

    block_pass: BlockPass
    pick: Pick

    def select(self, index: tuple[Index, ...]) -> None:
        """Return None: the tasks do not write selections."""

    def transpose(self, axes: tuple[int, ...]) -> None:
        """Return None: the tasks do not write transposed arrays."""


def pass_output(x: Any) -> PassOutput | None:
    """Return which output of a pass a lazy array is; None if it is not an unchanged output."""
    origin = origin_of(x)
    return origin if isinstance(origin, PassOutput) else None


def pass_outputs(x: Any) -> list[tuple[PassOutput, tuple[int, ...]]]:
    """Return the outputs of passes that a lazy array consists of, and the leading position of each.

    It is one, at no position, or one for each run. The list is empty if an array holds anything else, or outputs in
    blocks that are not the chunks of the whole.
    """
    origin = origin_of(x)
    if isinstance(origin, PassOutput):
        return [(origin, ())]
    if not isinstance(origin, Stacked) or any(chunk_sizes(part) != chunk_sizes(x)[1:] for part in origin.parts):
        return []
    outputs = [pass_output(part) for part in origin.parts]
    return [] if None in outputs else [(output, (i,)) for i, output in enumerate(outputs) if output is not None]


def make_pass(matrices: Mapping[str, da.Array], reductions: Mapping[str, Reduction], device: str) -> BlockPass:
    """Plan a pass over the variables that reductions read.

    A selection of a store is read from the store; computed values are read through Dask's graph.
    """
    used = {name for reduction in reductions.values() for name in reduction.matrices}
    arrays = {name: x for name, x in matrices.items() if name in used}
    first = next(iter(arrays.values()))
    layout = BlockLayout(block_lengths(first), first.shape)
    stored = {name: found for name, x in arrays.items() if (found := stored_array(x)) is not None}
    held = {name: _cut(x, layout.n_states) for name, x in arrays.items() if name not in stored}
    for name in held:
        _logger.info("%s does not hold recorded values: it is read through Dask's graph, which is slower", name)
    contents = {name: x.name for name, x in arrays.items()}
    task = BlockTask(stored, dict(reductions), layout, tuple(held), device)
    pairs = tuple((x, steps_after(x, task.n_after(name))) for name, x in held.items())
    return BlockPass(f"pass-{tokenize(contents, sorted(reductions), device)}", task, pairs)


def block_lengths(x: da.Array) -> tuple[int, ...]:
    """Return the number of steps of each block: equal except for the last, as the chunks of a Zarr array are."""
    stored = stored_array(x)
    length = max(x.chunks[0]) if stored is None else _stored_length(stored)
    n = x.shape[0]
    return tuple(min(length, n - start) for start in range(0, n, length))


def _stored_length(stored: StoredArray) -> int:
    steps, height = stored.steps, stored.chunk_steps
    first, last = int(steps[0]), int(steps[-1])
    if first % height == 0 and last - first == len(steps) - 1:
        return height
    rows = last // height - first // height + 1
    return min(len(steps), _ROWS_AT_ONCE * -(-len(steps) // rows))


def _cut(x: da.Array, steps: tuple[int, ...]) -> da.Array:
    """Return an array (step, token, dim) cut into the given steps, its blocks holding all dims."""
    return x if x.chunks[0] == steps and x.numblocks[2] == 1 else x.rechunk({0: steps, 2: -1})


def steps_after(x: da.Array, n: int) -> da.Array:
    """Return for each block of an array (step, token, dim) the n steps that follow it, as far as there are any.

    Nothing else of the next blocks is read or kept.
    """
    heads = _edges(x, slice(0, n), tuple(min(n, length) for length in x.chunks[0]))
    name, last = f"after-{tokenize(heads.name)}", np.cumsum(x.chunks[0])
    following = [[i for i in range(k + 1, x.numblocks[0]) if last[i - 1] - last[k] < n] for k in range(x.numblocks[0])]

    def tasks(names: list[str]) -> Tasks:
        return {
            (name, i, j, k): (
                _join,
                n,
                np.empty((0, x.chunks[1][j], x.chunks[2][k]), x.dtype),
                [(names[0], following_block, j, k) for following_block in following[i]],
            )
            for i, j, k in np.ndindex(*x.numblocks)
        }

    lengths = tuple(min(n, int(last[-1] - end)) for end in last)
    return from_tasks(name, tasks, (lengths, *x.chunks[1:]), np.empty((0, 0, 0), x.dtype), [heads])


def _join(n: int, none: NDArray[Any], heads: list[NDArray[Any]]) -> NDArray[Any]:
    return heads[0] if len(heads) == 1 else np.concatenate([none, *heads])[:n]


def step_before(x: da.Array) -> da.Array:
    """Return for each block of an array (step, token, dim) the step before it; NaN before the first block."""
    tails = _edges(x, slice(-1, None), (1,) * x.numblocks[0])
    name = f"before-{tokenize(tails.name)}"

    def tasks(names: list[str]) -> Tasks:
        return {
            (name, i, j, k): (names[0], i - 1, j, k)
            if i
            else np.broadcast_to(np.full((1, 1, 1), np.nan, x.dtype), (1, x.chunks[1][j], x.chunks[2][k]))
            for i, j, k in np.ndindex(*x.numblocks)
        }

    return from_tasks(name, tasks, tails.chunks, np.empty((0, 0, 0), x.dtype), [tails])


def _edges(x: da.Array, steps: slice, lengths: tuple[int, ...]) -> da.Array:
    return x.map_blocks(_copy, steps, chunks=(lengths, *x.chunks[1:]), dtype=x.dtype)


def _copy(block: NDArray[Any], edge: slice) -> NDArray[Any]:
    return block[edge].copy()  # a view would keep the whole block in memory


def task_key(name: str) -> str:
    """Return the key of the work that the tasks of a pass share."""
    return f"{name}-task"


def _call(task: BlockTask, i: int, held: list[Any]) -> dict[str, BlockResult]:
    return task(i, held)


def replaced_tasks(name: str, task: BlockTask, done: frozenset[int], tasks: Tasks) -> Tasks:
    """Return the tasks of a pass with other work; those of finished blocks return what the journal holds."""
    resumed = {(name, i): (_resumed, task_key(name), i) for i in done}
    own = {(name, i): tasks[name, i] for i in range(len(task.layout.n_states)) if i not in done}
    return {**own, **resumed, task_key(name): task}


def _resumed(task: BlockTask, i: int) -> dict[str, BlockResult]:
    return task.resumed(i)


@dataclass(frozen=True)
class ReductionResults:
    """The lazy results of the reductions of one analysis.

    Attributes
    ----------
    block_pass
        The pass; None without reductions.
    names
        The name that the analysis gave to a reduction -> its name in the pass.
    """

    block_pass: BlockPass | None
    names: Mapping[str, str]

    @property
    def _pass(self) -> BlockPass:
        assert self.block_pass is not None
        return self.block_pass

    @property
    def n_states(self) -> tuple[int, ...]:
        """The number of steps of each block."""
        return self._pass.task.layout.n_states

    def array(self, reduction: str, name: str) -> da.Array:
        """Return an output over all blocks: (step, ...) for states, (step - 1, ...) for transitions, else (block,)."""
        key = self.names[reduction]
        output = self._pass.task.reductions[key].outputs()[name]
        if output.at == "block":
            return self._objects(Pick(key, name, is_object=True))
        layout = self._pass.task.layout
        inner = output.inner_shape(*layout.shape[1:])
        lengths = layout.n_states if output.at == "states" else layout.n_transitions
        lengths = lengths if lengths[-1] or len(lengths) == 1 else lengths[:-1]
        if not sum(lengths):
            return with_all_functions(da.zeros((0, *inner), dtype=output.base))
        pick = Pick(key, name)
        meta = np.empty((0,) * (1 + len(inner)), output.base)
        return traced(_taken(self._pass, pick, (lengths, *((n,) for n in inner)), meta), PassOutput(self._pass, pick))

    def variables(self, reduction: str, attrs: Mapping[str, Mapping[str, Any]]) -> dict[str, xr.Variable]:
        """Return the outputs that have attributes, as variables in their order."""
        outputs = self._pass.task.reductions[self.names[reduction]].outputs()
        return {
            name: xr.Variable(("step", *outputs[name].inner), self.array(reduction, name), text)
            for name, text in attrs.items()
            if name in outputs
        }

    def per_block(self, reduction: str, make: Callable[..., Any], **options: Any) -> da.Array:
        """Return ``make(result, **options)``, given all outputs of a reduction, as one object per block."""
        pick = Pick(self.names[reduction], make=make, options=options, is_object=True, token=tokenize(make, options))
        return self._objects(pick)

    def _objects(self, pick: Pick) -> da.Array:
        return _taken(self._pass, pick, ((1,) * len(self.n_states),), np.empty(0, object))

    def merged(self, reduction: str, name: str, merge: Callable[[Any, Any], Any]) -> da.Array:
        """Return an output with one object per block, merged block by block into one object, (1,)."""
        return fold(self.array(reduction, name), merge)


def _taken(block_pass: BlockPass, pick: Pick, chunks: tuple[tuple[int, ...], ...], meta: NDArray[Any]) -> da.Array:
    name = f"pick-{tokenize(block_pass.name, pick.key, chunks)}"
    inner = (0,) * (len(chunks) - 1)

    def tasks(names: list[str]) -> Tasks:  # not map_blocks: saving looks for the picks among the tasks
        return {(name, i, *inner): (pick, (names[0], i)) for i in range(len(chunks[0]))}

    return from_tasks(name, tasks, chunks, meta, [block_pass.blocks])


def prepend_first_step(x: da.Array, value: float, like: tuple[int, ...]) -> da.Array:
    """Return an output of transitions over all steps, with ``value`` at the first one, in the chunks ``like``.

    A block has the transitions that lead to its steps: the last one of the block before it, and all but the last of
    those that begin in it.
    """
    inner = (0,) * (x.ndim - 1)
    name = f"from-first-{tokenize(x.name, value, like)}"

    def tasks(names: list[str]) -> Tasks:
        own: list[Any] = [(names[0], i, *inner) for i in range(x.numblocks[0])]
        own += [None] * (len(like) - len(own))  # no transition begins in a last block of one step
        return {
            (name, i, *inner): (_from_first, value, own[i - 1] if i else None, own[i], n) for i, n in enumerate(like)
        }

    return from_tasks(name, tasks, (like, *x.chunks[1:]), empty_meta(x.ndim, x.dtype), [x])


def _from_first(value: float, before: NDArray[Any] | None, own: NDArray[Any] | None, n: int) -> NDArray[Any]:
    some = own if before is None else before
    assert some is not None
    first = np.full((1, *some.shape[1:]), value, some.dtype) if before is None else before[-1:]
    return first if own is None else np.concatenate([first, own[: n - 1]])


def uniform(x: da.Array) -> da.Array:
    """Return an array in chunks that a Zarr array can have: equal, except for a smaller last one."""
    chunks = {k: max(sizes) for k, sizes in enumerate(x.chunks) if len(set(sizes[:-1])) > 1 or sizes[-1] > sizes[0]}
    return x.rechunk(chunks) if chunks else x
