"""The parameters that are watched: their names, tensors and groups; what cannot be watched is refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from deadtok_xr.errors import InputError
from deadtok_xr.monitor.predict import STATE, Tensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DTYPES = ("bfloat16", "float16", "float32")
_WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.")
"""What DistributedDataParallel, torch.compile and FSDP put before the names of a model's parameters."""


class Watched:
    """A parameter of the optimizer.

    Attributes
    ----------
    numel
        The number of its elements, on all ranks together.
    """

    def __init__(self, name: str, parameter: Tensor, optimizer: torch.optim.Optimizer, position: tuple[int, int]):
        self.name, self.parameter, self.optimizer, self.group_index = name, parameter, optimizer, position[0]
        self.numel, self.dtype = parameter.numel(), dtype_name(parameter)
        self._shape = parameter.shape
        if parameter.is_complex() or not parameter.is_floating_point():
            raise InputError(f"{name} has the dtype {self.dtype}, {_ADVICE}")
        if self.dtype not in DTYPES:
            raise InputError(f"{name} has the dtype {self.dtype}, {_ADVICE}")
        if parameter.is_meta:
            raise InputError(
                f"{name} is on the meta device, so it has no values: load the weights first (model.to_empty, "
                "load_state_dict), and build the optimizer from them"
            )
        if parameter.is_sparse:
            raise InputError(f"{name} is a sparse tensor; Monitor takes dense ones: leave it out")

    @property
    def group(self) -> dict[str, Any]:
        """The parameter's group; looked up each time, because `load_state_dict` replaces the groups."""
        return self.optimizer.param_groups[self.group_index]

    @property
    def weights(self) -> Tensor:
        """The parameter's values on this rank."""
        return local(self.parameter)

    @property
    def step(self) -> Tensor | None:
        """The optimizer's count of updates; None before the first, or if it does not count."""
        return self.optimizer.state.get(self.parameter, {}).get("step")

    def tensors(self, *, with_state: bool) -> Tensors | None:
        """Return the parameter, its gradient and the optimizer's state on this rank; None without a gradient."""
        gradient = self.parameter.grad
        if self.parameter.shape != self._shape:
            raise InputError(
                f"{self.name} has the shape {tuple(self.parameter.shape)}; it had {tuple(self._shape)} when the "
                "Monitor was created: create a new one"
            )
        if gradient is None:
            return None
        if gradient.layout != self.parameter.layout:
            raise InputError(
                f"{self.name} has a sparse gradient; Monitor takes dense ones: create its layer with sparse=False, or "
                "leave the parameter out"
            )
        state = self.optimizer.state.get(self.parameter, {}) if with_state else {}
        kept = {name: local(state[name]) for name in STATE if state.get(name) is not None}
        return {"W": self.weights, "grad": local(gradient), **kept}


_ADVICE = f"which Monitor does not take; expected {', '.join(DTYPES)}: leave the parameter out"


def local(x: Tensor) -> Tensor:
    """Return a tensor's part on this rank, without its history."""
    part = x.detach()
    return part.to_local() if hasattr(part, "to_local") else part


def dtype_name(x: Tensor) -> str:
    """Return the name of a tensor's dtype without torch's prefix."""
    return str(x.dtype).removeprefix("torch.")


def watched_parameters(what: Any, optimizer: torch.optim.Optimizer) -> tuple[list[Watched], list[str]]:
    """Return the parameters to watch, and the names of a model's trainable parameters that the optimizer does not have.

    Parameters
    ----------
    what
        A model, a parameter, a mapping of names to parameters, or an iterable of parameters or of pairs (name,
        parameter).
    optimizer
        The optimizer.

    Raises
    ------
    InputError
        If a parameter cannot be watched, or the optimizer does not have it.
    """
    positions = {id(p): (i, j) for i, group in enumerate(optimizer.param_groups) for j, p in enumerate(group["params"])}
    is_model = hasattr(what, "named_parameters")
    found: dict[int, Watched] = {}
    missing = []
    for name, parameter in _named(what, optimizer, positions):
        if id(parameter) not in positions:
            missing += [name] if parameter.requires_grad or not is_model else []
        elif id(parameter) not in found:
            found[id(parameter)] = Watched(name, parameter, optimizer, positions[id(parameter)])
    if missing and (not is_model or not found):
        raise InputError(
            f"the optimizer does not have {missing[0]}{f' and {len(missing) - 1} more' if missing[1:] else ''}: build "
            "the optimizer from the same model, and pass the parameter objects themselves"
        )
    if not found:
        raise InputError("there is no parameter to watch; expected a model, or parameters of the optimizer")
    names = [each.name for each in found.values()]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"two parameters have the name {twice!r}; expected a different one for each")
    return list(found.values()), missing


def _named(what: Any, optimizer: Any, positions: Mapping[int, tuple[int, int]]) -> Iterator[tuple[str, Any]]:
    if hasattr(what, "named_parameters"):
        yield from ((_unwrapped(name), p) for name, p in what.named_parameters())
        return
    if hasattr(what, "requires_grad"):
        what = [what]
    if not isinstance(what, Iterable) or isinstance(what, str):
        raise InputError(f"Monitor takes a model or parameters, not a {type(what).__name__}")
    for i, each in enumerate(what.items() if isinstance(what, Mapping) else what):
        name, parameter = each if isinstance(each, tuple) and len(each) == 2 else (None, each)
        if not hasattr(parameter, "requires_grad"):
            raise InputError(f"Monitor takes a model or parameters; found a {type(parameter).__name__} among them")
        yield str(name) if name is not None else _name_in_optimizer(parameter, optimizer, positions, i), parameter


def _name_in_optimizer(parameter: Any, optimizer: Any, positions: Mapping[int, tuple[int, int]], i: int) -> str:
    """Return the name that an optimizer built from named parameters knows, or one made of the position."""
    if id(parameter) not in positions:
        return f"parameter {i}"
    group, position = positions[id(parameter)]
    names = optimizer.param_groups[group].get("param_names")
    return names[position] if names else f"group{group}.parameter{position}"


def _unwrapped(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(f".{wrapper}", ".").removeprefix(wrapper)
    return name
