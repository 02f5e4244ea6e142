"""Find the bfloat16 values that may have changed, by updating their neighbours with torch's own operations.

Rounding is monotone, and so is each operation of an update as a function of the weight: an update maps neighbours to
neighbours, or to the same value. If the next value below the new value w, the next above it, and w itself are all
updated, and only w becomes w, then the old value was w. In every other case it may have been another one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deadtok_xr.replay import arithmetic
from deadtok_xr.undo.last_update import LastUpdate


def may_have_changed(w: Tensor, state: dict[str, Tensor], last: LastUpdate) -> Tensor:
    """Return which values w may have come from another value."""
    s = last.settings

    def stays(x: Tensor) -> Tensor:
        after = arithmetic.update(s.arithmetic, s, last.step, last.lr, {"W": x}, state)
        return after.view(torch.int16) == w.view(torch.int16)

    below, above = neighbours(w)
    return ~stays(w) | stays(below) | stays(above)


def neighbours(w: Tensor) -> tuple[Tensor, Tensor]:
    """Return the next smaller and the next larger values, by their bits; those of infinity may be NaN."""
    bits = w.view(torch.int16)
    order = bits ^ ((bits >> 15) & 0x7FFF)  # integers in the order of the values: -0 is -1, and +0 is 0
    below, above = order - 1 - (order == 0).short(), order + 1 + (order == -1).short()
    return (_value(below).view(w.dtype), _value(above).view(w.dtype))


def _value(order: Tensor) -> Tensor:
    return order ^ ((order >> 15) & 0x7FFF)
