"""Replay an update of Adam or AdamW as torch computes it on CPUs, and classify each element, in one loop.

The operations and roundings are those of `replay.arithmetic`, single and foreach, on whole vectors of torch's units:
each operation in float32, its result rounded to the format of the tensors. Whether torch fuses a multiplication and an
addition depends on the machine for which it was compiled, and is an option here. torch's square root of float32 is not
always rounded correctly, so its results are an argument.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

from deadtok_xr.kernels import Lattice
from deadtok_xr.kernels.numba.bit_words import INFINITY, MAGNITUDE, MANTISSA, float32_value, float32_word, power_of_two
from deadtok_xr.kernels.numba.jit import compiled, inlined
from deadtok_xr.kernels.numba.mechanism import (
    ALONG,
    COMPARED,
    COMPARED_MOVED,
    EQUAL,
    EQUAL_MOVED,
    FAR,
    INTENDED_SQUARES,
    MOVED,
    NO_GRADIENT,
    POWERS_OF_TWO,
    REALISED_SQUARES,
    ROUNDED,
    SQUARES,
    UNKNOWN,
    MechanismOutputs,
    class_of_token,
)


class AdamWords(NamedTuple):
    """The tensors of an update as bit words, (n, d), before it and after it."""

    w: Any
    m: Any
    v: Any
    w_after: Any
    gradient: Any
    m_after: Any
    v_after: Any
    root: Any
    """The root of the second moment that divides the step, float32; empty for bfloat16."""
    second: Any
    """This second moment: the largest one with amsgrad."""


class AdamScalars(NamedTuple):
    """The numbers of an update, float32 as torch's operations use them, and float64 for the update before rounding."""

    decay: np.float32
    root_correction: np.float32
    eps: np.float32
    rate: np.float32
    first_weight: np.float32
    second_factor: np.float32
    square_weight: np.float32
    sign: np.float32
    """-1 if torch maximizes."""
    has_decay: bool
    is_fused: bool
    """Whether a multiplication and an addition are rounded once."""
    lr: float
    corrected: float
    lr_decay: float


@intrinsic
def _fused(typing_context, a, b, c):
    """Return a·b + c, rounded once."""

    def code(context, builder, signature, arguments):
        return builder.fma(*arguments)

    return types.float32(types.float32, types.float32, types.float32), code


@inlined
def _multiply_add(a, b, c, is_fused):
    return _fused(a, b, c) if is_fused else np.float32(np.float32(a * b) + c)


def _rounded(x, word):
    """Round a float32 number to the format of a bit word. For compiled loops only."""
    raise NotImplementedError


@overload(_rounded)
def _compile_rounded(x, word):
    if word != types.uint16:
        return lambda x, word: x

    def to_bfloat16(x, word):
        bits = np.float32(x).view(np.uint32)
        odd = np.uint32((bits >> np.uint32(16)) & np.uint32(1))
        kept = np.uint32(np.uint32(bits + np.uint32(0x7FFF) + odd) & np.uint32(0xFFFF0000))
        return np.uint32(kept if x == x else np.uint32(0x7FC00000)).view(np.float32)

    return to_bfloat16


def _root_of(root, second, n, d):
    """Return the root of a second moment. For compiled loops only."""
    raise NotImplementedError


@overload(_root_of)
def _compile_root_of(root, second, n, d):
    if second.dtype != types.uint16:
        return lambda root, second, n, d: root[n, d]
    return lambda root, second, n, d: _rounded(np.float32(np.sqrt(float32_value(second[n, d]))), second[n, d])


def replayed_adam(words: AdamWords, scalars: AdamScalars, lattice: Lattice, out: dict[str, NDArray[Any]]) -> None:
    """Fill ``out`` as `mechanism.mechanism` does.

    ``out["optimizer"]`` (8,) is added to: moments compared and equal, of both; stalled second moments, and those that
    are known; elements that weight decay alone moved, and those whose value as bfloat16 changed.
    """
    outputs = MechanismOutputs(*(out[name] for name in MechanismOutputs._fields))
    _replayed_adam(words, scalars, lattice.smallest, lattice.ulp_offset, outputs, out["optimizer"])


@compiled
def _replayed_adam(words, scalars, smallest, ulp_offset, out, optimizer):
    N, D = words.w.shape
    predicted, plain = np.empty(D, np.float32), np.empty(D, np.float32)
    first, second = np.empty(D, np.float32), np.empty(D, np.float32)
    intended, steps, half_gaps = np.empty(D), np.empty(D), np.empty(D)
    for n in range(N):
        _update_row(words, scalars, n, predicted, plain, intended)
        _moments_row(words, scalars, n, first, second)
        _count_moments(words, scalars, n, first, second, optimizer)
        _count_weights(words, scalars, n, predicted, plain, optimizer)
        seen = _classify(words, n, predicted, intended, smallest, ulp_offset, steps, half_gaps, out.counts)
        _sum_up(n, seen, intended, steps, half_gaps, out)


@inlined
def _update_row(words, scalars, n, predicted, plain, intended):
    """Fill in W after the update, with and without weight decay, and the update before rounding."""
    for d in range(len(predicted)):
        word = words.w[n, d]
        w, m = float32_value(word), float32_value(words.m_after[n, d])
        root = _root_of(words.root, words.second, n, d)
        divisor = _rounded(np.float32(root / scalars.root_correction), word)
        divisor = _rounded(np.float32(divisor + scalars.eps), word)
        step = np.float32(np.float32(scalars.rate * m) / divisor)
        decayed = _rounded(np.float32(w * scalars.decay), word)
        predicted[d] = _rounded(np.float32(decayed + step), word)
        plain[d] = _rounded(np.float32(w + step), word)
        u = -scalars.lr * (np.float64(m) / scalars.corrected / np.float64(divisor))
        intended[d] = u - scalars.lr_decay * np.float64(w) if scalars.has_decay else u


@inlined
def _moments_row(words, scalars, n, first, second):
    """Fill in the moments after the update."""
    small = abs(scalars.first_weight) < np.float32(0.5)
    weight = scalars.first_weight if small else np.float32(scalars.first_weight - np.float32(1.0))
    for d in range(len(first)):
        word = words.m[n, d]
        m, v = float32_value(word), float32_value(words.v[n, d])
        g = np.float32(scalars.sign * float32_value(words.gradient[n, d]))
        between = np.float32(g - m)
        first[d] = _rounded(_multiply_add(weight, between, m if small else g, scalars.is_fused), word)
        v = _rounded(np.float32(v * scalars.second_factor), word)
        second[d] = _rounded(_multiply_add(np.float32(scalars.square_weight * g), g, v, scalars.is_fused), word)


@inlined
def _count_moments(words, scalars, n, first, second, counts):
    """Count the moments that equal the recorded ones, and the second moments that are stalled."""
    m_known = m_equal = v_known = v_equal = n_stalled = n_squares = 0
    for d in range(len(first)):
        m, v = float32_value(words.m_after[n, d]), float32_value(words.v_after[n, d])
        known = (first[d] == first[d]) & (m == m)
        m_known += known
        m_equal += known & (np.float32(first[d]).view(np.uint32) == float32_word(words.m_after[n, d]))
        known = (second[d] == second[d]) & (v == v)
        v_known += known
        v_equal += known & (np.float32(second[d]).view(np.uint32) == float32_word(words.v_after[n, d]))
        before, g = float32_value(words.v[n, d]), np.float64(float32_value(words.gradient[n, d]))
        square = g * g
        known = (before == before) & (square == square)
        n_squares += known
        n_stalled += known & (before == v) & (square != np.float64(before))
    counts[0] += m_known
    counts[1] += m_equal
    counts[2] += v_known
    counts[3] += v_equal
    counts[4] += n_stalled
    counts[5] += n_squares


@inlined
def _count_weights(words, scalars, n, predicted, plain, counts):
    """Count the elements that only weight decay moved, and those whose value as bfloat16 changed."""
    n_decay = n_visible = 0
    for d in range(len(predicted)):
        a, b = words.w[n, d], words.w_after[n, d]
        w, after = float32_value(a), float32_value(b)
        finite = ((float32_word(a) & MAGNITUDE) < INFINITY) & ((float32_word(b) & MAGNITUDE) < INFINITY)
        n_decay += finite & (w != after) & (plain[d] == w) & scalars.has_decay
        n_visible += finite & (_rounded(w, np.uint16(0)) != _rounded(after, np.uint16(0)))
    counts[6] += n_decay
    counts[7] += n_visible


@inlined
def _classify(words, n, predicted, intended, smallest, ulp_offset, steps, half_gaps, counts):
    """Fill in the displacements and |u| in half gaps, NaN where a value is not finite, and count as `mechanism` does.

    There is no branch, so that vector units can be used; the classes are those of `mechanism.class_of`.
    """
    n_none = n_rounded = n_moved = n_unknown = n_compared = n_equal = n_compared_moved = n_equal_moved = n_powers = 0
    for d in range(len(steps)):
        word, after = float32_word(words.w[n, d]), float32_word(words.w_after[n, d])
        magnitude = word & MAGNITUDE
        finite = (magnitude < INFINITY) & ((after & MAGNITUDE) < INFINITY)
        w, w_after, g = float32_value(word), float32_value(after), float32_value(words.gradient[n, d])
        u, p = intended[d], np.float32(predicted[d])
        moved = finite & (w_after != w)
        compared = finite & (u == u) & (p == p)
        equal = compared & (p.view(np.uint32) == after)
        unknown = finite & (w_after == w) & ((u != u) | (g != g) | (compared & (p != w)))
        rounded = finite & (w_after == w) & ((u != 0) | (g != 0)) & (not unknown)
        power = finite & ((magnitude & MANTISSA) == 0) & (magnitude != 0)
        n_moved += moved
        n_unknown += unknown | (not finite)
        n_rounded += rounded
        n_none += finite & (not (moved | unknown | rounded))
        n_compared += compared
        n_equal += equal
        n_compared_moved += compared & moved
        n_equal_moved += equal & moved
        n_powers += power
        exponent = max(np.int64(magnitude >> np.uint32(23)), smallest)
        inward = ((u < 0) & (w > 0)) | ((u > 0) & (w < 0))
        exponent -= power & inward & (exponent > smallest)  # below a power of two the gap is half as wide
        half_gaps[d] = abs(u) * power_of_two(ulp_offset + 1 - exponent)
        steps[d] = np.float64(w_after) - np.float64(w) if finite else np.nan
    counts[NO_GRADIENT] += n_none
    counts[ROUNDED] += n_rounded
    counts[MOVED] += n_moved
    counts[UNKNOWN] += n_unknown
    counts[COMPARED] += n_compared
    counts[EQUAL] += n_equal
    counts[COMPARED_MOVED] += n_compared_moved
    counts[EQUAL_MOVED] += n_equal_moved
    counts[POWERS_OF_TWO] += n_powers
    seen = (n_none > 0) << NO_GRADIENT | (n_rounded > 0) << ROUNDED | (n_moved > 0) << MOVED
    return seen | (n_unknown > 0) << UNKNOWN


@inlined
def _sum_up(n, seen, intended, steps, half_gaps, out):
    """Fill in the outputs of a token, and add to the sums, element after element as `mechanism` does."""
    realised, all_squares, along, far_squares = (
        out.sums[REALISED_SQUARES], out.sums[INTENDED_SQUARES], out.sums[ALONG], out.sums[SQUARES],
    )  # fmt: skip
    margin = squares = 0.0
    usable = True
    for d in range(len(steps)):
        step, u, gaps = steps[d], intended[d], half_gaps[d]
        finite, known = step == step, u == u
        far = finite & known & (gaps > FAR)
        usable &= finite
        squares += u * u
        margin = gaps if (gaps > margin) | (gaps != gaps) else margin
        realised += step * step if finite else 0.0  # a sum that begins with 0 is not changed by it
        all_squares += u * u if finite & known else 0.0
        along += step * u if far else 0.0
        far_squares += u * u if far else 0.0
        out.net[n, 0, d] += u if finite else np.nan  # a sum without this element would look complete
        out.net[n, 1, d] += step
    out.sums[REALISED_SQUARES], out.sums[INTENDED_SQUARES] = realised, all_squares
    out.sums[ALONG], out.sums[SQUARES] = along, far_squares
    out.length[n] = np.sqrt(squares) if usable else np.nan
    out.margin[n] = margin if usable else np.nan
    out.cause[n] = class_of_token(seen) if usable else UNKNOWN
