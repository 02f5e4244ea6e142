"""Find the first and the last motion of each row within a chunk."""

from __future__ import annotations

from deadtok_xr.kernels.numba.changes import same_row
from deadtok_xr.kernels.numba.jit import compiled


@compiled
def motion_bounds(steps, out):
    """Find the first and the last step at which each row changes.

    Parameters
    ----------
    steps
        Words (t, n, d).
    out
        Filled, (2, n): the steps; 0 for none.
    """
    T = steps.shape[0]
    for n in range(steps.shape[1]):
        first = 0
        for t in range(1, T):
            if not same_row(steps, t - 1, steps, t, n):
                first = t
                break
        last = first
        if first:
            for t in range(T - 1, first, -1):
                if not same_row(steps, t - 1, steps, t, n):
                    last = t
                    break
        out[0, n] = first
        out[1, n] = last
