"""Classify why each element moved or did not, by comparison with its replayed update u.

An element that did not move had no gradient, or u rounded to zero: round(W - u) = W where |u| is below half the gap
between W and its neighbour in the direction of u (rounding to nearest, IEEE 754-2019, 4.3.1). |u| in half gaps is
|u| · 2^(ulp_offset + 1 - e), e the exponent field of W[t-1] as a float32, one less where W is a power of two and u
points towards zero: there the gap is half as wide.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.kernels import Lattice, ReplayedUpdate
from deadtok_xr.kernels.numba.bit_words import INFINITY, MAGNITUDE, MANTISSA, power_of_two, word_of
from deadtok_xr.kernels.numba.jit import compiled, inlined

NO_GRADIENT, ROUNDED, MOVED, UNKNOWN = 0, 1, 2, 3
"""The classes of elements and tokens."""
COUNTS = (
    "no_gradient", "rounded_to_zero", "moved", "unknown", "compared", "equal", "compared_moved", "equal_moved",
    "at_power_of_two",
)  # fmt: skip
"""Elements of each class; compared with the replay, equal to it to the bit, and the same of those that moved; powers of
two."""
COMPARED, EQUAL, COMPARED_MOVED, EQUAL_MOVED, POWERS_OF_TWO = range(4, 9)
SUMS = ("intended_squares", "realised_squares", "along", "squares")
"""Σ u² and Σ ΔW²; Σ ΔW·u and Σ u² of elements with |u| above 8 half gaps, where rounding is a small part of it."""
INTENDED_SQUARES, REALISED_SQUARES, ALONG, SQUARES = range(4)
FAR = 8


class MechanismOutputs(NamedTuple):
    """The arrays that `mechanism` fills."""

    cause: Any
    """(n,): the class of the token."""
    margin: Any
    """(n,): the largest |u| in half gaps; NaN where a value is not finite."""
    length: Any
    """(n,): ‖u‖₂; NaN where a value is not finite."""
    net: Any
    """(n, 2, d), added to: u, and the displacement."""
    counts: Any
    """Added to: see `COUNTS`."""
    sums: Any
    """Added to: see `SUMS`."""


def mechanism(
    before: NDArray[np.float32],
    after: NDArray[np.float32],
    update: ReplayedUpdate,
    lattice: Lattice,
    out: dict[str, NDArray[Any]],
) -> None:
    """Fill ``out`` with one transition of a block of tokens.

    Parameters
    ----------
    before, after
        W at t-1 and t, (n, d).
    update
        What is known about the update between them.
    lattice
        The number format's lattice.
    out
        Arrays of tokens (n,), to fill: cause, margin, length. Arrays to add to: net (n, 2, d), counts, see `COUNTS`,
        and sums, see `SUMS`.
    """
    _mechanism(before, after, update, lattice.smallest, lattice.ulp_offset, MechanismOutputs(**out))


@compiled
def _mechanism(before, after, update, smallest, ulp_offset, out):
    for n in range(before.shape[0]):
        seen = 0  # one bit per class
        usable = True
        margin = squares = 0.0
        for d in range(before.shape[1]):
            magnitude, word_after = word_of(before[n, d]) & MAGNITUDE, word_of(after[n, d])
            if magnitude >= INFINITY or (word_after & MAGNITUDE) >= INFINITY:
                usable = False
                out.counts[UNKNOWN] += 1
                out.net[n, 0, d] = out.net[n, 1, d] = np.nan  # a sum without this element would look complete
                continue
            w, u = np.float64(before[n, d]), update.intended[n, d]
            step = np.float64(after[n, d]) - w
            known = not np.isnan(u)
            compared = update.has_prediction and known and not np.isnan(update.predicted[n, d])
            if compared:
                _compare(word_of(update.predicted[n, d]) == word_after, step != 0, out.counts)
            replay_moved = compared and update.predicted[n, d] != before[n, d]
            kind = _class_of(step, u, replay_moved, update.gradient[n, d], update.has_gradient)
            out.counts[kind] += 1
            seen |= 1 << kind
            out.counts[POWERS_OF_TWO] += _is_power_of_two(magnitude)
            half_gaps = _half_gaps(w, u, magnitude, smallest, ulp_offset)
            margin = half_gaps if half_gaps > margin or np.isnan(half_gaps) else margin
            squares += abs(u) * abs(u)
            out.net[n, 0, d] += u
            out.net[n, 1, d] += step
            _add(step, u, known, half_gaps, out.sums)
        out.length[n] = np.sqrt(squares) if usable else np.nan
        out.margin[n] = margin if usable else np.nan
        out.cause[n] = class_of_token(seen) if usable else UNKNOWN


@inlined
def _compare(equal, moved, counts):
    """Count an element whose replayed value is known."""
    counts[COMPARED] += 1
    counts[EQUAL] += equal
    counts[COMPARED_MOVED] += moved
    counts[EQUAL_MOVED] += equal and moved


@inlined
def _class_of(step, u, replay_moved, gradient, has_gradient):
    """Return the class of an element."""
    if step != 0:
        return MOVED
    if np.isnan(u) or (has_gradient and np.isnan(gradient)) or replay_moved:
        return UNKNOWN
    if u != 0:
        return ROUNDED
    if not has_gradient:
        return UNKNOWN
    return NO_GRADIENT if gradient == 0 else ROUNDED


@inlined
def class_of_token(seen):
    """Return the class of a token: moved if an element moved, else rounded if one was rounded, else no gradient."""
    if seen & (1 << MOVED):
        return MOVED
    if seen & (1 << ROUNDED):
        return ROUNDED
    return UNKNOWN if seen & (1 << UNKNOWN) else NO_GRADIENT


@inlined
def _is_power_of_two(magnitude):
    return (magnitude & MANTISSA) == 0 and magnitude != 0


@inlined
def _half_gaps(w, u, magnitude, smallest, ulp_offset):
    """Return |u| in half gaps of the grid, on the side of w to which u points."""
    exponent = max(np.int64(magnitude >> np.uint32(23)), smallest)
    inward = (u < 0 and w > 0) or (u > 0 and w < 0)
    if _is_power_of_two(magnitude) and inward and exponent > smallest:
        exponent -= 1  # below a power of two the gap is half as wide
    return abs(u) * power_of_two(ulp_offset + 1 - exponent)


@inlined
def _add(step, u, known, half_gaps, sums):
    """Add an element to the sums of squares and products."""
    sums[REALISED_SQUARES] += step * step
    if known:
        sums[INTENDED_SQUARES] += abs(u) * abs(u)
        if half_gaps > FAR:
            sums[ALONG] += step * u
            sums[SQUARES] += u * u


@compiled
def same(found, recorded):
    """Count the float32 elements that are equal bit for bit, and those that can be compared (that are not NaN)."""
    n_same = 0
    n = 0
    for i in range(found.size):
        known = not (np.isnan(found[i]) or np.isnan(recorded[i]))
        n += known
        n_same += known and word_of(found[i]) == word_of(recorded[i])
    return n_same, n


@compiled
def stalled(before, after, g):
    """Count second moments (n,) that kept their bits although g² differs from them, and those that can be compared."""
    n_stalled = 0
    n = 0
    for i in range(before.size):
        square = np.float64(g[i]) * np.float64(g[i])
        known = not (np.isnan(before[i]) or np.isnan(square))
        n += known
        n_stalled += known and before[i] == after[i] and square != np.float64(before[i])
    return n_stalled, n
