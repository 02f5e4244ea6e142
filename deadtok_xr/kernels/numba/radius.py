"""Compute the mean distance of the tokens from the origin, mean ‖W‖₂, and count the tokens that moved."""

from __future__ import annotations

import numpy as np

from deadtok_xr.kernels.numba.bit_words import to_float64
from deadtok_xr.kernels.numba.jit import compiled, inner, inner_sums


@compiled
def radius(steps, changed, norms, mean, n_moved, n_valid):
    """Fill in the steps of a block and the transitions between them.

    Parameters
    ----------
    steps
        Floats or bfloat16 words (t + 1, n, d).
    changed
        Which rows differ from the step before, (t, n).
    norms
        ‖W‖₂ of each row at the first step, (n,); updated to those of the last. Negative where it is not known yet.
    mean
        Filled with the mean of the norms, for all steps or all but the last; NaN where a norm is not finite.
    n_moved, n_valid
        Filled, (t,): the number of tokens of which a value changed, and of those that are finite at both steps.
    """
    for n in range(len(norms)):
        if norms[n] < 0:
            norms[n] = _norm(steps, 0, n)
    for t in range(steps.shape[0]):
        if t > 0:
            n_moved[t - 1], n_valid[t - 1] = _take_step(steps, t, changed[t - 1], norms)
        if t < len(mean):
            mean[t] = _mean(norms)


@inner
def _take_step(steps, t, changed, norms):
    """Update the norms to step t; return how many tokens moved, and how many are finite before and after."""
    valid = len(norms)
    moved = 0
    for n in range(len(norms)):
        before = norms[n]
        if changed[n]:
            norms[n] = _norm(steps, t, n)
        if not (np.isfinite(before) and np.isfinite(norms[n])):
            valid -= 1
        elif changed[n]:
            moved += _differ(steps, t, n)
    return moved, valid


@inner_sums
def _norm(steps, t, n):
    squares = 0.0
    for d in range(steps.shape[2]):
        squares += to_float64(steps[t, n, d]) * to_float64(steps[t, n, d])
    return np.sqrt(squares)


@inner
def _mean(norms):
    total = 0.0
    for norm in norms:
        total += norm
    return total / len(norms) if np.isfinite(total) else np.nan


@inner
def _differ(steps, t, n):
    """Return whether a value of the row differs from the step before; -0 and +0 are equal."""
    for d in range(steps.shape[2]):
        if to_float64(steps[t, n, d]) != to_float64(steps[t - 1, n, d]):
            return True
    return False
