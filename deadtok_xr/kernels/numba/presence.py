"""Find which of the 65,536 patterns of a 16-bit format occur in each dim."""

from __future__ import annotations

import numpy as np

from deadtok_xr.kernels.numba.jit import compiled


@compiled
def mark(bits, largest, seen, n_not_finite):
    """Mark the patterns that occur in rows.

    Parameters
    ----------
    bits
        uint16 (n, d).
    largest
        The largest finite magnitude, uint64.
    seen
        uint64 (d, 1024), updated: one bit for each pattern.
    n_not_finite
        (d,), added to: the elements that are not finite, which are not marked.
    """
    for n in range(bits.shape[0]):
        for d in range(bits.shape[1]):
            word = np.uint64(bits[n, d])
            if (word & np.uint64(0x7FFF)) > largest:
                n_not_finite[d] += 1
            else:
                seen[d, word >> np.uint64(6)] |= np.uint64(1) << (word & np.uint64(63))
