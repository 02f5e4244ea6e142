"""Measure the differences between two matrices of the same tokens, step by step."""

from __future__ import annotations

import numpy as np

from deadtok_xr.kernels.numba.jit import compiled, inner, inner_sums


@compiled
def differences(a, b, x, y, to_compare, held, first, at, out_bits, out_values, out_tokens, squares, most, invalid, far):
    """Fill in the differences between two runs.

    Parameters
    ----------
    a, b
        Words (t, n, d) of the same kind.
    x, y
        Their values as floats.
    to_compare
        Which rows to compare, (t, n) or longer: the others have not changed since the step before.
    held
        (5, n), updated: for each row at the last step, elements that differ in a bit, elements unequal in value, the
        squared distance, the largest difference of an element, and whether a value is not finite.
    first
        (n,), updated: the first step at which a row differs, -1 so far.
    at
        The number of the block's first step.
    out_bits, out_values, out_tokens, squares, most, invalid
        (t,), filled: elements that differ, elements unequal, tokens that differ, the sum of squared distances and the
        largest difference over finite rows, rows with a value that is not finite.
    far
        (t, n), filled: the distance of each row, NaN where a value is not finite.
    """
    T, N = far.shape
    for t in range(T):
        valid = 0
        for n in range(N):
            if to_compare[t, n]:
                _compare(a, b, x, y, t, n, held)
            bits = np.int64(held[0, n])
            out_bits[t] += bits
            out_values[t] += np.int64(held[1, n])
            if bits:
                out_tokens[t] += 1
                if first[n] < 0:
                    first[n] = at + t
            if held[4, n]:
                invalid[t] += 1
                far[t, n] = np.nan
                continue
            valid += 1
            squares[t] += held[2, n]
            most[t] = max(most[t], held[3, n])
            far[t, n] = np.sqrt(held[2, n])
        if not valid:
            squares[t] = most[t] = np.nan


@inner
def _compare(a, b, x, y, t, n, held):
    """Update ``held`` for a row."""
    difference = a[t, n, 0] ^ b[t, n, 0]
    for d in range(1, a.shape[2]):
        difference |= a[t, n, d] ^ b[t, n, d]
    held[:, n] = 0.0
    finite = True
    for d in range(a.shape[2]):
        finite &= np.isfinite(x[t, n, d]) & np.isfinite(y[t, n, d])
    held[4, n] = not finite
    if not difference and finite:
        return
    for d in range(a.shape[2]):
        held[0, n] += a[t, n, d] != b[t, n, d]
        held[1, n] += x[t, n, d] != y[t, n, d]
    if finite:
        held[2, n], held[3, n] = _distances(x, y, t, n)


@inner_sums
def _distances(x, y, t, n):
    """Return ‖x - y‖₂² and ‖x - y‖∞ of a row."""
    total = 0.0
    most = 0.0
    for d in range(x.shape[2]):
        step = np.float64(x[t, n, d]) - np.float64(y[t, n, d])
        total += step * step
        most = max(most, abs(step))
    return total, most
