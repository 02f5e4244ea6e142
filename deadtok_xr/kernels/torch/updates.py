"""Count what one update of an optimizer does to the elements of a parameter: see numba's module."""

from __future__ import annotations

import torch
from torch import Tensor

from deadtok_xr.kernels import Lattice, OptimizerUpdate
from deadtok_xr.kernels.updates import LOWEST, N_BINS


def count_update(update: OptimizerUpdate, lattice: Lattice, out: dict[str, Tensor]) -> None:
    """Add a tile to ``out``, tensors on the device of the tile, without waiting for the device."""
    w0, w1, g, u = update[:4]
    step = w1.double() - w0.double()
    finite = step.isfinite()
    moved = (step != 0) & finite
    unknown = ~finite | (~moved & u.isnan())
    no_gradient = finite & ~moved & (u == 0) & (g == 0)
    visible = finite & (w0.bfloat16() != w1.bfloat16())
    n_moved, n_none, n_unknown, n_visible = (x.count_nonzero() for x in (moved, no_gradient, unknown, visible))
    n_stalled = torch.zeros_like(n_moved)
    if update.has_second:
        square = update.decayed.double().square()
        stalled = (update.second_before == update.second_after) & (square != update.second_before.double())
        n_stalled = (stalled & ~square.isnan()).count_nonzero()
    n_rounded = w0.numel() - n_moved - n_none - n_unknown
    out["counts"] += torch.stack([n_moved, n_rounded, n_none, n_unknown, n_visible, n_stalled])
    out["squares"] += torch.stack([x.double().square().sum() for x in (w1, g, u, step)])
    out["margins"] += _margins(w0, u, lattice)


def _margins(w: Tensor, u: Tensor, lattice: Lattice) -> Tensor:
    """Count the updates that are not 0 by floor(log2(|u| / half gap)), a difference of exponents."""
    magnitude = w.view(torch.int32) & 0x7FFFFFFF
    inward = ((u < 0) & (w > 0)) | ((u > 0) & (w < 0))
    # the exponent of the gap on the side of u: below a power of two it is that of the next smaller number
    exponent = ((magnitude - inward.int()) >> 23).clamp_(min=lattice.smallest)
    margin = ((u.view(torch.int64) >> 52) & 0x7FF) - 1023 - exponent + lattice.ulp_offset + 1
    bins = (margin - LOWEST).clamp_(0, N_BINS - 1).to(torch.int8)
    bins[(u == 0) | ~u.isfinite()] = N_BINS  # counted in no bin
    # one comparison per bin: torch's histograms wait for the device, or are not deterministic
    at_least = torch.stack([(bins >= k).count_nonzero() for k in range(N_BINS + 1)])
    return at_least[:-1] - at_least[1:]
