"""How far each token moved at each step: in weight space, in the notebooks' ULP, and on the lattice."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deadtok_xr import blocks
from deadtok_xr.errors import InputError

FIELDS = np.dtype(
    [
        ("displacement", "f4"),
        ("displacement_ulp", "f4"),
        ("lattice_l1", "f8"),
        ("lattice_l2", "f8"),
        ("lattice_linf", "f8"),
        ("moved_dims", "i8"),
    ]
)
PER_STEP = np.dtype([("displacement_ulp_mean", "f8"), ("displacement_ulp_std", "f8"), ("n_invalid", "i8")])
_PARTIAL = np.dtype([("n", "i8"), ("mean", "f8"), ("squares", "f8"), ("n_invalid", "i8")])
_STEP = "ΔW'[t] = (W[t] - W[t-1]) / ULP(W[t-1])"
ATTRS: dict[str, dict[str, Any]] = {
    "displacement": {
        "long_name": "length of the displacement",
        "units": "1",
        "formula": "‖W[t] - W[t-1]‖₂",
    },
    "displacement_ulp": {
        "long_name": "displacement in norm ULP",
        "units": "norm ULP",
        "formula": "‖W[t] - W[t-1]‖₂ / max(‖W[t-1]‖₂·2⁻⁷, 1e-10)",
        "source": "notebook 1.31b",
    },
    "lattice_l1": {"long_name": "L1 norm of the lattice step", "units": "ULP", "formula": f"Σ_d |ΔW'|, {_STEP}"},
    "lattice_l2": {"long_name": "L2 norm of the lattice step", "units": "ULP", "formula": f"√Σ_d ΔW'², {_STEP}"},
    "lattice_linf": {"long_name": "largest lattice step", "units": "ULP", "formula": f"max_d |ΔW'|, {_STEP}"},
    "moved_dims": {
        "long_name": "dims whose value changed",
        "units": "1",
        "comment": "-1 where W[t] or W[t-1] holds NaN or infinity; -0 and +0 are equal",
    },
    "displacement_ulp_mean": {"long_name": "mean displacement over valid tokens", "units": "norm ULP"},
    "displacement_ulp_std": {
        "long_name": "standard deviation of the displacement over valid tokens (ddof 1)",
        "units": "norm ULP",
    },
    "n_invalid": {"long_name": "tokens with NaN or infinity at t - 1 or t", "units": "1"},
}  # fmt: skip


def motion(
    ds: xr.Dataset, *, variable: str = "W", precision: str | None = None, allow_gaps: bool = False
) -> xr.Dataset:
    """Measure every transition of every token.

    Parameters
    ----------
    ds
        A recording, as `open_recording` returns it or a selection of it; (step, token, dim).
    variable
        The weights to follow.
    precision
        The number format whose grid they live on; by default what the recording says
        (the variable's attribute `precision`).
    allow_gaps
        Measure transitions that span several updates; adds `step_span`.

    Returns
    -------
    Lazy dataset with the label t for the transition t-1 → t. Per (step, token): `displacement`
    ‖ΔW‖₂ and `displacement_ulp`, the norm ULP of notebook 1.31b, float32; `lattice_l1`, `lattice_l2`,
    `lattice_linf` of ΔW' = ΔW / ULP(W[t-1]), float64 since |ΔW'| reaches 1e37 at W = 0; `moved_dims`,
    int64. Per step: `displacement_ulp_mean` and `_std` (ddof 1) over valid tokens, `n_invalid`.
    Tokens with NaN or infinity give NaN.

    Raises
    ------
    InputError
        For fewer than two steps, gaps, or a recording without absolute positions.
    OffGridError
        When computed, if the values are not on the grid: a derived array is not a recording.
    """
    x = blocks.require(ds, variable, "motion")
    extra = blocks.check_steps(ds, "motion", allow_gaps=allow_gaps)
    result = measured(x, precision)
    values = blocks.fields(result, ("step", "token"), ATTRS) | blocks.fields(_over_tokens(result), ("step",), ATTRS)
    return xr.Dataset({**values, **extra}, transition_coords(ds), blocks.result_attrs(ds, variable=variable))


def measured(x: xr.DataArray, precision: str | None) -> da.Array:
    """The per-(step, token) results of the motion kernel, lazily: `FIELDS` of each block in one task."""
    return blocks.transitions(
        blocks.as_dask(x.data), _kernel, FIELDS, precision=lattice_of(x, precision), name=str(x.name)
    )


def lattice_of(x: xr.DataArray, precision: str | None) -> str:
    """The name of the grid that a variable lives on.

    Raises
    ------
    InputError
        If neither the caller nor the recording says, or the values live on none.
    """
    name = precision or x.attrs.get("precision") or x.dtype.name
    if name == "none":
        raise InputError(
            f"{x.name} lives on no grid (its precision is 'none'), so it has no lattice: say precision='float32' "
            "to measure it on the grid of its storage"
        )
    return str(name)


def _kernel(now: NDArray[Any], after: NDArray[Any], out: dict[str, NDArray[Any]], *, precision: str, name: str) -> None:
    from deadtok_xr import kernels
    from deadtok_xr.errors import OffGridError
    from deadtok_xr.kernels.numba import motion as kernel  # here, so that a graph is built without numba

    try:
        kernel(kernels.words(now), kernels.words(after), kernels.lattice(precision), out)
    except OffGridError as error:
        raise OffGridError(
            f"{name}: {error} of {precision}; measure the recorded values, not derived ones, or say precision="
        ) from None


def _over_tokens(result: da.Array) -> da.Array:
    """Mean, deviation and number of invalid tokens at each step, from partial results of each block."""
    one_each = (result.chunks[0], (1,) * result.numblocks[1])
    partial = result.map_blocks(_partial, dtype=_PARTIAL, chunks=one_each, meta=np.empty((0, 0), _PARTIAL))
    return partial.rechunk({1: -1}).map_blocks(
        _combined, drop_axis=1, dtype=PER_STEP, chunks=result.chunks[:1], meta=np.empty(0, PER_STEP)
    )


def _partial(result: dict[str, NDArray[Any]]) -> NDArray[Any]:
    x = result["displacement_ulp"].astype(np.float64)
    valid = result["moved_dims"] >= 0
    out = np.zeros((len(x), 1), _PARTIAL)
    out["n"] = n = valid.sum(axis=1, keepdims=True)
    out["mean"] = mean = np.where(valid, x, 0).sum(axis=1, keepdims=True) / np.maximum(n, 1)
    with np.errstate(invalid="ignore"):  # infinite displacements have no deviation: NaN
        out["squares"] = (np.where(valid, x - mean, 0) ** 2).sum(axis=1, keepdims=True)
    out["n_invalid"] = (~valid).sum(axis=1, keepdims=True)
    return out


def _combined(parts: NDArray[Any]) -> NDArray[Any]:
    """Merge means and sums of squared deviations: those within the parts, and those of the parts' means."""
    n = parts["n"].sum(axis=1)
    out = np.empty(len(parts), PER_STEP)
    mean = (parts["n"] * parts["mean"]).sum(axis=1) / np.maximum(n, 1)
    with np.errstate(invalid="ignore"):
        squares = (parts["squares"] + parts["n"] * (parts["mean"] - mean[:, None]) ** 2).sum(axis=1)
    out["displacement_ulp_mean"] = np.where(n > 0, mean, np.nan)
    out["displacement_ulp_std"] = np.where(n > 1, np.sqrt(squares / np.maximum(n - 1, 1)), np.nan)
    out["n_invalid"] = parts["n_invalid"].sum(axis=1)
    return out


def transition_coords(ds: xr.Dataset) -> dict[str, xr.Variable]:
    """The coordinates of (step, token) results that begin at the second step."""
    later = ds.isel(step=slice(1, None))
    return {str(n): c.variable for n, c in later.coords.items() if set(c.dims) <= {"step", "token"}}
