"""One pass over a recording: everything that is asked of it together, at one decoding of each chunk.

A *row* is all chunks of the same steps. One task goes through it in *pieces* of a few steps, which stay in the cache
while every *probe* looks at them. What the probes keep is small; the decoded values are never held whole.
"""

from deadtok_xr.engine.analysis import Analysis, analysis
from deadtok_xr.engine.batches import Field, Piece, Row, room
from deadtok_xr.engine.graph import Findings, Plan, folded, run
from deadtok_xr.engine.reduction import Block, Look, OfOne, Probe

__all__ = [
    "Analysis", "Block", "Field", "Findings", "Look", "OfOne", "Piece", "Plan", "Probe", "Row", "analysis", "folded",
    "room", "run",
]  # fmt: skip
