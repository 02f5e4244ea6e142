"""Analyses that users define: a function of a batch of steps, in the same pass as the built-in ones."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deadtok_xr.analyses.common import checks
from deadtok_xr.analyses.registry import Analysis, Summary, register
from deadtok_xr.engine import AnalysisSpec, Batch, Output, ReductionResults, StepBlock, allocate_outputs
from deadtok_xr.engine.small_results import compute_together
from deadtok_xr.errors import InputError

_COMBINE: dict[str, Callable[[Any, Any], Any]] = {
    "max": np.maximum,
    "min": np.minimum,
    "sum": np.add,
    "first": lambda a, b: a,
    "last": lambda a, b: b,
}
_STATE = "state"
_METHODS = ("start", "update", "merge", "result")


def analysis(
    *,
    needs: str | tuple[str, ...] = "W",
    outputs: Mapping[str, Output],
    name: str | None = None,
    summary: Summary | None = None,
) -> Callable[[Callable[..., Any]], Analysis[...]]:
    """Define an analysis of your own.

    The decorated function gets a `UserBatch`, a few consecutive steps, and returns a dict with an array for each
    output. The result is used like a built-in analysis: called with a recording it returns a lazy dataset, and
    `analyze`, `save_results`, `summary`, `report` and the command line know it by its name, in the same single pass.

    Parameters
    ----------
    needs
        The variables (step, token, dim) that it reads.
    outputs
        Its outputs by name. With the dimension step first: a value for each step of the batch, or with
        ``at="transitions"`` for each update in it. Without step: ``combine=`` says how the values of two batches become
        one.
    name
        Of the analysis; by default that of the function.
    summary
        A function that yields the lines of its summary, given its results.

    Returns
    -------
    Callable
        A decorator of a function ``function(batch, **options)``; or of a class with the methods ``start(n_tokens,
        n_dims)``, which returns a state for a block of steps, ``update(state, batch)``, which changes it and returns
        the outputs that have the dimension step, ``merge(state, later)``, which returns the state of two neighbouring
        blocks, and ``result(state)``, which returns the other outputs. Options are keywords of the class.

    Raises
    ------
    InputError
        For outputs that cannot be, and a name that belongs to the package. When computed: for a function that does not
        return what was declared.

    Examples
    --------
    >>> @dx.analysis(needs="W", outputs={"largest": dx.Output("step", long_name="largest absolute weight")})
    ... def largest(batch):
    ...     return {"largest": np.abs(batch.W).max((1, 2))}
    >>> largest(rec).largest.plot()
    >>> tree = dx.analyze(rec, analyses=["motion", "largest"])
    """
    needed = (needs,) if isinstance(needs, str) else tuple(needs)

    def define(function: Callable[..., Any]) -> Analysis[...]:
        own = name or function.__name__
        _check_outputs(own, function, outputs)
        spec = _specify(own, function, needed, dict(outputs))
        made: Analysis[...] = Analysis(spec, own, summary, None, is_built_in=False)
        made.__doc__ = function.__doc__
        register(made)
        return made

    return define


@dataclass(frozen=True)
class UserBatch:
    """Some consecutive steps of a recording; its variables are attributes. Do not keep the arrays: they are reused.

    Attributes
    ----------
    steps
        The labels of the steps, (t,).
    tokens
        The ids of the tokens, (n,).
    before, after
        The first variable before and after each update in the batch, (u, n, d) float32.
    """

    steps: NDArray[np.int64]
    tokens: NDArray[np.int64]
    _batch: Batch
    _needs: tuple[str, ...]

    def __getattr__(self, name: str) -> NDArray[Any]:
        if name.startswith("_") or name not in self._needs:
            raise AttributeError(f"this batch has {', '.join(self._needs)}, and no {name}: name it in needs=")
        return self._batch.floats(name)[: self._batch.n_states]

    def pairs(self, name: str) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return a variable before and after each update, (u, n, d) each."""
        values = self._batch.floats(name)
        return values[:-1], values[1:]

    @cached_property
    def before(self) -> NDArray[Any]:
        """The first variable before each update."""
        return self.pairs(self._needs[0])[0]

    @cached_property
    def after(self) -> NDArray[Any]:
        """The first variable after each update."""
        return self.pairs(self._needs[0])[1]


def _check_outputs(name: str, function: Callable[..., Any], outputs: Mapping[str, Output]) -> None:
    if not outputs:
        raise InputError(f"analysis {name!r} has no outputs: name at least one, outputs={{'name': dx.Output(dims)}}")
    for key, output in outputs.items():
        where = f"analysis {name!r}: the output {key!r}"
        if not isinstance(output, Output):
            raise InputError(f"{where} is a {type(output).__name__}; expected a dx.Output")
        unknown = [dim for dim in output.inner if dim not in ("token", "dim", *output.sizes)]
        if unknown:
            raise InputError(
                f"{where} has the dimension {unknown[0]!r} of unknown length: say sizes={{{unknown[0]!r}: n}}"
            )
        if "step" in output.all_dims[1:]:
            raise InputError(f"{where} has the dimensions {output.all_dims}; step comes first")
        if output.at not in ("states", "transitions"):
            raise InputError(f"{where} has at={output.at!r}; choose 'states' or 'transitions'")
        known = output.combine in _COMBINE or callable(output.combine)
        if "step" not in output.all_dims and not inspect.isclass(function) and not known:
            raise InputError(
                f"{where} has no dimension step: say combine= ({', '.join(_COMBINE)}, or a function of two)"
            )
    missing = [m for m in _METHODS if inspect.isclass(function) and not hasattr(function, m)]
    if missing:
        raise InputError(f"analysis {name!r}: the class has no method {missing[0]!r}; expected {', '.join(_METHODS)}")


def _specify(
    name: str, function: Callable[..., Any], needs: tuple[str, ...], outputs: dict[str, Output]
) -> Callable[..., AnalysisSpec]:
    """Return the function from a recording and options to an AnalysisSpec."""
    across_steps = any(o.at == "transitions" and "step" in o.all_dims for o in outputs.values())

    def spec(ds: xr.Dataset, *, allow_gaps: bool = False, **options: Any) -> AnalysisSpec:
        matrices = {need: checks.require(ds, need, name) for need in needs}
        span = checks.check_steps(ds, name, allow_gaps=allow_gaps) if across_steps else {}
        labels = tuple(ds[dim].values if dim in ds.coords else np.arange(ds.sizes[dim]) for dim in ("step", "token"))
        reduction = UserReduction(name, function, needs, outputs, options, labels)

        def finish(found: ReductionResults) -> xr.Dataset:
            return _dataset(found, ds, reduction, span)

        return AnalysisSpec({need: checks.as_dask(x.data) for need, x in matrices.items()}, {"user": reduction}, finish)

    own = [
        p
        for p in inspect.signature(function).parameters.values()
        if p.kind is p.KEYWORD_ONLY or p.default is not p.empty
    ]
    ds = inspect.Parameter("ds", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    gaps = inspect.Parameter("allow_gaps", inspect.Parameter.KEYWORD_ONLY, default=False)
    keywords = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    spec.__signature__ = inspect.Signature([ds, *keywords, gaps])  # type: ignore[attr-defined]
    spec.__name__ = spec.__qualname__ = name
    return spec


@dataclass(frozen=True)
class UserReduction:
    """The reduction of a function or class that a user wrote.

    Attributes
    ----------
    name
        Of the analysis.
    function
        The function or class.
    matrices
        The variables.
    declared
        The outputs.
    options
        Keywords of the function or class.
    labels
        Of the steps and tokens.
    """

    name: str
    function: Callable[..., Any]
    matrices: tuple[str, ...]
    declared: Mapping[str, Output]
    options: Mapping[str, Any]
    labels: tuple[NDArray[Any], ...]

    @property
    def per_step(self) -> dict[str, Output]:
        """The outputs that have the dimension step."""
        return {name: o for name, o in self.declared.items() if "step" in o.all_dims}

    @property
    def others(self) -> dict[str, Output]:
        """The outputs that do not."""
        return {name: o for name, o in self.declared.items() if "step" not in o.all_dims}

    def outputs(self) -> dict[str, Output]:
        """Return the outputs per step, and the state of a block."""
        return {**self.per_step, **({_STATE: Output(at="block")} if self.others else {})}

    def start(self, block: StepBlock) -> _Accumulator:
        """Return an accumulator for a block."""
        return _Accumulator(self, block)

    def worker(self) -> Any:
        """Return an instance of the class that the user wrote, or what does the same with a function."""
        if inspect.isclass(self.function):
            return self.function(**self.options)
        return _Combined(self.function, self.options, self.per_step, self.others)

    def checked(self, found: Any, expected: Mapping[str, Output], sizes: Mapping[str, int]) -> dict[str, NDArray[Any]]:
        """Return what the user's code returned as arrays, or raise what is wrong with it."""
        whose = f"analysis {self.name!r}"
        names = ", ".join(expected)
        if not isinstance(found, Mapping):
            raise InputError(f"{whose} returned a {type(found).__name__}; expected a dict with {names}")
        different = [key for key in (*expected, *found) if key not in found or key not in expected]
        if different:
            what = f"no {different[0]!r}" if different[0] in expected else f"{different[0]!r}, which is not declared"
            raise InputError(f"{whose} returned {what}; expected a dict with {names}")
        return {key: self._array(key, found[key], output, sizes) for key, output in expected.items()}

    def _array(self, key: str, value: Any, output: Output, sizes: Mapping[str, int]) -> NDArray[Any]:
        array = np.asarray(value)
        where = f"analysis {self.name!r}: the output {key!r}"
        if not np.can_cast(array.dtype, output.base, "same_kind"):
            raise InputError(
                f"{where} has the dtype {array.dtype}; expected {output.base}, or declare another with dtype="
            )
        lengths = {"step": sizes[output.at], **sizes, **output.sizes}
        shape = tuple(lengths[dim] for dim in output.all_dims)
        if array.shape != shape:
            raise InputError(
                f"{where} has the shape {array.shape}; expected {shape} for the dimensions {output.all_dims}"
            )
        return array


class _Combined:
    """The methods of a user's class, made of a function of a batch and of how outputs are combined."""

    def __init__(
        self, function: Callable[..., Any], options: Mapping[str, Any], per_step: Mapping[str, Output],
        others: Mapping[str, Output],
    ) -> None:  # fmt: skip
        self.function, self.options, self.per_step, self.others = function, options, per_step, others

    def start(self, n_tokens: int, n_dims: int) -> dict[str, Any]:
        return {}

    def update(self, state: dict[str, Any], batch: UserBatch) -> Any:
        found = self.function(batch, **self.options)
        if not isinstance(found, Mapping) or not set(self.others) <= set(found):
            return found  # which is refused
        new = {name: np.array(found[name]) for name in self.others}
        state.update(self.merge(state, new) if state else new)
        return {name: value for name, value in found.items() if name not in self.others}

    def merge(self, state: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
        combine = {name: _COMBINE.get(o.combine, o.combine) for name, o in self.others.items()}
        return {name: combine[name](state[name], later[name]) for name in self.others}

    def result(self, state: dict[str, Any]) -> dict[str, Any]:
        return state


class _Accumulator:
    def __init__(self, reduction: UserReduction, block: StepBlock) -> None:
        self.reduction, self.block, self.worker = reduction, block, reduction.worker()
        self.out = allocate_outputs(reduction.per_step, block)
        self.state = self.worker.start(block.n_tokens, block.n_dims)

    def update(self, batch: Batch) -> None:
        reduction = self.reduction
        first = self.block.first + batch.start
        steps, tokens = reduction.labels
        given = UserBatch(steps[first : first + batch.n_states], tokens, batch, reduction.matrices)
        found = self.worker.update(self.state, given)
        sizes = {
            "states": batch.n_states, "transitions": batch.n_transitions, "token": self.block.n_tokens,
            "dim": self.block.n_dims,
        }  # fmt: skip
        if found is None and not reduction.per_step:
            return
        arrays = reduction.checked(found, reduction.per_step, sizes)
        for name, part in batch.slices(self.out, reduction.per_step).items():
            part[:] = arrays[name]

    def result(self) -> dict[str, Any]:
        return {**self.out, **({_STATE: self.state} if self.reduction.others else {})}


def _dataset(
    found: ReductionResults, ds: xr.Dataset, reduction: UserReduction, span: dict[str, xr.Variable]
) -> xr.Dataset:
    """Return the results as a dataset, lazily."""
    attrs = {name: _attributes(o) for name, o in reduction.declared.items()}
    values = found.variables("user", attrs)
    steps = {o.at for o in reduction.per_step.values()}
    if steps == {"states", "transitions"}:
        values = {n: _over_all_steps(v, reduction.per_step[n], found) for n, v in values.items()}
    if reduction.others:
        sizes = {"token": ds.sizes["token"], "dim": ds.sizes["dim"]}
        shapes = {
            name: (o.all_dims, tuple({**sizes, **o.sizes}[dim] for dim in o.all_dims), o.base.str)
            for name, o in reduction.others.items()
        }
        merged = found.merged("user", _STATE, _Merge(reduction))
        values |= compute_together({_STATE: merged}, _results, shapes, attrs, reduction=reduction, sizes=sizes)
    dims = {dim for variable in values.values() for dim in variable.dims}
    later = steps == {"transitions"}
    coords = {str(n): c.variable for n, c in ds.coords.items() if set(c.dims) <= dims & {"step", "token"}}
    coords = {n: v.isel(step=slice(1, None)) if later and "step" in v.dims else v for n, v in coords.items()}
    span = {n: v for n, v in span.items() if later} or checks.with_first_step(span)
    result = checks.result_attrs(ds, **{k: v for k, v in reduction.options.items() if np.isscalar(v)})
    return xr.Dataset({**{n: values[n] for n in reduction.declared}, **span}, coords, result)


def _over_all_steps(variable: xr.Variable, output: Output, found: ReductionResults) -> xr.Variable:
    """Return an output of transitions over all steps; at the first one, before which there is no update, NaN or -1."""
    from deadtok_xr.engine.block_pass import with_start

    if output.at == "states":
        return variable
    missing = np.nan if output.base.kind == "f" else -1
    return variable.copy(data=with_start(variable.data, missing, found.n_states))


def _attributes(output: Output) -> dict[str, Any]:
    said = {"long_name": output.long_name, "units": output.units, "formula": output.formula, "comment": output.comment}
    return {key: value for key, value in said.items() if value}


@dataclass(frozen=True)
class _Merge:
    reduction: UserReduction

    def __call__(self, state: Any, later: Any) -> Any:
        return self.reduction.worker().merge(state, later)


def _results(inputs: dict[str, list[Any]], *, reduction: UserReduction, sizes: Mapping[str, int]) -> dict[str, Any]:
    (state,) = inputs[_STATE]
    found = reduction.worker().result(state)
    others = {name: replace(o, at="states") for name, o in reduction.others.items()}
    return reduction.checked(found, others, {**sizes, "states": 0})
