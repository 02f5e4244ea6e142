"""Bound the values before an update by the errors of its operations, whatever their order.

With c = 1 - lr·wd, the update is w = round(round(c·w₀) + u). The step u = -lr/(1-b1ᵗ)·m / (√v/√(1-b2ᵗ) + eps), or -lr·m
for SGD, follows from the state after the update up to the rounding of at most sixteen operations (`_STEP`). w - u is
therefore known to within half a gap of w, and w₀ to within another half: an interval, which is rounded inwards to
float32. It usually contains a single number, and always the old value.

A value is marked if bfloat16 of some number of the interval differs from bfloat16(w). A first, cheap interval in
float32 decides all but about 1 in 2,000; for the others the interval is computed in float64.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from deadtok_xr.undo.forward import neighbours
from deadtok_xr.undo.last_update import LastUpdate

_STEP = 2.0**-20
"""Relative error of the step: 16 roundings of float32."""
_SUBNORMAL = 2.0**-149
_WIDE_VALUE, _WIDE_STEP = 2.0**-20, 2.0**-17
"""Relative errors of the cheap interval in float32, by the value and by the step: above those of `_interval`."""


def at_first_sight(w: Tensor, state: dict[str, Tensor], last: LastUpdate) -> tuple[Tensor, Tensor]:
    """Return which float32 values w changed in bfloat16, by the cheap interval, and for which this is not certain."""
    now = w.bfloat16()
    u, _ = _step(state, last)
    decay = last.lr * last.settings.decoupled_decay
    before = (w - u).div_(1 - decay) if decay else w - u
    size = before.abs()
    error = (size * _WIDE_VALUE).add_(u.abs_(), alpha=_WIDE_STEP)
    low, high = (before - error).bfloat16().view(torch.int16), before.add_(error).bfloat16().view(torch.int16)
    ordinary = size >= _smallest(last)  # neither zero nor NaN, where equal bits and equal values are not the same
    return low != now.view(torch.int16), (low != high).logical_or_(ordinary.logical_not_())


def may_have_changed(w: Tensor, state: dict[str, Tensor], last: LastUpdate) -> Tensor:
    """Return which float32 values w may have come from a value with another bfloat16."""
    low, high = _interval(w, state, last)
    now = w.bfloat16()
    return (low.bfloat16() != now) | (high.bfloat16() != now) | ~(low <= high)


def _smallest(last: LastUpdate) -> float:
    """Return the magnitude below which the rounding of subnormal intermediate values may matter."""
    eps = last.settings.eps if last.settings.is_adam else 1.0
    return 2.0**21 * _SUBNORMAL * (1 + 1 / eps) if eps else float("inf")


def _step(state: dict[str, Tensor], last: LastUpdate) -> tuple[Tensor, Tensor | None]:
    """Compute the step u, and its denominator for Adam, in the dtype of the state."""
    s = last.settings
    if not s.is_adam:
        return state["momentum_buffer"] * -last.lr, None
    b1, b2 = s.betas
    v = state["max_exp_avg_sq"] if s.amsgrad else state["exp_avg_sq"]
    d = v.sqrt().div_((1 - b2**last.step) ** 0.5).add_(s.eps)
    return (state["exp_avg"] / d).mul_(-last.lr / (1 - b1**last.step)), d


def _interval(w: Tensor, state: dict[str, Tensor], last: LastUpdate) -> tuple[Tensor, Tensor]:
    """Bound the old values by two float32 numbers; the lower one is larger, or NaN, if there is no such value."""
    u, d = _step({name: x.double() for name, x in state.items()}, last)
    moment = state["exp_avg" if last.settings.is_adam else "momentum_buffer"]
    subnormal = _SUBNORMAL * (1 if d is None else 1 + 1 / d)
    error = u.abs() * _STEP + torch.where(moment != 0, subnormal, 0.0) + (w.double().abs() + u.abs()) * 2.0**-50
    low, high = _rounded_from(w, w)
    low, high = _inwards(low - u - error, high - u + error)
    decay = last.lr * last.settings.decoupled_decay
    if not decay:
        return low, high
    c = 1 - decay
    factors = (c, float(torch.tensor(c, dtype=torch.float32)))
    smaller, larger = min(factors) - decay * 2.0**-22, max(factors) + decay * 2.0**-22
    low, high = _rounded_from(low, high)
    return _inwards(torch.minimum(low / smaller, low / larger), torch.maximum(high / smaller, high / larger))


def _rounded_from(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest number that is rounded to ``low``, and the largest rounded to ``high``, in float64."""
    infinity = torch.full((), float("inf"), device=low.device)
    below, above = torch.nextafter(low, -infinity), torch.nextafter(high, infinity)
    return (low.double() + below.double()) / 2, (high.double() + above.double()) / 2


def _inwards(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest float32 number that is not below ``low``, and the largest that is not above ``high``."""
    infinity = torch.full((), float("inf"), device=low.device)
    one, other = low.float(), high.float()
    one = torch.where(one.double() < low, torch.nextafter(one, infinity), one)
    other = torch.where(other.double() > high, torch.nextafter(other, -infinity), other)
    return one, other


def may_have_changed_fused(w: Tensor, state: dict[str, Tensor], last: LastUpdate) -> Tensor:
    """Return which bfloat16 values w may have come from another value, under torch's fused arithmetic.

    It computes in float32 from moments that are rounded to bfloat16 only when they are stored, so that the step is
    known to within 0.6%.
    """
    s = last.settings
    smallest, largest = _fused_step(state, last)
    c = 1 - last.lr * s.decoupled_decay
    x = w.float()
    below, above = (y.float() for y in neighbours(w))
    slack = (x.abs() + torch.maximum(smallest.abs(), largest.abs())) * 2.0**-21
    not_from_above = above * c + smallest > (x + above) / 2 + slack
    not_from_below = below * c + largest < (x + below) / 2 - slack
    return ~(not_from_above & not_from_below)


def _fused_step(state: dict[str, Tensor], last: LastUpdate) -> tuple[Tensor, Tensor]:
    """Bound the step by the moments that may have been rounded to those that are stored; 0 if the first is 0."""
    s = last.settings
    stored = state["exp_avg" if s.is_adam else "momentum_buffer"]
    ends = [x * (stored != 0) for x in _unrounded(stored)]
    rate = -last.lr
    if s.is_adam:
        b1, b2 = s.betas
        rate /= 1 - b1**last.step
        v = _unrounded(state["max_exp_avg_sq" if s.amsgrad else "exp_avg_sq"])
        denominators = [x.clamp_(0).sqrt_().div_((1 - b2**last.step) ** 0.5).add_(s.eps) for x in v]
        ends = [x / d for x in ends for d in denominators]
    ends = [x.mul_(rate) for x in ends]
    smallest, largest = functools.reduce(torch.minimum, ends), functools.reduce(torch.maximum, ends)
    width = torch.maximum(smallest.abs(), largest.abs()).mul_(_STEP)
    return smallest - width, largest + width


def _unrounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest float32 number that is rounded to a value of bfloat16."""
    return tuple((x.float() + y.float()) / 2 for y in neighbours(x))  # type: ignore[return-value]
