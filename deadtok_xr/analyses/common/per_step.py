"""Small results of every step, made by one task: a task for each variable and row would outweigh them."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np

from deadtok_xr.engine import BlockResult, ReductionResults

SERIES = "series"
"""The field over rows of a probe that has such results: a tuple of one dict of arrays."""


def chained(found: ReductionResults, reduction: str) -> da.Array:
    """The dicts of all rows as one tuple, in one block."""
    return found.merged(reduction, SERIES, _chain)


def _chain(a: tuple[BlockResult, ...], b: tuple[BlockResult, ...]) -> tuple[BlockResult, ...]:
    return a + b


def joined(inputs: list[Any], names: tuple[str, ...]) -> BlockResult:
    """What `chained` gave to a task, as one array per name."""
    (parts,) = inputs
    return {name: np.concatenate([part[name] for part in parts]) for name in names}
