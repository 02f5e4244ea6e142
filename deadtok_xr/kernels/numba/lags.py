"""Compute the autocorrelation of a token's velocity: sums over pairs of transitions, by their lag.

With v[t] = W[t+1] - W[t], these are the sums of v[t]·v[t+lag] and of the cosines between the two.
"""

from __future__ import annotations

import numpy as np

from deadtok_xr.kernels.numba.jit import compiled, inner, inner_sums


def lagged(steps, seen, dots, pairs, cosines, n_moved):
    """Sum over the pairs of transitions whose later transition is new.

    Parameters
    ----------
    steps
        (t, n, d), float32 or float64: first the steps whose pairs are counted already, then the new ones.
    seen
        The number of steps that are counted already; 0 at the start.
    dots, pairs
        (n, lags), added to: the sum of v[t]·v[t + lag], which at lag 0 is ‖v[t]‖², and the number of finite pairs.
    cosines, n_moved
        (n, lags), added to: the same for the cosines, over the pairs in which the token moves both times.
    """
    _lagged(steps, max(seen - 1, 0), dots, pairs, cosines, n_moved)


@compiled
def _lagged(steps, first, dots, pairs, cosines, n_moved):
    T, lags = len(steps) - 1, dots.shape[1]
    v = np.empty((T, steps.shape[2]))
    length = np.empty(T)
    for n in range(steps.shape[1]):
        _velocities(steps, n, v, length)
        for t in range(first, T):
            if np.isnan(length[t]):
                continue
            for lag in range(min(lags, t + 1)):
                before = length[t - lag]
                if np.isnan(before):
                    continue
                pairs[n, lag] += 1
                if before > 0 and length[t] > 0:  # at rest: the product is 0, and there is no cosine
                    dot = _dot(v, t - lag, t)
                    dots[n, lag] += dot
                    cosines[n, lag] += min(max(dot / (before * length[t]), -1.0), 1.0)
                    n_moved[n, lag] += 1


@inner
def _velocities(steps, n, v, length):
    for t in range(len(v)):
        square = 0.0
        for d in range(v.shape[1]):
            v[t, d] = np.float64(steps[t + 1, n, d]) - np.float64(steps[t, n, d])
            square += v[t, d] * v[t, d]
        length[t] = np.sqrt(square) if np.isfinite(square) else np.nan


@inner_sums
def _dot(v, t, u):
    total = 0.0
    for d in range(v.shape[1]):
        total += v[t, d] * v[u, d]
    return total
