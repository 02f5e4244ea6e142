"""Measure for how many steps each token keeps its velocity."""

from __future__ import annotations

from functools import partial
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deadtok_xr.analyses.common import checks
from deadtok_xr.bfloat16 import decode
from deadtok_xr.engine.scan import scan
from deadtok_xr.engine.small_results import Arrays, compute_together
from deadtok_xr.errors import InputError

_V = "v = ΔW, v = 0 for steps at rest; means over finite values"
_FIRST = "first lag at which the autocorrelation is at most"
ATTRS: dict[str, dict[str, Any]] = {
    "autocorrelation": {
        "long_name": "autocorrelation of the token's velocity", "units": "1",
        "formula": f"ρ_i(τ) = mean_t v_i[t]·v_i[t+τ] / mean_t ‖v_i[t]‖₂², {_V}",
        "comment": "NaN for a token that never moved, or without a finite pair",
    },
    "half_lag": {"long_name": f"{_FIRST} 0.5; -1 never", "units": "transitions"},
    "tenth_lag": {"long_name": f"{_FIRST} 0.1; -1 never", "units": "transitions"},
    "pooled": {
        "long_name": "autocorrelation of the velocities of all tokens together", "units": "1",
        "formula": f"ρ(τ) = mean_it v_i[t]·v_i[t+τ] / mean_it ‖v_i[t]‖₂², {_V}",
        "comment": "tokens and steps are weighted by their motion: the hot beginning outweighs the rest",
    },
    "pooled_half_lag": {"long_name": f"{_FIRST} 0.5; -1 never", "units": "transitions"},
    "pooled_tenth_lag": {"long_name": f"{_FIRST} 0.1; -1 never", "units": "transitions"},
    "cosine": {
        "long_name": "mean cosine of velocities a lag apart", "units": "1",
        "formula": "mean_it cos(v_i[t], v_i[t+τ]) over the pairs in which both move",
        "comment": "NaN where there is no such pair; a token at rest has no direction",
    },
    "n_cosine": {"long_name": "pairs of velocities in which both move", "units": "1"},
}  # fmt: skip


def velocity_autocorrelation(
    ds: xr.Dataset, *, max_lag: int = 100, variable: str = "W", allow_gaps: bool = False
) -> xr.Dataset:
    """Compute the autocorrelation of velocities: for each token, for all together, and as a mean cosine.

    Parameters
    ----------
    ds
        A recording, (step, token, dim); to restrict it to a window, select its steps.
    max_lag
        The largest lag, in transitions.
    variable
        The weights to follow.
    allow_gaps
        Measure transitions that span several updates; lags then count transitions.

    Returns
    -------
    xarray.Dataset
        Lazy dataset: `autocorrelation` (token, lag) float64, `half_lag`, `tenth_lag` (token) int64; `pooled`, `cosine`
        (lag) float64, `n_cosine` (lag) int64; `pooled_half_lag`, `pooled_tenth_lag` int64. A lag of -1 means never.

        Velocities with NaN or infinity at either step are left out.

    Raises
    ------
    InputError
        For fewer than two steps, gaps, or a recording without absolute positions.

    Notes
    -----
    Notebook 1.14c (a). `cloud` has the autocorrelation of the centroid, `bulk_autocorrelation`, and the distribution of
    the cosine at lag 1 at each step, `lag1_median` (1.31d). Not part of `analyze`: it takes T·N·D operations for each
    lag, fewer where tokens rest. Blocks of steps are processed in order, each with ``max_lag`` steps of the one before;
    blocks of tokens run in parallel.
    """
    x = checks.require(ds, variable, "velocity_autocorrelation")
    checks.check_steps(ds, "velocity_autocorrelation", allow_gaps=allow_gaps)
    if max_lag < 1:
        raise InputError(f"velocity_autocorrelation: max_lag={max_lag}; expected at least 1 transition")
    lags = min(max_lag, ds.sizes["step"] - 2) + 1
    n = ds.sizes["token"]
    shapes: dict[str, Any] = {
        "autocorrelation": (("token", "lag"), (n, lags), "f8"),
        **dict.fromkeys(("half_lag", "tenth_lag"), (("token",), (n,), "i8")),
        **dict.fromkeys(("pooled", "cosine"), (("lag",), (lags,), "f8")),
        "n_cosine": (("lag",), (lags,), "i8"),
        **dict.fromkeys(("pooled_half_lag", "pooled_tenth_lag"), ((), (), "i8")),
    }
    values = compute_together({"sums": _sums(checks.as_dask(x.data), lags)}, _measure, shapes, ATTRS)
    coords = {str(name): c.variable for name, c in ds.coords.items() if c.dims == ("token",)}
    coords["lag"] = xr.Variable("lag", np.arange(lags), {"long_name": "lag", "units": "transitions"})
    return xr.Dataset({name: values[name] for name in ATTRS}, coords, checks.result_attrs(ds, variable=variable))


def _sums(x: da.Array, lags: int) -> da.Array:
    """Return the sums over all steps: one object per block of tokens."""
    return scan([x], partial(_add_block, lags=lags))


def _add_block(state: list[Any] | None, block: NDArray[Any], lags: int) -> list[Any]:
    """Return the sums up to the end of a block, and the last steps, which the next block needs."""
    from deadtok_xr.kernels.numba.lags import lagged

    n = block.shape[1]
    if state is None:
        sums = {
            "dots": np.zeros((n, lags)), "pairs": np.zeros((n, lags), np.int64),
            "cosines": np.zeros((n, lags)), "n_moved": np.zeros((n, lags), np.int64),
        }  # fmt: skip
        before = block[:0]
    else:
        before, sums = state[0]["last"], {k: v.copy() for k, v in state[0]["sums"].items()}
    steps = np.concatenate([before, block])
    floats = steps if steps.dtype == np.float64 else decode(steps)
    lagged(np.ascontiguousarray(floats), len(before), *sums.values())
    return [{"last": steps[-lags:].copy(), "sums": sums}]  # lags - 1 velocities before the next


def _measure(inputs: dict[str, list[Any]]) -> Arrays:
    parts = [part["sums"] for part in inputs["sums"]]
    s = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    total = {name: x.sum(axis=0, keepdims=True) for name, x in s.items()}
    rho, (pooled,) = _ratio(s["dots"], s["pairs"]), _ratio(total["dots"], total["pairs"])
    (cosines,), (moved,) = total["cosines"], total["n_moved"]
    return {
        "autocorrelation": rho, "half_lag": _first(rho, 0.5), "tenth_lag": _first(rho, 0.1),
        "pooled": pooled, "pooled_half_lag": _first(pooled, 0.5), "pooled_tenth_lag": _first(pooled, 0.1),
        "cosine": np.where(moved > 0, cosines / np.maximum(moved, 1), np.nan), "n_cosine": moved,
    }  # fmt: skip


def _ratio(dots: NDArray[np.float64], pairs: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the mean product of velocities over their mean square, the mean product at lag 0."""
    mean = dots / np.maximum(pairs, 1)
    square = mean[:, :1]
    return np.where((pairs > 0) & (square > 0), mean / np.where(square > 0, square, 1.0), np.nan)


def _first(rho: NDArray[np.float64], limit: float) -> NDArray[np.int64]:
    """Return the first lag at which ρ is at most the limit, along the last axis; -1 for never."""
    below = rho <= limit
    return np.where(below.any(axis=-1), below.argmax(axis=-1), -1)
