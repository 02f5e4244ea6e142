"""Which rows are bitwise the same at each step.

The rows of many steps are hashed at once, and every row is compared with the first one of its hash, so that the answer
does not rest on the hash; a step at which two different rows share one is sorted instead. What becomes of the places
is numba's, on the host (`kernels.numba.company`): it is a walk along the steps, of one number per row.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deadtok_xr.kernels.torch.parts import (
    float32_words,
    latest,
    over,
    parts,
    steps_of,
    taken,
    unsigned_zeros,
    with_device_lock,
    words,
)

INFINITY = 0x7F800000


@with_device_lock
def census(
    steps: Tensor, changed: NDArray[np.bool_], known: NDArray[np.int64] | None = None, *, signed_zero: bool = False
) -> NDArray[np.int64]:
    """Find the places of some steps.

    Parameters
    ----------
    steps
        bfloat16, float16 or float32, (t, n, d).
    changed
        Which rows differ from the step before, (t - 1, n).
    known
        The places of the first step, if they are known, (n,).
    signed_zero
        Whether -0 and +0 are different.

    Returns
    -------
    The first row in the same place, (t, n); -1 where a value is not finite.
    """
    fresh = np.append(known is None, changed.any(axis=1))
    at, rows = np.flatnonzero(fresh), words(steps)
    labels = np.empty(steps.shape[:2], np.int64)
    if known is not None:
        labels[0] = known

    def work(part: slice) -> None:
        labels[at[part]] = places(taken(rows, at[part]), signed_zero=signed_zero).cpu().numpy()

    over(len(at), steps_of(rows), work)
    return labels[latest(fresh)]


def places(bits: Tensor, *, signed_zero: bool = False) -> Tensor:
    """For each row of bits (t, n, d) the first one of its step that is the same, (t, n); -1 if it is not finite."""
    valid, hashes = _hashed(bits, signed_zero)
    ascending, order = hashes.sort(dim=1, stable=True)  # those of one hash in their own order
    begins = torch.arange(bits.shape[1], device=bits.device).repeat(len(bits), 1)
    begins[:, 1:] *= ascending[:, 1:] != ascending[:, :-1]
    label = torch.empty_like(order).scatter_(1, order, order.gather(1, begins.cummax(dim=1).values))
    for t in _mistaken(bits, label, signed_zero):
        label[t] = _first(_plain(bits[t], signed_zero))
    return label.masked_fill_(~valid, -1)


def _plain(bits: Tensor, signed_zero: bool) -> Tensor:
    w = float32_words(bits)
    return w if signed_zero else unsigned_zeros(w)


def _first(rows: Tensor) -> Tensor:
    """For each of some rows the first one that is the same."""
    _, group = torch.unique(rows, dim=0, return_inverse=True)
    none = torch.full((len(rows),), len(rows), device=rows.device)
    return none.scatter_reduce(0, group, torch.arange(len(rows), device=rows.device), "amin")[group]


def _keys(n_dims: int) -> Tensor:
    """What the words of a row are multiplied by: odd, and always the same."""
    return torch.from_numpy(np.random.default_rng(0x5EED).integers(-(2**63), 2**63 - 1, n_dims) | 1)


def _hashed(bits: Tensor, signed_zero: bool) -> tuple[Tensor, Tensor]:
    """Which rows are finite, and a hash of each, int64, both (t, n): a sum of products that may overflow."""
    rows = bits.flatten(0, 1)
    keys = _keys(rows.shape[1]).to(bits.device)
    valid = torch.empty(len(rows), dtype=torch.bool, device=bits.device)
    hashes = torch.empty(len(rows), dtype=torch.int64, device=bits.device)
    for part in parts(len(rows), rows.shape[1]):
        w = _plain(rows[part], signed_zero)
        valid[part] = (w & 0x7FFFFFFF).amax(dim=1) < INFINITY
        hashes[part] = (w.long() * keys).sum(1)
    return valid.view(bits.shape[:2]), hashes.view(bits.shape[:2])


def _mistaken(bits: Tensor, label: Tensor, signed_zero: bool) -> list[int]:
    """The steps at which a row is not the same as the first one of its hash."""
    rows, n = bits.flatten(0, 1), bits.shape[1]
    first = (label + n * torch.arange(len(bits), device=bits.device)[:, None]).flatten()
    others = torch.nonzero(first != torch.arange(len(rows), device=bits.device))[:, 0]
    mistaken = torch.zeros(len(bits), dtype=torch.bool, device=bits.device)
    for part in parts(len(others), rows.shape[1]):
        row = others[part]
        differs = (_plain(rows[row], signed_zero) != _plain(rows[first[row]], signed_zero)).any(dim=1)
        mistaken[row[differs] // n] = True
    return torch.nonzero(mistaken)[:, 0].tolist()
