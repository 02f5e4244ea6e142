"""Write results by the tasks that compute them: the task of a block writes its steps, and returns what others need.

No large results then wait in memory or are sent between workers. Writing a block again gives the same files, so a task
may be lost and repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import dask.array as da
import numpy as np
import zarr
from dask.base import tokenize
from dask.delayed import Delayed

from deadtok_xr.dask_arrays import Tasks, annotations_of, graph_of, names_of_blocks, once_done
from deadtok_xr.engine.block_pass import BlockPass, pass_outputs, replaced_tasks, task_key
from deadtok_xr.engine.block_task import BlockTask, Pick, WriteTarget
from deadtok_xr.engine.journal import ResumeJournal
from deadtok_xr.store import writing

Pairs = Sequence[tuple[da.Array, "zarr.Array[Any]"]]
Resume = Callable[[str, BlockTask, Sequence[WriteTarget]], tuple[ResumeJournal, Collection[int]]]
"""Given the name of a pass, its task and the outputs that it writes, returns its journal and its finished blocks."""


def write_all(pairs: Pairs, resume: Resume | None = None) -> Delayed:
    """Return a task that is done when every array is in its target, by whole chunks.

    Parameters
    ----------
    pairs
        Lazy arrays, and arrays of a store with the same chunks.
    resume
        Returns the finished blocks, which are not computed again, and the journal. None: all blocks are computed.
    """
    others: list[tuple[da.Array, zarr.Array[Any]]] = []
    written_by: dict[str, list[WriteTarget]] = {}
    blocks: dict[str, da.Array] = {}
    for x, array in pairs:
        outputs = pass_outputs(x)
        if not outputs:
            others.append((x, array))
        for output, leading in outputs:
            target = WriteTarget(output.pick.reduction, output.pick.output, array, leading)
            written_by.setdefault(output.block_pass.name, []).append(target)
            blocks[output.block_pass.name] = output.block_pass.blocks
    tasks = graph_of([*blocks.values(), *(x for x, _ in others)])
    keys = _write_blocks(tasks, others)
    passes = _passes(tasks)
    for name, task in passes.items():
        keys += _write_in_pass(tasks, name, task, written_by.get(name, []), resume)
    of_blocks = [(name, i) for name, task in passes.items() for i in range(len(task.layout.n_states))]
    annotations: dict[str, Any] = {}
    for x in blocks.values():
        annotations |= annotations_of(x)
    return once_done(f"saved-{tokenize(keys)}", tasks, keys, annotations, apart=of_blocks)


def passes_in(arrays: Sequence[da.Array]) -> dict[str, BlockTask]:
    """Return the work of every pass that writes one of the arrays."""
    found: list[BlockPass] = [output.block_pass for x in arrays for output, _ in pass_outputs(x)]
    return {block_pass.name: block_pass.task for block_pass in found}


def _passes(tasks: Tasks) -> dict[str, BlockTask]:
    """Return the passes of a graph, by name."""
    end = len(task_key(""))
    return {key[:-end]: task for key, task in tasks.items() if isinstance(task, BlockTask)}


def _write_blocks(tasks: Tasks, pairs: Pairs) -> list[Any]:
    """Add a task for each block of arrays that no pass writes."""
    keys: list[Any] = []
    for x, target in pairs:
        name, source = f"write-{tokenize(x.name, target.path)}", names_of_blocks(x)
        starts = [np.cumsum([0, *sizes]).tolist() for sizes in x.chunks]
        for at in np.ndindex(*x.numblocks):
            start = tuple(s[i] for s, i in zip(starts, at, strict=True))
            tasks[(name, *at)] = (_Write(target, start), (source, *at))
            keys.append((name, *at))
    return keys


def _write_in_pass(
    tasks: Tasks, name: str, task: BlockTask, targets: list[WriteTarget], resume: Resume | None
) -> list[Any]:
    """Let the tasks of a pass write their blocks, and return only what other tasks take from them."""
    picks = {pick.key: pick for pick in _picks(tasks, name)}
    journal, done = resume(name, task, targets) if resume else (None, ())
    writing_task = replace(task, targets=tuple(targets), picks=tuple(picks.values()), journal=journal)
    tasks |= replaced_tasks(name, writing_task, frozenset(done), tasks)
    finished = f"block-{tokenize(name, [(t.array.path, t.leading) for t in targets])}"
    keys = [(finished, i) for i in range(len(task.layout.n_states))]
    tasks |= {key: (_nothing, (name, key[1])) for key in keys}
    return keys


def _picks(tasks: Tasks, name: str) -> list[Pick]:
    """Return what other tasks take from the blocks of a pass."""
    taken = [task for task in tasks.values() if type(task) is tuple and len(task) == 2 and isinstance(task[0], Pick)]
    return [pick for pick, key in taken if key[0] == name]


class _Write:
    """Writes a block of an array."""

    def __init__(self, target: zarr.Array[Any], start: tuple[int, ...]) -> None:
        self.target, self.start = target, start

    def __call__(self, block: Any) -> None:
        if np.size(block):
            writing.write_block(self.target, self.start, np.asarray(block))


def _nothing(result: Any) -> None:
    return None
