"""Which rows changed from step to step."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deadtok_xr.kernels.torch.parts import bits, run_in_parts, steps_per_tile, with_device_lock


@with_device_lock
def changed_rows(steps: Tensor) -> NDArray[np.bool_]:
    """Find the rows of steps (t + 1, n, d) that differ in a bit from the step before: bool (t, n)."""
    words = _wide(steps)
    out = np.empty((len(words) - 1, words.shape[1]), np.bool_)

    def work(part: slice) -> None:
        differ = words[part.start + 1 : part.stop + 1] != words[part]
        out[part] = differ.any(dim=-1).cpu().numpy()

    run_in_parts(len(out), steps_per_tile(words, 2**28), work)
    return out


def _wide(steps: Tensor) -> Tensor:
    """Return bits in as few integers as possible."""
    x = bits(steps)
    return x.view(torch.int64) if x.shape[2] % (8 // x.element_size()) == 0 else x
