"""What the kernels `count_update` of both engines count: names, and the bins of margins."""

from __future__ import annotations

COUNTS = ("moved", "rounded_to_zero", "no_gradient", "unknown", "visible", "stalled")
"""Elements (int64), in this order. The first four are all elements; visible: the value as bfloat16 changed; stalled:
the second moment kept its value although g² differs from it."""
SQUARES = ("weights", "gradients", "updates", "steps")
"""Σ W[t]², Σ g², Σ u² and Σ ΔW² (float64), in this order."""
LOWEST, HIGHEST = -24, 24
"""The first and the last bin of ``margins``: floor(log2(|u| / half gap)) of the updates that are not 0, int64. Smaller
and larger ones are counted in them."""
N_BINS = HIGHEST - LOWEST + 1
