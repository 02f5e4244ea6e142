"""What the kernels share: how they are compiled, and rows of words."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

_ALWAYS: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}
compiled = njit(**_ALWAYS)
# Sums may be reordered and NaN does not occur: for finite values only. It lets loops use vector units.
compiled_finite = njit(**_ALWAYS, fastmath=True)
# Sums may be reordered, NaN and infinity keep their meaning. No nsz: b - a - c would become b - (a + c), and cancel.
_REORDERED = {"reassoc", "contract"}
compiled_sums = njit(**_ALWAYS, fastmath=_REORDERED)
# For one row, inside a loop over rows: a call would cost as much as the work on 64 elements. numba's cache looks at the
# file of the loop alone: after a change here, delete the *.nbi files beside those that inline from it.
inlined = njit(**_ALWAYS, forceinline=True)
inlined_sums = njit(**_ALWAYS, fastmath=_REORDERED, forceinline=True)

INFINITY = 0x7F800000
"""The float32 word of infinity: a magnitude at or above it is infinite or NaN."""


def value(x):
    """An element as float64: a word of 16 bits is a bfloat16, a float is itself. For compiled loops alone."""
    raise NotImplementedError


@overload(value)
def _value_of(x):
    if x == types.uint16:
        return lambda x: np.float64(np.uint32(np.uint32(x) << np.uint32(16)).view(np.float32))
    return lambda x: np.float64(x)


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
    wide = steps.shape[2] * steps.itemsize % 8 == 0  # compare eight bytes at a time
    _changed_rows(steps.view(np.uint64) if wide else steps, out)
    return out


@compiled
def list_changed(steps, t, n, where, start):
    """List from ``where[start]`` on the dims in which a row differs from the next step; the end of the list.

    There is no branch that depends on the values: it would be mispredicted at every other element.
    """
    end = start
    for d in range(steps.shape[2]):
        where[end] = d
        end += steps[t, n, d] != steps[t + 1, n, d]
    return end


@compiled
def _changed_rows(steps, out):
    for t in range(out.shape[0]):
        for n in range(out.shape[1]):
            out[t, n] = _difference(steps, t, n) != 0


@inlined_sums
def _difference(steps, t, n):
    """The bits in which any element of a row differs from the step before."""
    bits = np.uint64(0)
    for d in range(steps.shape[2]):
        bits |= np.uint64(steps[t, n, d] ^ steps[t + 1, n, d])
    return bits


def last_motion(steps, changed, labels, invalid, out):
    """Update ``out`` (n,), the label of each token's last motion; ``invalid`` where a value is not finite.

    ``steps`` (t + 1, n, d) are floats or bfloat16 words, and ``labels`` (t,) those of the transitions.
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
    """Whether all elements of a row are finite."""
    total = 0.0
    for d in range(steps.shape[2]):
        x = value(steps[t, n, d])
        total += x - x  # 0, or NaN of what is not finite
    return total == 0


@compiled
def _moved(steps, t, n):
    for d in range(steps.shape[2]):
        if value(steps[t + 1, n, d]) != value(steps[t, n, d]):
            return True
    return False
