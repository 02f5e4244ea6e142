"""Why each element moved, or did not, beside its replayed update."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deadtok_xr.kernels.torch.parts import with_device_lock

NO_GRADIENT, ROUNDED, MOVED, UNKNOWN = 0, 1, 2, 3
INFINITY = 0x7F800000
Array = Any


@with_device_lock
def mechanism(before: Tensor, after: Tensor, predicted: Tensor, has_prediction: bool, g: Tensor, has_gradient: bool,
              u: Tensor, smallest: int, ulp_offset: int, cause: Array, margin: Array, length: Array, net: Array,
              counts: Array, sums: Array) -> None:  # fmt: skip
    """One transition of a block of tokens, as numba's kernel: float32 (n, d) tensors, u float64; arrays to fill."""
    usable = before.isfinite() & after.isfinite()
    finite, known = usable.all(dim=1), ~u.isnan()
    a, b = before.double(), after.double()
    step, x = torch.where(usable, b - a, 0), torch.where(usable, u, 0)
    moved, replayed = step != 0, usable & known
    ahead = replayed & ~predicted.isnan() if has_prediction else torch.zeros_like(usable)
    equal = ahead & (predicted.view(torch.int32) == after.view(torch.int32))
    unknown = ~known | (ahead & (predicted != before))
    unknown |= g.isnan() if has_gradient else x == 0
    rounded = (x != 0) | (g != 0) if has_gradient else x != 0
    kinds = _kinds(usable, moved, unknown, rounded)
    power, gaps = _half_gaps(before, a, x, smallest, ulp_offset)
    power &= usable
    far = replayed & (gaps > 8)  # far enough that rounding is a small part of it
    size = x.square()
    masks = (*kinds[:3], kinds[3] | ~usable, ahead, equal, ahead & moved, equal & moved, power)
    counts += torch.stack([mask.sum() for mask in masks]).cpu().numpy()
    terms = ((replayed, size), (usable, step.square()), (far, step * x), (far, size))
    sums += torch.stack([torch.where(mask, term, 0).sum() for mask, term in terms]).cpu().numpy()
    net[:, 0] += torch.where(usable, x, torch.nan).cpu().numpy()  # a sum without it would pass for the whole
    net[:, 1] += torch.where(usable, step, torch.nan).cpu().numpy()
    margin[:] = torch.where(finite, gaps.amax(1), torch.nan).cpu().numpy()
    length[:] = torch.where(finite, size.sum(1).sqrt(), torch.nan).cpu().numpy()
    cause[:] = _causes(kinds, finite).cpu().numpy()


def _kinds(usable: Tensor, moved: Tensor, unknown: Tensor, rounded: Tensor) -> list[Tensor]:
    """Which elements are of which class, in the order of the classes."""
    still = usable & ~moved
    return [still & ~unknown & ~rounded, still & ~unknown & rounded, usable & moved, still & unknown]


def _half_gaps(before: Tensor, a: Tensor, x: Tensor, smallest: int, ulp_offset: int) -> tuple[Tensor, Tensor]:
    """Which weights are powers of two, and |x| in half gaps of the grid on the side to which x points."""
    magnitude = before.view(torch.int32) & 0x7FFFFFFF
    power = ((magnitude & 0x7FFFFF) == 0) & (magnitude != 0)
    e = (magnitude >> 23).clamp(min=smallest)
    inward = ((x < 0) & (a > 0)) | ((x > 0) & (a < 0))
    e = e - (power & inward & (e > smallest)).to(torch.int32)  # below a power of two the gap is half as wide
    # 2^(ulp_offset + 1 - e), put together from its exponent
    scale = ((1023 + ulp_offset + 1 - e).long() << 52).view(torch.float64)
    return power, x.abs() * scale


def _causes(kinds: list[Tensor], finite: Tensor) -> Tensor:
    """The class of each token by those of its elements."""
    rounded, moved, unknown = (kinds[k].any(dim=1) for k in (ROUNDED, MOVED, UNKNOWN))
    still = torch.where(rounded, ROUNDED, torch.where(unknown, UNKNOWN, NO_GRADIENT))
    return torch.where(finite, torch.where(moved, MOVED, still), UNKNOWN).to(torch.int8)


@with_device_lock
def same(found: Tensor, recorded: Tensor) -> tuple[int, int]:
    """How many float32 elements are equal to the bit, and how many could be compared, being no NaN."""
    known = ~(found.isnan() | recorded.isnan())
    equal = known & (found.view(torch.int32) == recorded.view(torch.int32))
    return int(equal.sum()), int(known.sum())


@with_device_lock
def stalled(before: Tensor, after: Tensor, g: Tensor) -> tuple[int, int]:
    """Second moments that kept their bits although g² differs from them, and how many could be compared; (n,)."""
    square = g.double().square()
    known = ~(before.isnan() | square.isnan())
    return int((known & (before == after) & (square != before.double())).sum()), int(known.sum())
