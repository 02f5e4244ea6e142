"""Measure which share of the values differs from those a number of steps before: what a patch would have to send."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deadtok_xr import bfloat16
from deadtok_xr.analyses.common import checks, coordinates
from deadtok_xr.engine.block_pass import uniform
from deadtok_xr.engine.scan import scan_fields
from deadtok_xr.engine.small_results import field_variables
from deadtok_xr.errors import InputError

ATTRS: dict[str, dict[str, Any]] = {
    "changed_fraction": {
        "long_name": "share of the values that differ from those k steps before", "units": "1",
        "formula": "#{round(W[t]) ≠ round(W[t-k])} / #{W[t], W[t-k] finite}", "comment": "NaN without a finite pair",
    },
    "token_changed_fraction": {
        "long_name": "share of the token's values that differ from those k steps before", "units": "1",
        "comment": "NaN without a finite pair",
    },
    "n_invalid": {"long_name": "values that are NaN or infinite at t or t - k, not in the shares", "units": "1"},
}  # fmt: skip
_FIELDS = np.dtype([("n_changed", np.int64), ("n_valid", np.int64)])


def changed_fraction(
    ds: xr.Dataset, *, k: int = 1, variable: str = "W", rounded_to: str = "bfloat16", allow_gaps: bool = False
) -> xr.Dataset:
    """Measure the share of the values that differ from those k steps before, at every step and for every token.

    Parameters
    ----------
    ds
        A recording, (step, token, dim).
    k
        How many steps lie between the states that are compared.
    variable
        The variable to follow.
    rounded_to
        The number format in which values are compared: of float32 master weights, the values that an inference engine
        in bfloat16 has. ``"float32"`` compares them as recorded.
    allow_gaps
        Count recorded steps where steps are missing.

    Returns
    -------
    xarray.Dataset
        Lazy dataset over the steps from the k-th: `changed_fraction` (step), `token_changed_fraction` (step, token)
        float64; `n_invalid` (step) int64. A value that changed and changed back counts as equal; -0 and +0 are equal.

    Raises
    ------
    InputError
        For fewer than k + 1 steps, gaps, or an unknown number format.

    See Also
    --------
    changed_mask : The same for the last update of a parameter in a training loop, without a copy of the old values.

    Notes
    -----
    Not part of `analyze`. Blocks of steps are read once, in order, each with k steps of the one before.
    """
    x = checks.require(ds, variable, "changed_fraction")
    checks.check_steps(ds, "changed_fraction", allow_gaps=allow_gaps)
    grid = bfloat16.get_grid(rounded_to)
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k < ds.sizes["step"]:
        raise InputError(f"changed_fraction: k={k!r}; expected: 1 to {ds.sizes['step'] - 1}, a number of steps")
    filled = scan_fields({"x": checks.as_dask(x.data)}, _compare, _FIELDS, k=int(k), grid=grid.name)
    counts = field_variables(filled, ("step", "token"), {name: {} for name in _FIELDS.names or ()})
    n_changed, n_valid = (variable[k:] for variable in counts.values())
    values = {
        "changed_fraction": _ratio(n_changed.sum("token"), n_valid.sum("token")),
        "token_changed_fraction": _ratio(n_changed, n_valid),
        "n_invalid": ds.sizes["token"] * ds.sizes["dim"] - n_valid.sum("token"),
    }
    variables = {name: xr.Variable(x.dims, uniform(x.data), ATTRS[name]) for name, x in values.items()}
    coords = coordinates.within(ds.isel(step=slice(k, None)), "step", "token")
    attrs = checks.result_attrs(ds, variable=variable, k=int(k), rounded_to=rounded_to)
    return xr.Dataset(variables, coords, attrs)


def _compare(
    parts: dict[str, NDArray[Any]], state: NDArray[Any] | None, out: dict[str, NDArray[Any]], *, k: int, grid: str
) -> NDArray[Any]:
    """Count the values of a block of steps; the state is the last k steps before it, or those that there are."""
    g = bfloat16.get_grid(grid)
    with np.errstate(over="ignore", invalid="ignore"):  # signalling NaN
        now = parts["x"].astype(g.dtype).view(g.bits_dtype)
    words = now if state is None else np.concatenate([state, now])
    out["n_changed"][:] = out["n_valid"][:] = 0
    magnitude, infinity = g.bits_dtype.type(2 ** (g.width - 1) - 1), g.max_exponent << g.mantissa_bits
    first = len(words) - len(now)
    for t in range(max(0, k - first), len(now)):
        a, b = words[first + t - k], words[first + t]
        valid = ((a & magnitude) < infinity) & ((b & magnitude) < infinity)
        changed = (a != b) & (((a | b) & magnitude) != 0)  # -0 and +0 are equal
        out["n_valid"][t] = valid.sum(axis=1)
        out["n_changed"][t] = (changed & valid).sum(axis=1)
    return words[-k:].copy()


def _ratio(n: xr.Variable, of: xr.Variable) -> xr.Variable:
    return (n / of.where(of > 0)).astype(np.float64)
