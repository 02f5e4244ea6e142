"""Compare Adam's step with half the gap to the next number, which it must exceed to move an element.

The step is η·m̂ / (√v̂ + ε) (Kingma and Ba 2015, algorithm 1). Rounding to nearest moves an element if the step exceeds
half the gap between W[t-1] and its neighbour in the step's direction.
"""

from __future__ import annotations

import numpy as np

from deadtok_xr.kernels.numba.bit_words import INFINITY, MAGNITUDE, MANTISSA, power_of_two, word_of
from deadtok_xr.kernels.numba.jit import compiled

COUNTS = ("elements", "above", "moved", "moved_above", "tokens", "tokens_above")


@compiled
def critical(before, after, m, v, rates, eps, lattice, ratio, counts):
    """Fill in the largest ratio of each token, and add to ``counts``.

    Parameters
    ----------
    before, after, m, v
        W at t-1 and t, and the moments at t: float32 (n, d).
    rates
        lr / (1 - β1ᵗ), and 1 / (1 - β2ᵗ).
    lattice
        The number format's lattice: `kernels.Lattice`.
    ratio
        Filled, (n,): max_d |η·m̂ / (√v̂ + ε)| / (half the gap from W[t-1] in the direction of the step); NaN where any of
        these is not finite.
    counts
        Added to, (6,): see `COUNTS`.
    """
    smallest, ulp_offset = lattice.smallest, lattice.ulp_offset
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
            magnitude = word_of(a) & MAGNITUDE
            e = max(np.int64(magnitude >> np.uint32(23)), smallest)
            power = (magnitude & MANTISSA) == 0 and magnitude < INFINITY
            if power and e > smallest and ((a > 0 and step < 0) or (a < 0 and step > 0)):
                e -= 1  # below a power of two the gap is half as wide
            x = abs(step) * power_of_two(ulp_offset + 1 - e)
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
