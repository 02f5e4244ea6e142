"""What can be proven from the values of a file, before anything is written."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from deadtok_xr.bfloat16 import on_grid
from deadtok_xr.conversion.plan import PART_BYTES
from deadtok_xr.conversion.readers.source import Entry, Source, slabs

Looked = Callable[[int], None]
"""Called with the bytes that have been looked through."""


def all_on_bfloat16_grid(source: Source, key: str, looked: Looked = lambda n: None) -> bool:
    """Whether every float32 or float16 value of an array is a bfloat16 number, bit for bit.

    Reads until the first that is not; a NaN counts if its payload fits.
    """
    entry = source.entries[key]
    assert entry.dtype is not None
    for where in slabs(entry.shape, entry.dtype.itemsize, PART_BYTES):
        values = source.read(key, *where)
        if values.dtype == np.float32:
            fits = not (values.view(np.uint32) & np.uint32(0xFFFF)).any()
        else:
            fits = bool(on_grid(values, "bfloat16").all())
        if not fits:
            return False
        looked(values.nbytes)
    return True


def repeats_its_first_step(source: Source, key: str, axis: int) -> bool:
    """Whether the step at position 1 has the bits of position 0, and something moves after it.

    That is what a recorder leaves that runs before the optimizer's step; so does a first step with a
    learning rate of 0.
    """
    entry = source.entries[key]
    if entry.shape[axis] < 3:
        return False
    return _same(source, key, entry, axis, 0, 1) and not _same(source, key, entry, axis, 1, 2)


def _same(source: Source, key: str, entry: Entry, axis: int, i: int, j: int) -> bool:
    """Whether two steps (of the first run) have the same bits."""
    lead = (slice(0, 1),) * axis
    assert entry.dtype is not None
    for rows in slabs(entry.shape[axis + 1 :], entry.dtype.itemsize, PART_BYTES):
        one, other = (source.read(key, *lead, slice(t, t + 1), *rows) for t in (i, j))
        if one.tobytes() != other.tobytes():
            return False
    return True
