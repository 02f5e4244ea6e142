"""Find the largest group of rows that are bit for bit equal, in a matrix that is read in blocks.

Blocks keep a sample of each row: hashing all of it would take as long as everything else that is done with it. Rows
with equal samples are read again and compared completely.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from deadtok_xr.analyses.common.token_blocks import HeldTokens, TokenBlocks

_WORDS = 8
"""Words of 64 bits in a sample."""


def samples(rows: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Return some bytes of each row, at equal distances, (row, byte); of short rows all bytes."""
    content = _bytes(rows)
    n = content.shape[1] // 8
    if n <= _WORDS:
        return content.copy()
    at = np.linspace(0, n - 1, _WORDS).astype(np.int64)
    return content[:, : 8 * n].reshape(len(content), n, 8)[:, at].reshape(len(content), -1)


def largest_group(
    parts: Sequence[NDArray[np.uint8]], considered: NDArray[np.bool_], blocks: TokenBlocks | HeldTokens
) -> NDArray[np.int64]:
    """Return the positions of the largest group of equal rows, ascending; of equally large ones, of the first.

    Parameters
    ----------
    parts
        The samples of all blocks.
    considered
        bool per row; others are in no group.
    blocks
        The matrix.
    """
    alike = _groups([row.tobytes() for part in parts for row in part], np.flatnonzero(considered))
    largest = np.empty(0, np.int64)
    for group in sorted(alike, key=len, reverse=True):
        if len(group) < len(largest):
            break
        found = _groups(_digests(blocks, group), group)
        # groups are in the order of their first rows
        best = max(found, key=len, default=largest)
        if len(best) > len(largest) or (len(best) == len(largest) > 0 and best[0] < largest[0]):
            largest = best
    return largest


def _groups(keys: list[bytes] | dict[int, bytes], at: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return the positions of rows with the same key, of each key that at least two rows have."""
    several = {key for key, n in Counter(keys[i] for i in at).items() if n > 1}
    groups: dict[bytes, list[int]] = defaultdict(list)
    for i in at:
        if keys[i] in several:
            groups[keys[i]].append(int(i))
    return [np.array(group) for group in groups.values()]


def _digests(blocks: TokenBlocks | HeldTokens, at: NDArray[np.int64]) -> dict[int, bytes]:
    """Return a digest of 128 bits of rows, by position."""
    found: dict[int, bytes] = {}
    for begin, end in blocks.bounds:
        inside = at[(begin <= at) & (at < end)]
        if inside.size:
            rows = _bytes(blocks.read(begin, end)[inside - begin])
            found |= {int(i): blake3(row.data).digest(16) for i, row in zip(inside, rows, strict=True)}
    return found


def _bytes(rows: NDArray[np.generic]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), -1)
