"""Decide which tokens are adjacent: the rule, its thresholds, and the test of one pair in float64.

Tokens a and b are adjacent if |a_d - b_d| <= k · s in every dim d. The spacing s is the mean ULP of the centroid, which
is one threshold for all pairs; the larger of the two tokens' mean ULP; or, in each dim, the larger of the two elements'
ULP.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from deadtok_xr.kernels import Lattice
from deadtok_xr.kernels.numba.bit_words import MAGNITUDE, float32_value, float32_word, power_of_two
from deadtok_xr.kernels.numba.jit import inner

CENTROID, PAIR, ELEMENT = 0, 1, 2
"""The spacings."""

AT_ONCE = 256
"""How many dims are compared before the result is tested; a test costs as much as comparing 50 dims."""


class Rule(NamedTuple):
    """The rule that decides which tokens are adjacent."""

    spacing: int
    k: float
    linked: bool
    """Whether equal tokens are adjacent."""
    smallest: int
    ulp_offset: int


class Positions(NamedTuple):
    """The tokens of a step, and the thresholds for their distances."""

    words: Any
    """(n, d)."""
    threshold: float
    """The threshold of the spacing `CENTROID`."""
    token_thresholds: Any
    """(n,): the thresholds of the spacing `PAIR`; else empty."""
    rule: Rule


def rule(spacing: int, k: float, linked: bool, lattice: Lattice) -> Rule:
    """Return the rule: tokens within ``k`` spacings in every dim are adjacent; equal tokens only if ``linked``."""
    return Rule(spacing, float(k), linked, lattice.smallest, lattice.ulp_offset)


@inner
def _ulp(word, rule):
    """Return the ULP of a float32 word."""
    exponent = max(np.int64((word >> np.uint32(23)) & np.uint32(0xFF)), rule.smallest)
    return power_of_two(exponent - rule.ulp_offset)


@inner
def limits_of(positions):
    """Return the smallest and the largest threshold of any pair in each dim; fill in the thresholds of tokens."""
    words, rule = positions.words, positions.rule
    D = words.shape[1]
    low, high = np.full(D, positions.threshold), np.full(D, positions.threshold)
    if rule.spacing == PAIR:
        _fill_token_thresholds(words, rule, positions.token_thresholds)
        least = most = positions.token_thresholds[0]
        for threshold in positions.token_thresholds:
            least, most = min(least, threshold), max(most, threshold)
        low[:], high[:] = least, most
    elif rule.spacing == ELEMENT:
        _element_limits(words, rule, low, high)
    return low, high


@inner
def _fill_token_thresholds(words, rule, out):
    N, D = words.shape
    for n in range(N):
        total = 0.0
        for d in range(D):
            total += _ulp(float32_word(words[n, d]), rule)
        out[n] = rule.k * (total / D)


@inner
def _element_limits(words, rule, low, high):
    N, D = words.shape
    least, most = np.full(D, MAGNITUDE), np.zeros(D, np.uint32)
    for n in range(N):
        for d in range(D):
            magnitude = float32_word(words[n, d]) & MAGNITUDE
            least[d] = min(least[d], magnitude)
            most[d] = max(most[d], magnitude)
    for d in range(D):
        low[d], high[d] = rule.k * _ulp(least[d], rule), rule.k * _ulp(most[d], rule)


@inner
def adjacent(positions, a, b):
    """Return whether two tokens are adjacent, in float64. Limits and gaps are compared as integers, by their bits."""
    words, rule = positions.words, positions.rule
    D = words.shape[1]
    threshold = positions.threshold
    if rule.spacing == PAIR:
        threshold = max(positions.token_thresholds[a], positions.token_thresholds[b])
    limit = np.float64(threshold).view(np.int64)
    apart = np.int64(0)
    for start in range(0, D, AT_ONCE):
        beyond = np.int64(0)  # negative if a gap is beyond its limit
        for j in range(min(AT_ONCE, D - start)):
            d = np.uint64(start + j)
            x, y = float32_value(words[a, d]), float32_value(words[b, d])
            gap = np.float64(abs(np.float64(x) - np.float64(y))).view(np.int64)
            if rule.spacing == ELEMENT:
                limit = np.float64(rule.k * _ulp(max(_magnitude(x), _magnitude(y)), rule)).view(np.int64)
            beyond |= limit - gap
            apart |= gap
        if beyond < 0:
            return False
    return rule.linked or apart > 0


@inner
def _magnitude(x):
    return np.float32(x).view(np.uint32) & MAGNITUDE
