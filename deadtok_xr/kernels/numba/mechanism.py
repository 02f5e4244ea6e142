"""Why each element moved, or did not, beside its replayed update."""

from __future__ import annotations

import numpy as np

from deadtok_xr.kernels.numba.bit_words import INFINITY
from deadtok_xr.kernels.numba.jit import compiled

NO_GRADIENT, ROUNDED, MOVED, UNKNOWN = 0, 1, 2, 3
COUNTS = (
    "no_gradient", "rounded_to_zero", "moved", "unknown", "compared", "equal", "compared_moved", "equal_moved",
    "at_power_of_two",
)  # fmt: skip
SUMS = ("intended_squares", "realised_squares", "along", "squares")


@compiled
def mechanism(before, after, predicted, has_prediction, g, has_gradient, u, smallest, ulp_offset, cause, margin,
              length, net, counts, sums):  # fmt: skip
    """One transition of a block of tokens.

    Parameters
    ----------
    before, after, predicted
        W at t-1, at t, and at t by the replay: float32 (n, d).
    g
        The gradient, float32 (n, d).
    u
        The update before rounding, float64 (n, d); NaN where it is not known.
    smallest, ulp_offset
        The number format: see `kernels.Lattice`.
    cause, margin, length
        (n,), filled: the class of the token, the largest |u| in half gaps, ‖u‖₂.
    net
        (n, 2, d), added to: u, and the displacement.
    counts, sums
        Added to: see `COUNTS` and `SUMS`.
    """
    wordsb = before.view(np.uint32)
    wordsa = after.view(np.uint32)
    wordsp = predicted.view(np.uint32)
    for n in range(before.shape[0]):
        seen = 0  # one bit per class
        usable = True
        top = 0.0
        squares = 0.0
        for d in range(before.shape[1]):
            magnitude = wordsb[n, d] & np.uint32(0x7FFFFFFF)
            if magnitude >= INFINITY or (wordsa[n, d] & np.uint32(0x7FFFFFFF)) >= INFINITY:
                usable = False
                counts[UNKNOWN] += 1
                net[n, 0, d] = net[n, 1, d] = np.nan  # a sum without it would pass for the whole
                continue
            a, b, x = np.float64(before[n, d]), np.float64(after[n, d]), u[n, d]
            known = not np.isnan(x)
            step = b - a
            net[n, 0, d] += x
            net[n, 1, d] += step
            sums[1] += step * step
            power = (magnitude & np.uint32(0x7FFFFF)) == 0 and magnitude != 0
            counts[8] += power
            ahead = False
            moved_by_replay = False
            if has_prediction and known and not np.isnan(predicted[n, d]):
                ahead = True
                moved_by_replay = predicted[n, d] != before[n, d]
                equal = wordsp[n, d] == wordsa[n, d]
                counts[4] += 1
                counts[5] += equal
                counts[6] += step != 0
                counts[7] += equal and step != 0
            if step != 0:
                kind = MOVED
            elif not known or (has_gradient and np.isnan(g[n, d])) or (ahead and moved_by_replay):
                kind = UNKNOWN
            elif x != 0:
                kind = ROUNDED
            elif not has_gradient:
                kind = UNKNOWN
            else:
                kind = NO_GRADIENT if g[n, d] == 0 else ROUNDED
            counts[kind] += 1
            seen |= 1 << kind
            e = max(np.int64(magnitude >> np.uint32(23)), smallest)
            inward = (x < 0 and a > 0) or (x > 0 and a < 0)
            if power and inward and e > smallest:
                e -= 1  # below a power of two the gap is half as wide
            size = abs(x)
            sums[0] += size * size if known else 0.0
            squares += size * size
            # 2^(ulp_offset + 1 - e), put together from its exponent
            in_gaps = size * np.int64((1023 + ulp_offset + 1 - e) << 52).view(np.float64)
            top = in_gaps if in_gaps > top or np.isnan(in_gaps) else top
            if known and in_gaps > 8:  # far enough that rounding is a small part of it
                sums[2] += step * x
                sums[3] += x * x
        length[n] = np.sqrt(squares) if usable else np.nan
        margin[n] = top if usable else np.nan
        if not usable:
            cause[n] = UNKNOWN
        elif seen & (1 << MOVED):
            cause[n] = MOVED
        elif seen & (1 << ROUNDED):
            cause[n] = ROUNDED
        else:
            cause[n] = UNKNOWN if seen & (1 << UNKNOWN) else NO_GRADIENT


@compiled
def same(found, recorded):
    """How many float32 elements are equal to the bit, and how many could be compared, being no NaN."""
    words, others = found.view(np.uint32), recorded.view(np.uint32)
    n_same = 0
    n = 0
    for i in range(found.size):
        known = not (np.isnan(found[i]) or np.isnan(recorded[i]))
        n += known
        n_same += known and words[i] == others[i]
    return n_same, n


@compiled
def stalled(before, after, g):
    """Second moments that kept their bits although g² differs from them, and how many could be compared; (n,)."""
    n_stalled = 0
    n = 0
    for i in range(before.size):
        square = np.float64(g[i]) * np.float64(g[i])
        known = not (np.isnan(before[i]) or np.isnan(square))
        n += known
        n_stalled += known and before[i] == after[i] and square != np.float64(before[i])
    return n_stalled, n
