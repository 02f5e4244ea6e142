"""Find which rows changed from step to step, and which of their elements.

Functions for one row take the block and the indices of the row: creating a view of each row would take longer than the
work on it.
"""

from __future__ import annotations

import numpy as np

from deadtok_xr.kernels.numba.bit_words import to_float64
from deadtok_xr.kernels.numba.jit import compiled, inlined_sums, inner


def changed_rows(steps):
    """Find the rows of words (t + 1, n, d) that differ in a bit from the step before: bool (t, n)."""
    out = np.empty((len(steps) - 1, steps.shape[1]), np.bool_)
    wide = steps.shape[2] * steps.itemsize % 8 == 0  # compare eight bytes at a time
    _changed_rows(steps.view(np.uint64) if wide else steps, out)
    return out


@compiled
def _changed_rows(steps, out):
    for t in range(out.shape[0]):
        for n in range(out.shape[1]):
            out[t, n] = _difference(steps, t, n) != 0


@inlined_sums
def _difference(steps, t, n):
    """Return the bits in which any element of a row differs from the next step."""
    bits = np.uint64(0)
    for d in range(steps.shape[2]):
        bits |= np.uint64(steps[t, n, d] ^ steps[t + 1, n, d])
    return bits


@inner
def same_row(a, t, b, u, n):
    """Return whether row n is the same, bit by bit, at step t of one block and step u of another."""
    if a[t, n, 0] != b[u, n, 0]:
        return False  # most rows that move at all move here
    difference = a[t, n, 0] ^ b[u, n, 0]
    for d in range(1, a.shape[2]):
        difference |= a[t, n, d] ^ b[u, n, d]
    return difference == 0


@inner
def list_changed(steps, t, n, dims, start):
    """List the dims in which a row differs from the next step in ``dims``, from ``start`` on; return the list's end.

    No branch depends on the values, because it would be mispredicted for every second element.
    """
    end = start
    for d in range(steps.shape[2]):
        dims[end] = d
        end += steps[t, n, d] != steps[t + 1, n, d]
    return end


def last_motion(steps, changed, labels, invalid, out):
    """Update the label of each token's last motion.

    Parameters
    ----------
    steps
        Floats or bfloat16 words (t + 1, n, d).
    changed
        Which rows differ from the step before, (t, n).
    labels
        The labels of the transitions, (t,).
    invalid
        The label of tokens with a value that is not finite.
    out
        Updated, (n,).
    """
    _last_motion(steps, changed, labels, invalid, out)


@compiled
def _last_motion(steps, changed, labels, invalid, out):
    T, N = changed.shape
    for n in range(N):
        if not finite_row(steps, 0, n):
            out[n] = invalid
    for t in range(T):
        for n in range(N):
            if changed[t, n] and not finite_row(steps, t + 1, n):
                out[n] = invalid
    for n in range(N):
        if out[n] == invalid:
            continue
        for t in range(T - 1, -1, -1):
            if changed[t, n] and _moved(steps, t, n):
                out[n] = labels[t]
                break


@inlined_sums
def finite_row(steps, t, n):
    """Return whether all elements of a row are finite."""
    total = 0.0
    for d in range(steps.shape[2]):
        x = to_float64(steps[t, n, d])
        total += x - x  # 0 for finite values, else NaN
    return total == 0


@inner
def _moved(steps, t, n):
    """Return whether any value of a row differs at the next step; -0 and +0 are equal."""
    for d in range(steps.shape[2]):
        if to_float64(steps[t + 1, n, d]) != to_float64(steps[t, n, d]):
            return True
    return False
