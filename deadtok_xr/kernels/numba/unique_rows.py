"""Find distinct rows by hashing; rows with the same hash are compared, so that collisions do not change the result."""

from __future__ import annotations

import numpy as np

from deadtok_xr.kernels.numba.bit_words import float32_word, unsigned_zero
from deadtok_xr.kernels.numba.jit import inner
from deadtok_xr.kernels.numba.sorting import argsort_keys


@inner
def hash_factors(D):
    """Return an odd 64-bit factor for each dim (splitmix64: Steele, Lea and Flood 2014)."""
    out = np.empty(D, np.uint64)
    for d in range(D):
        x = np.uint64(d + 1) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        out[d] = (x ^ (x >> np.uint64(31))) | np.uint64(1)
    return out


@inner
def equal_rows(words, a, b):
    """Return whether two rows of a step (n, d) hold the same values; -0 and +0 are the same."""
    difference = np.uint32(0)
    for d in range(words.shape[1]):
        x, y = float32_word(words[a, d]), float32_word(words[b, d])
        difference |= unsigned_zero(x) ^ unsigned_zero(y)
    return difference == 0


@inner
def unique_rows(words):
    """Find the distinct rows of a step, as `np.unique` with ``axis=0`` does, in another order.

    Parameters
    ----------
    words
        (n, d).
    Returns
    -------
    ``index`` (u,), one row of each kind; ``counts`` (u,), how many rows are equal to it; ``inverse`` (n,), the position
    of each row's kind in these.
    """
    N, D = words.shape
    factors = hash_factors(D)
    hashes = np.empty(N, np.uint64)
    for n in range(N):
        h = np.uint64(0)
        for d in range(D):  # a sum of products: unlike in a chain of hashes, no term depends on another
            h += np.uint64(unsigned_zero(float32_word(words[n, d]))) * factors[d]
        hashes[n] = h
    return _group(words, hashes, argsort_keys(hashes))


@inner
def _group(words, hashes, order):
    N = len(order)
    index = np.empty(N, np.int64)
    counts = np.zeros(N, np.int64)
    inverse = np.empty(N, np.int64)
    n_unique = 0
    begin = 0  # the first distinct row with the current hash, which different rows may share
    for i in range(N):
        n = order[i]
        if i == 0 or hashes[n] != hashes[order[i - 1]]:
            begin = n_unique
        found = begin
        while found < n_unique and not equal_rows(words, n, index[found]):
            found += 1
        if found == n_unique:
            index[found] = n
            n_unique += 1
        counts[found] += 1
        inverse[n] = found
    return index[:n_unique], counts[:n_unique], inverse
