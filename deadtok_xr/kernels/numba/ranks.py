"""Rank correlation with censored times: Harrell's concordance (Harrell et al. 1982) in O(N log N)."""

from __future__ import annotations

import numpy as np

from deadtok_xr.kernels.numba.jit import compiled, inner
from deadtok_xr.kernels.numba.sorting import argsort_keys, float_key


@compiled
def concordance(time, censored, predictor, agree, comparable):
    """Count, for each token, the pairs whose order in time is known.

    The order of a pair is known if the earlier one is an event, or if both have the same time and exactly one is
    censored: j comes before i if j is an event and (time, censored) of j is below that of i.

    Tokens are visited in this order and then in the reverse order, and a Fenwick tree over the ranks of the predictor
    counts the visited tokens with a smaller and with a larger value.

    Parameters
    ----------
    time, censored
        (n,): the time of each token's event, or the time until which it had not happened (censored).
    predictor
        (n,); NaN is neither above nor below any value.
    agree
        (n,), added to: 1 for each pair that the predictor puts in the same order, -1 for each in the opposite order.
    comparable
        (n,), added to: the number of pairs whose order is known.
    """
    key = 2 * time + censored
    keys = np.empty(len(key), np.uint64)
    for i in range(len(key)):
        keys[i] = float_key(key[i])
    order = argsort_keys(keys)
    rank, n_ranks = _ranks(predictor)
    tree = np.zeros(n_ranks + 1, np.int64)
    known, seen = 0, 0  # the number of visited tokens, and of those that have a rank
    first = 0
    while first < len(order):  # events before i: a larger predictor agrees with a later time
        last = _end(key, order, first)
        for k in range(first, last):
            i = order[k]
            agree[i] += _balance(tree, rank[i], seen)
            comparable[i] += known
        for k in range(first, last):
            if not censored[order[k]]:
                seen += _visit(tree, rank[order[k]])
                known += 1
        first = last
    tree[:] = 0
    known, seen = 0, 0
    last = len(order)
    while last > 0:  # all after an event i
        first = last - 1
        while first > 0 and key[order[first - 1]] == key[order[last - 1]]:
            first -= 1
        for k in range(first, last):
            i = order[k]
            if not censored[i]:
                agree[i] -= _balance(tree, rank[i], seen)
                comparable[i] += known
        for k in range(first, last):
            seen += _visit(tree, rank[order[k]])
            known += 1
        last = first


@inner
def _end(key, order, first):
    """Return the end of the run of equal keys that begins at a position."""
    last = first + 1
    while last < len(order) and key[order[last]] == key[order[first]]:
        last += 1
    return last


@inner
def _ranks(x):
    """Return dense ranks from 1, 0 for NaN, and their number."""
    rank = np.zeros(len(x), np.int64)
    keys = np.empty(len(x), np.uint64)
    n_known = 0
    for i in range(len(x)):
        keys[i] = float_key(x[i])
        n_known += x[i] == x[i]
    order = argsort_keys(keys)  # NaN comes last
    n = 0
    for k in range(n_known):
        n += k == 0 or x[order[k]] != x[order[k - 1]]
        rank[order[k]] = n
    return rank, n


@inner
def _visit(tree, rank):
    """Count a token at its rank; return how many were counted: 0 for NaN."""
    if rank == 0:
        return 0
    while rank < len(tree):
        tree[rank] += 1
        rank += rank & -rank
    return 1


@inner
def _balance(tree, rank, seen):
    """Return how many counted tokens are below a rank, minus how many are above it."""
    return 0 if rank == 0 else _up_to(tree, rank - 1) - (seen - _up_to(tree, rank))


@inner
def _up_to(tree, rank):
    """Return how many tokens are counted at a rank or below it."""
    n = 0
    while rank > 0:
        n += tree[rank]
        rank -= rank & -rank
    return n
