"""What analyses ask of a sweep, and the Dask graph that answers: a task per row, and one per result picked from it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph
from numpy.typing import NDArray

from deadtok_xr.engine.block_task import Made, Sweep, Table
from deadtok_xr.engine.blocks import fitting, neighbour, uniform
from deadtok_xr.engine.reduction import Block, Probe
from deadtok_xr.kernels import device as devices
from deadtok_xr.store.reading import recorded
from deadtok_xr.store.stored_array import place_of

_KEPT = 4096


@dataclass(frozen=True)
class Plan:
    """An analysis before it is run.

    Attributes
    ----------
    matrices
        The lazy arrays that its probes name.
    probes
        Its probes, by names of its own.
    finish
        Makes its dataset of what they find, lazily.
    """

    matrices: Mapping[str, da.Array]
    probes: Mapping[str, Probe]
    finish: Callable[[Findings], xr.Dataset]


def run(plans: Sequence[Plan], device: str = "auto") -> list[xr.Dataset]:
    """Answer plans together: one pass for all whose arrays are cut into the same steps.

    Their matrices are of one dataset: the same name means the same array. ``device`` is resolved where a task runs,
    which may be another machine; see `deadtok_xr.kernels.device`.
    """
    devices.check(device)
    matrices: dict[str, da.Array] = {}
    for plan in plans:
        matrices.update(plan.matrices)
    probes = {_name(probe): probe for plan in plans for probe in plan.probes.values()}
    layer = _layer(matrices, probes, device) if probes else None
    return [plan.finish(Findings(layer, {k: _name(p) for k, p in plan.probes.items()}, probes)) for plan in plans]


def _name(probe: Probe) -> str:
    return f"{type(probe).__name__.strip('_')}-{tokenize(probe)}"


@dataclass(frozen=True)
class _Layer:
    """The tasks of a sweep: an array of one `Block` of `Block`s per row."""

    rows: da.Array
    table: Table


def _layer(matrices: dict[str, da.Array], probes: dict[str, Probe], device: str) -> _Layer:
    used = {name for probe in probes.values() for name in probe.matrices}
    arrays = {name: x for name, x in matrices.items() if name in used}
    first = next(iter(arrays.values()))
    arrays = {name: fitting(recorded(x), first.chunks[0]) for name, x in arrays.items()}
    table = Table(first.chunks[0], first.shape)
    stored = {name: place_of(x) for name, x in arrays.items()}
    places = {name: p for name, p in stored.items() if p is not None and p.chunk_steps == first.chunks[0][0]}
    held = {name: x for name, x in arrays.items() if name not in places}
    name = f"sweep-{tokenize({n: x.name for n, x in arrays.items()}, sorted(probes), device)}"
    edges = {n: (x, neighbour(x, 1)) for n, x in held.items()}
    graph: dict[Any, Any] = {}
    # once, and not in every task
    graph[_job(name)] = Sweep(places, tuple(probes.items()), table, tuple(held), device)
    for i in range(len(table.steps)):
        blocks = [[_keys(x, i) for x in pair] for pair in edges.values()]
        graph[name, i] = (_go, _job(name), i, blocks)
    dependencies = [x for pair in edges.values() for x in pair]
    with dask.annotate(**devices.resources(device)):
        layers = HighLevelGraph.from_collections(name, graph, dependencies=dependencies)
    rows = da.Array(layers, name, ((1,) * len(table.steps),), meta=np.empty(0, object))
    return _Layer(rows, table)


def _keys(x: da.Array, i: int) -> list[Any]:
    return [(x.name, i, j, 0) for j in range(x.numblocks[1])]


def _job(name: str) -> str:
    return f"{name}-job"


def _go(job: Sweep, i: int, blocks: list[Any]) -> dict[str, Block]:
    return job(i, blocks)


def _again(job: Sweep, i: int) -> dict[str, Block]:
    assert job.journal is not None
    found: dict[str, Block] | None = job.journal.passed(i)
    if found is None:
        raise OSError(f"{job.journal.place}: what was kept of row {i} is gone; do not remove it while work goes on")
    return found


def sweep_of(rows: da.Array) -> Sweep:
    """What the tasks of a sweep do."""
    found: Sweep = rows.dask.layers[rows.name][_job(rows.name)]
    return found


def sweeps_in(graph: HighLevelGraph) -> list[da.Array]:
    """The rows of every sweep of a graph."""
    found = [(name, layer[_job(name)]) for name, layer in graph.layers.items() if name.startswith("sweep-")]
    return [da.Array(graph, name, ((1,) * len(job.table.steps),), meta=np.empty(0, object)) for name, job in found]


def with_job(rows: da.Array, job: Sweep, done: Collection[int] = ()) -> dict[Any, Any]:
    """The tasks of a sweep, doing something else, and nothing for rows that are done but give what was noted."""
    again = {(rows.name, i): (_again, _job(rows.name), i) for i in done}
    return {**rows.dask.layers[rows.name], **again, _job(rows.name): job}


@dataclass(frozen=True)
class Picked:
    """Where a lazy result comes from: a field of each row of a sweep."""

    rows: da.Array
    probe: str
    field: str


_picked: OrderedDict[str, Picked | Made] = OrderedDict()


def picked_from(name: str) -> Picked | Made | None:
    """What an array of that name takes of a sweep, if it is that and nothing else."""
    return _picked.get(name)


def _remember(x: da.Array, picked: Picked | Made) -> da.Array:
    _picked[x.name] = picked  # under Dask's name, which tells contents apart
    while len(_picked) > _KEPT:
        _picked.popitem(last=False)
    return x


@dataclass(frozen=True)
class Findings:
    """What the probes of one plan found, lazily."""

    layer: _Layer | None
    names: Mapping[str, str]
    probes: Mapping[str, Probe]

    def array(self, probe: str, name: str) -> da.Array:
        """A field over all rows: (step, ...) for states, (step - 1, ...) for transitions, (rows,) otherwise."""
        assert self.layer is not None
        rows, table = self.layer.rows, self.layer.table
        spec = self.probes[self.names[probe]].fields()[name]
        picked = Picked(rows, self.names[probe], name)
        if spec.over == "row":
            of_row = rows.map_blocks(_of_row, self.names[probe], name, dtype=object, meta=np.empty(0, object))
            return _remember(of_row, picked)
        dtype = np.dtype(spec.dtype)
        inner = spec.shape(*table.shape[1:])
        lengths = table.steps if spec.over == "states" else table.transitions
        if not sum(lengths):
            return da.zeros((0, *inner), dtype=dtype.base)
        chunks = (lengths, *((n,) for n in inner))
        if not lengths[-1]:
            data = _fields_of_all_but_the_last(rows, self.names[probe], name, chunks, dtype.base)
            return uniform(_remember(data, picked))
        data = rows.map_blocks(
            _field, self.names[probe], name, dtype=dtype.base, chunks=chunks,
            new_axis=list(range(1, 1 + len(inner))) or None, meta=np.empty((0,) * (1 + len(inner)), dtype.base),
        )  # fmt: skip
        return uniform(_remember(data, picked))

    def variables(self, probe: str, attrs: Mapping[str, Mapping[str, Any]]) -> dict[str, xr.Variable]:
        """The fields that have attributes, as variables in their order."""
        fields = self.probes[self.names[probe]].fields()
        return {
            name: xr.Variable(("step", *fields[name].inner), self.array(probe, name), text)
            for name, text in attrs.items()
            if name in fields
        }

    def of_rows(self, probe: str, make: Callable[..., Any], **options: Any) -> da.Array:
        """What ``make(block, **options)`` makes of all that a probe found in a row: one object per row."""
        assert self.layer is not None
        rows, key = self.layer.rows, self.names[probe]
        made = rows.map_blocks(_made, key, make, options, dtype=object, meta=np.empty(0, object))
        return _remember(made, Made(made.name, rows.name, key, make, options))

    def merged(self, probe: str, name: str, merge: Callable[[Any, Any], Any]) -> da.Array:
        """A field that each row has one of, put together row by row as they come: one object, (1,)."""
        rows = self.array(probe, name)
        key = f"merged-{tokenize(rows.name, merge)}"
        graph: dict[Any, Any] = {(key + "-part", 0): (rows.name, 0)}
        for i in range(1, rows.numblocks[0]):
            graph[key + "-part", i] = (_merge, merge, (key + "-part", i - 1), (rows.name, i))
        graph[key, 0] = (key + "-part", rows.numblocks[0] - 1)
        layers = HighLevelGraph.from_collections(key, graph, dependencies=[rows])
        return da.Array(layers, key, ((1,),), meta=np.empty(0, object))


def folded(rows: da.Array, advance: Callable[[Any, Any], Any]) -> da.Array:
    """``advance(state, row)`` for the objects of all rows in turn, from None on: one object, (1,)."""
    key = f"folded-{tokenize(rows.name, advance)}"
    graph: dict[Any, Any] = {}
    state: Any = None
    for i in range(rows.numblocks[0]):
        name = (key, 0) if i == rows.numblocks[0] - 1 else (key + "-part", i)
        graph[name] = (_advance, advance, state, (rows.name, i))
        state = name
    return da.Array(
        HighLevelGraph.from_collections(key, graph, dependencies=[rows]), key, ((1,),), meta=np.empty(0, object)
    )


def _advance(advance: Callable[[Any, Any], Any], state: list[Any] | None, row: list[Any]) -> list[Any]:
    return [advance(None if state is None else state[0], row[0])]


def _merge(merge: Callable[[Any, Any], Any], a: list[Any], b: list[Any]) -> list[Any]:
    return [merge(a[0], b[0])]


def _field(row: Block, probe: str, name: str) -> NDArray[Any]:
    found: NDArray[Any] = row[probe][name]
    return found


def _fields_of_all_but_the_last(
    rows: da.Array, probe: str, name: str, chunks: tuple[tuple[int, ...], ...], dtype: np.dtype[Any]
) -> da.Array:
    """A field of which the last row, a single step, has nothing: rows that were cut would hide that it is picked."""
    key = f"field-{tokenize(rows.name, probe, name)}"
    inner = (0,) * (len(chunks) - 1)
    graph: dict[Any, Any] = {(key, i, *inner): (_field, (rows.name, i), probe, name) for i in range(len(chunks[0]) - 1)}
    layers = HighLevelGraph.from_collections(key, graph, dependencies=[rows])
    return da.Array(layers, key, (chunks[0][:-1], *chunks[1:]), dtype=dtype)


def _of_row(row: Block, probe: str, name: str) -> list[Any]:
    return [row[probe][name]]


def _made(row: Block, probe: str, make: Callable[..., Any], options: dict[str, Any]) -> list[Any]:
    return [make(row[probe], **options)]
