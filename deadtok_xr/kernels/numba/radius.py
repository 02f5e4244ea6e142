"""The mean distance of the tokens from the origin, and how many of them moved."""

from __future__ import annotations

import numpy as np

from deadtok_xr.kernels.numba.jit import compiled, compiled_sums


@compiled
def radius(steps, changed, norms, mean, n_moved, n_valid):
    """Fill in what floats (t + 1, n, d) and the transitions between them are like.

    Parameters
    ----------
    changed
        Which rows differ from the step before, (t, n).
    norms
        ‖W‖₂ of each row at the first step, (n,); updated to those of the last. A negative one is not known yet.
    mean
        Filled with the mean of the norms, for all the steps or all but the last; NaN where one is not finite.
    n_moved, n_valid
        (t,): the tokens of which a value changed, and those that are finite at both steps.
    """
    N = steps.shape[1]
    for n in range(N):
        if norms[n] < 0:
            norms[n] = _norm(steps, 0, n)
    total = _sum(norms)
    for t in range(steps.shape[0]):
        if t > 0:
            valid = N
            moved = 0
            for n in range(N):
                before = norms[n]
                if changed[t - 1, n]:
                    norms[n] = _norm(steps, t, n)
                if not (np.isfinite(before) and np.isfinite(norms[n])):
                    valid -= 1
                elif changed[t - 1, n]:
                    moved += _differ(steps, t, n)
            n_moved[t - 1], n_valid[t - 1] = moved, valid
            total = _sum(norms)
        if t < len(mean):
            mean[t] = total / N if np.isfinite(total) else np.nan


@compiled_sums
def _norm(steps, t, n):
    squares = 0.0
    for d in range(steps.shape[2]):
        squares += np.float64(steps[t, n, d]) * np.float64(steps[t, n, d])
    return np.sqrt(squares)


@compiled
def _sum(norms):
    total = 0.0
    for n in range(len(norms)):
        total += norms[n]
    return total


@compiled
def _differ(steps, t, n):
    for d in range(steps.shape[2]):
        if steps[t, n, d] != steps[t - 1, n, d]:
            return True
    return False
