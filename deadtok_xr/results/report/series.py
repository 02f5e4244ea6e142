"""The series of the page that can be hovered over and zoomed: one number per step."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

MOST = 4000
"""Points of a series; longer ones are thinned to the least and the largest of each piece, so that no spike is lost."""


def of_steps(groups: dict[str, xr.Dataset]) -> list[dict[str, Any]]:
    """Every variable over steps alone, that is not constant: its name, what it is, its steps and values."""
    found = []
    for group, ds in groups.items():
        for name, x in ds.data_vars.items():
            if x.dims != ("step",) or x.dtype.kind not in "iuf" or x.sizes["step"] < 2:
                continue
            values = x.values.astype(np.float64)
            if np.isfinite(values).sum() < 2:
                continue
            at = _thinned(values)
            found.append(
                {
                    "name": f"{group}: {name}",
                    "what": str(x.attrs.get("long_name", name)),
                    "units": "" if x.attrs.get("units", "1") == "1" else str(x.attrs["units"]),
                    "steps": ds["step"].values[at].tolist(),
                    "values": [None if not np.isfinite(v) else float(f"{v:.6g}") for v in values[at]],
                }
            )
    return found


def _thinned(values: np.ndarray) -> np.ndarray:
    """Places of the points to show, ascending."""
    if len(values) <= MOST:
        return np.arange(len(values))
    pieces = np.array_split(np.arange(len(values)), MOST // 2)
    kept: set[int] = {0, len(values) - 1}
    for piece in pieces:
        known = piece[np.isfinite(values[piece])]
        kept.update(
            (int(piece[0]),)
            if not known.size
            else (int(known[values[known].argmin()]), int(known[values[known].argmax()]))
        )
    return np.array(sorted(kept))
