"""Dask arrays that know where their values come from, and arrays made of tasks of our own.

Dask has two implementations of its arrays: graphs in layers, and expressions, which become the default
(``dask.config.set({"array.query-planning": True})`` before `dask.array` is imported). This file is the only one that
depends on which of the two is at work, and the only one that uses parts of Dask that are not documented.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import dask
import dask.array as da
import numpy as np
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph
from dask.optimization import cull, fuse

EXPRESSIONS: bool = hasattr(da.Array, "expr")
"""Whether `dask.array` works with expressions in this process."""

Index = slice | int | np.ndarray
Tasks = dict[Any, Any]


class Origin(Protocol):
    """Where the values of an array come from."""

    def select(self, index: tuple[Index, ...]) -> Origin | None:
        """Return the origin of a selection, one index per axis; None if it has none."""
        ...

    def transpose(self, axes: tuple[int, ...]) -> Origin | None:
        """Return the origin of the array with its axes in another order; None if it has none."""
        ...


class _SameAsDask(type(da.Array)):  # type: ignore[misc]
    """Make a subclass equal to `dask.array.Array`: xarray refuses a dataset whose chunked arrays differ in type."""

    def __eq__(cls, other: object) -> bool:
        return other is da.Array or other is cls

    def __hash__(cls) -> int:
        return hash(da.Array)


class TracedArray(da.Array, metaclass=_SameAsDask):  # type: ignore[misc]
    """A Dask array with an `origin`, which selections, transposed and copied arrays keep, also through pickle.

    Whatever else is done to it gives a plain Dask array: values that were computed have no origin.
    """

    _origin: Origin
    _traced_name: str

    @property
    def origin(self) -> Origin | None:
        """Where the values come from; None if the array was changed in place since."""
        return self._origin if self.name == self._traced_name else None

    def __getitem__(self, key: Any) -> da.Array:
        index = _normalized(key, self.ndim)
        origin = None if index is None or self.origin is None else self.origin.select(index)
        try:
            selected = super().__getitem__(key)
        except AttributeError:  # lists, under the expressions of dask 2026.8
            if index is None or len(index) != 1 + sum(isinstance(i, slice) for i in index):
                raise
            selected = _take(self, index)
        return traced(selected, origin)

    def transpose(self, *axes: Any) -> da.Array:
        """Reorder the axes, as `dask.array.Array.transpose`."""
        order = axes[0] if len(axes) == 1 and isinstance(axes[0], Sequence) else axes
        order = tuple(int(k) % self.ndim for k in order) if order else tuple(range(self.ndim))[::-1]
        return traced(super().transpose(order), self.origin.transpose(order) if self.origin else None)

    def rechunk(self, *args: Any, **kwargs: Any) -> da.Array:
        """Change the chunks, as `dask.array.Array.rechunk`; the values come from where they did."""
        return traced(super().rechunk(*args, **kwargs), self.origin)

    def copy(self) -> da.Array:
        """Return the same array; Dask arrays are immutable."""
        return traced(_plain(self), self.origin)

    def __deepcopy__(self, memo: Any) -> da.Array:
        return self.copy()

    def __reduce__(self) -> Any:
        return traced, (_plain(self), self.origin)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if EXPRESSIONS and (known := getattr(da, func.__name__, None)) is not None:
            return known(*args, **kwargs)  # dask 2026.8 refuses all of them
        return super().__array_function__(func, types, args, kwargs)


def traced(x: da.Array, origin: Origin | None) -> da.Array:
    """Return an array with an origin; without one, the plain array."""
    plain = _plain(x)
    if origin is None:
        return plain
    made = TracedArray(x.expr) if EXPRESSIONS else TracedArray(x.dask, x.name, x.chunks, meta=x._meta)
    made._origin, made._traced_name = origin, made.name
    return made


def origin_of(x: Any) -> Origin | None:
    """Return where the values of an array come from, if that is known and they were not changed since."""
    return x.origin if isinstance(x, TracedArray) else None


def chunk_sizes(x: da.Array) -> tuple[int, ...]:
    """Return the largest chunk along each axis."""
    return tuple(map(max, x.chunks))


def given_array(x: da.Array) -> Any:
    """Return what `dask.array.from_array` made an array of, if nothing was done to it since; else None."""
    if EXPRESSIONS:
        return x.expr.operand("array") if type(x.expr).__name__ == "FromArray" else None
    original = f"original-{x.name}"
    return x.dask.layers[original][original] if original in x.dask.layers else None


def from_tasks(
    name: str,
    build: Callable[[list[str]], Tasks],
    chunks: tuple[tuple[int, ...], ...],
    meta: np.ndarray,
    dependencies: Sequence[da.Array] = (),
    annotations: Mapping[str, Any] | None = None,
) -> da.Array:
    """Make an array whose blocks are results of tasks.

    Parameters
    ----------
    name
        Name of the array, which tells its contents apart from any others.
    build
        Returns the tasks by key, ``(name, i, ...)`` for each block; it is given the names that the blocks of the
        dependencies have.
    chunks, meta
        As for `dask.array.Array`.
    dependencies
        Arrays whose blocks the tasks take.
    annotations
        What schedulers are told of the tasks. Arrays of expressions have none.
    """
    if EXPRESSIONS:
        from dask.array._array_expr._expr import ArrayExpr

        lowered = [x.expr.optimize() for x in dependencies]
        return da.Array(_task_expression(ArrayExpr)(name, build([x._name for x in lowered]), meta, chunks, *lowered))
    with dask.annotate(**(annotations or {})):
        layer = build([x.name for x in dependencies])
        graph = HighLevelGraph.from_collections(name, layer, dependencies=list(dependencies))
    return da.Array(graph, name, chunks, meta=meta)


def graph_of(arrays: Sequence[da.Array]) -> Tasks:
    """Return all tasks that arrays are made of, by key."""
    tasks: Tasks = {}
    for x in arrays:
        tasks |= dict(x.__dask_graph__())
    return tasks


def names_of_blocks(x: da.Array) -> str:
    """Return the name that the blocks of an array have in its graph."""
    return str(x.expr.lower_completely()._name) if EXPRESSIONS else str(x.name)


def annotations_of(x: da.Array) -> dict[str, Any]:
    """Return what schedulers are told of the tasks of an array."""
    return {} if EXPRESSIONS else dict(x.dask.layers[x.name].annotations or {})


def once_done(name: str, tasks: Tasks, keys: Sequence[Any], annotations: Mapping[str, Any]) -> Delayed:
    """Make a task that is done when those with the given keys are."""
    needed, dependencies = cull(tasks, list(keys))
    if dask.config.get("optimization.fuse.active") is not False and not annotations:
        # fused tasks lose their annotations (dask/dask#10325)
        needed, _ = fuse(needed, list(keys), dependencies)
    with dask.annotate(**annotations):
        graph = HighLevelGraph.from_collections(name, {**needed, name: (_nothing, list(keys))})
    return Delayed(name, graph)


def _nothing(done: Any) -> None:
    return None


def _plain(x: da.Array) -> da.Array:
    if not isinstance(x, TracedArray):
        return x
    return da.Array(x.expr) if EXPRESSIONS else da.Array(x.dask, x.name, x.chunks, meta=x._meta)


def _normalized(key: Any, ndim: int) -> tuple[Index, ...] | None:
    """Return one slice, number or array of positions for each axis; None where the key is of another kind."""
    parts = list(key) if isinstance(key, tuple) else [key]
    if any(part is Ellipsis for part in parts):
        at = next(i for i, part in enumerate(parts) if part is Ellipsis)
        parts[at : at + 1] = [slice(None)] * (ndim - len(parts) + 1)
    parts += [slice(None)] * (ndim - len(parts))
    found: list[Index] = []
    for part in parts:
        if isinstance(part, slice):
            found.append(part)
        elif isinstance(part, (int, np.integer)):
            found.append(int(part))
        elif isinstance(part, (list, np.ndarray)) and np.ndim(part) == 1:
            positions = np.asarray(part)
            found.append(np.flatnonzero(positions) if positions.dtype == bool else positions.astype(np.int64))
        else:
            return None
    return tuple(found) if len(found) == ndim and sum(isinstance(i, np.ndarray) for i in found) <= 1 else None


def _take(x: da.Array, index: tuple[Index, ...]) -> da.Array:
    """Take a list of positions along one axis, whose blocks are joined into one."""
    axis = next(k for k, i in enumerate(index) if isinstance(i, np.ndarray))
    positions = np.asarray(index[axis])
    whole = _plain(x)[tuple(slice(None) if k == axis else i for k, i in enumerate(index))].rechunk({axis: -1})
    chunks = tuple((len(positions),) if k == axis else sizes for k, sizes in enumerate(whole.chunks))
    return whole.map_blocks(np.take, positions, axis=axis, dtype=x.dtype, chunks=chunks, meta=x._meta)


_EXPRESSION: list[type] = []


def _task_expression(base: type) -> type:
    """Return the expression of an array whose tasks are given; made when it is first needed."""
    if not _EXPRESSION:

        class GivenTasks(base):  # type: ignore[misc, valid-type]
            _parameters = ["given_name", "layer", "_meta", "chunks"]  # noqa: RUF012  (Dask looks for a list)

            @property
            def _name(self) -> str:
                return str(self.operand("given_name"))

            @property
            def _meta(self) -> Any:
                return self.operand("_meta")

            def __dask_tokenize__(self) -> str:
                return self._name

            def _layer(self) -> Tasks:
                return dict(self.operand("layer"))

        _EXPRESSION.append(GivenTasks)
    return _EXPRESSION[0]
