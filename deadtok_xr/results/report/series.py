"""The interactive series of a report: variables with one number per step."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

MAX_POINTS = 4000
"""Points of a series; longer ones keep the smallest and largest value of each interval, so that no spike is lost."""


def step_series(groups: dict[str, xr.Dataset]) -> list[dict[str, Any]]:
    """Return every variable over steps alone: its name, meaning, steps and values."""
    out = []
    for group, ds in groups.items():
        for name, x in ds.data_vars.items():
            if x.dims != ("step",) or x.dtype.kind not in "iuf" or x.sizes["step"] < 2:
                continue
            values = x.values.astype(np.float64)
            if np.isfinite(values).sum() < 2:
                continue
            at = _thin(values)
            out.append(
                {
                    "name": f"{group}: {name}",
                    "what": str(x.attrs.get("long_name", name)),
                    "units": "" if x.attrs.get("units", "1") == "1" else str(x.attrs["units"]),
                    "steps": ds["step"].values[at].tolist(),
                    "values": [None if not np.isfinite(v) else float(f"{v:.6g}") for v in values[at]],
                }
            )
    return out


def _thin(values: np.ndarray) -> np.ndarray:
    """Return the positions of the points to show, ascending."""
    if len(values) <= MAX_POINTS:
        return np.arange(len(values))
    intervals = np.array_split(np.arange(len(values)), MAX_POINTS // 2)
    kept: set[int] = {0, len(values) - 1}
    for interval in intervals:
        known = interval[np.isfinite(values[interval])]
        kept.update(
            (int(interval[0]),)
            if not known.size
            else (int(known[values[known].argmin()]), int(known[values[known].argmax()]))
        )
    return np.array(sorted(kept))
