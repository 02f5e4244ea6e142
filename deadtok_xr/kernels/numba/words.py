"""Count the words of flat arrays: which occur how often, and how far those of two arrays are apart."""

from __future__ import annotations

import numpy as np

from deadtok_xr.kernels.numba.jit import compiled


@compiled
def count_words(words, counts):
    """Count each word of 16 bits.

    Parameters
    ----------
    words
        uint16 (n,).
    counts
        int64 (65536,), added to.
    """
    for i in range(words.size):
        counts[words[i]] += 1


@compiled
def count_classes(words, mantissa_bits, max_exponent, one, counts, special):
    """Count words by what decides how far a value must be pushed to move.

    Parameters
    ----------
    words
        uint32 or uint64 (n,).
    mantissa_bits, max_exponent
        Of the format.
    one
        The word of 1.0.
    counts
        int64 (4 * (max_exponent + 1),), added to: by 4·E + 2·(the mantissa is zero) + (the last bit is set), E the
        exponent field.
    special
        int64 (1,), added to: the words of 1.0.
    """
    shift, top = np.uint64(mantissa_bits), np.uint64(max_exponent)
    mantissa = (np.uint64(1) << shift) - np.uint64(1)
    n_ones = 0
    for i in range(words.size):
        word = np.uint64(words[i])
        exponent = (word >> shift) & top
        power = np.uint64((word & mantissa) == 0)
        counts[np.int64(exponent << np.uint64(2) | power << np.uint64(1) | word & np.uint64(1))] += 1
        n_ones += word == one
    special[0] += n_ones


@compiled
def compare_words(a, b, magnitude, infinity, found):
    """Compare two arrays of words bit by bit.

    Parameters
    ----------
    a, b
        uint16, uint32 or uint64 (n,).
    magnitude
        The mask of all bits but the sign.
    infinity
        The word of +infinity.
    found
        int64 (3,), updated: words that differ; pairs of finite values; the largest distance of such a pair in
        representable numbers, -0 and +0 being one number.
    """
    differ, finite, largest = 0, 0, np.uint64(0)
    for i in range(a.size):
        x, y = np.uint64(a[i]), np.uint64(b[i])
        differ += x != y
        p, q = x & magnitude, y & magnitude
        known = (p < infinity) & (q < infinity)
        finite += known
        apart = p + q if (x ^ y) & ~magnitude else (p - q if p > q else q - p)
        largest = max(largest, apart if known else np.uint64(0))
    found[0] += differ
    found[1] += finite
    found[2] = max(found[2], np.int64(min(largest, np.uint64(0x7FFFFFFFFFFFFFFF))))
