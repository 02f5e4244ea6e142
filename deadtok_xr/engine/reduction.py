"""The protocol of reductions, which compute outputs from a recording, block of steps by block of steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.engine.batches import Batch, StepBlock
from deadtok_xr.engine.cost import Cost, Sizes
from deadtok_xr.engine.output import Output

BlockResult = dict[str, Any]
"""The results of a reduction for a block, by output."""


class Accumulator(Protocol):
    """The state of a reduction while it processes one block."""

    def update(self, batch: Batch) -> None:
        """Take the next steps; called for all batches of the block in order."""
        ...

    def result(self) -> BlockResult:
        """Return every output of the reduction for the block."""
        ...


class Reduction(Protocol):
    """A computation on a recording, block by block. A frozen dataclass: reductions with equal options are equal.

    One whose attribute ``looks_ahead`` is true gets a last batch with the two steps after each block, if there are as
    many: what it measures of two consecutive transitions then needs no step of the block before.
    """

    @property
    def matrices(self) -> tuple[str, ...]:
        """The variables (step, token, dim) that it reads."""
        ...

    def outputs(self) -> Mapping[str, Output]:
        """Return its outputs by name."""
        ...

    def start(self, block: StepBlock) -> Accumulator:
        """Return an accumulator for a block."""
        ...

    def cost(self, sizes: Sizes) -> Cost:
        """Return what it costs."""
        ...


@dataclass(frozen=True)
class SingleVariable:
    """What reductions of one variable have in common; their own options follow."""

    variable: str

    @property
    def matrices(self) -> tuple[str, ...]:
        """The variable."""
        return (self.variable,)


R = TypeVar("R", bound=Reduction)


class OutputAccumulator(Generic[R]):
    """An accumulator that fills an array for each output of its reduction; `update` is left to its subclasses."""

    def __init__(self, reduction: R, block: StepBlock) -> None:
        self.reduction, self.out = reduction, allocate_outputs(reduction.outputs(), block)

    def slices(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """Return the parts of the outputs that belong to a batch."""
        return batch.slices(self.out, self.reduction.outputs())

    def result(self) -> BlockResult:
        """Return the outputs."""
        return self.out


def allocate_outputs(outputs: Mapping[str, Output], block: StepBlock) -> dict[str, NDArray[Any]]:
    """Return arrays of zeros for the states and transitions of a block; memory is used only where values are set."""
    lengths = {"states": block.n_states, "transitions": block.n_transitions}
    return {
        name: np.zeros((lengths[o.at], *o.inner_shape(block.n_tokens, block.n_dims)), o.base)
        for name, o in outputs.items()
        if o.at in lengths
    }
