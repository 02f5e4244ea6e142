"""Rank correlations with 95% intervals: Spearman's, and Harrell's concordance where times are censored."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

Floats = NDArray[np.float64]
INTERVAL = "95% confidence interval"
JACKKNIFE = "jackknife over tokens, on Fisher's scale"


def interval_attrs(name: str, of: str, formula: str = "") -> dict[str, dict[str, str]]:
    """Return the attributes of NAME_low and NAME_high, the ends of the interval of a correlation."""
    more = {"formula": formula} if formula else {}
    return {
        f"{name}_{end}": {"long_name": f"{word} end of the {INTERVAL} of {of}", "units": "1", **more}
        for end, word in (("low", "lower"), ("high", "upper"))
    }


def concordance(
    time: NDArray[np.int64], censored: NDArray[np.bool_], value: Floats
) -> tuple[float, float, float, float]:
    """Return Somers' D over Harrell's pairs, its interval by the jackknife, and the number of pairs."""
    from deadtok_xr.kernels.numba import ranks

    agree, known = np.zeros((2, len(time)), np.int64)
    ranks.concordance(time, censored, value, agree, known)
    pairs = known.sum() // 2
    if pairs == 0:
        return np.nan, np.nan, np.nan, 0
    D = agree.sum() / 2 / pairs
    rest = pairs - known  # without each token in turn
    if (rest == 0).any() or len(time) < 3 or abs(D) == 1:
        return D, np.nan, np.nan, pairs
    without = (agree.sum() / 2 - agree) / rest
    n = len(time)
    error = np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum())
    return D, *_fisher(D, error / (1 - D**2)), pairs


def _fisher(r: float, error: float) -> tuple[float, float]:
    z = np.arctanh(r)
    return float(np.tanh(z - 1.959964 * error)), float(np.tanh(z + 1.959964 * error))


def _ranks(x: NDArray[Any]) -> Any:
    """Return the ranks of `scipy.stats.rankdata`, whose import takes most of a second."""
    return xr.DataArray(x, dims="token").to_series().rank()


def spearman(a: NDArray[Any], b: NDArray[Any]) -> tuple[float, float, float]:
    """Return Spearman's rank correlation and its 95% interval; NaN for too few values, or if one does not vary."""
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return np.nan, np.nan, np.nan
    rho = float(np.clip(np.corrcoef(*(_ranks(x) for x in (a, b)))[0, 1], -1.0, 1.0))
    if len(a) < 4 or abs(rho) == 1:
        return rho, np.nan, np.nan
    return rho, *_fisher(rho, np.sqrt((1 + rho**2 / 2) / (len(a) - 3)))
