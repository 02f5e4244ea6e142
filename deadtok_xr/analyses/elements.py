"""Measure every element on its lattice, lazily: for slices, and for quantities that no other analysis has."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.utils import format_bytes
from numpy.typing import NDArray

from deadtok_xr import bfloat16
from deadtok_xr.analyses.common import checks
from deadtok_xr.dask_arrays import empty_meta
from deadtok_xr.engine.block_pass import step_before
from deadtok_xr.errors import OffGridError

ATTRS: dict[str, dict[str, Any]] = {
    "lattice_displacement": {
        "long_name": "lattice displacement ΔW'", "units": "ULP", "formula": "(W[t] - W[t-1]) / ULP(W[t-1])",
        "comment": "signed; fractional for a step inwards from a power of two; up to 1e37 for a step from zero",
    },
    "ordinal_distance": {
        "long_name": "representable numbers passed", "units": "1", "formula": "ordinal(W[t]) - ordinal(W[t-1])",
        "comment": "signed",
    },
    "ordinal": {
        "long_name": "position on the lattice, counted from zero", "units": "1",
        "comment": "ascends with the value, through zero and across exponents",
    },
    "coordinate": {
        "long_name": "lattice coordinate U", "units": "ULP", "formula": "W / ULP(W)",
        "comment": "±(128 + mantissa) in bfloat16; comparable only within one exponent: at the next it jumps from 255 "
        "to 128. For distances use `ordinal`",
    },
    "exponent": {"long_name": "exponent field E", "units": "1", "comment": "0 for zero and subnormals"},
    "ulp": {"long_name": "gap to the next number away from zero", "units": "1", "formula": "ULP(W)"},
}  # fmt: skip
_MUCH = 2**30
"""Bytes of all variables together from which a warning says their size."""
_TRANSITIONS = ("lattice_displacement", "ordinal_distance")


def elements(
    ds: xr.Dataset, *, variable: str = "W", precision: str | None = None, allow_gaps: bool = False
) -> xr.Dataset:
    """Measure every element on its lattice, lazily; all variables take 48 bytes per element: select first, or reduce.

    Parameters
    ----------
    ds
        A recording, (step, token, dim).
    variable, precision, allow_gaps
        As for `motion`.

    Returns
    -------
    xarray.Dataset
        Lazy dataset (step, token, dim) over t = 0..T, float64, which represents all of these exactly:
        `lattice_displacement` and `ordinal_distance`, NaN at the first step; `ordinal`, `coordinate`, `exponent`,
        `ulp`. NaN where an element is not finite at the step or, for the first two, at the previous one.

    Raises
    ------
    InputError
        For gaps, or a recording without absolute positions or without a lattice.
    OffGridError
        When computed, if a value is not on the grid.

    Warns
    -----
    UserWarning
        If all variables together would take more than 1 GiB: nothing is computed yet.

    Notes
    -----
    It is not part of `analyze`.
    """
    x = checks.require(ds, variable, "elements")
    extra = checks.check_steps(ds, "elements", allow_gaps=allow_gaps) if ds.sizes["step"] > 1 else {}
    grid = checks.grid_name(x, precision)
    now = checks.as_dask(x.data)
    if (nbytes := len(ATTRS) * 8 * now.size) > _MUCH:
        warnings.warn(
            f"elements of {dict(x.sizes)} take {format_bytes(nbytes)} if all are computed, "
            f"{format_bytes(8 * now.size)} for each variable: select steps and tokens before, choose a variable, or "
            "reduce it: abs(found.ordinal_distance).max('dim') is computed block by block",
            UserWarning,
            stacklevel=2,
        )
    before = step_before(now)
    values: dict[str, Any] = {}
    for name, attrs in ATTRS.items():
        pairs = (now, "tnd", before, "tnd") if name in _TRANSITIONS else (now, "tnd")
        data = da.blockwise(
            _measure,
            "tnd",
            *pairs,
            quantity=name,
            grid=grid,
            variable=variable,
            dtype=np.float64,
            align_arrays=False,
            meta=empty_meta(3, np.float64),
        )
        values[name] = xr.Variable(("step", "token", "dim"), data, attrs)
    attrs = checks.result_attrs(ds, variable=variable, precision=grid)
    return xr.Dataset({**values, **checks.with_first_step(extra)}, ds.coords, attrs)


def _measure(
    x: NDArray[Any], before: NDArray[Any] | None = None, *, quantity: str, grid: str, variable: str
) -> NDArray[np.float64]:
    try:
        return _measured(x, before, quantity, grid)
    except OffGridError as error:
        raise OffGridError(f"{variable}: {error}, or say precision=") from None


def _measured(x: NDArray[Any], before: NDArray[Any] | None, quantity: str, grid: str) -> NDArray[np.float64]:
    measures: dict[str, Callable[..., NDArray[Any]]] = {
        "lattice_displacement": bfloat16.lattice_step, "ordinal_distance": bfloat16.ordinal_distance,
        "ordinal": bfloat16.ordinal, "coordinate": bfloat16.lattice_coordinate, "exponent": bfloat16.exponent,
        "ulp": bfloat16.ulp,
    }  # fmt: skip
    measure = measures[quantity]
    if before is None:
        return _where_finite(measure(x, grid), x)
    earlier = np.concatenate([before, x[:-1]])
    return _where_finite(measure(x, earlier, grid), x, earlier)


def _where_finite(values: NDArray[Any], *sources: NDArray[Any]) -> NDArray[np.float64]:
    finite = np.logical_and.reduce([np.isfinite(bfloat16.decode(x)) for x in sources])
    return np.where(finite, values, np.nan).astype(np.float64)
