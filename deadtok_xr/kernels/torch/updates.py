"""Count what one update of an optimizer does to the elements of parameters: see numba's module.

On a GPU a small parameter takes as long as the launches of its operations. Parameters therefore lie one after the other
in a tensor, ``sizes`` says how many elements each has, and results have a row for each. Nothing waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from deadtok_xr.kernels import Lattice, OptimizerUpdate
from deadtok_xr.kernels.torch.parts import bits
from deadtok_xr.kernels.updates import LOWEST, N_BINS

_APART = 32
"""Counts of each bin, which are added up at the end."""


def count_updates(update: OptimizerUpdate, lattice: Lattice, sizes: Sequence[int]) -> dict[str, Tensor]:
    """Return counts, margins and squares of each parameter, see `deadtok_xr.kernels.updates`."""
    after = update.after.double()
    step = after - update.before.double()
    bins = _bins(update.before, update.intended, lattice)
    return {
        "counts": sums(_flags(update, step), sizes),
        "margins": _histograms(bins, sizes),
        "squares": squares([after, update.gradient, update.intended, step], sizes),
    }


def count_changes(before: Tensor, after: Tensor, sizes: Sequence[int]) -> dict[str, Tensor]:
    """Return counts of each parameter's elements that moved, are not finite, changed as bfloat16; Σ W[t]² and Σ ΔW²."""
    step = after.double() - before.double()
    finite = step.isfinite()
    flags = [finite & (step != 0), ~finite, finite & (before.bfloat16() != after.bfloat16())]
    return {"counts": sums(torch.stack(flags), sizes), "squares": squares([after, step], sizes)}


def checksums(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return two sums over the bits of each parameter, modulo 2^64: of its elements' bits, and of their squares.

    Two elements that are not as predicted may cancel in the first sum, but then not in the second.
    """
    words = bits(x).long()
    return sums(torch.stack([words, words.square()]), sizes)


def sums(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """Sum rows of booleans or int64 (k, n) over the elements of each parameter: int64 (parameters, k)."""
    if len(sizes) == 1:
        return x.sum(1, keepdim=True).T
    # differences of cumulative sums, exact modulo 2^64; torch adds up one long row much faster than several
    rows = torch.arange(len(x), device=x.device)[:, None] * x.shape[1]
    at = (rows + _ends(sizes, x.device) - 1).flatten()
    up_to = x.flatten().cumsum(0, dtype=torch.int32 if x.dtype == torch.bool else torch.int64)[at].long()
    return up_to.diff(prepend=up_to.new_zeros(1)).view(len(x), -1).T


def squares(rows: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """Sum the squares of rows of n over the elements of each parameter: float64 (parameters, rows)."""
    found = torch.stack([x.double() for x in rows]).square_()
    return torch.stack([x.sum(1) for x in found.split(list(sizes), 1)])


def of_elements(values: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return a value (parameters) of each parameter for each of its elements."""
    if len(sizes) == 1:
        return values.expand(sizes[0])
    elements = torch.arange(sum(sizes), device=values.device)
    return values[torch.bucketize(elements, _ends(sizes, values.device), right=True)]


def _ends(sizes: Sequence[int], device: torch.device) -> Tensor:
    """Return where each parameter ends, copied to the device without waiting for it."""
    ends = torch.tensor(sizes).cumsum(0)
    return (ends.pin_memory() if device.type == "cuda" else ends).to(device, non_blocking=True)


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
    bins = margin.add_(lattice.ulp_offset + 1 - 1023 - LOWEST).clamp_(0, N_BINS - 1)
    size = u.abs()
    return bins.masked_fill_(~((size > 0) & (size < math.inf)), N_BINS)


def _histograms(bins: Tensor, sizes: Sequence[int]) -> Tensor:
    """Count the bins of each parameter: torch's histograms wait for the device, or are not deterministic."""
    # several counts of each bin, since a device adds to the same place one after the other
    elements = torch.arange(len(bins), device=bins.device)
    first = torch.arange(len(sizes), device=bins.device) * _APART
    row = of_elements(first, sizes) + elements % _APART
    found = bins.new_zeros(len(sizes) * _APART * (N_BINS + 1))
    found.scatter_add_(0, row * (N_BINS + 1) + bins, bins.new_ones(()).expand(len(bins)))
    return found.view(len(sizes), _APART, N_BINS + 1)[..., :N_BINS].sum(1)
