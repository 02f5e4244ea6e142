"""Two-dimensional histogram of many trajectories: step by logarithm of the value."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.plot._style import Floats


@dataclass(frozen=True)
class Density:
    """Counts of (step, token) pairs in each cell; values of exactly 0 and invalid values are counted separately."""

    step_edges: Floats
    value_edges: Floats
    counts: NDArray[np.int64]
    """(column, bin)"""
    zeros: NDArray[np.int64]
    invalid: NDArray[np.int64]
    n_steps: NDArray[np.int64]
    """Steps of the data in each column."""


def density(
    values: NDArray[Any], steps: NDArray[Any], low: float, high: float, *, columns: int = 600, bins: int = 150
) -> Density:
    """Count non-negative values (step, token), NaN where invalid, between low and high, or equal to 0.

    All columns hold the same number of step labels, so that binning causes no stripes; the last may hold fewer.
    """
    step_edges = _step_edges(steps, columns)
    first = np.searchsorted(steps, step_edges)
    width = np.log10(high / low) / bins
    counts = np.zeros((len(first) - 1, bins), np.int64)
    zeros, invalid = np.zeros((2, len(first) - 1), np.int64)
    for i, (a, b) in enumerate(itertools.pairwise(first)):
        block = values[a:b]
        zeros[i], invalid[i] = np.count_nonzero(block == 0), np.count_nonzero(np.isnan(block))
        place = (np.log10(block[block > 0].astype(np.float64)) - np.log10(low)) / width
        counts[i] = np.bincount(np.clip(place.astype(np.int64), 0, bins - 1), minlength=bins)
    value_edges = low * 10 ** (width * np.arange(bins + 1))
    return Density(step_edges, value_edges, counts, zeros, invalid, np.diff(first))


def _step_edges(steps: NDArray[Any], columns: int) -> Floats:
    """Return edges between step labels, with a whole number of the recording's strides per column."""
    stride = int(np.diff(steps).min()) if len(steps) > 1 else 1
    n = int(steps[-1] - steps[0]) // stride + 1
    per_column = -(-n // columns)
    width = stride * per_column
    return steps[0] - stride / 2 + width * np.arange(-(-n // per_column) + 1)
