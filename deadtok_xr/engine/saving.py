"""Results written by the tasks that find them: a sweep's task writes its row, and passes on what others still need.

Nothing large then waits in memory or goes from worker to worker. Writing a row again gives the same files, so a task
may be lost and done again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import dask
import dask.array as da
import numpy as np
import zarr
from dask.array.optimization import optimize
from dask.base import tokenize
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph

from deadtok_xr.engine.block_task import MADE, Made, Sink, Sweep
from deadtok_xr.engine.graph import Picked, picked_from, sweep_of, sweeps_in, with_job
from deadtok_xr.engine.journal import Journal
from deadtok_xr.engine.reduction import Block
from deadtok_xr.store import writing as writer

Pairs = Sequence[tuple[da.Array, "zarr.Array[Any]"]]
Targets = Sequence["zarr.Array[Any]"]
Resume = Callable[[da.Array, Sweep, Targets], tuple[Journal, Collection[int]]]
"""For the rows of a sweep, what it does, and the arrays that it writes: where to note which are done, and those."""


def writing(pairs: Pairs, resume: Resume | None = None) -> Delayed:
    """A task that is done when every array is in its target, by whole chunks.

    Parameters
    ----------
    pairs
        Lazy arrays, and arrays of a store with the same chunks.
    resume
        Which rows are done already and are left as they are, and where to note others. None: all are done anew.
    """
    found = [(picked_from(x.name), x, target) for x, target in pairs]
    direct = [(picked, target) for picked, _, target in found if isinstance(picked, Picked)]
    graph, keys = _blocks([(x, target) for picked, x, target in found if not isinstance(picked, Picked)])
    sweeps = {rows.name: rows for rows in (*sweeps_in(graph), *(picked.rows for picked, _ in direct))}
    for rows in sweeps.values():
        sinks = [(picked, target) for picked, target in direct if picked.rows.name == rows.name]
        graph, more = _rows(graph, rows, sinks, resume)
        keys += more
    name = f"saved-{tokenize(keys)}"
    optimized: Any = optimize(graph, keys)
    tasks = {**dict(optimized), name: (_done, *keys)}
    with dask.annotate(**_annotations(direct)):  # fused tasks forget which workers may have them (dask/dask#10325)
        return Delayed(name, HighLevelGraph.from_collections(name, tasks))


def _annotations(direct: Sequence[tuple[Picked, Any]]) -> dict[str, Any]:
    """What the sweeps' tasks ask of workers."""
    found: dict[str, Any] = {}
    for picked, _ in direct:
        found |= picked.rows.dask.layers[picked.rows.name].annotations or {}
    return found


def _blocks(pairs: Pairs) -> tuple[HighLevelGraph, list[Any]]:
    """A task for each block of arrays that no sweep's task can write."""
    graph, keys = HighLevelGraph({}, {}), []
    for x, target in pairs:
        name = f"write-{tokenize(x.name, target.path)}"
        starts = [np.cumsum([0, *sizes]).tolist() for sizes in x.chunks]
        layer = {}
        for at in np.ndindex(*x.numblocks):
            start = tuple(s[i] for s, i in zip(starts, at, strict=True))
            layer[(name, *at)] = (_Put(target, start), (x.name, *at))
        keys += list(layer)
        graph = HighLevelGraph.merge(graph, HighLevelGraph.from_collections(name, layer, dependencies=[x]))
    return graph, keys


def _rows(
    graph: HighLevelGraph, rows: da.Array, sinks: Sequence[tuple[Picked, zarr.Array[Any]]], resume: Resume | None
) -> tuple[HighLevelGraph, list[Any]]:
    """The tasks of a sweep, each of which writes its row, in the place of those that only find it."""
    graph = HighLevelGraph.merge(graph, rows.dask)
    job = sweep_of(rows)
    wanted = [name for name, needs in graph.dependencies.items() if rows.name in needs]
    picks = [picked_from(name) for name in wanted]
    kept = None if None in picks else frozenset((p.probe, p.field) for p in picks if isinstance(p, Picked))
    makes = () if kept is None else tuple(p for p in picks if isinstance(p, Made))
    writes = tuple(Sink(p.probe, p.field, target) for p, target in sinks)
    layers: dict[str, Any] = dict(graph.layers)
    journal, before = resume(rows, job, [target for _, target in sinks]) if resume else (None, ())
    layers[rows.name] = with_job(rows, replace(job, sinks=writes, kept=kept, makes=makes, journal=journal), before)
    for made in makes:
        layers[made.name] = {(made.name, i): (_made_of, (rows.name, i), made.name) for i in range(rows.numblocks[0])}
    done = f"row-{tokenize(rows.name, [target.path for _, target in sinks])}"
    layer = {(done, i): (_done, (rows.name, i)) for i in range(rows.numblocks[0])}
    layers[done] = layer
    return HighLevelGraph(layers, {**graph.dependencies, done: {rows.name}}), list(layer)


class _Put:
    """A block of an array, written."""

    def __init__(self, target: zarr.Array[Any], start: tuple[int, ...]) -> None:
        self.target, self.start = target, start

    def __call__(self, block: Any) -> None:
        if np.size(block):
            writer.write(self.target, self.start, np.asarray(block))


def _made_of(row: dict[str, Block], name: str) -> list[Any]:
    return [row[MADE][name]]


def _done(*tasks: Any) -> None:
    return None
