"""How far rows are from the nearest of a few, by several measures."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.kernels import Lattice, word_shift
from deadtok_xr.kernels.numba.bit_words import exponent_of, float32_word, ordinal_of, value_of
from deadtok_xr.kernels.numba.jit import compiled

INVALID = -1


def nearest(
    rows: NDArray[Any], valid: NDArray[np.bool_], few: NDArray[Any], lattice: Lattice
) -> dict[str, NDArray[Any]]:
    """The smallest distance of each row to any of a few, by each measure by itself.

    Parameters
    ----------
    rows, few
        Words (n, d) and (m, d).
    valid
        Which rows are finite; the few are.
    lattice
        The number format's lattice.

    Returns
    -------
    Arrays (n,): distance ‖·‖₂ and linf ‖·‖∞, NaN for rows that are not valid; ordinal, the most representable numbers
    between them in a dim, and exponent, the largest difference of exponents in a dim, -1 there.
    """
    n = len(rows)
    out = {"distance": np.full(n, np.nan), "linf": np.full(n, np.nan)}
    out |= {name: np.full(n, INVALID) for name in ("ordinal", "exponent")}
    if len(few):
        shape = (1, *few.shape)
        places = np.empty((3, *few.shape))
        _places(few.reshape(shape), word_shift(few), lattice.smallest, lattice.ulp_offset, places)
        _nearest(rows[None], valid, places, word_shift(rows), lattice.smallest, lattice.ulp_offset, *out.values())
    return out


@compiled
def _places(few, shift, smallest, ulp_offset, places):
    for m in range(few.shape[1]):
        for d in range(few.shape[2]):
            word = float32_word(few[0, m, d], shift)
            places[0, m, d] = value_of(word)
            places[1, m, d] = ordinal_of(word, smallest, ulp_offset)
            places[2, m, d] = exponent_of(word, smallest)


@compiled
def _nearest(rows, valid, places, shift, smallest, ulp_offset, distance, linf, ordinal, exponent):
    N, D = rows.shape[1:]
    own = np.empty((3, D))
    for n in range(N):
        if not valid[n]:
            continue
        for d in range(D):
            word = float32_word(rows[0, n, d], shift)
            own[0, d] = value_of(word)
            own[1, d] = ordinal_of(word, smallest, ulp_offset)
            own[2, d] = exponent_of(word, smallest)
        least = np.full(4, np.inf)
        for m in range(places.shape[1]):
            squares = top = passed = apart = 0.0
            for d in range(D):
                step = abs(own[0, d] - places[0, m, d])
                squares += step * step
                top = max(top, step)
                passed = max(passed, abs(own[1, d] - places[1, m, d]))
                apart = max(apart, abs(own[2, d] - places[2, m, d]))
            least[0] = min(least[0], squares)
            least[1] = min(least[1], top)
            least[2] = min(least[2], passed)
            least[3] = min(least[3], apart)
        distance[n] = np.sqrt(least[0])
        linf[n] = least[1]
        ordinal[n] = np.int64(least[2])
        exponent[n] = np.int64(least[3])
