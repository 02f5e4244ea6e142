"""Replay a few recorded updates with every arithmetic, and count the elements that agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dask
import numpy as np
from numpy.typing import NDArray

from deadtok_xr.analyses.common.recorded_updates import ELEMENTS_PER_CALL, Updates, as_grid
from deadtok_xr.replay import arithmetic as arithmetics
from deadtok_xr.replay.compare import Comparison, bits


def compare_updates(u: Updates, positions: Sequence[int]) -> tuple[Comparison, list[float]]:
    """Compare the updates that led to some positions along `step`; return the counts and the learning rates.

    Updates with an unknown rate, and those that skipped the parameter, are left out.
    """
    comparison, rates = Comparison(), []
    for i in positions:
        (parts,) = dask.compute({name: x[i - 1 : i + 1] for name, x in u.arrays.items()})
        t, rate = int(parts["t"][1, 0, 0]), float(parts["lr"][1, 0, 0])
        if np.isnan(rate) or t != parts["t"][0, 0, 0] + 1:
            continue
        rates.append(rate)
        for rows in _token_ranges(parts["W"].shape):
            before, after = (_tensors(u, parts, k, rows) for k in (0, 1))
            comparison.add(u.settings, t, rate, before, after)
    return comparison, rates


def moments_agreement(u: Updates, positions: Sequence[int]) -> float:
    """Return the largest share of elements whose first moment follows from the gradient, over all arithmetics.

    NaN if the tensors for it were not recorded.
    """
    if not {"grad", "exp_avg", "exp_avg_sq"} <= u.arrays.keys() or u.settings.amsgrad:
        return float("nan")
    equal: dict[str, int] = {}
    compared = 0
    for i in positions:
        (parts,) = dask.compute({name: x[i - 1 : i + 1] for name, x in u.arrays.items()})
        t = int(parts["t"][1, 0, 0])
        for rows in _token_ranges(parts["W"].shape):
            before, after = (_tensors(u, parts, k, rows) for k in (0, 1))
            compared += after["W"].numel()
            for name in ("single", "foreach", "fused"):
                m = arithmetics.moments(name, u.settings, t, before, after)["exp_avg"]
                equal[name] = equal.get(name, 0) + int((bits(m) == bits(after["exp_avg"])).sum())
    return max(equal.values()) / compared if compared else float("nan")


def _token_ranges(shape: tuple[int, ...]) -> list[slice]:
    height = max(1, ELEMENTS_PER_CALL // shape[2])
    return [slice(n, n + height) for n in range(0, shape[1], height)]


def _tensors(u: Updates, parts: dict[str, NDArray[Any]], k: int, rows: slice) -> arithmetics.Tensors:
    return {name: arithmetics.to_tensor(as_grid(parts[name][k, rows], grid)) for name, grid in u.grids.items()}
