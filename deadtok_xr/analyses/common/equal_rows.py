"""Find the largest group of rows that are bit for bit equal, from digests that blocks of tokens compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray


def digests(words: NDArray[Any]) -> list[bytes]:
    """Return a digest of 128 bits for each row of unsigned integers."""
    return [blake3(np.ascontiguousarray(row).view(np.uint8).data).digest(16) for row in words]


def largest_group(parts: Sequence[list[bytes]], considered: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the positions of the largest group of equal rows, ascending; of equally large ones, of the first.

    Parameters
    ----------
    parts
        The digests of all blocks.
    considered
        bool per row; others are in no group.
    """
    at = np.flatnonzero(considered)
    found = np.frombuffer(b"".join(digest for part in parts for digest in part), "V16")[at]
    if not at.size:
        return at
    _, first, group, counts = np.unique(found, return_index=True, return_inverse=True, return_counts=True)
    if counts.max() < 2:
        return at[:0]
    largest = np.flatnonzero(counts == counts.max())
    return at[group == largest[np.argmin(first[largest])]]
