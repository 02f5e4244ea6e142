"""Replay recorded optimizer updates with torch's arithmetic, and find out which arithmetic torch used.

In: tensors of W, gradients and moments at two steps, and the optimizer's settings. Out: W after the update, and how
many elements agree with the recorded W bit for bit. It imports `bfloat16` and `errors`.

settings       the update rule, its hyperparameters, and torch's implementation flags
arithmetic     the update rules, operation by operation
compare        every arithmetic that is possible, compared with the recorded update
"""

from deadtok_xr.replay.compare import check
from deadtok_xr.replay.settings import Settings

__all__ = ["Settings", "check"]
