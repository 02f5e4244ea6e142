"""The probe of elements on their lattice, which `lattice` and `exponents` share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deadtok_xr.analyses.common.per_step import SERIES
from deadtok_xr.bfloat16 import get_grid
from deadtok_xr.engine import Field, OfOne, Piece, Row, blocks, room
from deadtok_xr.errors import OffGridError

STATES = ("n_zero", "n_negative", "n_power_of_two")
COUNTS = (
    "n_moved", "n_outward", "n_upward", "n_half", "n_fractional", "n_crossings_up", "n_crossings_down",
    "n_sign_changes", "n_from_zero", "n_to_zero",
)  # fmt: skip
TOKEN_ULPS = ("mean", "mean_upward", "largest")
HOPS = ("frozen", "lattice", "thermal")
REGIMES = ("frozen", "quantum", "classical")
PER_TOKEN = ("ordinal_l1", "ordinal_linf", "exponent_crossings")
MANTISSAS = 128
_SHARES = {
    "moved_fraction": ("n_moved", "n_elements"),
    "outward_fraction": ("n_outward", "n_moved"),
    "half_fraction": ("n_half", "n_moved"),
    "fractional_fraction": ("n_fractional", "n_moved"),
    "lattice_mean": ("lattice_sum", "n_elements"),
    "hop_fraction": ("hops", "n_valid"),
    "regime_fraction": ("regimes", "n_valid"),
}
"""What is divided by what; NaN where that is 0."""


@dataclass(frozen=True)
class Cells(OfOne):
    """The probe of a variable's elements on a grid."""

    grid: str

    def fields(self) -> dict[str, Field]:
        """Counts of exponents and mantissas, what belongs to tokens; and a `series` of all that is of steps alone."""
        own = (*PER_TOKEN, "exponent_count", "mantissa_count")
        return {**{name: field for name, field in self.room().items() if name in own}, SERIES: Field("row")}

    def room(self) -> dict[str, Field]:
        """States: `STATES`, the counts of exponents and mantissas. Transitions: the rest."""
        heights = np.dtype(("i8", (get_grid(self.grid).max_exponent,)))
        return {
            "exponent_count": Field("states", ("exponent",), heights),
            "mantissa_count": Field("states", ("mantissa",), np.dtype(("i8", (MANTISSAS,)))),
            **dict.fromkeys((*STATES, "n_invalid_now"), Field("states", (), "i8")),
            "ulp_min": Field("states"),
            "ulp_max": Field("states"),
            **dict.fromkeys(PER_TOKEN, Field("transitions", ("token",), "i8")),
            **dict.fromkeys((*COUNTS, "n_valid", "n_elements", "n_invalid"), Field("transitions", (), "i8")),
            **dict.fromkeys(("lattice_sum", "lattice_max", "l2_over_l1", "linf_over_l2"), Field("transitions")),
            "hops": Field("transitions", ("token_ulp", "hop"), np.dtype(("i8", (3, 3)))),
            "regimes": Field("transitions", ("regime",), np.dtype(("i8", (3,)))),
            **dict.fromkeys((*tuple(_SHARES)[:4], "crossing_fraction", "lattice_mean"), Field("transitions")),
            "hop_fraction": Field("transitions", ("token_ulp", "hop"), np.dtype(("f8", (3, 3)))),
            "regime_fraction": Field("transitions", ("regime",), np.dtype(("f8", (3,)))),
        }

    def begin(self, row: Row) -> _Look:
        """Begin with a row."""
        return _Look(self, row)


class _Look:
    def __init__(self, probe: Cells, row: Row) -> None:
        from deadtok_xr import kernels

        self.probe, self.row, self.lattice = probe, row, kernels.lattice(probe.grid)
        self.fields = probe.room()
        self.out = room(self.fields, row)
        self.running: Any = None

    def piece(self, piece: Piece) -> None:
        from deadtok_xr import kernels
        from deadtok_xr.kernels.numba.incremental_counts import Running
        from deadtok_xr.kernels.numba.lattice import lattice_steps

        name = self.probe.variable
        words = kernels.words(piece.values[name])
        try:
            if self.running is None:
                self.running = Running(words, self.lattice)
            out = piece.room(self.out, self.fields)
            lattice_steps(words, piece.changed(name), self.running, self.lattice, out)
        except OffGridError as error:
            raise OffGridError(
                f"{name}: {error} of {self.probe.grid}; measure the recorded values, not derived ones, or say "
                "precision="
            ) from None

    def end(self) -> dict[str, Any]:
        out = self.out
        out["n_elements"][:] = out["n_valid"] * self.row.n_dims
        out["n_invalid"][:] = self.row.n_tokens - out["n_valid"]
        for name, (above, below) in _SHARES.items():
            out[name][:] = _share(out[above], out[below])
        out["crossing_fraction"][:] = _share(out["n_crossings_up"] + out["n_crossings_down"], out["n_elements"])
        out["lattice_max"][out["n_valid"] == 0] = np.nan
        out["ulp_min"][:], out["ulp_max"][:] = _spacings(out["exponent_count"], self.probe.grid)
        own = self.probe.fields()
        series = {name: x for name, x in out.items() if name not in own}
        return {**{name: out[name] for name in own if name in out}, SERIES: (series,)}


def _share(above: NDArray[Any], below: NDArray[np.int64]) -> NDArray[np.float64]:
    below = below.reshape(below.shape + (1,) * (above.ndim - below.ndim))
    return np.where(below > 0, above / np.maximum(below, 1), np.nan)


def _spacings(counts: NDArray[np.int64], grid: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The smallest and largest ULP among counted elements."""
    ulp = np.ldexp(1.0, np.maximum(np.arange(counts.shape[1]), 1) - get_grid(grid).ulp_offset)
    there = counts > 0
    none = ~there.any(axis=1)
    first, last = there.argmax(axis=1), counts.shape[1] - 1 - there[:, ::-1].argmax(axis=1)
    return np.where(none, np.nan, ulp[first]), np.where(none, np.nan, ulp[last])


def steps_of(grid: str, n: int, names: tuple[str, ...]) -> dict[str, Any]:
    """Dims, shapes and dtypes of results of n steps, for `blocks.at_once`."""
    room = Cells("", grid).room()
    fields = {name: room["n_invalid_now" if name == "n_invalid" else name] for name in names}
    return {name: (("step", *f.inner), (n, *f.shape(0, 0)), np.dtype(f.dtype).base.str) for name, f in fields.items()}


def step_coords(ds: xr.Dataset) -> dict[str, xr.Variable]:
    """The coordinates along `step` alone."""
    return {str(n): c.variable for n, c in ds.coords.items() if c.dims == ("step",)}


def matrix(x: xr.DataArray) -> dict[str, Any]:
    """The matrices of a plan with the probe alone."""
    return {str(x.name): blocks.as_dask(x.data)}
