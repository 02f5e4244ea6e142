"""Select the coordinates of results from those of the recording."""

from __future__ import annotations

import xarray as xr

Coords = dict[str, xr.Variable]


def along(ds: xr.Dataset, *dims: str) -> Coords:
    """Return the coordinates with exactly one dimension, which is one of ``dims``."""
    return {str(name): c.variable for name, c in ds.coords.items() if len(c.dims) == 1 and c.dims[0] in dims}


def within(ds: xr.Dataset, *dims: str) -> Coords:
    """Return the coordinates that have no dimensions but ``dims``, scalars among them."""
    return {str(name): c.variable for name, c in ds.coords.items() if set(c.dims) <= set(dims)}


def of_transitions(ds: xr.Dataset) -> Coords:
    """Return the coordinates of results over transitions, which begin at the second step: steps, tokens, scalars."""
    return within(ds.isel(step=slice(1, None)), "step", "token")
