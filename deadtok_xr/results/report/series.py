"""The interactive series of a report: variables with one number per step."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

import numpy as np
import xarray as xr

MAX_POINTS = 4000
"""Points of a series; longer ones keep the smallest and largest value of each interval, so that no spike is lost."""


def compressed(groups: dict[str, xr.Dataset]) -> str:
    """Return the series as text: JSON, compressed with zlib and encoded in base64."""
    data = json.dumps(step_series(groups), separators=(",", ":")).encode()
    return base64.b64encode(zlib.compress(data, 9)).decode()


def step_series(groups: dict[str, xr.Dataset]) -> dict[str, list[Any]]:
    """Return every variable over steps alone: its name, meaning and values, and the position of its steps in a list."""
    out: list[dict[str, Any]] = []
    axes: dict[tuple[int, ...], int] = {}
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
                    "steps": axes.setdefault(tuple(ds["step"].values[at].tolist()), len(axes)),
                    "values": [None if not np.isfinite(v) else _short(v) for v in values[at]],
                }
            )
    return {"steps": [list(steps) for steps in axes], "series": out}


def _short(value: float) -> float | int:
    short = float(f"{value:.6g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


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
