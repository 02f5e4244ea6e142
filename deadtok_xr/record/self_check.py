"""After a few updates: is the gradient that of the update that it is recorded with, and do the updates close?"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.errors import InputError

UPDATES = 10
_MOST = 0.9
_REPLAY = "deadtok_xr.replay.compare"
State = Mapping[str, NDArray[Any]]


def alignment(previous: State, current: State, settings: Mapping[str, Any]) -> tuple[bool | None, str]:
    """Whether exp_avg[t] = β1·exp_avg[t-1] + (1 - β1)·grad[t] holds to within rounding, and a sentence.

    Only elements count in which the gradient makes a difference of more than the rounding.

    Parameters
    ----------
    previous, current
        The matrices of one parameter at t - 1 and t, by their names of W (`W`, `grad`, `exp_avg`).
    settings
        ``hyperparameters`` of the optimizer.
    """
    given = settings["hyperparameters"]
    betas = given.get("betas")
    if not betas or not {"grad", "exp_avg"} <= current.keys() & {*previous.keys(), "grad"}:
        return None, "alignment of the gradient not checked: it takes grad, exp_avg and the optimizer's betas"
    used = _used_gradient(previous, current, given)
    if used is None:
        return None, "alignment of the gradient not checked: weight decay is added to it, and W is not recorded"
    before, after = (np.asarray(x["exp_avg"], np.float64) for x in (previous, current))
    expected = betas[0] * before + (1 - betas[0]) * used
    rounding = _spacing(current["exp_avg"], np.maximum(np.abs(before), np.maximum(np.abs(after), np.abs(expected))))
    telling = np.isfinite(expected) & (np.abs((1 - betas[0]) * (used - before)) > 2 * rounding)
    if not telling.any():
        return None, "alignment of the gradient undetermined: no gradient is large enough to tell"
    share = float((np.abs(after - expected) <= rounding)[telling].mean())
    where = f"step {settings.get('step')}: exp_avg = β1·exp_avg[t-1] + (1-β1)·grad[t] within rounding"
    return share >= _MOST, f"{where} in {share:.2%} of {int(telling.sum())} telling elements"


def _used_gradient(previous: State, current: State, given: Mapping[str, Any]) -> NDArray[np.float64] | None:
    grad = np.asarray(current["grad"], np.float64) * (-1 if given.get("maximize") else 1)
    if not given.get("weight_decay") or given.get("decoupled_weight_decay"):
        return grad
    return grad + given["weight_decay"] * np.asarray(previous["W"], np.float64) if "W" in previous else None


def _spacing(like: NDArray[Any], magnitude: NDArray[np.float64]) -> NDArray[np.float64]:
    """The gap between numbers of a dtype at a magnitude, as the rounding of one operation or two."""
    import ml_dtypes

    info = ml_dtypes.finfo(like.dtype)
    smallest = float(info.smallest_subnormal)
    exponent = np.floor(np.log2(np.maximum(magnitude, float(info.smallest_normal))))
    return np.maximum(np.exp2(exponent) * float(info.eps), smallest)


def closure(previous: State, current: State, settings: Mapping[str, Any]) -> str | None:
    """What the replay of updates says of this one, where this version has a replay."""
    try:
        check = importlib.import_module(_REPLAY).check
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("deadtok_xr"):
            raise
        return None
    try:
        return str(check(previous, current, {**settings["hyperparameters"], **settings}))
    except InputError as error:
        return f"replay not checked: {error}"
