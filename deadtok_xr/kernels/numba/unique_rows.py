"""Distinct places: rows of equal values, found by hashing, and exact since equal hashes are compared."""

from __future__ import annotations

import numpy as np

from deadtok_xr.kernels.numba.bit_words import compiled

SIGN = np.uint32(0x7FFFFFFF)
"""All bits but the sign of a float32 word."""


@compiled
def value_word(words, n, d, shift):
    """The float32 word of a value; +0 for -0, which is the same place."""
    word = np.uint32(np.uint32(words[n, d]) << np.uint32(shift))
    return word if word & SIGN else np.uint32(0)


@compiled
def keys(D):
    """An odd 64-bit factor for each dim (splitmix64)."""
    out = np.empty(D, np.uint64)
    for d in range(D):
        x = np.uint64(d + 1) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        out[d] = (x ^ (x >> np.uint64(31))) | np.uint64(1)
    return out


@compiled
def same_place(words, a, b, shift):
    """Whether two rows of a step hold the same values."""
    difference = np.uint32(0)
    for d in range(words.shape[1]):
        difference |= value_word(words, a, d, shift) ^ value_word(words, b, d, shift)
    return difference == 0


@compiled
def places(words, shift):
    """Group the rows of a step, (n, d), by their values.

    Returns
    -------
    ``place`` (p,), one row of each distinct place; ``weight`` (p,), how many rows lie there; ``node`` (n,), the place
    of each row as a position in these.
    """
    N, D = words.shape
    factors = keys(D)
    hashes = np.empty(N, np.uint64)
    for n in range(N):
        h = np.uint64(0)
        for d in range(D):  # a sum of products: no term waits for another, as in a chain of hashes
            h += np.uint64(value_word(words, n, d, shift)) * factors[d]
        hashes[n] = h
    return _group(words, shift, hashes, np.argsort(hashes))


@compiled
def _group(words, shift, hashes, order):
    N = len(order)
    place = np.empty(N, np.int64)
    weight = np.zeros(N, np.int64)
    node = np.empty(N, np.int64)
    n_places = 0
    run = 0  # the first place that has the hash at hand: equal hashes may be of different rows
    for i in range(N):
        n = order[i]
        if i == 0 or hashes[n] != hashes[order[i - 1]]:
            run = n_places
        found = run
        while found < n_places and not same_place(words, n, place[found], shift):
            found += 1
        if found == n_places:
            place[found] = n
            n_places += 1
        weight[found] += 1
        node[n] = found
    return place[:n_places], weight[:n_places], node
