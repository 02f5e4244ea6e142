"""Find when each token moved for the last time, for `freeze_predictors` and `token_indicators`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.engine import Batch, Cost, Output, SingleVariable, Sizes, StepBlock

NEVER, INVALID = -1, np.iinfo(np.int64).max
"""Instead of a label: the token never moved, and it holds NaN or infinity at a step."""


@dataclass(frozen=True)
class LastMotion(SingleVariable):
    """The reduction that finds the label of the last motion of each token.

    Attributes
    ----------
    steps
        The labels of the steps.
    """

    steps: NDArray[np.int64]

    def outputs(self) -> dict[str, Output]:
        """Return `moved` per block, labels of steps (token,), `NEVER` or `INVALID`; merge them by `np.maximum`."""
        return {"moved": Output(at="block")}

    def start(self, block: StepBlock) -> _Accumulator:
        """Return an accumulator for a block."""
        return _Accumulator(self, block)

    def cost(self, sizes: Sizes) -> Cost:
        """Return what it costs."""
        return Cost(0.5e-9 * sizes.moved, kept=3 * 8 * sizes.tokens)


class _Accumulator:
    def __init__(self, reduction: LastMotion, block: StepBlock) -> None:
        self.name, self.labels = reduction.variable, reduction.steps[block.later]
        self.moved = np.full(block.n_tokens, NEVER)

    def update(self, batch: Batch) -> None:
        from deadtok_xr.kernels.numba import last_motion

        labels = self.labels[batch.start : batch.start + batch.n_transitions]
        last_motion(batch.readable(self.name), batch.changed(self.name), labels, INVALID, self.moved)

    def result(self) -> dict[str, Any]:
        return {"moved": self.moved}
