"""Describe the distinct values of a checkpoint in each dim, and the gaps between them."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deadtok_xr import bfloat16
from deadtok_xr.analyses.common import checks, coordinates, step_selection
from deadtok_xr.engine import fold
from deadtok_xr.engine.small_results import Arrays, compute_together
from deadtok_xr.errors import InputError, OffGridError

_GAPS = "gaps between successive distinct values, in representable numbers"
ATTRS: dict[str, dict[str, Any]] = {
    "n_distinct": {"long_name": "distinct values of the dim", "units": "1", "comment": "-0 and +0 are the same"},
    "lowest": {"long_name": "smallest value of the dim", "units": "1"},
    "highest": {"long_name": "largest value of the dim", "units": "1"},
    "width": {
        "long_name": "representable numbers from the smallest value to the largest", "units": "1",
        "formula": "ordinal(highest) - ordinal(lowest)", "comment": "-1 without a finite value",
    },
    "width_ulp": {
        "long_name": "distance from the smallest value to the largest, in the larger ULP", "units": "ULP",
        "formula": "(highest - lowest) / ULP(the larger in magnitude)",
    },
    "gap_min": {"long_name": f"smallest of the {_GAPS}", "units": "1", "comment": "-1 for a single value"},
    "gap_median": {"long_name": f"median of the {_GAPS}", "units": "1", "comment": "NaN for a single value"},
    "gap_max": {"long_name": f"largest of the {_GAPS}", "units": "1", "comment": "-1 for a single value"},
    "n_fractional": {
        "long_name": "gaps that are no whole number of ULP", "units": "1",
        "formula": "#{(b - a) / ULP(larger of |a|, |b|) mod 1 ≠ 0}, a and b successive distinct values",
        "comment": "across a power of two or zero, where cells become smaller",
    },
    "exponent_low": {"long_name": "smallest exponent field E of the dim", "units": "1"},
    "exponent_high": {
        "long_name": "largest exponent field E of the dim", "units": "1",
        "comment": "if equal to exponent_low, the dim has one exponent, within which W/ULP(W) is comparable",
    },
    "common_bits": {
        "long_name": "leading bits that all values of the dim share", "units": "1",
        "comment": "of sign, exponent and mantissa; all 16 for a single value",
    },
    "n_not_finite": {"long_name": "elements that are NaN or infinite, which are left out", "units": "1"},
    "gap_count": {
        "long_name": f"{_GAPS}, of all dims, by size", "units": "1", "formula": "#{2^b <= gap < 2^(b+1)}",
    },
    "power_of_two_count": {
        "long_name": "gaps that are a power of two, by size", "units": "1", "formula": "#{gap = 2^b}",
    },
}  # fmt: skip
_FLOATS = ("lowest", "highest", "width_ulp", "gap_median")
_BY_SIZE = ("gap_count", "power_of_two_count")
_PER_DIM = tuple(name for name in ATTRS if name not in (*_BY_SIZE, "n_not_finite"))
_SIZES = 17


def lattice_gaps(
    ds: xr.Dataset, *, step: int | None = None, variable: str = "W", precision: str | None = None
) -> xr.Dataset:
    """Describe the distinct values of each dim at one step, and the gaps between them.

    Parameters
    ----------
    ds
        A recording, (step, token, dim), of any number of tokens; select a cluster to see its own values.
    step
        The label of the step; required if there are several.
    variable, precision
        As for `motion`.

    Returns
    -------
    xarray.Dataset
        Lazy dataset. Per dim, int64: `n_distinct`, `width`, `gap_min`, `gap_max`, `n_fractional`, `exponent_low`,
        `exponent_high`, `common_bits`, `n_not_finite`; float64: `lowest`, `highest`, `width_ulp`, `gap_median`.
        By `size` b = 0..16, over all dims, int64: `gap_count`, `power_of_two_count`.

    Raises
    ------
    InputError
        If a step must be named or is not there; for a recording without a lattice, or in a format of 32 bits.
    OffGridError
        When computed, if a value is not on the grid.

    Notes
    -----
    The static tests of notebooks 1.11d-h and 1.9c-e. Gaps are counted in representable numbers, or in the ULP of the
    values, not of their difference: a difference that is a power of two is always 128 of its own ULP (1.8f). For each
    dim only the set of the 65,536 bit patterns that occur is kept, 8 kB, whatever the vocabulary.
    """
    x = step_selection.select_one_step(checks.require(ds, variable, "lattice_gaps"), step, "lattice_gaps")
    grid = checks.grid_name(x, precision)
    if bfloat16.get_grid(grid).width != 16:
        raise InputError(
            f"lattice_gaps: {variable} has the precision {grid}; expected a format of 16 bits, whose values can all be "
            "listed"
        )
    rows = checks.as_dask(x.data)
    rows = rows.rechunk({0: 1}) if rows.numblocks[0] != 1 else rows
    n = ds.sizes["dim"]
    shapes: dict[str, Any] = {name: (("dim",), (n,), "f8" if name in _FLOATS else "i8") for name in ATTRS}
    shapes |= dict.fromkeys(_BY_SIZE, (("size",), (_SIZES,), "i8"))
    patterns = _patterns(rows, variable, grid)
    values = compute_together({"patterns": patterns}, _measure, shapes, ATTRS, grid=grid)
    size = xr.Variable("size", np.arange(_SIZES), {"long_name": "b: gaps from 2^b to below 2^(b+1)"})
    attrs = checks.result_attrs(ds, variable=variable, precision=grid, step=int(x["step"].values[0]))
    return xr.Dataset(values, {**coordinates.along(ds, "dim"), "size": size}, attrs)


def _patterns(x: da.Array, variable: str, grid: str) -> da.Array:
    """Return, as one object, the bit patterns that occur in each dim, and the number of values that are not finite."""
    objects = x.map_blocks(
        _mark, variable, grid, drop_axis=[0, 2], chunks=((1,) * x.numblocks[1],), dtype=object, meta=np.empty(0, object)
    )
    return fold(objects, _merge)


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


def _merge(a: tuple[Any, Any], b: tuple[Any, Any]) -> tuple[Any, Any]:
    return a[0] | b[0], a[1] + b[1]


def _measure(inputs: dict[str, list[Any]], *, grid: str) -> Arrays:
    ((seen, n_not_finite),) = inputs["patterns"]
    dims = [_describe_dim(np.flatnonzero(_unpack(row)).astype(np.uint16), grid) for row in seen]
    out = {name: np.array([dim[name] for dim in dims]) for name in _PER_DIM}
    gaps = np.concatenate([dim["gaps"] for dim in dims])
    size = np.frexp(gaps.astype(np.float64))[1] - 1
    exact = gaps & (gaps - 1) == 0
    return {
        **out, "n_not_finite": n_not_finite,
        "gap_count": np.bincount(size, minlength=_SIZES),
        "power_of_two_count": np.bincount(size[exact], minlength=_SIZES),
    }  # fmt: skip


def _unpack(row: NDArray[np.uint64]) -> NDArray[np.uint8]:
    return np.unpackbits(row.astype("<u8").view(np.uint8), bitorder="little")


def _describe_dim(bits: NDArray[np.uint16], grid: str) -> dict[str, Any]:
    """Return the outputs of a dim, given the bit patterns that occur in it."""
    values = bfloat16.from_bits(bits, grid)
    ordinals, first = np.unique(bfloat16.ordinal(values, grid), return_index=True)
    n = len(ordinals)
    if not n:
        missing = {name: np.nan if name in _FLOATS else -1 for name in _PER_DIM}
        return {**missing, "n_distinct": 0, "n_fractional": 0, "gaps": ordinals}
    x, gaps = values[first].astype(np.float64), np.diff(ordinals)
    ulp = bfloat16.ulp(values[first], grid)
    exponent = bfloat16.exponent(values, grid)
    return {
        "n_distinct": n, "lowest": x[0], "highest": x[-1], "width": ordinals[-1] - ordinals[0],
        "width_ulp": (x[-1] - x[0]) / max(ulp[0], ulp[-1]),
        "gap_min": gaps.min() if n > 1 else -1, "gap_median": np.median(gaps) if n > 1 else np.nan,
        "gap_max": gaps.max() if n > 1 else -1,
        "n_fractional": (np.diff(x) / np.maximum(ulp[:-1], ulp[1:]) % 1 != 0).sum(),
        "exponent_low": exponent.min(), "exponent_high": exponent.max(),
        "common_bits": 16 - int(np.bitwise_or.reduce(bits ^ bits[0])).bit_length(), "gaps": gaps,
    }  # fmt: skip
