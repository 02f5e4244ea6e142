"""Check a recording after its first updates: do gradients belong to their updates, and can updates be replayed?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.errors import InputError

UPDATES = 10
"""The check is made after this many recorded updates."""
_ENOUGH = 0.9
State = Mapping[str, NDArray[Any]]


def check_gradient(previous: State, current: State, settings: Mapping[str, Any]) -> tuple[bool | None, str]:
    """Check whether exp_avg[t] = β1·exp_avg[t-1] + (1 - β1)·grad[t] holds to within rounding.

    Only elements in which the gradient changes the sum by more than the rounding are compared.

    Parameters
    ----------
    previous, current
        The matrices of one parameter at t - 1 and t, by kind (`W`, `grad`, `exp_avg`).
    settings
        ``hyperparameters`` of the optimizer, and ``step``.

    Returns
    -------
    True or False, or None where it cannot be decided, and a sentence for the report.
    """
    hyperparameters = settings["hyperparameters"]
    betas = hyperparameters.get("betas")
    if not betas or not {"grad", "exp_avg"} <= current.keys() & {*previous.keys(), "grad"}:
        return None, "gradient not checked: the check needs grad, exp_avg and the optimizer's betas"
    used = _used_gradient(previous, current, hyperparameters)
    if used is None:
        return None, "gradient not checked: weight decay is added to it, and W is not recorded"
    before, after = (np.asarray(x["exp_avg"], np.float64) for x in (previous, current))
    expected = betas[0] * before + (1 - betas[0]) * used
    rounding = _spacing(current["exp_avg"], np.maximum(np.abs(before), np.maximum(np.abs(after), np.abs(expected))))
    rounding += 2.0**-23 * (np.abs(before) + np.abs(used))  # fused kernels may hold β1 and 1 - β1 in float32
    decisive = np.isfinite(expected) & (np.abs((1 - betas[0]) * (used - before)) > 2 * rounding)
    if not decisive.any():
        return None, "gradient not checked: no gradient is large enough to make a difference"
    share = float((np.abs(after - expected) <= rounding)[decisive].mean())
    where = f"step {settings.get('step')}: exp_avg = β1·exp_avg[t-1] + (1-β1)·grad[t] within rounding"
    return share >= _ENOUGH, f"{where} in {share:.2%} of {int(decisive.sum())} elements in which it makes a difference"


def _used_gradient(previous: State, current: State, hyperparameters: Mapping[str, Any]) -> NDArray[np.float64] | None:
    """Return the gradient as the optimizer uses it, with weight decay; None if that needs a W that is not recorded."""
    grad = np.asarray(current["grad"], np.float64) * (-1 if hyperparameters.get("maximize") else 1)
    if not hyperparameters.get("weight_decay") or hyperparameters.get("decoupled_weight_decay"):
        return grad
    return grad + hyperparameters["weight_decay"] * np.asarray(previous["W"], np.float64) if "W" in previous else None


def _spacing(like: NDArray[Any], magnitude: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the gap between numbers of a dtype at a magnitude, an upper bound of the rounding of two operations."""
    import ml_dtypes

    info = ml_dtypes.finfo(like.dtype)
    smallest = float(info.smallest_subnormal)
    exponent = np.floor(np.log2(np.maximum(magnitude, float(info.smallest_normal))))
    return np.maximum(np.exp2(exponent) * float(info.eps), smallest)


def check_replay(previous: State, current: State, settings: Mapping[str, Any]) -> str:
    """Replay the update with torch's arithmetic; return a sentence for the report."""
    from deadtok_xr.replay.compare import check

    try:
        return check(previous, current, {**settings["hyperparameters"], **settings})
    except InputError as error:
        return f"replay not checked: {str(error).removeprefix('check: ')}"
