"""Read the updates of a recording: with the settings that it holds, or with those that replay finds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from deadtok_xr.analyses.common import checks
from deadtok_xr.analyses.common.find_optimizer import find_optimizer
from deadtok_xr.analyses.common.recorded_updates import Updates, collect_updates
from deadtok_xr.attributes import plain, read
from deadtok_xr.errors import InputError
from deadtok_xr.replay.settings import ADAM, Settings, names_optimizer, read_settings, respelled, spelled


def read_updates(
    ds: xr.Dataset,
    purpose: str,
    *,
    variable: str = "W",
    hyperparameters: Mapping[str, Any] | None = None,
    lr: float | ArrayLike | None = None,
    precision: str | None = None,
    updates_before: int = 0,
) -> Updates:
    """Collect the updates of a recording, lazily.

    Raises
    ------
    InputError
        If weights, hyperparameters or the learning rate are missing. A recording with Adam's moments, betas and eps
        need not name its optimizer: a few updates are replayed with each rule, and it is an error if none agrees.
    """
    x = checks.require(ds, variable, purpose)
    if not isinstance(updates_before, (int, np.integer)) or updates_before < 0:
        raise InputError(f"{purpose}: updates_before={updates_before!r}; expected a number of updates, 0 or more")
    given = hyperparameters or {}
    known = {**plain(ds.attrs), "hyperparameters": read(ds.attrs, "hyperparameters")}
    if not names_optimizer(known, given):
        trials = {
            trial: collect_updates(ds, purpose, x, variable, trial, lr, precision, updates_before)
            for trial in _trials(ds, known, given, variable, purpose)
        }
        if trials:
            return find_optimizer(ds, trials, purpose)
    settings = read_settings(known, given, where=purpose)
    return collect_updates(ds, purpose, x, variable, settings, lr, precision, updates_before)


def _trials(
    ds: xr.Dataset, known: Mapping[str, Any], given: Mapping[str, Any], variable: str, purpose: str
) -> list[Settings]:
    """Return the settings that can have made a recording with Adam's moments that does not name its optimizer.

    The weight decay of W is one of those that the recording holds, or else torch's defaults.
    """
    suffix = "" if variable == "W" else f"_{variable}"
    if not {f"exp_avg{suffix}", f"exp_avg_sq{suffix}"} <= {*ds.data_vars}:
        return []
    recorded = known.get("hyperparameters")
    recorded = recorded if isinstance(recorded, Mapping) else {}
    decays = [given["weight_decay"]] if "weight_decay" in given else spelled(recorded, "weight_decay") or [0.0, 0.01]
    values = {**respelled(recorded), **given}
    if not {"betas", "eps"} <= values.keys():
        return []
    found: list[Settings] = []
    for rule in ADAM:
        for decay in decays:
            named = {**given, "optimizer": rule, "weight_decay": decay}
            found.append(read_settings(known, named, where=purpose))
    return found
