"""Every quantity per step and row of a source, those that are derived from the recording included."""

from __future__ import annotations

import numpy as np
import xarray as xr

from deadtok_xr.explorer.source import Source

NORM, DISTANCE, PHASE = "recording/norm", "recording/distance", "motion/phase"
FIRST_SHOWN = ("motion/displacement", "monitor/rounded_to_zero_fraction", NORM)
"""The quantities that the heat map shows first, the first that exists."""
_LENGTHS, _WEIGHTS = ("displacement", "intended", "norm", "distance"), "in units of the weights"
UNITS = {
    "norm ULP": "1 norm ULP is 1/128 of the token's norm",
    "ULP": "1 ULP is the gap between neighbouring numbers of the weights' format",
}
"""What units mean."""


def of_rows(source: Source) -> dict[str, xr.DataArray]:
    """Return the quantities with a value per step and row, (step, row), by `group/name`."""
    dims = {"step", source.rows}
    found = {
        f"{group}/{name}": x.transpose("step", source.rows)
        for group, ds in source.groups.items()
        for name, x in ds.data_vars.items()
        if set(x.dims) == dims and x.sizes["step"] and x.dtype.kind in "biuf"
    }
    phase = phases_of(source.groups.get("motion"), source)
    if phase is not None:
        found = {PHASE: phase, **found}
    if source.recording is not None and "W" in source.recording:
        found |= _of_weights(source.recording["W"])
    return found


def of_steps(source: Source) -> dict[str, xr.DataArray]:
    """Return the quantities with a value per step alone, by `group/name`."""
    groups = {**source.groups, **({} if source.recording is None else {"recording": source.recording})}
    found = {
        f"{group}/{name}": x
        for group, ds in groups.items()
        for name, x in ds.data_vars.items()
        if x.dims == ("step",) and x.sizes["step"] > 1 and x.dtype.kind in "biuf"
    }
    if source.rows == "parameter":
        found |= {
            f"monitor/{key} of all": x.sum("parameter").assign_attrs(x.attrs)
            for key, x in source.groups["monitor"].data_vars.items()
            if x.dims == ("step", "parameter") and x.dtype.kind == "i"
        }
    return found


def phases_of(motion: xr.Dataset | None, source: Source) -> xr.DataArray | None:
    """Return the phase of each token at each step on the lattice, as its index from the coldest; -1 unknown."""
    if motion is None or not {"lattice_l1", "lattice_l2", "lattice_linf"} <= set(motion.data_vars):
        return None
    dims = _n_dims(source)
    if dims is None:
        return None
    from deadtok_xr.analyses.phases import LATTICE, lattice_phase  # with all analyses: after the first picture

    phase = lattice_phase(motion, dims).transpose("step", "token")
    return phase.assign_attrs(
        long_name="phase of motion on the lattice", units="1", flag_values=list(range(4)),
        flag_meanings=" ".join(LATTICE),
    )  # fmt: skip


def _n_dims(source: Source) -> int | None:
    """Return the number of dims of a token: of the recording, or of a result that has them."""
    return next((ds.sizes["dim"] for ds in source._datasets()[::-1] if "dim" in ds.sizes), None)


def _of_weights(w: xr.DataArray) -> dict[str, xr.DataArray]:
    w = w.transpose("step", "token", "dim")
    norm = (w**2).sum("dim", skipna=False) ** 0.5
    distance = ((w - w[0]) ** 2).sum("dim", skipna=False) ** 0.5
    return {
        NORM: norm.rename("norm").assign_attrs(long_name="norm ‖W‖", units="1"),
        DISTANCE: distance.rename("distance").assign_attrs(
            long_name=f"distance from step {int(w['step'][0])}", units="1"
        ),
    }


def label(key: str, x: xr.DataArray) -> str:
    """Return the name of a quantity, with its unit."""
    unit = str(x.attrs.get("units", "1"))
    words = str(x.attrs.get("long_name") or key.partition("/")[2].replace("_", " "))
    return words if unit in ("1", "") or words.endswith(f" in {unit}") else f"{words} ({unit})"


def explained(x: xr.DataArray) -> str:
    """Return what the unit of a quantity means; "" if it needs no words."""
    return UNITS.get(str(x.attrs.get("units", "")), _WEIGHTS if x.name in _LENGTHS else "")


def unit(x: xr.DataArray) -> str:
    """Return the unit of a quantity; "" without one."""
    return str(x.attrs.get("units", "1")).removeprefix("1")


def words_of(x: xr.DataArray) -> dict[int, str]:
    """Return the words for the values of a category; {} for a number."""
    if x.dtype == bool:
        return {0: "no", 1: "yes"}
    words = str(x.attrs.get("flag_meanings", "")).split()
    values = np.atleast_1d(x.attrs.get("flag_values", np.arange(len(words)))).tolist()
    return {int(value): word.replace("_", " ") for value, word in zip(values, words, strict=False)}
