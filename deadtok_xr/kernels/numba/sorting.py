"""Sort by keys of one type, so that one sort is compiled, not one for each dtype as with `np.argsort`."""

from __future__ import annotations

import numpy as np

from deadtok_xr.kernels.numba.jit import inner

_SIGN, _ALL = np.uint64(1 << 63), np.uint64((1 << 64) - 1)


@inner
def argsort_keys(keys):
    """Return the stable order (n,) of uint64 keys, by a radix sort from the lowest byte to the highest."""
    N = len(keys)
    order, other = np.empty(N, np.int64), np.empty(N, np.int64)
    begins = np.empty(256, np.int64)
    for n in range(N):
        order[n] = n
    for byte in range(8 if N > 1 else 0):
        shift = np.uint64(8 * byte)
        begins[:] = 0
        for n in range(N):
            begins[(keys[n] >> shift) & np.uint64(255)] += 1
        if begins[(keys[0] >> shift) & np.uint64(255)] == N:
            continue  # all keys have the same byte
        total = 0
        for b in range(256):
            total, begins[b] = total + begins[b], total
        for n in range(N):
            b = (keys[order[n]] >> shift) & np.uint64(255)
            other[begins[b]] = order[n]
            begins[b] += 1
        order, other = other, order
    return order


@inner
def float_key(x):
    """Return a key that has the order of a float; NaN comes last."""
    if x != x:
        return _ALL
    bits = np.float64(x).view(np.uint64)
    return bits ^ (_ALL if bits & _SIGN else _SIGN)
