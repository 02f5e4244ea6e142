"""How do the values of a checkpoint lie on the lattice: in each dim, how many, how far apart, in which stripes?"""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deadtok_xr import bfloat16
from deadtok_xr.analyses.checkpoint import one_step
from deadtok_xr.analyses.common import checks
from deadtok_xr.analyses.common.transitions import grid_name
from deadtok_xr.engine import folded
from deadtok_xr.engine.small_results import Arrays, compute_together
from deadtok_xr.errors import InputError, OffGridError

_GAP = "gaps between successive distinct values of the dim, in representable numbers"
ATTRS: dict[str, dict[str, Any]] = {
    "n_distinct": {"long_name": "distinct values of the dim", "units": "1", "comment": "-0 and +0 are one"},
    "lowest": {"long_name": "smallest value of the dim", "units": "1"},
    "highest": {"long_name": "largest value of the dim", "units": "1"},
    "width": {
        "long_name": "representable numbers from the smallest value to the largest", "units": "1",
        "formula": "ordinal(highest) - ordinal(lowest)", "comment": "-1 without a finite value",
    },
    "width_ulp": {
        "long_name": "the same in the largest ULP", "units": "ULP",
        "formula": "(highest - lowest) / ULP(the larger in magnitude)",
    },
    "gap_min": {"long_name": f"smallest of the {_GAP}", "units": "1", "comment": "-1 for a single value"},
    "gap_median": {"long_name": f"median of the {_GAP}", "units": "1", "comment": "NaN for a single value"},
    "gap_max": {"long_name": f"largest of the {_GAP}", "units": "1", "comment": "-1 for a single value"},
    "n_fractional": {
        "long_name": "gaps that are no whole number of ULP", "units": "1",
        "formula": "#{(b - a) / ULP(larger of |a|, |b|) mod 1 ≠ 0}, a and b successive distinct values",
        "comment": "across a power of two or zero, where cells become smaller",
    },
    "exponent_low": {"long_name": "smallest exponent field E of the dim", "units": "1"},
    "exponent_high": {
        "long_name": "largest exponent field E of the dim", "units": "1",
        "comment": "that of exponent_low: the dim shares one exponent, and W/ULP(W) compares within it",
    },
    "common_bits": {
        "long_name": "leading bits that all values of the dim share", "units": "1",
        "comment": "sign, exponent, mantissa; all of them for a single value",
    },
    "n_not_finite": {"long_name": "elements that are NaN or infinite, which are left out", "units": "1"},
    "gap_count": {
        "long_name": f"{_GAP}, over all dims by size", "units": "1", "formula": "#{2^b <= gap < 2^(b+1)}",
    },
    "power_of_two_count": {"long_name": "those that are a power of two", "units": "1", "formula": "#{gap = 2^b}"},
}  # fmt: skip
_FLOATS = ("lowest", "highest", "width_ulp", "gap_median")
_BY_SIZE = ("gap_count", "power_of_two_count")
_OF_DIM = tuple(name for name in ATTRS if name not in (*_BY_SIZE, "n_not_finite"))
_SIZES = 17


def lattice_gaps(
    ds: xr.Dataset, *, step: int | None = None, variable: str = "W", precision: str | None = None
) -> xr.Dataset:
    """The distinct values of each dim at one step, and the gaps between them.

    Parameters
    ----------
    ds
        A recording, (step, token, dim), of any number of tokens; select a cluster to look at its own stripes.
    step
        Which step, by its label; needed if there are several.
    variable, precision
        As for `motion`.

    Returns
    -------
    Dataset
        Lazy dataset. Per dim, int64: `n_distinct`, `width`, `gap_min`, `gap_max`, `n_fractional`, `exponent_low`,
        `exponent_high`, `common_bits`, `n_not_finite`; float64: `lowest`, `highest`, `width_ulp`, `gap_median`.
        By `size` b = 0..16, over all dims, int64: `gap_count`, `power_of_two_count`.

    Raises
    ------
    InputError
        If a step must be named or is not there; for a recording without a lattice, or one of 32 bits.
    OffGridError
        When computed, if a value is not on the grid.

    Notes
    -----
    The static tests of notebooks 1.11d-h and 1.9c-e. Gaps are counted in representable numbers; in ULP they are those
    of the values, not of the difference: a power of two is 128 of its own ULP whatever it is the difference of (1.8f).
    Of each dim it is only noted which of the 65,536 patterns occur, 8 kB, whatever the vocabulary.
    """
    x = one_step(checks.require(ds, variable, "lattice_gaps"), step, "lattice_gaps")
    grid = grid_name(x, precision)
    if bfloat16.get_grid(grid).width != 16:
        raise InputError(
            f"lattice_gaps: {variable} lives on the {grid} grid; needed: a format of 16 bits, of which all values can "
            "be told apart"
        )
    rows = checks.as_dask(x.data)
    rows = rows.rechunk({0: 1}) if rows.numblocks[0] != 1 else rows
    n = ds.sizes["dim"]
    shapes: dict[str, Any] = {name: (("dim",), (n,), "f8" if name in _FLOATS else "i8") for name in ATTRS}
    shapes |= dict.fromkeys(_BY_SIZE, (("size",), (_SIZES,), "i8"))
    seen = _seen(rows, variable, grid)
    values = compute_together({"seen": seen}, _measure, shapes, ATTRS, grid=grid)
    coords: dict[str, Any] = {str(name): c.variable for name, c in ds.coords.items() if c.dims == ("dim",)}
    coords["size"] = xr.Variable("size", np.arange(_SIZES), {"long_name": "b: gaps from 2^b on, below 2^(b+1)"})
    attrs = checks.result_attrs(ds, variable=variable, precision=grid, step=int(x["step"].values[0]))
    return xr.Dataset(values, coords, attrs)


def _seen(x: da.Array, variable: str, grid: str) -> da.Array:
    """Return which patterns occur, and how many values are not finite: one object."""
    objects = x.map_blocks(
        _mark, variable, grid, drop_axis=[0, 2], chunks=((1,) * x.numblocks[1],), dtype=object, meta=np.empty(0, object)
    )
    return folded(objects, _either)


def _mark(block: NDArray[Any], variable: str, grid: str) -> list[Any]:
    from deadtok_xr.kernels.numba.presence import mark

    n_dims, g = block.shape[2], bfloat16.get_grid(grid)
    seen, n_not_finite = np.zeros((n_dims, 1024), np.uint64), np.zeros(n_dims, np.int64)
    try:
        bits = bfloat16.to_bits(block[0], grid)
    except OffGridError as error:
        raise OffGridError(f"{variable}: {error}, or say precision=") from None
    mark(bits, np.uint64((g.max_exponent << g.mantissa_bits) - 1), seen, n_not_finite)
    return [(seen, n_not_finite)]


def _either(a: tuple[Any, Any], b: tuple[Any, Any]) -> tuple[Any, Any]:
    return a[0] | b[0], a[1] + b[1]


def _measure(inputs: dict[str, list[Any]], *, grid: str) -> Arrays:
    ((seen, n_not_finite),) = inputs["seen"]
    found = [_of_dim(np.flatnonzero(_unpacked(row)).astype(np.uint16), grid) for row in seen]
    out = {name: np.array([dim[name] for dim in found]) for name in _OF_DIM}
    gaps = np.concatenate([dim["gaps"] for dim in found])
    size = np.frexp(gaps.astype(np.float64))[1] - 1
    exact = gaps & (gaps - 1) == 0
    return {
        **out, "n_not_finite": n_not_finite,
        "gap_count": np.bincount(size, minlength=_SIZES),
        "power_of_two_count": np.bincount(size[exact], minlength=_SIZES),
    }  # fmt: skip


def _unpacked(row: NDArray[np.uint64]) -> NDArray[np.uint8]:
    return np.unpackbits(row.astype("<u8").view(np.uint8), bitorder="little")


def _of_dim(bits: NDArray[np.uint16], grid: str) -> dict[str, Any]:
    """Of the patterns that occur in a dim."""
    values = bfloat16.from_bits(bits, grid)
    place, first = np.unique(bfloat16.ordinal(values, grid), return_index=True)
    n = len(place)
    if not n:
        nothing = {name: np.nan if name in _FLOATS else -1 for name in _OF_DIM}
        return {**nothing, "n_distinct": 0, "n_fractional": 0, "gaps": place}
    x, gaps = values[first].astype(np.float64), np.diff(place)
    ulp = bfloat16.ulp(values[first], grid)
    exponent = bfloat16.exponent(values, grid)
    return {
        "n_distinct": n, "lowest": x[0], "highest": x[-1], "width": place[-1] - place[0],
        "width_ulp": (x[-1] - x[0]) / max(ulp[0], ulp[-1]),
        "gap_min": gaps.min() if n > 1 else -1, "gap_median": np.median(gaps) if n > 1 else np.nan,
        "gap_max": gaps.max() if n > 1 else -1,
        "n_fractional": (np.diff(x) / np.maximum(ulp[:-1], ulp[1:]) % 1 != 0).sum(),
        "exponent_low": exponent.min(), "exponent_high": exponent.max(),
        "common_bits": 16 - int(np.bitwise_or.reduce(bits ^ bits[0])).bit_length(), "gaps": gaps,
    }  # fmt: skip
