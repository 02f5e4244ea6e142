"""A fixed random sample of the elements of several parameters, which a Recorder records like one parameter."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.errors import InputError
from deadtok_xr.recorder.recorded_parameter import DTYPES

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Member:
    """A parameter, and the elements of it that are recorded.

    Attributes
    ----------
    elements
        Flat indices, ascending.
    """

    name: str
    parameter: torch.nn.Parameter
    elements: NDArray[np.int64]

    def attributes(self) -> dict[str, Any]:
        """Return what a store says about the parameter."""
        p = self.parameter
        return {"name": self.name, "shape": list(p.shape), "numel": p.numel(), "n_elements": len(self.elements)}


def sampled_elements(name: str, numel: int, sample: int) -> NDArray[np.int64]:
    """Return the flat indices of a random sample, the same for the same name; all of a parameter that is not larger."""
    if numel <= sample:
        return np.arange(numel)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return np.sort(rng.choice(numel, sample, replace=False)).astype(np.int64)


class SampledParameters:
    """The sampled elements of parameters of one group, dtype and device: a matrix (elements, 1).

    It has the interface of `RecordedParameter`, and, as its own `parameter`, what a Recorder needs of a tensor.
    """

    name, suffix = "W", ""

    def __init__(
        self, members: list[Member], optimizer: torch.optim.Optimizer, group_index: int, kinds: tuple[str, ...]
    ) -> None:
        import torch

        first = members[0].parameter
        self.members, self.optimizer, self.group_index = members, optimizer, group_index
        self.variables = {kind: kind for kind in kinds}
        self.shape = (sum(len(m.elements) for m in members), 1)
        self.dtype, self.device, self.ndim = first.dtype, first.device, 2
        self._indices = [torch.from_numpy(m.elements).to(first.device) for m in members]
        self._was = [(tuple(m.parameter.shape), m.parameter.dtype, m.parameter.device) for m in members]

    @property
    def parameter(self) -> Any:
        return self

    @property
    def group(self) -> dict[str, Any]:
        """The parameter group; looked up each time, because `load_state_dict` replaces the groups."""
        return self.optimizer.param_groups[self.group_index]

    @property
    def grad(self) -> Any:
        """Something that is not None if a parameter has a gradient."""
        return next((m.parameter.grad for m in self.members if m.parameter.grad is not None), None)

    def element_size(self) -> int:
        """Return the bytes of an element."""
        return self.members[0].parameter.element_size()

    def detach(self) -> Tensor:
        """Return the current values."""
        values = self._gathered([m.parameter for m in self.members], 0.0)
        assert values is not None
        return values

    def updates(self) -> int | None:
        """Return how many updates the optimizer has made; None if it does not count them."""
        steps = [self.optimizer.state.get(m.parameter, {}).get("step") for m in self.members]
        return max((int(step) for step in steps if step is not None), default=None)

    def gradient(self) -> Tensor | None:
        """Return the gradients; NaN for a parameter without one, None if there are none at all."""
        gradients = [m.parameter.grad for m in self.members]
        for m, gradient in zip(self.members, gradients, strict=True):
            if gradient is not None and gradient.is_sparse:
                raise InputError(
                    f"{m.name} has a sparse gradient, of which no sample can be recorded: create its layer with "
                    "sparse=False, or leave the parameter out"
                )
        return self._gathered(gradients, float("nan"))

    def state(self, kind: str, *, initial: bool) -> Tensor | None:
        """Return the weights or a moment; 0 for a parameter without it, None before the optimizer has created any."""
        if kind == "W":
            return self.detach()
        states = [self.optimizer.state.get(m.parameter, {}) for m in self.members]
        if not initial and any(states) and not any(kind in state for state in states):
            raise InputError(f"{type(self.optimizer).__name__} keeps no {kind!r}; record other variables")
        return self._gathered([state.get(kind) for state in states], 0.0)

    def check(self, step: int) -> None:
        """Raise an error if the shape, dtype or device of a parameter has changed since the recording began."""
        for m, was in zip(self.members, self._was, strict=True):
            now = (tuple(m.parameter.shape), m.parameter.dtype, m.parameter.device)
            if now != was:
                raise InputError(
                    f"{m.name} has the shape, dtype and device {now} at step {step}; they were {was} before: begin a "
                    "new recording"
                )

    def _gathered(self, tensors: list[Any], missing: float) -> Tensor | None:
        """Return the sampled elements of tensors as one matrix; ``missing`` where one is None."""
        import torch

        like = next((x for x in tensors if x is not None), None)
        if like is None:
            return None
        with torch.no_grad():
            parts = [
                torch.full((len(index),), missing, dtype=like.dtype, device=self.device) if x is None
                else x.detach().reshape(-1)[index]
                for x, index in zip(tensors, self._indices, strict=True)
            ]  # fmt: skip
            return torch.cat(parts)[:, None]


def sampled_parameters(
    model: Any, optimizer: torch.optim.Optimizer, kinds: tuple[str, ...], sample: int
) -> list[SampledParameters]:
    """Return the samples of a model's parameters, one for each group, dtype and device.

    Raises
    ------
    InputError
        If ``model`` is neither a model nor parameters with names, or if a parameter cannot be recorded.
    """
    groups = {id(p): i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
    found: dict[tuple[Any, ...], list[Member]] = {}
    seen: set[int] = set()
    for name, parameter in _named(model):
        if id(parameter) not in groups or id(parameter) in seen or not parameter.numel():
            continue
        seen.add(id(parameter))
        _check(name, parameter)
        key = (groups[id(parameter)], parameter.dtype, parameter.device)
        elements = sampled_elements(name, parameter.numel(), sample)
        found.setdefault(key, []).append(Member(name, parameter, elements))
    if not found:
        raise InputError("the optimizer has none of these parameters: build it from the same model")
    return [SampledParameters(members, optimizer, key[0], kinds) for key, members in found.items()]


def _named(model: Any) -> Iterator[tuple[str, Any]]:
    if hasattr(model, "named_parameters"):
        yield from model.named_parameters()
    elif hasattr(model, "items"):
        yield from model.items()
    elif isinstance(model, Iterable) and not hasattr(model, "ndim"):
        yield from model
    else:
        raise InputError(
            f"sample= takes a model, or parameters with their names; found a {type(model).__name__}: give "
            "{'weight': parameter}"
        )


def _check(name: str, parameter: Any) -> None:
    dtype = str(parameter.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise InputError(f"{name} has the dtype {dtype}; expected {', '.join(DTYPES)}: leave it out")
    if parameter.is_meta or hasattr(parameter, "to_local"):
        what = "on the meta device" if parameter.is_meta else "sharded (a DTensor)"
        raise InputError(f"{name} is {what}, of which no sample can be recorded: leave it out")
    if "/" in name or not name:
        raise InputError(f"the name {name!r} cannot be that of a group; expected one without '/'")
