"""One pass over a recording: all requested reductions are computed together, and each chunk is decoded once.

A block is usually all chunks of the same steps. One task processes it in batches of a few steps, which stay in the
cache while the accumulator of every reduction takes them. Accumulators keep little, and the decoded values of a block
are never all in memory.

In: lazy arrays (step, token, dim) and reductions. Out: lazy arrays of the outputs of the reductions, and tasks that
write them. It imports `store`, `kernels` and the packages below these; analyses import it.
"""

from deadtok_xr.engine.batches import Batch, StepBlock
from deadtok_xr.engine.block_pass import ReductionResults
from deadtok_xr.engine.cost import TORCH, Cost, PassCost, Sizes
from deadtok_xr.engine.output import Output
from deadtok_xr.engine.reduction import (
    Accumulator,
    BlockResult,
    OutputAccumulator,
    Reduction,
    SingleVariable,
    allocate_outputs,
)
from deadtok_xr.engine.scan import fold
from deadtok_xr.engine.spec import AnalysisSpec, pass_cost, run

__all__ = [
    "TORCH", "Accumulator", "AnalysisSpec", "Batch", "BlockResult", "Cost", "Output", "OutputAccumulator", "PassCost",
    "Reduction", "ReductionResults", "SingleVariable", "Sizes", "StepBlock", "allocate_outputs", "fold", "pass_cost",
    "run",
]  # fmt: skip
