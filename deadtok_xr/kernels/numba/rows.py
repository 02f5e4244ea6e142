"""Copy rows: within compiled functions, and those of tokens to their positions in the chunks of a store."""

from __future__ import annotations

import numpy as np

from deadtok_xr.kernels.numba.jit import compiled, inner


@inner
def copy_row(source, t, out, u):
    """Copy row t of a matrix to row u of another: a loop compiles in a third of the time of ``out[u] = source[t]``."""
    for i in range(out.shape[1]):
        out[u, i] = source[t, i]


@inner
def copy_to(source, out):
    """Copy a vector to another of its length, see `copy_row`."""
    for i in range(len(out)):
        out[i] = source[i]


@compiled
def place_rows(batch, destination, out, first, exponent, counted_from, bad):
    """Copy the rows of some steps to their positions in consecutive chunks, and count values that are not finite.

    Parameters
    ----------
    batch
        Words (t, n, d).
    destination
        For each row n its position among the rows of ``out``; negative if it belongs to other chunks.
    out
        Words (chunk, t, row in the chunk, d).
    first
        The position of the first step of the batch along the steps of ``out``.
    exponent
        The mask of the exponent field: a word with all these bits set is infinite or NaN. 0 for integers.
    counted_from
        The first step of the batch in which such words are counted.
    bad
        int64 (chunk, 3), updated: how many such words there are in each chunk, and the first one's step
        along ``out`` and row of the batch, in the order of the batch.
    """
    height = out.shape[2]
    for t in range(batch.shape[0]):
        counts = exponent != 0 and t >= counted_from
        for n in range(batch.shape[1]):
            place = destination[n]
            if place < 0:
                continue
            k = place // height
            i = place - k * height
            worst = np.int64(0)
            for d in range(batch.shape[2]):
                word = batch[t, n, d]
                out[k, first + t, i, d] = word
                worst += (word & exponent) == exponent
            if counts and worst:
                if bad[k, 0] == 0:
                    bad[k, 1] = first + t
                    bad[k, 2] = n
                bad[k, 0] += worst
