"""Count what decides whether the values of a parameter can move, in one pass and in bounded memory.

Two numbers decide it for a value w ≠ 0: half the gap to the next number towards zero, and half the gap to the next
number away from zero. They follow from the exponent field E of w and from whether its mantissa is zero: then w is a
power of two, and the gap towards zero is half as large. At exactly half a gap, w ± lr lies between two numbers and is
rounded to the one whose last bit is 0, so that w stays if its own last bit is 0. Counts by (E, mantissa is zero, last
bit) therefore answer every question about every learning rate.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.bfloat16 import Grid
from deadtok_xr.checkpoints.contents import FORMATS
from deadtok_xr.conversion.readers.source import Source, dtype_of, slabs

SLAB_BYTES = 2 * 2**20
"""Bytes of one array that are read at once, which stay in the cache until they are counted."""
AHEAD = 4
"""Slabs that are read in advance; each checkpoint has one more in memory, and one that is being read."""
Words = NDArray[np.unsignedinteger]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """How two arrays differ: values that differ in a bit, pairs of finite values, the largest distance of a pair."""

    changed: int
    n_finite: int
    max_distance: int


@dataclass(frozen=True)
class Counts:
    """The values of one parameter, counted.

    Attributes
    ----------
    by_class
        Finite values, int64 (exponent field, mantissa is zero, last bit).
    n_ones, n_not_finite
        Values that are 1.0; that are NaN or infinite.
    """

    grid: Grid
    by_class: NDArray[np.int64]
    n_ones: int
    n_not_finite: int

    @property
    def n_finite(self) -> int:
        return int(self.by_class.sum())

    @property
    def n_zeros(self) -> int:
        """Values that are -0 or +0."""
        return int(self.by_class[0, 1].sum())

    def share(self, n: int) -> float:
        """Return a share of the finite values; NaN if there are none."""
        return n / self.n_finite if self.n_finite else float("nan")

    def n_stuck(self, lr: float, *, outward: bool = False) -> int:
        """Count the finite values that neither +lr nor -lr moves; with ``outward``, those that stay away from zero.

        From a power of two, the way towards zero is the shorter one, elsewhere both are equal: a value that lr does not
        move towards zero does not move at all.
        """
        half = half_gaps(self.grid, outward=outward)
        odd = np.array([False, True])
        stays = (half > lr)[:, :, None] | ((half == lr)[:, :, None] & ~odd)
        return int(self.by_class[stays].sum())

    def lr_to_move(self, share: float) -> float:
        """Return the learning rate above which at least this share of the finite values moves; NaN without any."""
        half, n = half_gaps(self.grid).ravel(), self.by_class.sum(axis=2).ravel()
        order = np.argsort(half, kind="stable")
        reached = np.cumsum(n[order]) >= share * max(1, self.n_finite)
        return float(half[order][np.argmax(reached)]) if self.n_finite else float("nan")


def half_gaps(grid: Grid, *, outward: bool = False) -> Floats:
    """Compute half the gap to the next number towards zero, or away from zero, by (exponent field, mantissa is zero).

    Zero has its next number on both sides; the largest finite number has infinity, at the place of the next number.
    """
    exponent = np.arange(grid.max_exponent)[:, None]
    shorter = np.array([[False, True]]) & (exponent > 1) & (not outward)
    return np.ldexp(1.0, np.maximum(exponent, 1) - grid.ulp_offset - 1 - shorter)


def count(
    a: Source, name: str, b: tuple[Source, str] | None = None, progress: Callable[[int], None] | None = None
) -> tuple[Counts, Difference | None]:
    """Count the values of a parameter, and compare them with those of another checkpoint.

    Parameters
    ----------
    a, name
        An open checkpoint, and the parameter.
    b
        Another one, and the name of the parameter there; it has the same shape and dtype.
    progress
        Called with the number of bytes read since the last call.
    """
    from deadtok_xr.kernels.numba.words import compare_words, count_classes, count_words

    grid = FORMATS[dtype_of(a, name).name]
    narrow = grid.width == 16
    counts = np.zeros(2**16 if narrow else 4 * (grid.max_exponent + 1), np.int64)
    ones, found = np.zeros(1, np.int64), np.zeros(3, np.int64)
    one = grid.bias << grid.mantissa_bits
    infinity = grid.max_exponent << grid.mantissa_bits
    for parts in _read([(a, name), *([b] if b else [])], grid):
        if narrow:
            count_words(parts[0], counts)
        else:
            count_classes(parts[0], grid.mantissa_bits, grid.max_exponent, np.uint64(one), counts, ones)
        if len(parts) == 2:
            compare_words(parts[0], parts[1], np.uint64(2 ** (grid.width - 1) - 1), np.uint64(infinity), found)
        if progress is not None:
            progress(sum(part.nbytes for part in parts))
    if narrow:
        ones[0] = counts[one]
        counts = _classes(counts, grid)
    by_class = counts.reshape(-1, 2, 2)
    difference = Difference(*map(int, found)) if b is not None else None
    return Counts(grid, by_class[:-1], int(ones[0]), int(by_class[-1].sum())), difference


def _read(parameters: list[tuple[Source, str]], grid: Grid) -> Iterator[list[Words]]:
    """Yield the words of parameters of one shape slab by slab, while a thread reads the next slabs."""
    source, name = parameters[0]
    entry = source.entries[name]
    places = list(slabs(entry.shape, grid.width // 8, SLAB_BYTES)) if entry.shape else [()]

    def read(where: tuple[slice, ...]) -> list[Words]:
        values = [np.ascontiguousarray(source.read(name, *where)) for source, name in parameters]
        return [x.reshape(-1).view(grid.bits_dtype) for x in values]

    if len(places) == 1:
        yield read(places[0])
        return
    with ThreadPoolExecutor(1) as thread:
        coming = deque(thread.submit(read, where) for where in places[:AHEAD])
        for where in places[AHEAD:]:
            yield coming.popleft().result()
            coming.append(thread.submit(read, where))
        while coming:
            yield coming.popleft().result()


def _classes(counts: NDArray[np.int64], grid: Grid) -> NDArray[np.int64]:
    """Return counts of words of 16 bits as counts of classes."""
    occurring = np.flatnonzero(counts)
    exponent = occurring >> grid.mantissa_bits & grid.max_exponent
    power = occurring & (2**grid.mantissa_bits - 1) == 0
    by_class = np.zeros(4 * (grid.max_exponent + 1), np.int64)
    np.add.at(by_class, 4 * exponent + 2 * power + (occurring & 1), counts[occurring])
    return by_class
