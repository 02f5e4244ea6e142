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
    return np.take(content[:, : 8 * n].view(np.uint64), at, axis=1).view(np.uint8)


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
    several = _that_share(np.concatenate([_hashes(part) for part in parts]), np.flatnonzero(considered))
    # groups are in the order of their first rows
    return max(_groups(_digests(blocks, several), several), key=len, default=np.empty(0, np.int64))


def _hashes(rows: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return a number of each row that equal rows have in common: rows that share one are compared completely."""
    words = np.zeros((len(rows), -(-rows.shape[1] // 8)), np.uint64)
    words.view(np.uint8)[:, : rows.shape[1]] = rows
    found = np.zeros(len(rows), np.uint64)
    for word in words.T:
        found = (found ^ word) * np.uint64(0x9E3779B97F4A7C15)  # modulo 2⁶⁴
        found ^= found >> np.uint64(29)
    return found


def _that_share(numbers: NDArray[np.uint64], at: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return those of some positions whose number another of them has too, ascending."""
    wanted = numbers[at]
    order = np.argsort(wanted)
    equal = np.flatnonzero(np.diff(wanted[order]) == 0)
    return at[np.union1d(order[equal], order[equal + 1])]


def _groups(keys: dict[int, bytes], at: NDArray[np.int64]) -> list[NDArray[np.int64]]:
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
