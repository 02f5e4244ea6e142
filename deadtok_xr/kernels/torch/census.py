"""Label rows that are equal bit for bit at each step.

The rows of many steps are hashed at once, and every row is compared with the first one that has its hash, so that
collisions do not change the result; a step at which two different rows have the same hash is sorted instead. The labels
are evaluated on the host, by numba (`kernels.numba.coincidence_history`), step by step with one number per row.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deadtok_xr.kernels.torch.parts import (
    bit_words,
    float32_words,
    last_fresh,
    run_in_parts,
    select_steps,
    steps_per_tile,
    tiles,
    unsigned_zeros,
    with_device_lock,
)

INFINITY = 0x7F800000


@with_device_lock
def census(
    steps: Tensor, changed: NDArray[np.bool_], known: NDArray[np.int64] | None = None, *, signed_zero: bool = False
) -> NDArray[np.int64]:
    """Label each row with the first row that is equal to it, at each step.

    Parameters
    ----------
    steps
        bfloat16, float16 or float32, (t, n, d).
    changed
        Which rows differ from the step before, (t - 1, n).
    known
        The labels of the first step, if they are known, (n,).
    signed_zero
        Whether -0 and +0 are different.

    Returns
    -------
    The labels, (t, n); -1 where a value is not finite.
    """
    fresh = np.append(known is None, changed.any(axis=1))
    at, rows = np.flatnonzero(fresh), bit_words(steps)
    labels = np.empty(steps.shape[:2], np.int64)
    if known is not None:
        labels[0] = known

    def work(part: slice) -> None:
        labels[at[part]] = first_equal_rows(select_steps(rows, at[part]), signed_zero=signed_zero).cpu().numpy()

    run_in_parts(len(at), steps_per_tile(rows), work)
    return labels[last_fresh(fresh)]


def first_equal_rows(bits: Tensor, *, signed_zero: bool = False) -> Tensor:
    """Return, for each row of bits (t, n, d), the first one of its step that is the same, (t, n); -1 if not finite."""
    valid, hashes = _hashed(bits, signed_zero)
    ascending, order = hashes.sort(dim=1, stable=True)  # stable: rows with the same hash keep their order
    begins = torch.arange(bits.shape[1], device=bits.device).repeat(len(bits), 1)
    begins[:, 1:] *= ascending[:, 1:] != ascending[:, :-1]
    label = torch.empty_like(order).scatter_(1, order, order.gather(1, begins.cummax(dim=1).values))
    for t in _steps_with_collisions(bits, label, signed_zero):
        label[t] = _first(_plain(bits[t], signed_zero))
    return label.masked_fill_(~valid, -1)


def _plain(bits: Tensor, signed_zero: bool) -> Tensor:
    w = float32_words(bits)
    return w if signed_zero else unsigned_zeros(w)


def _first(rows: Tensor) -> Tensor:
    """Return, for each of some rows, the first one that is the same, by sorting them."""
    _, group = torch.unique(rows, dim=0, return_inverse=True)
    none = torch.full((len(rows),), len(rows), device=rows.device)
    return none.scatter_reduce(0, group, torch.arange(len(rows), device=rows.device), "amin")[group]


def _keys(n_dims: int) -> Tensor:
    """Return the factors of the words of a row in its hash: odd, and always the same."""
    return torch.from_numpy(np.random.default_rng(0x5EED).integers(-(2**63), 2**63 - 1, n_dims) | 1)


def _hashed(bits: Tensor, signed_zero: bool) -> tuple[Tensor, Tensor]:
    """Return which rows are finite, and a hash of each, int64, both (t, n): a sum of products that may overflow."""
    rows = bits.flatten(0, 1)
    keys = _keys(rows.shape[1]).to(bits.device)
    valid = torch.empty(len(rows), dtype=torch.bool, device=bits.device)
    hashes = torch.empty(len(rows), dtype=torch.int64, device=bits.device)
    for part in tiles(len(rows), rows.shape[1]):
        w = _plain(rows[part], signed_zero)
        valid[part] = (w & 0x7FFFFFFF).amax(dim=1) < INFINITY
        hashes[part] = (w.long() * keys).sum(1)
    return valid.view(bits.shape[:2]), hashes.view(bits.shape[:2])


def _steps_with_collisions(bits: Tensor, label: Tensor, signed_zero: bool) -> list[int]:
    """Return the steps at which a row differs from the first one of its hash."""
    rows, n = bits.flatten(0, 1), bits.shape[1]
    first = (label + n * torch.arange(len(bits), device=bits.device)[:, None]).flatten()
    others = torch.nonzero(first != torch.arange(len(rows), device=bits.device))[:, 0]
    collides = torch.zeros(len(bits), dtype=torch.bool, device=bits.device)
    for part in tiles(len(others), rows.shape[1]):
        row = others[part]
        differs = (_plain(rows[row], signed_zero) != _plain(rows[first[row]], signed_zero)).any(dim=1)
        collides[row[differs] // n] = True
    return torch.nonzero(collides)[:, 0].tolist()
