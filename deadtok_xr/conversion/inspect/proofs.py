"""Check the values of a source, before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.bfloat16 import on_grid
from deadtok_xr.conversion.plan import PART_BYTES
from deadtok_xr.conversion.readers.source import Entry, Source, slabs

Checked = Callable[[int], None]
"""Called with a number of bytes that were checked."""


def all_on_bfloat16_grid(source: Source, key: str, checked: Checked = lambda n: None) -> bool:
    """Return whether every float32 or float16 value of an array is a bfloat16 number, bit for bit.

    Reading stops at the first that is not; a NaN counts if bfloat16 can hold its payload.
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
        checked(values.nbytes)
    return True


def repeats_its_first_step(source: Source, key: str, axis: int) -> bool:
    """Return whether the step at position 1 has the bits of position 0, and the next one does not.

    A recorder that runs before the optimizer's step leaves such a file; so does a first step with a learning rate of 0.
    """
    entry = source.entries[key]
    if entry.shape[axis] < 3:
        return False
    return _same(source, key, entry, axis, 0, 1) and not _same(source, key, entry, axis, 1, 2)


def _same(source: Source, key: str, entry: Entry, axis: int, i: int, j: int) -> bool:
    """Return whether two steps (of the first run) have the same bits."""
    lead = (slice(0, 1),) * axis
    assert entry.dtype is not None
    for rows in slabs(entry.shape[axis + 1 :], entry.dtype.itemsize, PART_BYTES):
        one, other = (source.read(key, *lead, slice(t, t + 1), *rows) for t in (i, j))
        if one.tobytes() != other.tobytes():
            return False
    return True


def are_whole(values: NDArray[Any]) -> bool:
    """Return whether all values are whole numbers, in whatever type."""
    if values.dtype.kind == "f":
        return bool((np.abs(values) < 2**53).all() and (values == np.floor(values)).all())
    return values.dtype.kind in "iu"
