"""Rank correlation with times that are known only to be later than the last look."""

from __future__ import annotations

import numpy as np

from deadtok_xr.kernels.numba.words import compiled


@compiled
def concordance(time, censored, predictor, agree, comparable):
    """Add up, per token, the pairs whose order in time is known: 1 where the predictor orders them alike, else -1.

    Of a pair the order is known when the earlier one is an event; at the same time, when the other one is censored.
    """
    for i in range(len(time)):
        for j in range(i):
            if time[i] == time[j]:
                order = np.int64(censored[i]) - np.int64(censored[j])
            elif time[i] < time[j]:
                order = np.int64(-1) if not censored[i] else np.int64(0)
            else:
                order = np.int64(1) if not censored[j] else np.int64(0)
            if order == 0:
                continue
            sign = np.int64(predictor[i] > predictor[j]) - np.int64(predictor[i] < predictor[j])
            agree[i] += order * sign
            agree[j] += order * sign
            comparable[i] += 1
            comparable[j] += 1
