"""Sums over the elements of a parameter, and the checksum that proves a prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from deadtok_xr import kernels
from deadtok_xr.kernels.updates import COUNTS, N_BINS, SQUARES
from deadtok_xr.monitor import tiles

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from deadtok_xr.monitor.predict import Prediction


INTS = (len(COUNTS), N_BINS, 3, 2, 2)
FLOATS = (len(SQUARES), 2)
"""The columns of the tables of sums: see the attributes of `Sums`."""


def tables(n: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Return zeros for the `Sums` of n parameters, int64 and float64, a row each."""
    import torch

    return (
        torch.zeros(n, sum(INTS), dtype=torch.int64, device=device),
        torch.zeros(n, sum(FLOATS), dtype=torch.float64, device=device),
    )


class Sums:
    """The sums over a parameter's elements at one update, on its device, without waiting for it.

    Parameters
    ----------
    ints, floats
        A row of each of `tables`, which this is a view of.

    Attributes
    ----------
    counts, squares, margins
        Of the predicted update: see `deadtok_xr.kernels.updates`.
    compared, compared_squares
        Of the update that was made, from copies: see `compare`.
    predicted, found
        The `checksum` of the weights after the update, as predicted and as they are.
    """

    def __init__(self, ints: Tensor, floats: Tensor) -> None:
        self._rows = ints, floats
        self.counts, self.margins, self.compared, self.predicted, self.found = ints.split(INTS)
        self.squares, self.compared_squares = floats.split(FLOATS)

    def out(self) -> dict[str, Tensor]:
        """Return what the kernels add to."""
        return {"counts": self.counts, "squares": self.squares, "margins": self.margins}

    def add_without_update(self, before: Tensor) -> None:
        """Add a tile that the optimizer skips, because there is no gradient."""
        self.counts[COUNTS.index("no_gradient")] += before.numel()
        self.squares[SQUARES.index("weights")] += before.double().square().sum()
        self.predicted += checksum(before)

    def merge(self, other: Sums) -> None:
        """Add the sums of other elements."""
        for mine, more in zip(self._rows, other._rows, strict=True):
            mine += more


def add_updates(sums: Sequence[Sums], p: Prediction, sizes: Sequence[int]) -> None:
    """Add the predicted update of parameters' elements, which lie one after the other."""
    lattice = kernels.lattice(str(p.before.dtype).removeprefix("torch."))
    w = p.before.float()
    on_cpu = tiles.on_cpu(w)
    argument: Any = (lambda x: x.float().numpy()) if on_cpu else (lambda x: x.float())
    intended: Any = p.intended.numpy() if on_cpu else p.intended
    v0, v1 = (w, w) if p.second is None else p.second
    update = kernels.OptimizerUpdate(
        argument(w), argument(p.after), argument(p.gradient), intended,
        p.second is not None, argument(v0), argument(v1), argument(p.decayed),
    )  # fmt: skip
    engine, outs = kernels.engine("updates", not on_cpu), [each.out() for each in sums]
    if on_cpu:
        (out,) = outs  # one parameter at a time
        engine.count_update(update, lattice, {name: x.numpy() for name, x in out.items()})
    else:
        engine.count_updates(update, lattice, outs, sizes)
    for each, after in zip(sums, p.after.split(sizes), strict=True):
        each.predicted += checksum(after)


def checksum(x: Tensor) -> Tensor:
    """Return two sums over the bits of a flat tensor, modulo 2^64: of its 64-bit words, and of their squares.

    Two elements that differ from what was predicted may cancel in the first sum, but then not in the second.
    """
    import torch

    per_word = 8 // x.element_size()
    if x.numel() % per_word or x.storage_offset() % per_word:
        x = torch.nn.functional.pad(x, (0, -x.numel() % per_word)).clone()
    words = x.view(torch.int64)
    return torch.stack([words.sum(), words.square().sum()])


def compare(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Compare the weights of a tile with a copy from before the update.

    Returns
    -------
    Counts of the elements that moved, are not finite, and changed as bfloat16; sums Σ W[t]² and Σ ΔW².
    """
    import torch

    w0, w1 = before.double(), after.double()
    step = w1 - w0
    finite = step.isfinite()
    moved, visible = finite & (step != 0), finite & (before.bfloat16() != after.bfloat16())
    counts = torch.stack([x.count_nonzero() for x in (moved, ~finite, visible)])
    return counts, torch.stack([w1.square().sum(), step.square().sum()])
