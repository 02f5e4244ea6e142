"""Compute an update before the optimizer makes it, by torch's own functions on copies of a tile.

An update of Adam, AdamW or SGD changes each element by itself, so a tile is updated to the same bits as the whole
parameter. Whether that held is checked afterwards by a checksum of the weights (`counting.checksum`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from deadtok_xr.recorder.attributes import implementation, json_settings
from deadtok_xr.replay import arithmetic as arithmetics
from deadtok_xr.replay.settings import read_settings

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Tensors = dict[str, "Tensor"]
"""W, grad and what the optimizer keeps, by name."""
STATE = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")


class Prediction(NamedTuple):
    """What an update makes of a tile."""

    after: Tensor
    """The weights after it, in their own dtype."""
    intended: Tensor
    """u, the update before the weights are rounded, float64."""
    gradient: Tensor
    """The gradient that the update uses, unscaled."""
    decayed: Tensor
    """The same as it enters the moments: negated if torch maximizes, with the L2 decay added."""
    second: tuple[Tensor, Tensor] | None
    """exp_avg_sq before and after it; None for SGD."""


def rule_name(optimizer: torch.optim.Optimizer) -> str | None:
    """Return the update rule of an optimizer, None if it is not one of torch's Adam, AdamW and SGD."""
    import torch

    kind = type(optimizer)  # not isinstance: a subclass may compute another update
    return kind.__name__ if kind in (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD) else None


class Rule:
    """How an optimizer is about to update the parameters of one group.

    Parameters
    ----------
    name
        Adam, AdamW or SGD.
    group
        The parameter group.
    optimizer
        The optimizer, which has the scale of the gradients while a GradScaler lets a fused step unscale them.
    """

    def __init__(self, name: str, group: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
        settings = json_settings({k: v for k, v in group.items() if k != "lr"})  # lr may be a tensor on a device
        self.settings = read_settings({"optimizer": name, "hyperparameters": settings}, {}, where="Monitor")
        self.group, self.lr, self.implementation = group, group["lr"], implementation(group)
        self.fused = self.implementation == "fused"
        self._flags: dict[str, Any] = {"foreach": self.implementation == "foreach", "fused": self.fused}
        self._scaling: dict[str, Any] = {
            k: getattr(optimizer, k, None) if self.fused else None for k in ("grad_scale", "found_inf")
        }

    def predict(self, tile: Tensors, step: Tensor | None) -> Prediction:
        """Compute the update of a tile, flat tensors that stay unchanged.

        ``step`` is the optimizer's count of the updates before this one; None where it does not count.
        """
        import torch

        before, after = dict(tile), {name: x.clone() for name, x in tile.items()}
        if self.settings.is_adam:
            for name in ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if self.settings.amsgrad else ())):
                if name not in before:  # before the first update
                    before[name], after[name] = torch.zeros_like(tile["W"]), torch.zeros_like(tile["W"])
            self._adam(after, step)
        else:
            self._sgd(after)
        if self._scaling["grad_scale"] is None:
            after["grad"] = tile["grad"]  # foreach adds Nesterov's momentum to its copy
        arithmetic = "fused" if self.fused and self.settings.is_adam else "single"
        t: Any = 1 if step is None else int(step) + 1 if step.device.type == "cpu" else step.double() + 1
        u = arithmetics.unrounded_update(arithmetic, self.settings, t, self.lr, before, after)
        if not self.settings.is_adam:
            return Prediction(after["W"], u, after["grad"], after["grad"], None)
        decayed = arithmetics.gradient(self.settings, before, after)
        return Prediction(after["W"], u, after["grad"], decayed, (before["exp_avg_sq"], after["exp_avg_sq"]))

    def _adam(self, after: Tensors, step: Tensor | None) -> None:
        import torch
        from torch.optim.adam import adam
        from torch.optim.adamw import adamw

        w, group = after["W"], self.group
        on_device = self.fused or group["capturable"]
        count = torch.zeros((), device=w.device if on_device else "cpu") if step is None else step.clone()
        beta1, beta2 = group["betas"]
        update = adamw if self.settings.optimizer == "AdamW" else adam
        update(
            [w], [after["grad"]], [after["exp_avg"]], [after["exp_avg_sq"]],
            [after["max_exp_avg_sq"]] if group["amsgrad"] else [], [count],
            beta1=beta1, beta2=beta2, lr=self.lr, capturable=group["capturable"],
            **{name: group[name] for name in ("amsgrad", "weight_decay", "eps", "maximize")},
            **self._flags, **self._scaling,
        )  # fmt: skip

    def _sgd(self, after: Tensors) -> None:
        from torch.optim.sgd import sgd

        names = ("weight_decay", "momentum", "dampening", "nesterov", "maximize")
        buffers = [after.get("momentum_buffer")]
        sgd(
            [after["W"]], [after["grad"]], buffers, lr=self.lr, **{name: self.group[name] for name in names},
            **self._flags, **self._scaling,
        )  # fmt: skip
        if buffers[0] is not None:
            after["momentum_buffer"] = buffers[0]
