"""Which rows are bitwise the same at each step.

Rows are hashed, and every row is compared with the first one of its hash, so that the answer does not rest on the
hash; where two different rows share one, all rows are sorted instead. What becomes of the places is numba's kernel's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deadtok_xr.kernels.torch.parts import float32_words, latest, over, own_turn, parts, unsigned_zeros, words

INFINITY = 0x7F800000
FIGURES = ("n_unique", "n_black_holes", "population", "largest", "n_singletons", "n_invalid")


@own_turn
def census(
    steps: Tensor, changed: NDArray[np.bool_], out: dict[str, NDArray[Any]], *, signed_zero: bool = False
) -> None:
    """Fill ``out`` with how many places the finite rows of each step (t, n, d) share.

    Parameters
    ----------
    steps
        bfloat16, float16 or float32.
    changed
        Which rows differ from the step before, at least (t - 1, n).
    out
        Arrays (t,) to fill: n_unique places; n_black_holes, those of two rows or more; population, the rows in them;
        largest, the rows of the largest place; n_singletons, rows alone in theirs; n_invalid, rows with NaN or
        infinity, which have none.
    signed_zero
        Whether -0 and +0 are different.
    """
    fresh = np.append(True, changed[: len(steps) - 1].any(axis=1))
    found = np.zeros((len(steps), len(FIGURES)), np.int64)
    rows = words(steps)

    def work(part: slice) -> None:
        for t in np.flatnonzero(fresh[part]) + part.start:
            found[t] = _figures(places(rows[t], signed_zero=signed_zero))

    over(len(steps), len(steps), work)
    found = found[latest(fresh)]
    for i, name in enumerate(FIGURES):
        out[name][:] = found[:, i]


def _figures(label: Tensor) -> NDArray[np.int64]:
    valid = label[label >= 0]
    sizes = torch.bincount(valid, minlength=len(label))
    holes, alone = sizes[sizes > 1], (sizes == 1).sum()
    largest = sizes.max()
    found = (alone + len(holes), len(holes), holes.sum(), largest, alone, len(label) - len(valid))
    return np.array([int(x) for x in found])


def places(bits: Tensor, *, signed_zero: bool = False) -> Tensor:
    """For each row of bits (n, d) the first row that is the same, int64 (n,); -1 where a value is not finite."""
    valid, hashes = _hashed(bits, signed_zero)
    rows = torch.nonzero(valid)[:, 0]
    label = torch.full((len(bits),), -1, dtype=torch.int64, device=bits.device)
    if not len(rows):
        return label
    _, group = torch.unique(hashes[rows], return_inverse=True)
    first = _first(group, rows)
    if not _alike(bits, rows, first, signed_zero):
        _, group = torch.unique(_plain(bits[rows], signed_zero), dim=0, return_inverse=True)
        first = _first(group, rows)
    label[rows] = first
    return label


def _plain(bits: Tensor, signed_zero: bool) -> Tensor:
    w = float32_words(bits)
    return w if signed_zero else unsigned_zeros(w)


def _first(group: Tensor, rows: Tensor) -> Tensor:
    """For each of some rows the first one of its group."""
    none = torch.full((len(rows),), torch.iinfo(torch.int64).max, device=rows.device)
    return none.scatter_reduce(0, group, rows, "amin")[group]


def _keys(n_dims: int) -> Tensor:
    """What the words of a row are multiplied by: odd, and always the same."""
    return torch.from_numpy(np.random.default_rng(0x5EED).integers(-(2**63), 2**63 - 1, n_dims) | 1)


def _hashed(bits: Tensor, signed_zero: bool) -> tuple[Tensor, Tensor]:
    """Which rows are finite, and a hash of each, int64 (n,): a sum of products that may overflow."""
    keys = _keys(bits.shape[1]).to(bits.device)
    valid = torch.empty(len(bits), dtype=torch.bool, device=bits.device)
    hashes = torch.empty(len(bits), dtype=torch.int64, device=bits.device)
    for rows in parts(len(bits), bits.shape[1]):
        w = _plain(bits[rows], signed_zero)
        valid[rows] = (w & 0x7FFFFFFF).amax(dim=1) < INFINITY
        hashes[rows] = (w.long() * keys).sum(1)
    return valid, hashes


def _alike(bits: Tensor, rows: Tensor, first: Tensor, signed_zero: bool) -> bool:
    """Whether every row is the same as the first one of its group."""
    for part in parts(len(rows), bits.shape[1]):
        if not torch.equal(_plain(bits[rows[part]], signed_zero), _plain(bits[first[part]], signed_zero)):
            return False
    return True
