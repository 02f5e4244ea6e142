"""Compute an update before the optimizer makes it, by torch's own functions on copies of a tile.

An update of Adam, AdamW or SGD changes each element by itself, so a tile is updated to the same bits as the whole
parameter, and several small parameters of a GPU are updated together. Whether that held is checked afterwards by a
checksum of the weights (`counting.checksum`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from deadtok_xr import kernels
from deadtok_xr.monitor.tiles import joined, on_cpu
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
    """What an update makes of a tile, or of several."""

    before: Tensor
    """The weights before it, in their own dtype."""
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
        self._first_momentum = _without_buffer(group, optimizer) if self.implementation == "foreach" else set()
        self._flags: dict[str, Any] = {"foreach": self.implementation == "foreach", "fused": self.fused}
        self._scaling: dict[str, Any] = {
            k: getattr(optimizer, k, None) if self.fused else None for k in ("grad_scale", "found_inf")
        }

    def predict(self, parts: Sequence[Tensors], steps: Sequence[Tensor | None]) -> Prediction:
        """Compute the update of tiles of several parameters, tensors that stay unchanged.

        The tiles have the same variables and dtypes; the prediction has their elements one after the other. ``steps``
        are the optimizer's counts of the updates before this one; None where it does not count. Those on a CPU are
        equal.
        """
        import torch

        before = {name: joined([tile[name] for tile in parts]) for name in parts[0]}
        after = {name: x.clone() for name, x in before.items()}
        gradient = before["grad"]
        sizes = [tile["W"].numel() for tile in parts]
        if self.settings.is_adam:
            for name in ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if self.settings.amsgrad else ())):
                if name not in before:  # before the first update
                    before[name], after[name] = torch.zeros_like(before["W"]), torch.zeros_like(before["W"])
        self._update({name: list(x.split(sizes)) for name, x in after.items()}, steps, after)
        if self._scaling["grad_scale"] is None:
            after["grad"] = gradient  # foreach adds Nesterov's momentum to its copy
        arithmetic = "fused" if self.fused and self.settings.is_adam else "single"
        u = arithmetics.unrounded_update(arithmetic, self.settings, _count(steps, sizes), self.lr, before, after)
        if not self.settings.is_adam:
            return Prediction(before["W"], after["W"], u, after["grad"], after["grad"], None)
        decayed = arithmetics.gradient(self.settings, before, after)
        return Prediction(
            before["W"], after["W"], u, after["grad"], decayed, (before["exp_avg_sq"], after["exp_avg_sq"])
        )

    def _update(self, views: dict[str, list[Tensor]], steps: Sequence[Tensor | None], after: Tensors) -> None:
        """Update the views of ``after`` in place; add the buffer of momentum where there was none."""
        if self.settings.is_adam:
            self._adam(views, steps)
            return
        buffers = self._sgd(views)
        if buffers[0] is not None and "momentum_buffer" not in after:
            after["momentum_buffer"] = joined(buffers)

    def _adam(self, views: dict[str, list[Tensor]], steps: Sequence[Tensor | None]) -> None:
        import torch
        from torch.optim.adam import adam
        from torch.optim.adamw import adamw

        group = self.group
        device = views["W"][0].device if self.fused or group["capturable"] else "cpu"
        counts = torch.stack([torch.zeros((), device=device) if step is None else step for step in steps]).unbind()
        beta1, beta2 = group["betas"]
        update = adamw if self.settings.optimizer == "AdamW" else adam
        update(
            views["W"], views["grad"], views["exp_avg"], views["exp_avg_sq"],
            views["max_exp_avg_sq"] if group["amsgrad"] else [], list(counts),
            beta1=beta1, beta2=beta2, lr=self.lr, capturable=group["capturable"],
            **{name: group[name] for name in ("amsgrad", "weight_decay", "eps", "maximize")},
            **self._flags, **self._scaling,
        )  # fmt: skip

    def _sgd(self, views: dict[str, list[Tensor]]) -> list[Any]:
        from torch.optim.sgd import sgd

        names = ("weight_decay", "momentum", "dampening", "nesterov", "maximize")
        buffers: list[Any] = [*views.get("momentum_buffer", [None] * len(views["W"]))]
        weights, gradients, n = views["W"], views["grad"], len(buffers)
        if (weights[0].device, weights[0].dtype) in self._first_momentum and buffers[0] is not None:
            # one parameter without a buffer makes torch update all others in a loop, which may round differently
            weights, gradients = ([*x, x[0].new_zeros(1)] for x in (weights, gradients))
            buffers.append(None)
        sgd(
            weights, gradients, buffers, lr=self.lr, **{name: self.group[name] for name in names},
            **self._flags, **self._scaling,
        )  # fmt: skip
        return buffers[:n]


def _without_buffer(group: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> set[tuple[Any, Any]]:
    """Return the devices and dtypes of the parameters that get a momentum buffer at this update."""
    return {
        (p.device, p.dtype)
        for p in group["params"]
        if group.get("momentum") and p.grad is not None and optimizer.state.get(p, {}).get("momentum_buffer") is None
    }


def _count(steps: Sequence[Tensor | None], sizes: Sequence[int]) -> Any:
    """Return the number of the update: of each element, if the optimizer counts on the device."""
    import torch

    first = steps[0]
    if first is None or on_cpu(first):
        return 1 if first is None else int(first) + 1
    counts = torch.stack([x for x in steps if x is not None]).double() + 1
    return kernels.engine("updates", True).of_elements(counts, sizes)
