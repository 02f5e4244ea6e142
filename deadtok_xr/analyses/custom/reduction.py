"""The reduction of a function or class that a user wrote: calls it batch by batch, and checks what it returns."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.analyses.custom.batch import UserBatch
from deadtok_xr.analyses.custom.code import code_token
from deadtok_xr.engine import Batch, Cost, Output, Sizes, StepBlock, allocate_outputs
from deadtok_xr.errors import InputError

COMBINE: dict[str, Callable[[Any, Any], Any]] = {
    "max": np.maximum,
    "min": np.minimum,
    "sum": np.add,
    "first": lambda a, b: a,
    "last": lambda a, b: b,
}
STATE = "state of a block"
NUMBERS = "biufc"
"""Kinds of dtypes that outputs may have."""

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class UserReduction:
    """The reduction of a function or class that a user wrote.

    Attributes
    ----------
    name
        Name of the analysis.
    function
        The function or class.
    matrices
        The variables that it reads.
    declared
        Its outputs.
    options
        Keywords of the function or class.
    steps, tokens
        The labels of the recording.
    """

    name: str
    function: Callable[..., Any]
    matrices: tuple[str, ...]
    declared: Mapping[str, Output]
    options: Mapping[str, Any]
    steps: NDArray[Any]
    tokens: NDArray[Any]

    def __dask_tokenize__(self) -> Any:
        outputs = {
            name: (o.all_dims, o.base.str, o.at, dict(o.sizes), code_token(o.combine))
            for name, o in self.declared.items()
        }
        code = code_token(self.function), code_token(dict(self.options))
        return self.name, code, self.matrices, outputs, self.steps, self.tokens

    @property
    def per_step(self) -> dict[str, Output]:
        """The outputs that have the dimension step."""
        return {name: o for name, o in self.declared.items() if "step" in o.all_dims}

    @property
    def others(self) -> dict[str, Output]:
        """The outputs that do not."""
        return {name: o for name, o in self.declared.items() if "step" not in o.all_dims}

    @property
    def is_class(self) -> bool:
        """Whether the user wrote a class with a state."""
        return inspect.isclass(self.function)

    def outputs(self) -> dict[str, Output]:
        """Return the outputs per step, and the state of a block."""
        return {**self.per_step, **({STATE: Output(at="block")} if self.others else {})}

    def start(self, block: StepBlock) -> _Accumulator:
        """Return an accumulator for a block."""
        return _Accumulator(self, block)

    def cost(self, sizes: Sizes) -> Cost:
        """Return a guess: what a few operations on all values cost."""
        return Cost(5e-9 * sizes.elements, floats=self.matrices)

    def call(self, function: Callable[..., Any], *args: Any, where: str = "") -> Any:
        """Call what the user wrote; an error that it raises gets a note that names the analysis."""
        try:
            return function(*args)
        except Exception as error:
            _note(error, self.name, where)
            raise

    def worker(self) -> Any:
        """Return an instance of the class that the user wrote."""
        return self.call(partial(self.function, **self.options))

    def merge(self, state: Any, later: Any) -> Any:
        """Return the state of two neighbouring blocks, or of two batches of a function."""
        if self.is_class:
            return self.call(self.worker().merge, state, later, where="merge")
        if not state or not later:  # blocks of which the function got nothing
            return state or later
        return {
            name: self.call(COMBINE.get(o.combine, o.combine), state[name], later[name], where="combine")
            for name, o in self.others.items()
        }

    def result(self, state: Any, sizes: Mapping[str, int]) -> Arrays:
        """Return the outputs that do not have the dimension step."""
        found = self.call(self.worker().result, state, where="result") if self.is_class else state
        return self.checked(found, self.others, {**sizes, "states": 0, "transitions": 0})

    def checked(self, found: Any, expected: Mapping[str, Output], sizes: Mapping[str, int]) -> Arrays:
        """Return what the user's code returned as arrays.

        Raises
        ------
        InputError
            If it is not what was declared.
        """
        whose = f"analysis {self.name!r}"
        names = ", ".join(expected) or "nothing, since no output has the dimension step"
        if not isinstance(found, Mapping):
            raise InputError(f"{whose} returned {_kind(found)}; expected a dict with {names}")
        if missing := [key for key in expected if key not in found]:
            raise InputError(f"{whose} returned no {missing[0]!r}; expected a dict with {names}")
        if unknown := [key for key in found if key not in expected]:
            raise InputError(
                f"{whose} returned {unknown[0]!r}, which is not among its outputs; expected a dict with {names}"
            )
        return {key: self._array(key, found[key], output, sizes) for key, output in expected.items()}

    def _array(self, key: str, value: Any, output: Output, sizes: Mapping[str, int]) -> NDArray[Any]:
        where = f"analysis {self.name!r}: the output {key!r}"
        if isinstance(value, np.ma.MaskedArray):
            raise InputError(f"{where} is a masked array; return its .filled(numpy.nan), or another value")
        try:
            array = np.asarray(value)
        except ValueError as error:
            raise InputError(f"{where} is {_kind(value)} that is no array ({error})") from error
        lengths = {"step": sizes[output.at], **sizes, **output.sizes}
        shape = tuple(lengths[dim] for dim in output.all_dims)
        if array.shape != shape:
            dims = ", ".join(output.all_dims)
            raise InputError(f"{where} has the shape {array.shape}; expected {shape} for the dimensions ({dims})")
        if not _fits(array.dtype, output.base):
            raise InputError(f"{where} has the dtype {array.dtype}; expected {output.base}, or declare it with dtype=")
        if array.dtype.kind in "iu" and not np.can_cast(array.dtype, output.base) and array.size:
            limits, ends = np.iinfo(output.base), (int(array.min()), int(array.max()))
            outside = [x for x in ends if not limits.min <= x <= limits.max]
            if outside:
                raise InputError(f"{where} holds {outside[0]}, which {output.base} cannot; declare another with dtype=")
        return array


class _Accumulator:
    def __init__(self, reduction: UserReduction, block: StepBlock) -> None:
        self.reduction, self.block = reduction, block
        self.out = allocate_outputs(reduction.per_step, block)
        self.worker: Any = None
        self.state: Any = {}
        if reduction.is_class:
            self.worker = reduction.worker()
            self.state = reduction.call(self.worker.start, block.n_tokens, block.n_dims, where="start")
        self.expected = reduction.per_step if reduction.is_class else reduction.declared
        self.only_updates = all(o.at == "transitions" for o in reduction.declared.values())

    def update(self, batch: Batch) -> None:
        if self.only_updates and not batch.n_transitions:
            return  # of an empty array there is no maximum
        reduction = self.reduction
        given = UserBatch(batch, reduction.matrices, reduction.steps, reduction.tokens)
        where = f"steps {given.steps[0]} to {given.steps[-1]}" if len(given.steps) else ""
        if self.worker is None:
            found = reduction.call(partial(reduction.function, given, **reduction.options), where=where)
        else:
            found = reduction.call(self.worker.update, self.state, given, where=where)
            found = {} if found is None and not self.expected else found
        arrays = reduction.checked(found, self.expected, self._sizes(batch))
        for name, part in batch.slices(self.out, reduction.per_step).items():
            part[...] = arrays[name]
        if self.worker is None and reduction.others:
            new = {name: _kept(arrays[name], o) for name, o in reduction.others.items()}
            self.state = reduction.merge(self.state, new)

    def _sizes(self, batch: Batch) -> dict[str, int]:
        block = self.block
        lengths = {"states": batch.n_states, "transitions": batch.n_transitions}
        return {**lengths, "token": block.n_tokens, "dim": block.n_dims}

    def result(self) -> dict[str, Any]:
        return {**self.out, **({STATE: self.state} if self.reduction.others else {})}


def _kept(array: NDArray[Any], output: Output) -> NDArray[Any]:
    """Return a copy in a dtype in which sums lose nothing that the output could hold."""
    return array.astype(np.promote_types(array.dtype, output.base))


def _fits(dtype: np.dtype[Any], declared: np.dtype[Any]) -> bool:
    integers = dtype.kind in "iu" and declared.kind in "iu"  # whose values are checked
    return dtype.kind in NUMBERS and (integers or bool(np.can_cast(dtype, declared, "same_kind")))


def _kind(x: Any) -> str:
    return "None" if x is None else f"a value of type {type(x).__name__}"


def _note(error: Exception, name: str, where: str) -> None:
    """Say of an error of the user's code in which analysis it was raised, and where."""
    frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is ours
    if own := [frame for frame in frames if frame.filename == frames[0].filename]:
        place = f"{Path(own[-1].filename).name}, line {own[-1].lineno}"
        where = f"{place}; {where}" if where else place
    error.analysis = name  # type: ignore[attr-defined]  # for the command line
    error.add_note(f"raised by the analysis {name!r}" + (f" ({where})" if where else ""))
