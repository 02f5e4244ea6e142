"""Label rows that are equal bit for bit at each step.

Rows are hashed, and rows with the same hash are compared, so that collisions of the hash do not change the result. A
row that did not change keeps its hash; a step at which no row changed keeps its labels. `coincidence_history` follows
the labels along the steps.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.kernels.numba.jit import compiled, inner
from deadtok_xr.kernels.numba.rows import copy_row

Longs = NDArray[np.int64]


class HashedRows(NamedTuple):
    """The rows of one step: their hashes and their labels."""

    hashes: NDArray[np.uint64]
    """(n,)."""
    label: Longs
    """The first row that is the same, (n,); -1 where a value is not finite."""


@functools.cache  # called for each batch
def keys(n_dims: int) -> NDArray[np.uint32]:
    """Return the factors of the words of a row in its hash, (d,): odd, and always the same."""
    return np.random.default_rng(0x5EED).integers(0, 2**32, n_dims, dtype=np.uint32) | np.uint32(1)


def census(
    steps: NDArray[Any],
    changed: NDArray[np.bool_],
    state: HashedRows | None,
    limits: tuple[Any, Any],
    keys: NDArray[np.uint32],
) -> tuple[Longs, HashedRows]:
    """Label each row with the first row that is equal to it, at each step.

    Parameters
    ----------
    steps
        Words (t, n, d).
    changed
        Which rows differ from the step before, (t - 1, n).
    state
        The rows of the first step, as an earlier call returned them; None to find them.
    limits
        As words: the word that is replaced by 0, which is -0 (or 0, to distinguish the two), and infinity, which is
        also the mask of the exponent field.
    keys
        The factors of the hash: `keys`, or any others.

    Returns
    -------
    The labels, (t, n), -1 where a value is not finite; and the rows of the last step.
    """
    n = steps.shape[1]
    labels = np.empty(steps.shape[:2], np.int64)
    if state is None:
        hashes, labels[0], none = np.zeros(n, np.uint64), -1, np.full(n, -1)
        _label(steps, 0, np.ones(n, np.bool_), *limits, keys, hashes, none, labels[0])
    else:
        hashes, labels[0] = state.hashes.copy(), state.label
    _census(steps, changed, changed.any(axis=1), *limits, keys, hashes, labels)
    return labels, HashedRows(hashes, labels[-1].copy())


@compiled
def _census(steps, changed, any_changed, zero, infinity, keys, hashes, labels):
    for t in range(1, len(labels)):
        copy_row(labels, t - 1, labels, t)
        if any_changed[t - 1]:
            _label(steps, t, changed[t - 1], zero, infinity, keys, hashes, labels[t - 1], labels[t])


@compiled
def _label(steps, t, changed, zero, infinity, keys, hashes, old, label):
    """Hash the rows that changed, and label each row.

    ``label`` begins as ``old``; rows keep it if no row with their hash has changed.
    """
    finite = np.empty(len(old), np.bool_)
    seen = _rehash(steps, t, changed, zero, infinity, keys, hashes, old, finite)
    few = np.uint64(len(seen) - 1)
    concerned = 0
    for n in range(len(old)):
        concerned += seen[hashes[n] & few]
    table = np.full(_power_of_two(2 * concerned), -1, np.int32)
    mask = np.uint64(len(table) - 1)
    for n in range(len(old)):
        if not seen[hashes[n] & few]:
            continue
        label[n] = -1
        slot = (hashes[n] >> np.uint64(24)) & mask
        while finite[n] and label[n] < 0:
            m = table[slot]
            if m < 0:
                table[slot] = m = n
            if m == n or (hashes[n] == hashes[m] and _same(steps, t, n, m, zero, changed, old)):
                label[n] = m
            slot = (slot + np.uint64(1)) & mask


@inner
def _rehash(steps, t, changed, zero, infinity, keys, hashes, old, finite):
    """Hash the rows that changed; return, for each value of the low bits, whether a row got or lost such a hash."""
    N = len(old)
    n_changed = 0
    for n in range(N):
        n_changed += changed[n]
    # if many rows changed, all count as changed: to distinguish them would cost more than it saves
    seen = np.zeros(_power_of_two(64 * n_changed if 8 * n_changed < N else 1), np.bool_)
    few = np.uint64(len(seen) - 1)
    for n in range(N):
        finite[n] = old[n] >= 0
        if changed[n]:
            seen[hashes[n] & few] = True
            hashes[n], finite[n] = _hash(steps, t, n, zero, infinity, keys)
            seen[hashes[n] & few] = True
    return seen


@inner
def _power_of_two(n):
    size = 1
    while size < n:
        size *= 2
    return size


@inner
def _hash(steps, t, n, zero, infinity, keys):
    """Return the hash of a row, and whether all its elements are finite."""
    total = np.uint64(0)
    wrong = np.uint64(0)
    for d in range(steps.shape[2]):
        word = steps[t, n, d]
        total += np.uint64(0 if word == zero else word) * np.uint64(keys[d])
        wrong += np.uint64((word & infinity) == infinity)
    total ^= total >> np.uint64(32)  # the low bits choose a slot in the table: all bits must count
    total *= np.uint64(0x9E3779B97F4A7C15)
    return total ^ (total >> np.uint64(29)), wrong == 0


@inner
def _same(steps, t, n, m, zero, changed, old):
    """Return whether two rows are equal; if neither changed, their labels at the step before are compared instead."""
    if not changed[n] and not changed[m]:
        return old[n] == old[m]
    difference = np.uint64(0)
    for d in range(steps.shape[2]):
        a, b = steps[t, n, d], steps[t, m, d]
        difference |= np.uint64(0 if a == zero else a) ^ np.uint64(0 if b == zero else b)
    return difference == 0
