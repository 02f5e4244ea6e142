"""Which of the 65,536 patterns of a 16-bit format occur in each dim."""

from __future__ import annotations

import numpy as np

from deadtok_xr.kernels.numba.jit import compiled


@compiled
def mark(bits, largest, seen, n_not_finite):
    """Set in ``seen`` (d, 1024) the bit of each pattern of rows (n, d); above ``largest`` they are not finite."""
    for n in range(bits.shape[0]):
        for d in range(bits.shape[1]):
            word = np.uint64(bits[n, d])
            if (word & np.uint64(0x7FFF)) > largest:
                n_not_finite[d] += 1
            else:
                seen[d, word >> np.uint64(6)] |= np.uint64(1) << (word & np.uint64(63))
