"""Pieces of the tokens of a step, for what is computed in float64, which takes several times the memory of a step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.bfloat16 import decode
from deadtok_xr.kernels import PIECE


def pieces(n_tokens: int, n_dims: int, elements: int = PIECE) -> Iterator[slice]:
    """Yield consecutive slices of the tokens, at least one, of a multiple of 64 tokens each but the last.

    BLAS takes rows in groups, and computes what is left over in another order.
    """
    size = max(1, elements // max(1, n_dims))
    size -= size % 64 if size > 64 else 0
    for start in range(0, max(1, n_tokens), size):
        yield slice(start, min(start + size, n_tokens))


def wide(step: NDArray[Any]) -> NDArray[np.float64]:
    """Return recorded values as float64."""
    return (step if step.dtype == np.float64 else decode(step)).astype(np.float64)


def add_rows(total: NDArray[np.float64] | None, rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sum of rows (n, d) and what was summed before, in the order in which all rows at once are summed."""
    return rows.sum(axis=0) if total is None else np.concatenate([total[None], rows]).sum(axis=0)
