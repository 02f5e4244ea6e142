"""Measure the indicators at selected steps of a recording, in one pass over it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.analyses.common.token_blocks import HeldTokens
from deadtok_xr.analyses.undertrained import outputs, passes, references
from deadtok_xr.analyses.undertrained.pc1 import FEW_DIMS, SLAB, principal_axis
from deadtok_xr.engine import Batch, Cost, Output, Sizes, StepBlock

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
INDICATORS = (
    "norm", "cosine_distance", "cosine_distance_centered", "cosine_distance_without_pc1", "l2_distance",
)  # fmt: skip
FOUND, DEAD = "found", "dead"


@dataclass(frozen=True)
class Indicators:
    """The reduction that measures all indicators at selected steps.

    Attributes
    ----------
    variable, input_variable
        The output layer, and the input embedding; "" for tied weights.
    at
        Positions of the steps.
    kinds, masks
        References that may show themselves, and masks of their tokens where these are known.
    dead
        Dead tokens, if they are known.
    share
        The share of tokens that are candidates.
    """

    variable: str
    input_variable: str
    at: tuple[int, ...]
    kinds: tuple[str, ...]
    masks: Mask
    dead: Mask | None
    share: float

    @property
    def matrices(self) -> tuple[str, ...]:
        """The variables that it reads."""
        return (self.variable, self.input_variable) if self.input_variable else (self.variable,)

    def outputs(self) -> dict[str, Output]:
        """Return `measured`, one dict per block: by position, the measures for each reference."""
        return {"measured": Output(at="block")}

    def start(self, block: StepBlock) -> _Accumulator:
        """Return an accumulator for a block."""
        return _Accumulator(self)

    def cost(self, sizes: Sizes) -> Cost:
        """Return what it costs."""
        rate = 7e-9 + 0.07e-9 * sizes.dims if sizes.dims <= FEW_DIMS else 35e-9 + 0.03e-9 * sizes.dims
        seconds = (3e-3 + rate * sizes.step) * len(self.at)
        work = 4 * 8 * min(sizes.step, SLAB) + 3 * 8 * sizes.dims**2 + 12 * 8 * sizes.tokens
        return Cost(seconds, temporary=work, kept=50 * sizes.tokens * len(self.at))


class _Accumulator:
    def __init__(self, reduction: Indicators) -> None:
        self.reduction, self.at, self.measured = reduction, set(reduction.at), dict[int, Any]()

    def update(self, batch: Batch) -> None:
        first = batch.block.first + batch.start
        for t in range(batch.n_states):
            if first + t in self.at:
                steps = [batch.values[name][t] for name in self.reduction.matrices]
                self.measured[first + t] = _measure(self.reduction, *steps)

    def result(self) -> dict[str, Any]:
        return {"measured": self.measured}


def _measure(r: Indicators, rows: NDArray[Any], inputs: NDArray[Any] | None = None) -> list[dict[str, Any]]:
    """Return the indicators of a step for each reference: what shows itself, and the dead tokens."""
    blocks = HeldTokens(rows)
    none = np.zeros((0, len(rows)), bool)
    own = {} if inputs is None else {"input": [passes.describe(inputs, 0, none, False, 0.0)]}
    axis = principal_axis(blocks=blocks)
    described = {FOUND: passes.describe(rows, 0, r.masks, "black_hole" in r.kinds, 0.0)}
    if r.dead is not None:
        described[DEAD] = passes.describe(rows, 0, r.dead[None], False, 0.0)
    found = []
    for name, part in described.items():
        kinds, masks = (r.kinds, r.masks) if name == FOUND else ((DEAD,), r.dead[None])  # type: ignore[index]
        reference = references.find([part], blocks=blocks, kinds=kinds, masks=masks, tied=False)
        distances = passes.distances(rows, 0, reference)
        parts = {"output": [part], "references": [reference], "distances": [distances], **own}
        everything = np.ones(len(rows), bool)
        values = outputs.combine(parts, share=r.share, ranked=everything, allowed=everything)
        values["cosine_distance_without_pc1"] = passes.without_axis(rows, 0, reference, axis)
        used = reference["used"]
        found.append(
            {
                "value": np.stack([_without_noise(values[name]) for name in INDICATORS]),
                "candidate": values["candidate"],
                "kind": kinds[used] if used >= 0 else "none",
                "size": int(values["is_reference"].sum()),
            }
        )
    return found


def _without_noise(values: Floats) -> NDArray[np.float32]:
    """Return float32 in which equal rows have equal values."""
    scale = np.max(np.abs(values), initial=0, where=~np.isnan(values)) or 1.0
    return (outputs.without_rounding(values, 0.0)[0] * scale).astype(np.float32)
