"""Measure the distance of each row to the nearest of a few other rows, by several measures."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.kernels import Lattice
from deadtok_xr.kernels.numba.bit_words import exponent_of, float32_word, ordinal_of, value_of
from deadtok_xr.kernels.numba.jit import compiled

INVALID = -1


def nearest(
    rows: NDArray[Any], valid: NDArray[np.bool_], few: NDArray[Any], lattice: Lattice
) -> dict[str, NDArray[Any]]:
    """Find the smallest distance of each row to any of a few other rows, by each measure separately.

    Parameters
    ----------
    rows, few
        Words (n, d) and (m, d) of one dtype.
    valid
        Which of ``rows`` are finite; all of ``few`` are.
    lattice
        The number format's lattice.

    Returns
    -------
    Arrays (n,): distance ‖·‖₂ and linf ‖·‖∞, NaN for rows that are not valid; ordinal, the largest number of
    representable numbers between them in a dim, and exponent, the largest difference of exponents in a dim, both -1 for
    rows that are not valid.
    """
    n = len(rows)
    out = {"distance": np.full(n, np.nan), "linf": np.full(n, np.nan)}
    out |= {name: np.full(n, INVALID) for name in ("ordinal", "exponent")}
    if len(few):
        measures = np.empty((3, *few.shape))
        _measures(few, lattice.smallest, lattice.ulp_offset, measures)
        _nearest(rows, valid, measures, lattice.smallest, lattice.ulp_offset, *out.values())
    return out


@compiled
def _measures(rows, smallest, ulp_offset, out):
    """Fill in the value, the ordinal and the exponent of each element, (3, m, d)."""
    for m in range(rows.shape[0]):
        for d in range(rows.shape[1]):
            word = float32_word(rows[m, d])
            out[0, m, d] = value_of(word)
            out[1, m, d] = ordinal_of(word, smallest, ulp_offset)
            out[2, m, d] = exponent_of(word, smallest)


@compiled
def _nearest(rows, valid, few, smallest, ulp_offset, distance, linf, ordinal, exponent):
    own = np.empty((3, 1, rows.shape[1]))
    for n in range(rows.shape[0]):
        if not valid[n]:
            continue
        _measures(rows[n : n + 1], smallest, ulp_offset, own)
        least = np.full(4, np.inf)
        for m in range(few.shape[1]):
            squares = top = passed = apart = 0.0
            for d in range(rows.shape[1]):
                step = abs(own[0, 0, d] - few[0, m, d])
                squares += step * step
                top = max(top, step)
                passed = max(passed, abs(own[1, 0, d] - few[1, m, d]))
                apart = max(apart, abs(own[2, 0, d] - few[2, m, d]))
            least[0] = min(least[0], squares)
            least[1] = min(least[1], top)
            least[2] = min(least[2], passed)
            least[3] = min(least[3], apart)
        distance[n] = np.sqrt(least[0])
        linf[n] = least[1]
        ordinal[n] = np.int64(least[2])
        exponent[n] = np.int64(least[3])
