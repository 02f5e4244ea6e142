"""Read from a live optimizer what its last update of a parameter was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deadtok_xr.errors import InputError
from deadtok_xr.recorder.attributes import implementation
from deadtok_xr.recorder.validation import unwrap_optimizer
from deadtok_xr.replay.settings import RULES, Settings

if TYPE_CHECKING:
    from torch import Tensor

_WHERE = "changed_mask"
_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")


@dataclass(frozen=True)
class LastUpdate:
    """The last update of a parameter.

    Attributes
    ----------
    settings
        The rule, its hyperparameters, and the implementation that torch chose.
    lr
        The learning rate of the update.
    step
        How many updates there were with this one; 1 for SGD, which does not count.
    state
        The moments after the update, as the optimizer holds them.
    """

    settings: Settings
    lr: float
    step: int
    state: Mapping[str, Tensor]


def last_update(parameter: Tensor, optimizer: Any, lr: float | None) -> LastUpdate | None:
    """Return the last update of a parameter; None if the optimizer has not updated it.

    Raises
    ------
    InputError
        If the update cannot be undone: another optimizer, no momentum, a learning rate that may have changed since.
    """
    optimizer = unwrap_optimizer(optimizer)
    rule = _rule(optimizer)
    group = _group(parameter, optimizer)
    s = _settings(rule, group, parameter)
    _check(s, parameter)
    state = optimizer.state.get(parameter, {})
    kept = {name: x for name, x in state.items() if name in _MOMENTS and x is not None}
    if not kept:
        return None
    return LastUpdate(s, _rate(group, lr), int(state.get("step", 1)), kept)


def _rule(optimizer: Any) -> str:
    kind = type(optimizer)
    if kind.__module__.startswith("torch.optim") and kind.__name__ in RULES:
        return str(kind.__name__)
    raise InputError(
        f"{_WHERE}: the optimizer is {kind.__module__}.{kind.__qualname__}; only updates of {', '.join(RULES)} of "
        "torch.optim can be undone: keep a copy of the weights before the step and compare"
    )


def _group(parameter: Tensor, optimizer: Any) -> dict[str, Any]:
    for group in optimizer.param_groups:
        if any(p is parameter for p in group["params"]):
            return group  # type: ignore[no-any-return]
    raise InputError(
        f"{_WHERE}: the optimizer does not have this parameter: pass the parameter object itself (a tied weight has "
        "one owner), after the optimizer was built from it"
    )


def _settings(rule: str, group: Mapping[str, Any], parameter: Tensor) -> Settings:
    rule = "AdamW" if group.get("decoupled_weight_decay") else rule
    chosen = implementation(group)
    if chosen == "unknown":
        raise InputError(
            f"{_WHERE}: this version of torch does not say which implementation the optimizer chose: build it with "
            "foreach=False, foreach=True or fused=True"
        )
    fields = {k: group[k] for k in Settings.__dataclass_fields__ if group.get(k) is not None and k != "optimizer"}
    fields["betas"] = tuple(map(float, fields.get("betas", (0.9, 0.999))))
    fields |= {"lr": None, "foreach": chosen == "foreach", "fused": chosen == "fused"}
    return Settings(rule, **{**fields, "on_accelerator": parameter.device.type != "cpu"})


def _check(s: Settings, parameter: Tensor) -> None:
    """Refuse what the state does not determine."""
    if not s.is_adam and (not s.momentum or s.nesterov):
        raise InputError(
            f"{_WHERE}: SGD {'with nesterov' if s.nesterov else 'without momentum'} updates by the gradient, which its "
            "state does not keep: keep a copy of the weights before the step and compare"
        )
    if not s.is_adam and s.fused and parameter.element_size() == 2 and not s.on_accelerator:
        raise InputError(
            f"{_WHERE}: torch's fused SGD leaves most weights of 16 bits unchanged on CPUs (pytorch/pytorch#191763), "
            "whatever their update: use foreach=True"
        )
    if parameter.device.type == "cpu" and _flushes_subnormals():
        raise InputError(
            f"{_WHERE}: torch.set_flush_denormal(True) is on, under which an update cannot be undone: turn it off"
        )


def _flushes_subnormals() -> bool:
    import torch

    return not bool(torch.tensor([2.0**-140]).mul(1.0).ne(0).item())


def _rate(group: Mapping[str, Any], lr: float | None) -> float:
    if lr is not None:
        return float(lr)
    if "initial_lr" in group:
        raise InputError(
            f"{_WHERE}: a schedule changes the learning rate of this optimizer, so that its rate may not be that of "
            "the last update any more: pass lr= with the rate that the step used, read before scheduler.step()"
        )
    return float(group["lr"])
