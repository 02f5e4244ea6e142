"""Sums over the tiles of a parameter, and the checksum that proves a prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deadtok_xr import kernels
from deadtok_xr.kernels.updates import COUNTS, N_BINS, SQUARES

if TYPE_CHECKING:
    from torch import Tensor

    from deadtok_xr.monitor.predict import Prediction


class Tally:
    """The counts and sums of one parameter at one update, on its device, without waiting for it.

    Attributes
    ----------
    counts, squares, margins
        See `deadtok_xr.kernels.updates`.
    checksum
        The `checksum` of the weights after the update, as predicted.
    """

    def __init__(self, weights: Tensor) -> None:
        import torch

        def zeros(n: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(n, dtype=dtype, device=weights.device)

        self.counts, self.margins, self.checksum = zeros(len(COUNTS)), zeros(N_BINS), zeros(2)
        self.squares = zeros(len(SQUARES), torch.float64)
        self._lattice = kernels.lattice(str(weights.dtype).removeprefix("torch."))
        on_device = weights.device.type != "cpu"
        self._kernel = kernels.engine("updates", on_device).count_update
        self._argument: Any = (lambda x: x) if on_device else (lambda x: x.numpy())
        self._out = {name: self._argument(getattr(self, name)) for name in ("counts", "squares", "margins")}

    def add(self, before: Tensor, p: Prediction) -> None:
        """Add a tile, from its weights before the update and the prediction."""
        w = before.float()
        second = (w, w) if p.second is None else p.second
        w1, g, u, v0, v1, decayed = (
            self._argument(x) for x in (p.after.float(), p.gradient.float(), p.intended, *(x.float() for x in second),
                                        p.decayed.float())
        )  # fmt: skip
        update = kernels.OptimizerUpdate(self._argument(w), w1, g, u, p.second is not None, v0, v1, decayed)
        self._kernel(update, self._lattice, self._out)
        self.checksum += checksum(p.after)

    def add_without_update(self, before: Tensor) -> None:
        """Add a tile that the optimizer skips, because there is no gradient."""
        self.counts[COUNTS.index("no_gradient")] += before.numel()
        self.squares[SQUARES.index("weights")] += before.double().square().sum()
        self.checksum += checksum(before)

    def merge(self, other: Tally) -> None:
        """Add the sums of other tiles."""
        for name in ("counts", "squares", "margins", "checksum"):
            getattr(self, name).add_(getattr(other, name))


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
