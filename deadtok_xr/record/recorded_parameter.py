"""One parameter that is recorded, and where its tensors are found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deadtok_xr.errors import InputError

if TYPE_CHECKING:
    import torch

MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")
DTYPES = ("bfloat16", "float16", "float32")
RECORDABLE = ("W", "grad", *MOMENTS)


class Followed:
    """A parameter under its name in the store, with what is recorded of it.

    Attributes
    ----------
    variables
        What is recorded, by name in the store: `W`, `grad`, ... of W itself, and `E`, `grad_E`, ... of another.
    """

    def __init__(
        self, name: str, parameter: torch.nn.Parameter, optimizer: torch.optim.Optimizer, kinds: tuple[str, ...]
    ) -> None:
        if not hasattr(parameter, "ndim"):
            raise InputError(
                f"Recorder takes a parameter, not a {type(parameter).__name__}: give it the weight, such as "
                "model.embedding.weight"
            )
        if parameter.ndim != 2:
            raise InputError(f"the parameter has the shape {tuple(parameter.shape)}; expected (vocabulary, hidden)")
        if not len(parameter):
            raise InputError(f"{name} has no rows; expected (vocabulary, hidden)")
        dtype = str(parameter.dtype).removeprefix("torch.")
        if dtype not in DTYPES:
            raise InputError(f"{name} has the dtype {dtype}; expected {', '.join(DTYPES)}")
        self.name, self.parameter, self.optimizer = name, parameter, optimizer
        self.suffix = "" if name == "W" else f"_{name}"
        self.group_index = _group_index(parameter, optimizer)
        self.variables = {(name if kind == "W" else kind + self.suffix): kind for kind in kinds}
        self._was = (tuple(parameter.shape), parameter.dtype, parameter.device)

    @property
    def group(self) -> dict[str, Any]:
        """The parameter's group; looked up each time, for `load_state_dict` puts others in their place."""
        return self.optimizer.param_groups[self.group_index]

    def updates(self) -> int | None:
        """How many updates the optimizer has made of the parameter, where it counts them."""
        step = self.optimizer.state.get(self.parameter, {}).get("step")
        return None if step is None else int(step)

    def gradient(self) -> torch.Tensor | None:
        """The gradient that lies there now."""
        grad = self.parameter.grad
        return grad.to_dense() if grad is not None and grad.is_sparse else grad

    def state(self, kind: str, *, initial: bool) -> torch.Tensor | None:
        """The parameter, or a moment of it; None before an optimizer has made it.

        Raises
        ------
        InputError
            If the optimizer has made its state, and keeps no such moment.
        """
        if kind == "W":
            return self.parameter
        state = self.optimizer.state.get(self.parameter, {})
        if kind in state:
            return state[kind]
        if initial or self.parameter.grad is None:
            return None
        raise InputError(
            f"{type(self.optimizer).__name__} keeps no {kind!r}; record other variables: "
            f"{', '.join(['W', 'grad', *(k for k in MOMENTS if k in state)])}"
        )

    def check(self, step: int) -> None:
        """Raise if the parameter is no longer what it was when the recording began."""
        now = (tuple(self.parameter.shape), self.parameter.dtype, self.parameter.device)
        for what, found, was in zip(("shape", "dtype", "device"), now, self._was, strict=True):
            if found != was:
                raise InputError(
                    f"{self.name} has the {what} {found} at step {step}; it had {was} before: a recording keeps one "
                    f"{what}, so begin another one"
                )


def _group_index(parameter: torch.nn.Parameter, optimizer: torch.optim.Optimizer) -> int:
    for i, group in enumerate(optimizer.param_groups):
        if any(p is parameter for p in group["params"]):
            return i
    raise InputError(
        "the parameter is not one of the optimizer's: build the optimizer from the same model, and pass "
        "the very parameter (a tied weight has one owner)"
    )
