"""Adam's step beside half the gap that it would have to cross."""

from __future__ import annotations

import numpy as np

from deadtok_xr.kernels.numba.bit_words import INFINITY
from deadtok_xr.kernels.numba.jit import compiled

COUNTS = ("elements", "above", "moved", "moved_above", "tokens", "tokens_above")


@compiled
def critical(before, after, m, v, rates, eps, smallest, ulp_offset, ratio, counts):
    """Fill the largest ratio of each token, (n,), and add to ``counts``.

    Parameters
    ----------
    before, after, m, v
        W at t-1 and t, and the moments at t: float32 (n, d).
    rates
        lr / (1 - β1ᵗ), and 1 / (1 - β2ᵗ).
    smallest, ulp_offset
        The number format: see `kernels.Lattice`.
    ratio
        Filled: max_d |η·m̂ / (√v̂ + ε)| / (half the gap from W[t-1] in the direction of the step); NaN where any of it
        is not finite.
    counts
        See `COUNTS`.
    """
    words = before.view(np.uint32)
    for n in range(before.shape[0]):
        top = 0.0
        above = 0
        moved = 0
        moved_above = 0
        known = True
        for d in range(before.shape[1]):
            a = before[n, d]
            step = -rates[0] * np.float64(m[n, d]) / (np.sqrt(np.float64(v[n, d]) * rates[1]) + eps)
            known &= np.isfinite(a) & np.isfinite(after[n, d]) & np.isfinite(step)
            magnitude = words[n, d] & np.uint32(0x7FFFFFFF)
            e = max(np.int64(magnitude >> np.uint32(23)), smallest)
            power = (magnitude & np.uint32(0x7FFFFF)) == 0 and magnitude < INFINITY
            if power and e > smallest and ((a > 0 and step < 0) or (a < 0 and step > 0)):
                e -= 1  # below a power of two the gap is half as wide
            # 2^(ulp_offset + 1 - e), put together from its exponent
            x = abs(step) * np.int64((1023 + ulp_offset + 1 - e) << 52).view(np.float64)
            top = max(top, x)
            above += x > 1
            moved += after[n, d] != a
            moved_above += x > 1 and after[n, d] != a
        ratio[n] = top if known else np.nan
        if known:
            counts[0] += before.shape[1]
            counts[1] += above
            counts[2] += moved
            counts[3] += moved_above
            counts[4] += 1
            counts[5] += above > 0
