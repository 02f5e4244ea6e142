"""Collect numbers per step in one task: a task for each variable and block would take longer than the work."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np

from deadtok_xr.engine import BlockResult, ReductionResults

SERIES = "series"
"""The output, per block, of a reduction with such results: a tuple of one dict of arrays."""


def collect(results: ReductionResults, reduction: str) -> da.Array:
    """Return the dicts of all blocks as one tuple, in one Dask block."""
    return results.merged(reduction, SERIES, _append)


def _append(a: tuple[BlockResult, ...], b: tuple[BlockResult, ...]) -> tuple[BlockResult, ...]:
    return a + b


def concatenate(inputs: list[Any], names: tuple[str, ...]) -> BlockResult:
    """Return one array per name from what `collect` passed to a task."""
    (parts,) = inputs
    return {name: np.concatenate([part[name] for part in parts]) for name in names}
