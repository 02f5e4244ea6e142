"""The measurement of every transition that `motion` and `phases` share: one kernel call per block.

Beside the results per token, a block's task leaves what its tokens add to each step's figures, so that these
cost no second look at the results.
"""

from __future__ import annotations

import warnings
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deadtok_xr import blocks
from deadtok_xr.errors import InputError, OffGridError

PER_TOKEN = np.dtype(
    [
        ("displacement", "f4"),
        ("displacement_ulp", "f4"),
        ("lattice_l1", "f8"),
        ("lattice_l2", "f8"),
        ("lattice_linf", "f8"),
        ("moved_dims", "i8"),
    ]
)
PER_STEP = np.dtype(
    [
        ("displacement_ulp_mean", "f8"),
        ("displacement_ulp_std", "f8"),
        ("n_invalid", "i8"),
        ("lattice", "i8", (4,)),
        ("magnitude", "i8", (4,)),
    ]
)
_PARTIAL = np.dtype(
    [
        ("n", "i8"),
        ("mean", "f8"),
        ("squares", "f8"),
        ("n_invalid", "i8"),
        ("lattice", "i8", (4,)),
        ("magnitude", "i8", (4,)),
    ]
)
MAGNITUDES = (0.1, 10.0, 100.0)
"""The limits of notebook 1.31b's regimes, in norm ULP."""

Block = dict[str, NDArray[Any]]


def measure(x: xr.DataArray, grid: str) -> tuple[da.Array, da.Array]:
    """What every transition of a variable (step, token, dim) is like on a grid, lazily.

    Returns
    -------
    `PER_TOKEN` fields (step - 1, token), and `PER_STEP` fields (step - 1,): the mean and deviation
    over valid tokens, and how many are in each phase of each scheme, from coldest to hottest.
    """
    per_token = blocks.transitions(blocks.as_dask(x.data), _kernel, PER_TOKEN, precision=grid, name=str(x.name))
    per_step = da.blockwise(
        _combine, "t", per_token, "tn", dtype=PER_STEP, meta=np.empty(0, PER_STEP), concatenate=None
    )
    return per_token, per_step


def grid_name(x: xr.DataArray, precision: str | None) -> str:
    """The name of the grid that a variable lives on.

    Raises
    ------
    InputError
        If it lives on none.
    """
    said = x.attrs.get("precision")
    if precision and said not in (None, "none", precision):
        warnings.warn(
            f"{x.name} is recorded as living on the {said} grid; it is measured on the {precision} grid, as asked",
            UserWarning,
            stacklevel=2,
        )
    held = "bfloat16" if x.dtype == np.float32 else x.dtype.name  # the kernels check every value
    name = precision or x.attrs.get("precision", held)
    if name == "none":
        raise InputError(
            f"{x.name} lives on no grid that is known (its precision is 'none': float32 training, or autocast), so it "
            "has no lattice: say precision='float32' (--precision float32) for float32's own grid, or name the format "
            "it was trained in"
        )
    return str(name)


def step_and_token_coords(ds: xr.Dataset) -> dict[str, xr.Variable]:
    """The coordinates of results that begin at the second step."""
    later = ds.isel(step=slice(1, None))
    return {str(n): c.variable for n, c in later.coords.items() if set(c.dims) <= {"step", "token"}}


def _kernel(now: NDArray[Any], after: NDArray[Any], out: Block, *, precision: str, name: str) -> None:
    from deadtok_xr import kernels
    from deadtok_xr.kernels.numba import motion as kernel  # here, so that a graph is built without numba

    try:
        kernel(kernels.words(now), kernels.words(after), kernels.lattice(precision), out)
    except OffGridError as error:
        raise OffGridError(
            f"{name}: {error} of {precision}; measure the recorded values, not derived ones, or say precision="
        ) from None
    out["partial"] = _partial(out, now.shape[2])


def _partial(block: Block, n_dims: int) -> NDArray[Any]:
    """What a block's tokens add to each step's figures."""
    valid = block["moved_dims"] >= 0
    x = np.where(valid, block["displacement_ulp"], 0).astype(np.float64)
    out = np.zeros(len(x), _PARTIAL)
    out["n"] = n = valid.sum(axis=1)
    out["mean"] = mean = x.sum(axis=1) / np.maximum(n, 1)
    with np.errstate(invalid="ignore"):  # infinite displacements have no deviation: NaN
        out["squares"] = (np.where(valid, x - mean[:, None], 0) ** 2).sum(axis=1)
    out["n_invalid"] = valid.shape[1] - n
    limits = (("lattice_l1", 0.0), ("lattice_linf", 1.0), ("lattice_l2", np.sqrt(n_dims)))
    out["lattice"] = _phases([block[name] <= limit for name, limit in limits], n)
    out["magnitude"] = _phases([block["displacement_ulp"] < limit for limit in MAGNITUDES], n)
    return out


def _phases(colder: list[NDArray[np.bool_]], n_valid: NDArray[np.int64]) -> NDArray[np.int64]:
    """Tokens per phase. Each phase with all colder ones is part of the next with its, so differences count."""
    up_to = np.stack([*(mask.sum(axis=1) for mask in colder), n_valid], axis=-1)
    return np.diff(up_to, axis=-1, prepend=0)


def _combine(parts: list[Block]) -> Block:
    """Merge the token blocks of the same steps: deviations within the parts and of the parts' means."""
    partial = np.stack([block["partial"] for block in parts])
    n = partial["n"].sum(axis=0)
    mean = (partial["n"] * partial["mean"]).sum(axis=0) / np.maximum(n, 1)
    with np.errstate(invalid="ignore"):
        squares = (partial["squares"] + partial["n"] * (partial["mean"] - mean) ** 2).sum(axis=0)
    return {
        "displacement_ulp_mean": np.where(n > 0, mean, np.nan),
        "displacement_ulp_std": np.where(n > 1, np.sqrt(squares / np.maximum(n - 1, 1)), np.nan),
        **{name: partial[name].sum(axis=0) for name in ("n_invalid", "lattice", "magnitude")},
    }
