"""Which tokens sit next to each other, at the lattice spacing of their centroid: crystal or gas?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from deadtok_xr import blocks
from deadtok_xr.analyses.transitions import grid_name
from deadtok_xr.bfloat16 import get_grid, ulp
from deadtok_xr.errors import InputError
from deadtok_xr.sweep import Field, Findings, Piece, Plan, Row, analysis, room

FIELDS = {
    "mean_ulp": Field("states"),
    "density": Field("states"),
    "largest_component": Field("states", (), "i8"),
    "n_singletons": Field("states", (), "i8"),
    "n_components": Field("states", (), "i8"),
    "n_invalid": Field("states", (), "i8"),
}
COINCIDENT = ("separate", "linked")
ATTRS: dict[str, dict[str, Any]] = {
    "mean_ulp": {
        "long_name": "mean over dims of the ULP at the centroid",
        "units": "1",
        "formula": "mean_d ULP(bf16(f32(C[t,d])))",
    },
    "density": {
        "long_name": "share of all pairs that are adjacent",
        "units": "1",
        "formula": "edges / (N(N-1)/2)",
    },
    "largest_component": {"long_name": "tokens in the largest connected component", "units": "1"},
    "n_singletons": {"long_name": "tokens without a neighbour", "units": "1"},
    "n_components": {"long_name": "connected components", "units": "1"},
    "n_invalid": {"long_name": "tokens with NaN or infinity at t", "units": "1"},
}


@analysis
def topology(
    ds: xr.Dataset, *, coincident: str = "separate", variable: str = "W", precision: str | None = None
) -> Plan:
    """The adjacency graph of the tokens at every step.

    Two tokens are adjacent when 0 < L∞ distance <= `mean_ulp`, the mean over dims of the ULP at their
    centroid. Distances are exact, and N x N is never held in memory.

    Parameters
    ----------
    ds
        A recording, (step, token, dim); gaps in the steps do not matter.
    coincident
        Whether tokens in the very same place are adjacent: ``"separate"``, not (notebook 14.2b), or
        ``"linked"``, they are.
    variable, precision
        As for `motion`.

    Returns
    -------
    Lazy dataset over all steps: `mean_ulp`, `density` float64; `largest_component`, `n_singletons`,
    `n_components`, `n_invalid` int64. A step with NaN or infinity has NaN and -1.

    Raises
    ------
    InputError
        For a recording without absolute positions (displacements alone), or an unknown option.

    Notes
    -----
    Quantities of notebook 14.2b, whose own ULP was 0 throughout, so that it printed zeros. One token
    has density 0.
    """
    if coincident not in COINCIDENT:
        raise InputError(f"coincident={coincident!r}: choose one of {', '.join(COINCIDENT)}")
    recorded = blocks.require(ds, variable, "topology")
    grid = grid_name(recorded, precision)

    def finish(found: Findings) -> xr.Dataset:
        coords = {str(n): c.variable for n, c in ds.coords.items() if c.dims == ("step",)}
        attrs = blocks.result_attrs(ds, variable=variable, coincident=coincident, precision=grid)
        return xr.Dataset(found.variables("graph", ATTRS), coords, attrs)

    probe = Graph(variable, grid, linked=coincident == "linked")
    return Plan({variable: blocks.as_dask(recorded.data)}, {"graph": probe}, finish)


@dataclass(frozen=True)
class Graph:
    """The probe of the adjacency graph; `FIELDS` says what it finds."""

    variable: str
    grid: str
    linked: bool

    @property
    def matrices(self) -> tuple[str, ...]:
        """The variable."""
        return (self.variable,)

    def fields(self) -> dict[str, Field]:
        """See `FIELDS`."""
        return FIELDS

    def begin(self, row: Row) -> _Look:
        """Begin with a row."""
        return _Look(self, row)


class _Look:
    def __init__(self, probe: Graph, row: Row) -> None:
        self.probe, self.out = probe, room(FIELDS, row)

    def piece(self, piece: Piece) -> None:
        from deadtok_xr import kernels

        name, grid, out = self.probe.variable, self.probe.grid, piece.room(self.out, FIELDS)
        on_device = piece.row.device.runs("topology")
        steps = (piece.tensor(name) if on_device else piece.floats(name))[: piece.n_states]
        centroid = kernels.engine("kinematics", on_device).centroid
        centre = centroid(steps).astype(np.float32).astype(get_grid(grid).dtype)
        out["mean_ulp"][:] = ulp(centre, grid).mean(axis=1)
        kernel = kernels.engine("topology", on_device).topology
        kernel(steps, piece.changed(name), out["mean_ulp"], self.probe.linked, out)

    def end(self) -> dict[str, Any]:
        return self.out
