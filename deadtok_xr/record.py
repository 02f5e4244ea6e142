"""Record a parameter and its optimizer state while a training loop runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from deadtok_xr import schema, store
from deadtok_xr.errors import InputError

if TYPE_CHECKING:
    import torch

RECORDABLE = ("W", "grad", "exp_avg", "exp_avg_sq")
_MATRICES = [name for name, v in schema.VARIABLES.items() if v.dims == schema.MATRIX]
_NOT_LOGGED = {*_MATRICES, *schema.COORDINATES, "dim", "run", "lr"}


class Recorder:
    """Record a parameter after every optimizer step, as a context manager.

    Parameters
    ----------
    parameter
        The embedding matrix, (vocabulary, hidden), one of the optimizer's parameters.
    optimizer
        A torch optimizer; its own step hooks are used, so the training loop does not change.
    path
        The store to write; it must not exist unless ``overwrite``.
    variables
        Any of W, grad, exp_avg, exp_avg_sq.
    dead
        Vocabulary ids that never occur in the data; None when that is not known.
    token_text
        One text per vocabulary id.
    attrs
        Facts about the run for the store's attributes (seed, corpus, schedule).

    Notes
    -----
    Step 0, the initial state, is recorded on entry. `log` describes the update just made. Whole chunks
    are written as they fill; if the loop raises, everything recorded so far is kept, and the store opens
    with ``partial=True``.

    Examples
    --------
    ::

        with Recorder(model.embedding.weight, optimizer, "run.zarr", dead=dead_ids) as recorder:
            for batch in batches:
                loss = train_one(batch)      # calls optimizer.step()
                recorder.log(loss=loss)
    """

    def __init__(
        self,
        parameter: torch.nn.Parameter,
        optimizer: torch.optim.Optimizer,
        path: str | Path,
        *,
        variables: Sequence[str] = ("W",),
        dead: Iterable[int] | None = None,
        token_text: Sequence[str] | None = None,
        attrs: Mapping[str, Any] = {},
        overwrite: bool = False,
    ) -> None:
        unknown = [v for v in variables if v not in RECORDABLE]
        if unknown:
            raise InputError(f"cannot record {unknown[0]!r}: choose from {', '.join(RECORDABLE)}")
        if not hasattr(parameter, "ndim"):
            raise InputError(
                f"Recorder takes a parameter, not a {type(parameter).__name__}: give it the weight, such as "
                "model.embedding.weight"
            )
        if parameter.ndim != 2:
            raise InputError(f"the parameter has the shape {tuple(parameter.shape)}; needed: (vocabulary, hidden)")
        self.group = _group_of(parameter, optimizer)
        self.parameter, self.optimizer, self.path = parameter, optimizer, path
        self.variables = tuple(variables)
        self.step = 0
        self._rows = _rows(parameter.shape[0], dead, token_text)
        self._attrs = {
            "made_by": "Recorder",
            "optimizer": type(optimizer).__name__,
            "hyperparameters": _plain(self.group),
            **attrs,
        }
        self._overwrite = overwrite
        self._buffers: dict[str, NDArray[Any]] = {}
        self._logged: dict[str, dict[int, NDArray[Any]]] = {}

    def __enter__(self) -> Self:
        self._writer = store.create(self.path, self._rows, self._attrs, overwrite=self._overwrite)
        self._writer.add_variable("lr", ("step",), (), np.float64)
        self._start = self._filled = 0
        self._capture()
        self._hooks = [
            self.optimizer.register_step_pre_hook(lambda *_: self._note_lr()),
            self.optimizer.register_step_post_hook(lambda *_: self._after_step()),
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._flush()
        self._write_logged()
        if kind is None:
            self._writer.finish()

    def log(self, **values: Any) -> None:
        """Note values of the update just made; the learning rate is noted by itself.

        Parameters
        ----------
        **values
            ``loss``, ``p_dead``, ``h_norm`` (scalars), ``h_mean``, ``p_h_dead`` (one value per dim), kept in
            float32; or any other name, a scalar or a vector of always the same length, kept in float64.

        Raises
        ------
        InputError
            For a name that the recorder writes itself, or a value of another shape.
        """
        for name, value in values.items():
            vector = self._checked(name, value)
            earlier = next(iter(self._logged.setdefault(name, {}).values()), vector)
            if earlier.shape != vector.shape:
                raise InputError(f"log({name}=...): found the shape {vector.shape}; needed: {earlier.shape}, as before")
            self._logged[name][self.step] = vector

    def _checked(self, name: str, value: Any) -> NDArray[Any]:
        """A copy of a logged value, or an error now rather than after the training."""
        if name in _NOT_LOGGED:
            raise InputError(f"log({name}=...): the recorder writes {name!r} itself; leave it out, or rename it")
        spec = schema.VARIABLES.get(name)
        try:
            held = to_numpy(value) if hasattr(value, "detach") else value
            vector = np.array(held, np.float32 if spec else np.float64)  # a copy: the loop may reuse a tensor
        except (TypeError, ValueError):
            vector = None
        if vector is None or value is None or vector.ndim > 1:
            found = type(value).__name__ if vector is None or value is None else f"the shape {vector.shape}"
            raise InputError(f"log({name}=...): found {found}; needed: a scalar or a vector of numbers")
        due = None if spec is None else (self.parameter.shape[1],) if "dim" in spec.dims else ()
        if due is not None and vector.shape != due:
            raise InputError(f"log({name}=...): found the shape {vector.shape}; needed: {due}")
        return vector

    def _note_lr(self) -> None:
        self._lr = float(self.group.get("lr", np.nan))  # before the step, and before a scheduler moves it

    def _after_step(self) -> None:
        self.step += 1
        self._capture()

    def _capture(self) -> None:
        for name in self.variables:
            tensor = self._tensor(name)
            if tensor is not None:
                values = to_numpy(tensor)
                self._buffer(name, values.dtype)[self._filled] = values
        self._buffers.setdefault("lr", np.full(self._writer.chunk_steps, np.nan))
        self._buffers["lr"][self._filled] = self._lr if self.step else np.nan
        self._filled += 1
        if self._filled == self._writer.chunk_steps:
            self._flush()

    def _buffer(self, name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
        """The buffer of a variable, made when its first value shows the dtype: moments may have their own.

        What came before is NaN for gradients, which have no step 0, and 0 for moments.
        """
        if name not in self._buffers:
            shape, before = tuple(self.parameter.shape), 0 if name.startswith("exp") else np.nan
            self._writer.add_variable(name, schema.MATRIX, shape, dtype)
            if self._start:
                self._writer.write(name, 0, np.full((self._start, *shape), before, dtype))
            self._buffers[name] = np.full((self._writer.chunk_steps, *shape), before, dtype)
        if self._buffers[name].dtype != dtype:
            raise InputError(
                f"{name} is {dtype} at step {self.step}; it was {self._buffers[name].dtype} before: a recording keeps "
                "one dtype, so begin another one"
            )
        return self._buffers[name]

    def _tensor(self, name: str) -> torch.Tensor | None:
        if name == "W":
            return self.parameter
        if self.step == 0:
            return None
        if name == "grad":
            return self.parameter.grad
        state = self.optimizer.state[self.parameter]
        if name not in state:
            raise InputError(
                f"{type(self.optimizer).__name__} keeps no {name!r}; record other variables: "
                f"{', '.join(v for v in RECORDABLE if not v.startswith('exp'))}"
            )
        return state[name]

    def _flush(self) -> None:
        if not self._filled:
            return
        self._writer.extend(np.arange(self._start, self._start + self._filled))
        for name, buffer in self._buffers.items():
            self._writer.write(name, self._start, buffer[: self._filled])
        self._start += self._filled
        self._filled = 0

    def _write_logged(self) -> None:
        for name, entries in self._logged.items():
            width = next(iter(entries.values())).shape
            dtype = next(iter(entries.values())).dtype
            values = np.full((self._writer.n_steps, *width), np.nan, dtype)
            for step, value in entries.items():
                values[step] = value
            spec = schema.VARIABLES.get(name)
            dims = ("step",) if not width else spec.dims if spec else ("step", f"{name}_component")
            self._writer.add_variable(name, dims, width, dtype)
            self._writer.write(name, 0, values)


def to_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    """A tensor's values on the host; bfloat16 as ml_dtypes.bfloat16, bit for bit."""
    import torch

    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _group_of(parameter: torch.nn.Parameter, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    for group in optimizer.param_groups:
        if any(p is parameter for p in group["params"]):
            return group
    raise InputError(
        "the parameter is not one of the optimizer's: build the optimizer from the same model, and pass "
        "the very parameter (a tied weight has one owner)"
    )


def _rows(n: int, dead: Iterable[int] | None, text: Sequence[str] | None) -> store.Rows:
    if dead is None:
        return store.Rows(np.arange(n), None, text)
    ids = np.asarray(list(dead), np.int64)
    if ids.size and (ids.min() < 0 or ids.max() >= n):
        raise InputError(f"dead ids lie between {ids.min()} and {ids.max()}; needed: 0 to {n - 1}")
    mask = np.zeros(n, bool)
    mask[ids] = True
    return store.Rows(np.arange(n), mask, text)


def _plain(group: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a parameter group that JSON can hold."""
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in group.items() if k != "params"}
    return {k: v for k, v in values.items() if isinstance(v, (bool, int, float, str, list, type(None)))}
