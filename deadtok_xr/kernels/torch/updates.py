"""Count what one update of an optimizer does to the elements of parameters: see numba's module."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from deadtok_xr.kernels import Lattice, OptimizerUpdate
from deadtok_xr.kernels.updates import LOWEST, N_BINS

_COMPARISONS = 2**25
"""Elements times bins that are compared at once, each a byte."""


def count_update(update: OptimizerUpdate, lattice: Lattice, out: dict[str, Tensor]) -> None:
    """Add a tile to ``out``, tensors on the device of the tile, without waiting for the device."""
    count_updates(update, lattice, [out], [len(update.before)])


def count_updates(
    update: OptimizerUpdate, lattice: Lattice, outs: Sequence[dict[str, Tensor]], sizes: Sequence[int]
) -> None:
    """Add the elements of several parameters, which lie one after the other, each to its own ``out``.

    On a GPU a small parameter takes as long as the launches of its operations, so all but the last sums are made of
    all parameters together.
    """
    after = update.after.double()
    step = after - update.before.double()
    flags = _flags(update, step)
    squares = torch.stack([after, update.gradient.double(), update.intended, step]).square()
    bins = _bins(update.before, update.intended, lattice)
    for out, f, s, b in zip(outs, flags.split(sizes, 1), squares.split(sizes, 1), bins.split(sizes), strict=True):
        out["counts"] += f.sum(1)
        out["squares"] += s.sum(1)
        out["margins"] += _histogram(b)


def _flags(update: OptimizerUpdate, step: Tensor) -> Tensor:
    """Return which elements are counted, (6, n), in the order of `COUNTS`."""
    finite, still = step.abs() < math.inf, step == 0
    touched, nan = torch.logical_or(update.intended, update.gradient), update.intended.isnan()
    visible = finite & (update.before.bfloat16() != update.after.bfloat16())
    stalled = torch.zeros_like(still)
    if update.has_second:
        square, second = update.decayed.double().square(), update.second_before.double()
        stalled = (update.second_before == update.second_after) & ((square < second) | (square > second))
    return torch.stack(
        [finite & ~still, still & touched & ~nan, still & ~touched, ~finite | (still & nan), visible, stalled]
    )


def _bins(w: Tensor, u: Tensor, lattice: Lattice) -> Tensor:
    """Return the bin of each update, floor(log2(|u| / half gap)) from `LOWEST` on; N_BINS if it is 0 or not finite."""
    magnitude, inward = w.view(torch.int32) & 0x7FFFFFFF, u.sign() * w.sign() < 0
    # the exponent of the gap on the side of u: below a power of two it is that of the next smaller number
    exponent = ((magnitude - inward.int()) >> 23).clamp_(min=lattice.smallest)
    margin = ((u.view(torch.int64) >> 52) & 0x7FF) - exponent
    bins = margin.add_(lattice.ulp_offset + 1 - 1023 - LOWEST).clamp_(0, N_BINS - 1).to(torch.int8)
    size = u.abs()
    return bins.masked_fill_(~((size > 0) & (size < math.inf)), N_BINS)


def _histogram(bins: Tensor) -> Tensor:
    """Count each bin by comparisons: torch's histograms wait for the device, or are not deterministic."""
    edges = torch.arange(N_BINS, dtype=torch.int8, device=bins.device)[:, None]
    n = max(1, _COMPARISONS // max(1, len(bins)))
    return torch.cat([(bins == some).sum(1) for some in edges.split(n)])
