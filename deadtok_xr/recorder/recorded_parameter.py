"""A parameter that is recorded, and where its gradient and moments are found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deadtok_xr.errors import InputError
from deadtok_xr.recorder.sharded import whole

if TYPE_CHECKING:
    import torch

MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")
DTYPES = ("bfloat16", "float16", "float32")
RECORDABLE = ("W", "grad", *MOMENTS)


class RecordedParameter:
    """A parameter with its name in the store and the variables that are recorded of it.

    Attributes
    ----------
    variables
        The kind of each variable (W, grad, exp_avg, ...) by its name in the store: `W`, `grad`, ... for W itself, and
        `E`, `grad_E`, ... for a second parameter E.
    """

    def __init__(
        self, name: str, parameter: torch.nn.Parameter, optimizer: torch.optim.Optimizer, kinds: tuple[str, ...]
    ) -> None:
        if not hasattr(parameter, "ndim"):
            raise InputError(
                f"Recorder takes a parameter, not a {type(parameter).__name__}: give it the weight, such as "
                "model.embedding.weight, or say sample=1024 to record elements of every parameter of a model"
            )
        if parameter.ndim != 2:
            raise InputError(
                f"the parameter has the shape {tuple(parameter.shape)}; expected (vocabulary, hidden); record "
                f"elements of one of any shape with Recorder({{'name': parameter}}, ..., sample={parameter.numel()})"
            )
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
        """The parameter's group; looked up each time, because `load_state_dict` replaces the groups."""
        return self.optimizer.param_groups[self.group_index]

    def updates(self) -> int | None:
        """Return how many updates the optimizer has made of the parameter; None if it does not count them."""
        step = self.optimizer.state.get(self.parameter, {}).get("step")
        return None if step is None else int(step)

    def gradient(self) -> torch.Tensor | None:
        """Return the current gradient, dense and whole; None if there is none."""
        grad = self.parameter.grad
        if grad is None:
            return None
        return grad.to_dense() if grad.is_sparse else whole(grad)

    def state(self, kind: str, *, initial: bool) -> torch.Tensor | None:
        """Return the parameter or one of its moments; None before the optimizer has created the moment.

        Raises
        ------
        InputError
            If the optimizer has created its state, without such a moment.
        """
        if kind == "W":
            return whole(self.parameter)
        state = self.optimizer.state.get(self.parameter, {})
        if kind in state:
            return whole(state[kind])
        if initial or self.parameter.grad is None:
            return None
        raise InputError(
            f"{type(self.optimizer).__name__} keeps no {kind!r}; record other variables: "
            f"{', '.join(['W', 'grad', *(k for k in MOMENTS if k in state)])}"
        )

    def check(self, step: int) -> None:
        """Raise an error if the parameter's shape, dtype or device has changed since the recording began."""
        now = (tuple(self.parameter.shape), self.parameter.dtype, self.parameter.device)
        for what, found, was in zip(("shape", "dtype", "device"), now, self._was, strict=True):
            if found != was:
                raise InputError(
                    f"{self.name} has the {what} {found} at step {step}; it had {was} before: a recording has one "
                    f"{what}, so begin a new recording"
                )


def _group_index(parameter: torch.nn.Parameter, optimizer: torch.optim.Optimizer) -> int:
    for i, group in enumerate(optimizer.param_groups):
        if any(p is parameter for p in group["params"]):
            return i
    raise InputError(
        "the optimizer does not have this parameter: build the optimizer from the same model, and pass the "
        "parameter object itself (a tied weight has one owner)"
    )
