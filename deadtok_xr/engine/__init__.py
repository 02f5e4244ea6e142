"""One pass over a recording: everything that is asked of it together, at one decoding of each chunk.

A block is mostly all chunks of the same steps. One task goes through it in batches of a few steps, which stay in the
cache while the accumulator of every reduction takes them. What these keep is small; decoded values are never held
whole.

In: lazy arrays (step, token, dim) and reductions. Out: lazy arrays of what the reductions find, and tasks that write
them. It imports `store`, `kernels` and what lies below these; analyses import it.
"""

from deadtok_xr.engine.batches import Batch, StepBlock
from deadtok_xr.engine.block_pass import ReductionResults
from deadtok_xr.engine.output import Output
from deadtok_xr.engine.reduction import Accumulator, BlockResult, Reduction, SingleVariable, allocate_outputs
from deadtok_xr.engine.scan import fold
from deadtok_xr.engine.spec import AnalysisSpec, run

__all__ = [
    "Accumulator", "AnalysisSpec", "Batch", "BlockResult", "Output", "Reduction", "ReductionResults",
    "SingleVariable", "StepBlock", "allocate_outputs", "fold", "run",
]  # fmt: skip
