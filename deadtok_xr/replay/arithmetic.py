"""Torch's optimizer updates, operation by operation, on the device of the tensors.

An arithmetic is a sequence of operations and roundings. torch has several for the same update rule, and they differ in
the last bits. Where torch rounds every operation to the dtype of the parameter, its own operations are called on
tensors of that dtype, so that the roundings (and the fused multiply-adds inside lerp and addcmul) are the same; where
torch computes in float32 and rounds once, this module does too. Scalars stay Python floats, as in torch.

Formulas follow torch 2.13, torch/optim/{adam,adamw,sgd}.py; t counts updates, b1 and b2 are the betas:

    single             m ← lerp(m, g, 1-b1); v ← b2·v + (1-b2)·g·g; d = √v / √(1-b2ᵗ) + eps
                       W ← (1 - lr·wd)·W; W ← W + (-lr/(1-b1ᵗ)·m) / d, each operation rounded
    foreach            the same by torch._foreach_*, which on CPUs also rounds some scalars to the tensor's dtype
                       (0.95 becomes 0.94921875 in bfloat16); on GPUs it divides where single multiplies by the inverse
    fused              the same in float32 from m and v at t-1 and g, with one rounding of W, m and v each
    capturable         scalars are float32 tensors, and d is divided by the step size, in the order of foreach
    capturable_single  the same in the order of a loop over tensors
    float32_once       from m and v at t as recorded, in float32, with one rounding of W

Confirmed with recordings made on CPUs and on an H100; ``capturable`` needs a GPU.

Operations of the same name round differently on CPUs and GPUs (scalars of foreach; a bfloat16 added with a factor), so
a recording is replayed only on the kind of device that made it, or on a CPU, where up to 6 in 10,000 elements differ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.bfloat16 import BFLOAT16
from deadtok_xr.replay.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

Tensors = dict[str, "Tensor"]
"""The recorded tensors of one step, (token, dim): W, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, momentum_buffer."""

_VECTOR = 64  # elements; no vector unit is wider


def to_tensor(x: NDArray[Any]) -> Tensor:
    """Copy an array to a CPU tensor with the same bits."""
    import torch

    x = np.array(x, order="C")
    return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16) if x.dtype == BFLOAT16 else torch.from_numpy(x)


def required_tensors(arithmetic: str, s: Settings) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the variables that an arithmetic needs at t-1, and those that it needs at t."""
    if not s.is_adam:
        buffer = ("momentum_buffer",) if s.momentum else ()
        return ("W", *(buffer if arithmetic == "fused" else ())), (
            "W",
            *(("grad",) if not buffer or s.nesterov or arithmetic == "fused" else ()),
            *(buffer if arithmetic != "fused" else ()),
        )
    largest = ("max_exp_avg_sq",) if s.amsgrad else ()
    if arithmetic == "fused":
        return ("W", "exp_avg", "exp_avg_sq", *largest), ("W", "grad")
    return ("W",), ("W", "exp_avg", "exp_avg_sq", *largest)


def candidates(s: Settings) -> tuple[str, ...]:
    """Return the arithmetics that torch may have used for an update of this optimizer."""
    return tuple(_ADAM) if s.is_adam else tuple(_SGD)


def update(arithmetic: str, s: Settings, t: int, lr: float, before: Tensors, after: Tensors) -> Tensor:
    """Compute W after update t from the tensors at t-1 (``before``) and t (``after``), which stay unchanged."""
    return (_ADAM if s.is_adam else _SGD)[_on_this_device(arithmetic, s, before["W"])](s, t, lr, before, after)


def _on_this_device(arithmetic: str, s: Settings, x: Tensor) -> str:
    """Return the arithmetic to call: foreach rounds its scalars on CPUs only, so a GPU's is closer to single there."""
    return "single" if arithmetic == "foreach" and s.on_accelerator and x.device.type == "cpu" else arithmetic


def moments(arithmetic: str, s: Settings, t: int, before: Tensors, after: Tensors) -> Tensors:
    """Compute Adam's moments after update t from those before it and the gradient."""
    if arithmetic == "fused":
        state = _fused_adam(s, t, 0.0, before, after)
        return {"exp_avg": state[1], "exp_avg_sq": state[2]}
    b1, b2 = s.betas
    arithmetic = _on_this_device(arithmetic, s, after["grad"])
    g = gradient(s, before, after, arithmetic)
    return {
        "exp_avg": before["exp_avg"].lerp(g, 1 - b1),
        "exp_avg_sq": _scaled(arithmetic, before["exp_avg_sq"], b2).addcmul_(g, g, value=1 - b2),
    }


def momentum(arithmetic: str, s: Settings, t: int, lr: float, before: Tensors, after: Tensors) -> Tensor:
    """Compute SGD's momentum buffer after update t; at t = 1 it is the gradient."""
    if arithmetic == "fused":
        return _fused_sgd(s, t, lr, before, after)[1]
    arithmetic = _on_this_device(arithmetic, s, after["grad"])
    g = gradient(s, before, after, arithmetic)
    if t == 1:
        return g.clone()
    return _added(arithmetic, _scaled(arithmetic, before["momentum_buffer"], s.momentum), g, 1 - s.dampening)


def gradient(s: Settings, before: Tensors, after: Tensors, arithmetic: str = "single") -> Tensor:
    """Return the gradient that enters the moments: negated if torch maximizes, with the L2 decay added."""
    g = -after["grad"] if s.maximize else after["grad"]
    return _added(arithmetic, g, before["W"], s.added_decay) if s.added_decay else g


def _scaled(arithmetic: str, x: Tensor, factor: float) -> Tensor:
    return _in_place("mul", arithmetic, x.clone(), factor)


def _added(arithmetic: str, x: Tensor, y: Tensor, factor: float) -> Tensor:
    return _in_place("add", arithmetic, x.clone(), y, alpha=factor)


def _in_place(name: str, arithmetic: str, x: Tensor, other: Any, **options: float) -> Tensor:
    """Apply an operation in place: foreach rounds its scalars only if it works in place."""
    import torch

    if arithmetic != "foreach":
        return getattr(x, f"{name}_")(other, **options)
    getattr(torch, f"_foreach_{name}_")([x], other if name == "mul" else [other], **options)
    return x


def unrounded_update(arithmetic: str, s: Settings, t: int, lr: float, before: Tensors, after: Tensors) -> Tensor:
    """Compute u, the displacement that update t would give W without the rounding of W, in float64.

    u = -lr·wd·W - lr/(1-b1ᵗ)·m/d for Adam, with d as the arithmetic computes it, so that intermediate values that it
    rounds to zero are zero here too; u = -lr·(gradient or momentum buffer) for SGD.
    """
    u = -lr * _direction(arithmetic, s, t, before, after)
    if s.decoupled_decay:
        u -= lr * s.decoupled_decay * before["W"].double()
    return u


def _direction(arithmetic: str, s: Settings, t: int, before: Tensors, after: Tensors) -> Tensor:
    if not s.is_adam:
        return _sgd_direction(arithmetic, s, t, before, after)
    b1, b2 = s.betas
    corrected1, corrected2 = 1 - b1**t, (1 - b2**t) ** 0.5
    if arithmetic == "fused":
        g = after["grad"].double() * (-1 if s.maximize else 1) + s.added_decay * before["W"].double()
        m = before["exp_avg"].double() * b1 + g * (1 - b1)
        v = before["exp_avg_sq"].double() * b2 + g * g * (1 - b2)
        v = v.maximum(before["max_exp_avg_sq"].double()) if s.amsgrad else v
        return m / corrected1 / (v.sqrt() / corrected2 + s.eps)
    m, v = after["exp_avg"], _second(s, after)
    if arithmetic == "float32_once":
        return m.double() / corrected1 / (v.double().sqrt() / corrected2 + s.eps)
    # t may be a tensor of counts in float64, which must not promote what torch computes in the format of v
    return m.double() / corrected1 / (v.sqrt() / corrected2).to(v.dtype).add_(s.eps).double()


def _sgd_direction(arithmetic: str, s: Settings, t: int, before: Tensors, after: Tensors) -> Tensor:
    if s.momentum and not s.nesterov and "momentum_buffer" in after:
        return after["momentum_buffer"].double()
    g = after["grad"].double() * (-1 if s.maximize else 1) + s.added_decay * before["W"].double()
    if not s.momentum:
        return g
    buffer = after["momentum_buffer"].double()
    return g + s.momentum * buffer


def _second(s: Settings, after: Tensors) -> Tensor:
    return after["max_exp_avg_sq"] if s.amsgrad else after["exp_avg_sq"]


def _decayed(s: Settings, lr: float, w: Tensor) -> Tensor:
    return w.mul(1 - lr * s.decoupled_decay) if s.decoupled_decay else w


def _single_adam(s: Settings, t: int, lr: float, before: Tensors, after: Tensors) -> Tensor:
    b1, b2 = s.betas
    d = (_second(s, after).sqrt() / (1 - b2**t) ** 0.5).add_(s.eps)
    return _decayed(s, lr, before["W"]).addcdiv(after["exp_avg"], d, value=-(lr / (1 - b1**t)))


def _float32_adam(s: Settings, t: int, lr: float, before: Tensors, after: Tensors) -> Tensor:
    single = {k: x.float() for k, x in after.items()}
    return _single_adam(s, t, lr, {"W": before["W"].float()}, single).to(before["W"].dtype)


def _foreach_adam(s: Settings, t: int, lr: float, before: Tensors, after: Tensors) -> Tensor:
    import torch

    b1, b2 = s.betas
    w = [before["W"].clone()]
    if s.decoupled_decay:
        torch._foreach_mul_(w, 1 - lr * s.decoupled_decay)
    d = list(torch._foreach_sqrt([_second(s, after)]))
    torch._foreach_div_(d, [(1 - b2**t) ** 0.5])
    torch._foreach_add_(d, s.eps)
    torch._foreach_addcdiv_(w, [after["exp_avg"]], d, [lr / (1 - b1**t) * -1])
    return w[0]


def _capturable_adam(s: Settings, t: int, lr: float, before: Tensors, after: Tensors) -> Tensor:
    import torch

    b1, b2 = s.betas
    step = torch.tensor(float(t), device=before["W"].device)
    size = ((torch.pow(b1, step) - 1) / lr).reciprocal()
    d = (_second(s, after).sqrt() / (1 - torch.pow(b2, step)).sqrt()).add_(s.eps).div_(size)
    return _decayed(s, lr, before["W"]).addcdiv(after["exp_avg"], d)


def _capturable_single_adam(s: Settings, t: int, lr: float, before: Tensors, after: Tensors) -> Tensor:
    import torch

    b1, b2 = s.betas
    step = torch.tensor(float(t), device=before["W"].device)
    size = -(lr / (1 - b1**step))
    d = (_second(s, after).sqrt() / ((1 - b2**step).sqrt() * size)).add_(s.eps / size)
    return _decayed(s, lr, before["W"]).addcdiv(after["exp_avg"], d)


def _fused_adam(s: Settings, t: int, lr: float, before: Tensors, after: Tensors) -> list[Tensor]:
    """Compute W, m and v after the update with torch's own fused operation."""
    import torch

    shape = before["W"].shape
    w, g, m, v = (
        _padded(x) for x in (before["W"], after["grad"], before["exp_avg"], before["exp_avg_sq"])
    )  # fmt: skip
    largest = [_padded(before["max_exp_avg_sq"])] if s.amsgrad else []
    operation = torch._fused_adamw_ if s.optimizer == "AdamW" else torch._fused_adam_
    step = torch.tensor(float(t), device=w.device)
    operation(
        [w], [g], [m], [v], largest, [step], lr=lr, beta1=s.betas[0], beta2=s.betas[1],
        weight_decay=s.weight_decay, eps=s.eps, amsgrad=s.amsgrad, maximize=s.maximize,
    )  # fmt: skip
    return [x[: shape.numel()].view(shape) for x in (w, m, v)]


def _fused_sgd(s: Settings, t: int, lr: float, before: Tensors, after: Tensors) -> list[Tensor]:
    """Compute W and the momentum buffer after the update in float32, with one rounding each.

    torch's own operation is not used: up to torch 2.13 it leaves most 16-bit weights unchanged on CPUs
    (pytorch/pytorch#191763). The weights that it does change are multiplied and added in float32 as here.
    """
    dtype = before["W"].dtype
    first = {k: x.float() for k, x in before.items()}
    g = gradient(s, first, {"grad": after["grad"].float()})
    state = []
    if s.momentum:
        buffer = g if t == 1 else first["momentum_buffer"].mul(s.momentum).add_(g, alpha=1 - s.dampening)
        g = g.add(buffer, alpha=s.momentum) if s.nesterov else buffer
        state = [buffer.to(dtype)]
    return [first["W"].add(g, alpha=-lr).to(dtype), *state]


def _padded(x: Tensor) -> Tensor:
    """Return a flat copy, padded to whole vectors: in float32 torch rounds the remaining elements in another order."""
    import torch

    return torch.nn.functional.pad(x.reshape(-1), (0, -x.numel() % _VECTOR))


def _loop_sgd(arithmetic: str, s: Settings, lr: float, before: Tensors, after: Tensors) -> Tensor:
    g = after["momentum_buffer"] if s.momentum and not s.nesterov else gradient(s, before, after, arithmetic)
    if s.momentum and s.nesterov:
        g = _added(arithmetic, g, after["momentum_buffer"], s.momentum)
    return _added(arithmetic, before["W"], g, -lr)


def _float32_sgd(s: Settings, t: int, lr: float, before: Tensors, after: Tensors) -> Tensor:
    both = ({k: x.float() for k, x in tensors.items()} for tensors in (before, after))
    return _loop_sgd("single", s, lr, *both).to(before["W"].dtype)


Update = Callable[[Settings, int, float, Tensors, Tensors], "Tensor"]
_ADAM: dict[str, Update] = {
    "single": _single_adam,
    "foreach": _foreach_adam,
    "fused": lambda *args: _fused_adam(*args)[0],
    "capturable": _capturable_adam,
    "capturable_single": _capturable_single_adam,
    "float32_once": _float32_adam,
}
_SGD: dict[str, Update] = {
    "single": lambda s, t, *rest: _loop_sgd("single", s, *rest),
    "foreach": lambda s, t, *rest: _loop_sgd("foreach", s, *rest),
    "fused": lambda *args: _fused_sgd(*args)[0],
    "float32_once": _float32_sgd,
}
