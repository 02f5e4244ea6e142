"""Arrays of Dask's expressions with what these lack, and arrays made of tasks: all that uses Dask's private parts.

Expressions lack much of what arrays in layers can do. Our arrays then have the class `ExpressionArray`, which has
layers do that with the same tasks.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from typing import Any

import dask
import dask.array as da
import numpy as np
from dask.array import core
from dask.array.einsumfuncs import parse_einsum_input
from dask.core import flatten
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph
from dask.optimization import cull, fuse
from dask.utils import IndexCallable

from deadtok_xr.dask_arrays import operations
from deadtok_xr.dask_arrays.meta import EXPRESSIONS, Meta, Tasks, empty_meta, marked


class SameAsDask(type(da.Array)):  # type: ignore[misc]
    """Make a subclass equal to `dask.array.Array`: xarray refuses a dataset whose chunked arrays differ in type."""

    def __eq__(cls, other: object) -> bool:
        return other is da.Array or isinstance(other, SameAsDask)

    def __hash__(cls) -> int:
        return hash(da.Array)


class ExpressionArray(da.Array, metaclass=SameAsDask):  # type: ignore[misc]
    """An array of expressions that has layers do what expressions cannot do yet."""

    def __getitem__(self, key: Any) -> da.Array:
        try:
            return super().__getitem__(key)
        except (NotImplementedError, AttributeError):  # AttributeError: lists, in dask 2026.8
            return _by_layers(core.Array.__getitem__, self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        changed = _layered(self)
        changed[key] = _layered(value)
        self._expr = _expressed(changed).expr

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(core.Array, name):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        if name in _ALONG_ONE_AXIS:
            return partial(operations.along_one_axis, getattr(np, name), self)
        found = getattr(_layered(self), name)
        if isinstance(found, (core.BlockView, IndexCallable)):
            return IndexCallable(lambda key: _expressed(found[_layered(key)]))
        return partial(_by_layers, found) if callable(found) else _expressed(found)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if func.__name__ in _ALONG_ONE_AXIS:
            return operations.along_one_axis(func, *args, **kwargs)
        if func is np.einsum:
            return _einsum(*args, **kwargs)
        if func is np.isin:
            return operations.isin(*args, **kwargs)
        if func is np.clip:
            return args[0].clip(*args[1:], **kwargs)
        if func.__name__ in ("quantile", "nanquantile"):  # which dask.array has, but not for expressions
            return _by_layers(_find(func, _LAYERS), *args, **kwargs)
        try:
            return with_all_functions(_find(func, ["dask.array"])(*args, **kwargs))
        except NotImplementedError:
            return _by_layers(_find(func, _LAYERS), *args, **kwargs)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if kwargs.get("where", True) is not True:  # ignored by dask 2026.8
            return _by_layers(getattr(ufunc, method), *inputs, **kwargs)
        if ufunc is np.matmul:
            return _by_layers(ufunc, *inputs, **kwargs)
        return with_all_functions(super().__array_ufunc__(ufunc, method, *_operands(self.dtype, inputs), **kwargs))

    def copy(self) -> da.Array:
        """Return the same array; Dask arrays are immutable."""
        return type(self)(self.expr)

    def __deepcopy__(self, memo: Any) -> da.Array:
        return self.copy()

    def to_dask_array(self) -> core.Array:
        """Return the array in layers; functions of arrays in layers call this."""
        return _layered(self)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.compute(), dtype)

    def __matmul__(self, other: Any) -> da.Array:
        return np.matmul(self, other)

    def __rmatmul__(self, other: Any) -> da.Array:
        return np.matmul(other, self)

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self)))

    def __bool__(self) -> bool:
        return bool(self.compute())

    def __int__(self) -> int:
        return int(self.compute())

    def __float__(self) -> float:
        return float(self.compute())

    def __repr__(self) -> str:
        return repr(_layered(self))


def _operands(dtype: np.dtype[Any], values: Sequence[Any]) -> list[Any]:
    """Return operands that dask 2026.8 computes with as it should: arrays in equal chunks, numbers in their dtype."""
    values = [da.asanyarray(x) if isinstance(x, np.ndarray) and x.ndim else _of_dtype(x, dtype) for x in values]
    at = [k for k, x in enumerate(values) if isinstance(x, da.Array)]
    if len({values[k].chunks for k in at}) > 1:
        with_axes = [part for k in at for part in (values[k].expr, tuple(range(values[k].ndim))[::-1])]
        for k, expr in zip(at, unify_chunks_expr(*with_axes)[1], strict=True):
            values[k] = ExpressionArray(expr)
    return values


def _of_dtype(value: Any, dtype: np.dtype[Any]) -> Any:
    """Return a number of Python's in the dtype that numpy gives it beside an array; Dask would make it an int64."""
    if type(value) not in (bool, int, float, complex):
        return value
    try:
        return np.asarray(value, np.result_type(dtype, value))
    except OverflowError:
        return value


def _with_all_functions(name: str) -> Any:
    method = getattr(da.Array, name)

    @wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        operands = _operands(self.dtype, [self, *args]) if name.startswith(("__", "clip")) else [self, *args]
        return with_all_functions(method(*operands, **kwargs))

    return call


def _einsum(subscripts: str, *arrays: Any, dtype: Any = None, optimize: Any = False) -> da.Array:
    inputs, output, _ = parse_einsum_input([subscripts, *(np.broadcast_to(0, x.shape) for x in arrays)])
    return operations.einsum(inputs, output, tuple(map(da.asanyarray, arrays)), dtype)


if EXPRESSIONS:
    from dask._dispatch import get_collection_type
    from dask.array._array_expr._expr import ArrayExpr, unify_chunks_expr

    class GivenTasks(ArrayExpr):  # type: ignore[misc]
        """An expression whose tasks are given."""

        _parameters = ["given_name", "layer", "_meta", "chunks", "annotations"]  # noqa: RUF012  (Dask expects a list)

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

    get_collection_type.register(Meta, lambda meta: ExpressionArray)
    for _name in (
        *(f"__{r}{name}__" for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow") for r in ("", "r")),
        *(f"__{name}__" for name in ("and", "or", "xor", "eq", "ne", "lt", "le", "gt", "ge", "abs", "neg", "invert")),
        *("sum", "mean", "std", "var", "prod", "any", "all", "min", "max", "astype", "map_blocks", "clip", "persist"),
    ):
        setattr(ExpressionArray, _name, _with_all_functions(_name))
OwnArray: Any = ExpressionArray if EXPRESSIONS else da.Array
"""The class of arrays without an origin."""
_LAYERS = [f"dask.array.{name}" for name in ("routines", "core", "creation", "reductions", "reshape", "numpy_compat")]
"""The modules that hold the functions of arrays in layers."""
_ALONG_ONE_AXIS = ("argmax", "argmin", "nanargmax", "nanargmin")
"""Functions that neither expressions have nor, beside them, layers; they are computed with their axis in one block."""


def _find(func: Any, modules: Sequence[str]) -> Any:
    """Return Dask's function of the name of a function of numpy, from one of these modules."""
    for name in modules if func.__module__ == "numpy" else ():
        if hasattr(module := importlib.import_module(name), func.__name__):
            return getattr(module, func.__name__)
    raise _refusal(func)


def _refusal(func: Any) -> NotImplementedError:
    return NotImplementedError(
        f"dask {dask.__version__} cannot do {func.__name__} with arrays of expressions: compute first, or set "
        '`dask.config.set({"array.query-planning": False})` before dask.array is imported'
    )


def _by_layers(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a function with arrays in layers instead of those of expressions, and return one of expressions again."""
    try:
        result = func(*_layered(args), **_layered(kwargs))
        if isinstance(result, da.Array):  # a reduction: dask.array has one implementation of these at a time
            raise _refusal(func)
        return _expressed(result)
    except (NotImplementedError, AttributeError) as error:
        raise _refusal(func) from error


def _layered(value: Any) -> Any:
    """Return a value whose arrays of expressions are arrays in layers, made of the same tasks."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(_layered, value))
    if isinstance(value, dict):
        return {key: _layered(v) for key, v in value.items()}
    if not isinstance(value, da.Array):
        return value
    lowered = value.expr.optimize()
    graph = HighLevelGraph({lowered._name: dict(lowered.__dask_graph__())}, {lowered._name: set()})
    return core.Array(graph, lowered._name, value.chunks, meta=np.asarray(value._meta))


def _expressed(value: Any) -> Any:
    """Return a value whose arrays in layers are arrays of expressions, made of the same tasks."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(_expressed, value))
    if not isinstance(value, core.Array):
        return value
    return _from_layer(value.name, dict(value.dask), value.chunks, value._meta)


def with_all_functions(x: Any) -> Any:
    """Return an array of expressions as one that has the functions of arrays in layers; others as they are."""
    if not EXPRESSIONS or not isinstance(x, da.Array) or isinstance(x, ExpressionArray):
        return x
    if isinstance(x._meta, Meta) or not x.ndim:
        return ExpressionArray(x.expr)
    return x.map_blocks(_same, dtype=x.dtype, meta=empty_meta(x.ndim, x.dtype))


def _same(block: Any) -> Any:
    return block


def as_class(cls: type[da.Array], x: da.Array) -> Any:
    """Return an array as one of another class."""
    return cls(x.expr) if EXPRESSIONS else cls(x.dask, x.name, x.chunks, meta=x._meta)


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
        Annotations of the tasks for schedulers, such as resources. Under expressions Dask ignores them when an array is
        computed; tasks that save results have them.
    """
    if EXPRESSIONS:
        lowered = [x.expr.optimize() for x in dependencies]
        return _from_layer(name, build([x._name for x in lowered]), chunks, meta, lowered, annotations)
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
    if EXPRESSIONS:
        return dict(x.expr.operand("annotations")) if isinstance(x.expr, GivenTasks) else {}
    return dict(x.dask.layers[x.name].annotations or {})


def tasks_of_blocks(x: da.Array) -> tuple[Tasks, list[Any]]:
    """Return the optimized tasks of an array, and the keys of its blocks in order."""
    (optimized,) = dask.optimize(x)
    return dict(optimized.__dask_graph__()), list(flatten(optimized.__dask_keys__()))


def compute_block(tasks: Tasks, key: Any) -> Any:
    """Compute one of the keys that `tasks_of_blocks` returned, in this thread."""
    return dask.get(cull(tasks, [key])[0], key)


def once_done(
    name: str, tasks: Tasks, keys: Sequence[Any], annotations: Mapping[str, Any], apart: Sequence[Any] = ()
) -> Delayed:
    """Make a task that is done when those with the given keys are; tasks ``apart`` are not fused into others."""
    needed, dependencies = cull(tasks, list(keys))
    if dask.config.get("optimization.fuse.active") is not False and not annotations:
        # fused tasks lose their annotations (dask/dask#10325); renamed ones would need one more task each, an alias
        needed, _ = fuse(needed, [*keys, *apart], dependencies, rename_keys=False)
    with dask.annotate(**annotations):
        graph = HighLevelGraph.from_collections(name, {**needed, name: (_nothing, list(keys))})
    return Delayed(name, graph)


def _nothing(done: Any) -> None:
    return None


def _from_layer(
    name: str,
    layer: Tasks,
    chunks: tuple[tuple[int, ...], ...],
    meta: Any,
    dependencies: Sequence[Any] = (),
    annotations: Mapping[str, Any] | None = None,
) -> da.Array:
    """Return an array of expressions whose tasks are given."""
    return ExpressionArray(GivenTasks(name, layer, marked(meta), chunks, dict(annotations or {}), *dependencies))
