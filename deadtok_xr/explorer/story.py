"""The elements of one token around one step: positions, displacements on the lattice, gradients, margins."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import xarray as xr

from deadtok_xr.bfloat16 import get_grid
from deadtok_xr.explorer.quantities import words_of
from deadtok_xr.schema import MATRIX, TOKEN_COORDINATES

AROUND = 32
"""Steps before and after the chosen one."""


def around(recording: xr.Dataset, token: int, step: int, *, steps: int = AROUND) -> xr.Dataset:
    """Read one token of a recording at the steps around one, in memory.

    Parameters
    ----------
    recording
        (step, token, dim), lazy; only the chunks with this token and these steps are read.
    token, step
        The token's id, and a step; the nearest recorded one is taken, which is the attribute `chosen`.
    steps
        How many steps before and after.
    """
    labels = recording["step"].values
    at = int(np.abs(labels - step).argmin())
    part = recording.isel(step=slice(max(at - steps - 1, 0), at + steps + 1)).sel(token=[token])
    names = [name for name, x in part.data_vars.items() if set(x.dims) in ({"step"}, set(MATRIX))]
    return part[names].load().assign_attrs(chosen=int(labels[at]))


def elements_of(part: xr.Dataset) -> xr.Dataset:
    """Measure the elements of one token that `around` read: `W`, `grad` if recorded, `ulp`, `lattice_displacement`.

    Raises
    ------
    InputError
        If the weights lie on no known grid.
    """
    from deadtok_xr.analyses.elements import elements

    found = elements(part, allow_gaps=True)[["ulp", "lattice_displacement"]].isel(token=0).load()
    found = found.assign({name: part[name].isel(token=0) for name in ("W", "grad") if name in part})
    return found.drop_vars([c for c in found.coords if c != "step"]).assign_attrs(chosen=part.attrs["chosen"])


def updates_of(part: xr.Dataset) -> xr.Dataset:
    """Replay the updates of one token that `around` read: `margin` and `cause` of each element, (step, dim).

    For this each dim is analysed as a token of its own.

    Raises
    ------
    InputError
        If the recording lacks what `mechanism` needs.
    """
    from deadtok_xr.analyses.mechanism import mechanism

    values = {str(name): _turned(x) for name, x in part.items()}
    turned = xr.Dataset(values, attrs=part.attrs).drop_vars(TOKEN_COORDINATES, errors="ignore")
    turned = turned.assign_coords(token=np.arange(part.sizes["dim"]), step=part["step"])
    found = mechanism(turned, allow_gaps=True)[["margin", "cause"]].load()
    return found.rename(token="dim").drop_vars("dim")


def digits(w: xr.DataArray) -> int:
    """Return how many significant digits tell all neighbouring numbers of the format of weights apart."""
    return math.ceil(1 + (get_grid(w.attrs.get("precision", "float32")).mantissa_bits + 1) * math.log10(2))


def _turned(x: xr.DataArray) -> xr.DataArray:
    """Return a matrix in which dims and tokens have changed places."""
    if "token" not in x.dims:
        return x
    return x.drop_vars("token", errors="ignore").transpose("step", "dim", "token").rename(token="dim", dim="token")


def at_step(found: xr.Dataset, step: int) -> pd.DataFrame:
    """Return the elements of one step, a row for each dim."""
    now = found.sel(step=step)
    before = found["W"].shift(step=1).sel(step=step)
    frame = pd.DataFrame({"dim": np.arange(found.sizes["dim"]), "before": before.values, "after": now["W"].values})
    frame["gap"] = found["ulp"].shift(step=1).sel(step=step).values
    frame["moved by, in gaps"] = now["lattice_displacement"].values
    if "grad" in now:
        frame["gradient"] = now["grad"].values
    if "margin" in now:
        frame["margin"] = now["margin"].values
        words = words_of(found["cause"])
        frame["cause"] = [words.get(int(c), "") if np.isfinite(c) else "" for c in now["cause"].values]
    return frame
