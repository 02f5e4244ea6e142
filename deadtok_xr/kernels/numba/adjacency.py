"""Which tokens are adjacent: the rule, its thresholds, and one pair under it in float64."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from deadtok_xr.kernels import Lattice
from deadtok_xr.kernels.numba.bit_words import MAGNITUDE, float32_value, float32_word
from deadtok_xr.kernels.numba.jit import compiled

CENTROID, PAIR, ELEMENT = 0, 1, 2
"""Spacings: one threshold for all pairs; by the coarser token of a pair; by the coarser element in each dim."""

AT_ONCE = 256
"""How many dims are compared before the next look at the outcome, which costs as much as 50 dims."""


class Rule(NamedTuple):
    """Which tokens are adjacent."""

    spacing: int
    k: float
    linked: bool
    smallest: int
    ulp_offset: int


def rule(spacing: int, k: float, linked: bool, lattice: Lattice) -> Rule:
    """Tokens are adjacent within ``k`` spacings in every dim, those in the same place if they are ``linked``."""
    return Rule(spacing, float(k), linked, lattice.smallest, lattice.ulp_offset)


@compiled
def _magnitude(x):
    return np.float32(x).view(np.uint32) & MAGNITUDE


@compiled
def _ulp(word, rule):
    """The ULP of a float32 word, as a float64 put together from its exponent."""
    exponent = max(np.int64((word >> np.uint32(23)) & np.uint32(0xFF)), rule.smallest)
    return np.uint64((exponent - rule.ulp_offset + 1023) << 52).view(np.float64)


@compiled
def limits_of(words, shift, threshold, rule, cells):
    """The smallest and the largest threshold of any pair in each dim; fills the mean ULP of each token."""
    N, D = words.shape
    low, high = np.full(D, threshold), np.full(D, threshold)
    if rule.spacing == PAIR:
        for n in range(N):
            total = 0.0
            for d in range(D):
                total += _ulp(float32_word(words[n, d], shift), rule)
            cells[n] = rule.k * (total / D)
        low[:], high[:] = cells.min(), cells.max()
    elif rule.spacing == ELEMENT:
        least, most = np.full(D, MAGNITUDE), np.zeros(D, np.uint32)
        for n in range(N):
            for d in range(D):
                word = float32_word(words[n, d], shift) & MAGNITUDE
                least[d] = min(least[d], word)
                most[d] = max(most[d], word)
        for d in range(D):
            low[d], high[d] = rule.k * _ulp(least[d], rule), rule.k * _ulp(most[d], rule)
    return low, high


@compiled
def adjacent(words, a, b, shift, threshold, rule, cells):
    """Whether two tokens are adjacent, in float64. Limits and gaps are compared by their bits, which order alike."""
    D = words.shape[1]
    limit = np.float64(max(cells[a], cells[b]) if rule.spacing == PAIR else threshold).view(np.int64)
    apart = np.int64(0)
    for start in range(0, D, AT_ONCE):
        beyond = np.int64(0)  # negative if a gap is beyond its limit
        for j in range(min(AT_ONCE, D - start)):
            d = np.uint64(start + j)
            x, y = float32_value(words[a, d], shift), float32_value(words[b, d], shift)
            gap = np.float64(abs(np.float64(x) - np.float64(y))).view(np.int64)
            if rule.spacing == ELEMENT:
                limit = np.float64(rule.k * _ulp(max(_magnitude(x), _magnitude(y)), rule)).view(np.int64)
            beyond |= limit - gap
            apart |= gap
        if beyond < 0:
            return False
    return rule.linked or apart > 0
