"""Classify why each element moved or did not, by comparison with its replayed update: see numba's module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deadtok_xr.kernels import Lattice, ReplayedUpdate
from deadtok_xr.kernels.torch.parts import with_device_lock

NO_GRADIENT, ROUNDED, MOVED, UNKNOWN = 0, 1, 2, 3
_FAR = 8
Array = Any


@with_device_lock
def mechanism(before: Tensor, after: Tensor, update: ReplayedUpdate, lattice: Lattice, out: dict[str, Array]) -> None:
    """Fill ``out`` with one transition of a block of tokens, as numba's kernel does.

    ``before``, ``after`` and the update are tensors (n, d) on a device, ``out`` arrays.
    """
    g, u = update.gradient, update.intended
    usable = before.isfinite() & after.isfinite()
    finite, known = usable.all(dim=1), ~u.isnan()
    a, b = before.double(), after.double()
    step, x = torch.where(usable, b - a, 0), torch.where(usable, u, 0)
    moved, replayed = step != 0, usable & known
    compared = replayed & ~update.predicted.isnan() if update.has_prediction else torch.zeros_like(usable)
    equal = compared & (update.predicted.view(torch.int32) == after.view(torch.int32))
    unknown = ~known | (compared & (update.predicted != before))
    unknown |= g.isnan() if update.has_gradient else x == 0
    rounded = (x != 0) | (g != 0) if update.has_gradient else x != 0
    kinds = _kinds(usable, moved, unknown, rounded)
    power, half_gaps = _half_gaps(before, a, x, lattice)
    power &= usable
    far = replayed & (half_gaps > _FAR)
    square = x.square()
    masks = (*kinds[:3], kinds[3] | ~usable, compared, equal, compared & moved, equal & moved, power)
    out["counts"] += torch.stack([mask.sum() for mask in masks]).cpu().numpy()
    terms = ((replayed, square), (usable, step.square()), (far, step * x), (far, square))
    out["sums"] += torch.stack([torch.where(mask, term, 0).sum() for mask, term in terms]).cpu().numpy()
    out["net"][:, 0] += torch.where(usable, x, torch.nan).cpu().numpy()  # a sum without it would look complete
    out["net"][:, 1] += torch.where(usable, step, torch.nan).cpu().numpy()
    out["margin"][:] = torch.where(finite, half_gaps.amax(1), torch.nan).cpu().numpy()
    out["length"][:] = torch.where(finite, square.sum(1).sqrt(), torch.nan).cpu().numpy()
    out["cause"][:] = _causes(kinds, finite).cpu().numpy()


def _kinds(usable: Tensor, moved: Tensor, unknown: Tensor, rounded: Tensor) -> list[Tensor]:
    """Return the elements of each class, in the order of the classes."""
    still = usable & ~moved
    return [still & ~unknown & ~rounded, still & ~unknown & rounded, usable & moved, still & unknown]


def _half_gaps(before: Tensor, a: Tensor, x: Tensor, lattice: Lattice) -> tuple[Tensor, Tensor]:
    """Return which weights are powers of two, and |x| in half gaps of the grid on the side to which x points."""
    magnitude = before.view(torch.int32) & 0x7FFFFFFF
    power = ((magnitude & 0x7FFFFF) == 0) & (magnitude != 0)
    e = (magnitude >> 23).clamp(min=lattice.smallest)
    inward = ((x < 0) & (a > 0)) | ((x > 0) & (a < 0))
    e = e - (power & inward & (e > lattice.smallest)).to(torch.int32)  # below a power of two the gap is half as wide
    # 2^(ulp_offset + 1 - e), made from its exponent field
    scale = ((1023 + lattice.ulp_offset + 1 - e).long() << 52).view(torch.float64)
    return power, x.abs() * scale


def _causes(kinds: list[Tensor], finite: Tensor) -> Tensor:
    """Return the class of each token from those of its elements."""
    rounded, moved, unknown = (kinds[k].any(dim=1) for k in (ROUNDED, MOVED, UNKNOWN))
    still = torch.where(rounded, ROUNDED, torch.where(unknown, UNKNOWN, NO_GRADIENT))
    return torch.where(finite, torch.where(moved, MOVED, still), UNKNOWN).to(torch.int8)


@with_device_lock
def same(found: Tensor, recorded: Tensor) -> tuple[int, int]:
    """Count the float32 elements that are equal bit for bit, and those that can be compared (that are not NaN)."""
    known = ~(found.isnan() | recorded.isnan())
    equal = known & (found.view(torch.int32) == recorded.view(torch.int32))
    return int(equal.sum()), int(known.sum())


@with_device_lock
def stalled(before: Tensor, after: Tensor, g: Tensor) -> tuple[int, int]:
    """Count second moments (n,) that kept their bits although g² differs from them, and those that can be compared."""
    square = g.double().square()
    known = ~(before.isnan() | square.isnan())
    return int((known & (before == after) & (square != before.double())).sum()), int(known.sum())
