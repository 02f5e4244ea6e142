"""What the kernels share: how they are compiled, and rows of words."""

from __future__ import annotations

import numpy as np
from numba import njit

compiled = njit(nogil=True, cache=True, error_model="numpy")
# Sums may be reordered and NaN does not occur: for finite values only. It lets loops use vector units.
compiled_finite = njit(nogil=True, cache=True, error_model="numpy", fastmath=True)
# Sums may be reordered, NaN and infinity keep their meaning.
compiled_sums = njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract"})

INFINITY = 0x7F800000
"""The float32 word of infinity: a magnitude at or above it is infinite or NaN."""


# Rows are named by block and indices: a view of each row would cost more than the work on it.


@compiled
def same_row(a, t, b, u, n):
    """Whether row n is the same, bit by bit, at step t of one block and step u of another."""
    if a[t, n, 0] != b[u, n, 0]:
        return False  # most rows that move at all move here
    difference = a[t, n, 0] ^ b[u, n, 0]
    for d in range(1, a.shape[2]):
        difference |= a[t, n, d] ^ b[u, n, d]
    return difference == 0


def changed_rows(steps):
    """Which rows of words (t + 1, n, d) differ in a bit from the step before: bool (t, n)."""
    out = np.empty((len(steps) - 1, steps.shape[1]), np.bool_)
    _changed_rows(steps, out)
    return out


@compiled
def _changed_rows(steps, out):
    for t in range(out.shape[0]):
        for n in range(out.shape[1]):
            out[t, n] = not same_row(steps, t, steps, t + 1, n)


def last_motion(steps, changed, labels, invalid, out):
    """Update ``out`` (n,), the label of each token's last motion; ``invalid`` where a value is not finite.

    ``steps`` are floats (t + 1, n, d), and ``labels`` (t,) those of the transitions.
    """
    _last_motion(steps, changed, labels, invalid, out)


@compiled
def _last_motion(steps, changed, labels, invalid, out):
    T, N = changed.shape
    for n in range(N):
        if not np.isfinite(steps[0, n]).all():
            out[n] = invalid
        for t in range(T):
            if not changed[t, n] or out[n] == invalid:
                continue
            moved = False
            finite = True
            for d in range(steps.shape[2]):
                moved |= steps[t + 1, n, d] != steps[t, n, d]
                finite &= np.isfinite(steps[t + 1, n, d])
            if not finite:
                out[n] = invalid
            elif moved:
                out[n] = labels[t]
