"""Monitored updates as a dataset, and as values for a logger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.attributes import portable
from deadtok_xr.kernels.updates import HIGHEST, LOWEST
from deadtok_xr.monitor.variables import COORDINATES, VARIABLES

if TYPE_CHECKING:
    import xarray as xr

    from deadtok_xr.monitor.selection import Watched

Row = Mapping[str, Any]
"""One monitored update: its step, and an array or number for each variable."""
Columns = Mapping[str, NDArray[Any]]


def coordinates(watched: Sequence[Watched], methods: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return the coordinates of a dataset but for its steps."""
    return {
        "parameter": np.array([w.name for w in watched], object),
        "numel": np.array([w.numel for w in watched], np.int64),
        "dtype": np.array([w.dtype for w in watched], object),
        "group": np.array([w.group_index for w in watched], np.int64),
        "method": np.array(methods, object),
        "margin_bin": np.arange(LOWEST, HIGHEST + 1),
    }


def columns(rows: Sequence[Row], fixed: Columns) -> dict[str, NDArray[Any]]:
    """Return the variables of several updates as arrays, each with a leading dimension step."""
    sizes = {"step": len(rows), "parameter": len(fixed["parameter"]), "margin_bin": len(fixed["margin_bin"])}
    found = {"step": np.array([row["step"] for row in rows], np.int64)}
    for name, (dims, dtype, _) in VARIABLES.items():
        values = np.array([row[name] for row in rows], dtype)
        found[name] = values.reshape([sizes[d] for d in dims])
    return found


def to_dataset(variables: Mapping[str, Any], fixed: Columns, attrs: Mapping[str, Any]) -> xr.Dataset:
    """Return a dataset (step, parameter) of arrays and coordinates."""
    import xarray as xr

    values = {**fixed, **variables}
    coords = {name: (dims, values[name], {"long_name": text}) for name, (dims, text) in COORDINATES.items()}
    data = {name: (dims, values[name], dict(about)) for name, (dims, _, about) in VARIABLES.items()}
    return xr.Dataset(data, coords, portable(attrs))


SHARES = ("moved", "rounded_to_zero", "no_gradient", "unknown")
_PER_PARAMETER = (*SHARES, "visible", "weight_norm", "gradient_norm", "update_norm", "realised_norm", "lr")


def logged(row: Row, fixed: Columns) -> dict[str, float]:
    """Return the values of an update under names that loggers group: ``updates/...``, and ``moved/NAME`` and the like.

    Counts are shares of the elements. What is not known or not a number is left out.
    """
    numel = fixed["numel"]
    known = row["rounded_to_zero"] >= 0
    values = {f"updates/{name}": _share(row[name][known], numel[known]) for name in SHARES}
    values["updates/moved"] = _share(row["moved"], numel)
    values["updates/visible"] = _share(row["visible"], numel)
    values["updates/parameters_at_rest"] = float(((row["moved"] == 0) & (row["rounded_to_zero"] > 0)).sum())
    values["updates/skipped"] = float(row["skipped_before"])
    for i, parameter in enumerate(fixed["parameter"]):
        for name in _PER_PARAMETER:
            value = float(row[name][i])
            if name in (*SHARES, "visible"):
                value = value / numel[i] if value >= 0 and numel[i] else np.nan
            values[f"{name}/{parameter}"] = value
        values[f"margin/{parameter}"] = median_margin(row["margin_count"][i], fixed["margin_bin"])
    return {name: float(value) for name, value in values.items() if np.isfinite(value)}


def _share(counts: NDArray[Any], numel: NDArray[Any]) -> float:
    return float(counts.sum() / numel.sum()) if numel.sum() else np.nan


def median_margin(counts: NDArray[Any], bins: NDArray[Any]) -> float:
    """Return the bin that holds the median of the updates; NaN without updates."""
    total = np.cumsum(np.maximum(counts, 0))
    return float(bins[np.searchsorted(total, total[-1] / 2)]) if total[-1] else np.nan
