"""Replay the recorded gradients with other ways of storing weights: would the tokens have frozen?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from deadtok_xr.analyses.common import checks, coordinates
from deadtok_xr.analyses.common.read_updates import read_updates
from deadtok_xr.analyses.common.recorded_updates import as_grid
from deadtok_xr.dask_arrays import empty_meta
from deadtok_xr.engine.block_pass import uniform
from deadtok_xr.engine.scan import scan_fields
from deadtok_xr.engine.small_results import field_variables
from deadtok_xr.errors import InputError
from deadtok_xr.replay import arithmetic as arithmetics
from deadtok_xr.replay.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

SCHEMES = {
    "nearest": "rounded to the nearest number, ties to even: as recorded, except for float32 arithmetic",
    "float32_master": "float32 weights; the recorded format is a rounded copy",
    "stochastic": "rounded up or down at random, with the probability that keeps the mean",
    "kahan": "rounded to the nearest; the rounding error is kept in the weights' format and added to the next update",
}
_FIELDS = np.dtype([("displacement", "f4"), ("distance", "f4"), ("moved_dims", "i8"), ("recorded", "i8")])
PER_TOKEN: dict[str, dict[str, Any]] = {
    "displacement": {"long_name": "length of the displacement of the replayed weights", "units": "1",
                     "formula": "‖W[t] - W[t-1]‖₂"},
    "distance": {"long_name": "distance of the replayed weights from the first recorded ones", "units": "1",
                 "formula": "‖W[t] - W[0]‖₂"},
    "moved_dims": {"long_name": "dims in which the replayed weights moved; -1 if not finite", "units": "1"},
}  # fmt: skip
PER_STEP: dict[str, dict[str, Any]] = {
    "moved_fraction": {"long_name": "share of the tokens that moved in the replay", "units": "1"},
    "recorded_moved_fraction": {"long_name": "share of the tokens that moved in the recording", "units": "1"},
}
_STEP_FIELDS = np.dtype([(name, "f8") for name in PER_STEP])


def replay_open_loop(
    ds: xr.Dataset,
    scheme: str = "float32_master",
    *,
    seed: int = 0,
    moments: str = "float32",
    hyperparameters: Mapping[str, Any] | None = None,
    lr: float | ArrayLike | None = None,
    variable: str = "W",
    precision: str | None = None,
) -> xr.Dataset:
    """Replay the recorded gradients from the first recorded weights, without training again.

    Parameters
    ----------
    ds
        A recording of W and grad, without gaps.
    scheme
        How weights are stored: ``"float32_master"``, ``"stochastic"``, ``"kahan"``, or ``"nearest"`` for comparison.
    seed
        The seed of stochastic rounding. Random numbers depend only on seed, step, token and dim, not on chunks.
    moments
        ``"float32"``: compute Adam's moments in float32, starting from zero; the recording must begin at step 0.
        ``"recorded"``: use the recorded ones, which are rounded.
    hyperparameters, lr, variable, precision
        As for `mechanism`.

    Returns
    -------
    xarray.Dataset
        Lazy dataset with the label t for the update t-1 → t, for the weights in the recorded format. Per (step, token):
        `displacement`, `distance` from the start, `moved_dims`. Per step: `moved_fraction` of the tokens, and
        `recorded_moved_fraction` for comparison.

        The gradients are those of the recorded run; other weights would have had other gradients, which are unknown.

    Raises
    ------
    InputError
        For an unknown scheme, gaps, or missing tensors, hyperparameters or learning rates.
    """
    if scheme not in SCHEMES:
        raise InputError(f"scheme={scheme!r}: choose one of {', '.join(SCHEMES)}")
    if not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**64:
        raise InputError(f"seed={seed!r}; expected a whole number from 0 to 2**64 - 1")
    if moments not in ("float32", "recorded"):
        raise InputError(f"moments={moments!r}: choose 'float32' or 'recorded'")
    u = read_updates(
        ds, "replay_open_loop", variable=variable, hyperparameters=hyperparameters, lr=lr, precision=precision
    )
    _refuse_gaps(ds)
    _refuse_missing(u.arrays, u.settings, moments, int(ds["step"].values[0]), u.grids["W"])
    names = ["W", "grad", "lr", "t"]
    names += _recorded_moments(u.settings, moments)
    tokens = da.from_array(ds["token"].values.astype(np.int64), chunks=(u.arrays["W"].chunks[1],))
    arrays = {**{n: u.arrays[n] for n in names}, "token": tokens[None, :, None]}
    grids = {n: grid for n, grid in u.grids.items() if n in names}
    filled = scan_fields(arrays, _block, _FIELDS, settings=u.settings, scheme=scheme, seed=seed, grids=grids)
    steps = da.blockwise(
        _step_fields, "t", filled, "tn", dtype=_STEP_FIELDS, meta=empty_meta(1, _STEP_FIELDS), concatenate=None
    )
    values = {**field_variables(filled, ("step", "token"), PER_TOKEN), **field_variables(steps, ("step",), PER_STEP)}
    values = {name: v[1:].copy(data=uniform(v[1:].data)) for name, v in values.items()}
    attrs = checks.result_attrs(
        ds, variable=variable, scheme=scheme, rounding=SCHEMES[scheme], seed=seed, moments=moments,
        precision=u.grids["W"], **u.notes,
    )  # fmt: skip
    return xr.Dataset(values, coordinates.of_transitions(ds), attrs)


def _recorded_moments(s: Settings, moments: str) -> list[str]:
    if moments != "recorded" or not s.is_adam:
        return []
    return ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if s.amsgrad else [])]


def _refuse_gaps(ds: xr.Dataset) -> None:
    try:
        checks.check_steps(ds, "replay_open_loop", allow_gaps=False)
    except InputError as error:
        if "allow_gaps" not in str(error):
            raise
        raise InputError(
            str(error).partition("; a transition")[0] + "; the replay needs every update: select steps without gaps, "
            "ds.sel(step=slice(a, b)), and for Adam say moments='recorded' if they do not begin at 0"
        ) from None


def _refuse_missing(arrays: dict[str, Any], s: Settings, moments: str, first: int, grid: str) -> None:
    missing = [n for n in ("grad", *_recorded_moments(s, moments)) if n not in arrays]
    if missing:
        why = ", and can be computed from exp_avg_sq only from step 0" if missing[0] == "max_exp_avg_sq" else ""
        instead = "" if missing[0] == "grad" else ", or say moments='float32' from step 0"
        raise InputError(
            f"replay_open_loop needs the variable {missing[0]!r}, which was not recorded{why}: record it{instead}"
        )
    if first != 0 and (s.momentum or (s.is_adam and moments == "float32")):
        raise InputError(
            f"replay_open_loop: the dataset begins at step {first}, and the state of the optimizer then is unknown in "
            "float32: begin at step 0, or say moments='recorded' for Adam"
        )
    if grid != "bfloat16":
        raise InputError(
            f"replay_open_loop: the weights are {grid}; expected bfloat16, whose rounding the replay varies"
        )


def _block(parts: dict[str, NDArray[Any]], state: Any, out: dict[str, Any], *, settings: Settings, scheme: str,
           seed: int, grids: dict[str, str]) -> Any:  # fmt: skip
    """Replay a block of steps, from the state at the end of the block before, and return its own."""
    recorded = {n: as_grid(parts[n], grids[n]) for n in grids}
    token = parts["token"][0, :, 0].astype(np.uint64)
    for i in range(len(parts["W"])):
        now = {n: arithmetics.to_tensor(x[i]).float() for n, x in recorded.items()}
        if state is None:
            state = {
                "start": now["W"],
                "master": now["W"],
                "rounded": now["W"],
                "recorded": now["W"],
                "t": parts["t"][i, 0, 0],
            }
            out["displacement"][i], out["distance"][i], out["moved_dims"][i], out["recorded"][i] = 0, 0, 0, 0
            continue
        t, lr = int(parts["t"][i, 0, 0]), float(parts["lr"][i, 0, 0])
        before = state["rounded"]
        if t > state["t"]:  # else the update skipped the parameter
            noise = _noise(seed, t, token, parts["W"].shape[2]) if scheme == "stochastic" else None
            state = _update(settings, scheme, t, lr, now, {**state, "t": t}, noise)
        step = state["rounded"] - before
        out["displacement"][i] = step.norm(dim=1).numpy()
        out["distance"][i] = (state["rounded"] - state["start"]).norm(dim=1).numpy()
        out["moved_dims"][i] = _moved(step)
        out["recorded"][i] = _moved(now["W"] - state["recorded"])
        state["recorded"] = now["W"]
    return state


def _moved(step: Tensor) -> NDArray[np.int64]:
    """Return the number of dims in which each token moved; -1 for NaN or infinity."""
    return np.where(step.isfinite().all(dim=1).numpy(), (step != 0).sum(dim=1).numpy(), -1)


def _update(s: Settings, scheme: str, t: int, lr: float, now: dict[str, Tensor], state: dict[str, Any],
            noise: Any) -> dict[str, Any]:  # fmt: skip
    """Make an update in float32: `master` is what the next one is added to, `rounded` the same in bfloat16."""
    w = state["master"]
    u = _intended(s, t, lr, now, state, w)
    if scheme == "float32_master":
        state["master"] = w + u
        state["rounded"] = _nearest(state["master"])
        return state
    if scheme == "kahan":
        u = _nearest(u + state.get("lost", 0.0))
    new = _stochastic(w + u, noise) if scheme == "stochastic" else _nearest(w + u)
    if scheme == "kahan":
        state["lost"] = _nearest(u - (new - w))
    state["master"] = state["rounded"] = new
    return state


def _intended(s: Settings, t: int, lr: float, now: dict[str, Tensor], state: dict[str, Any], w: Tensor) -> Tensor:
    """Return the update before rounding, in float32; updates the moments in the state."""
    g = (-now["grad"] if s.maximize else now["grad"]) + s.added_decay * w
    if not s.is_adam:
        if s.momentum:
            b = state.get("momentum")
            state["momentum"] = b = g if b is None else s.momentum * b + (1 - s.dampening) * g
            g = g + s.momentum * b if s.nesterov else b
        return -lr * g
    b1, b2 = s.betas
    if "exp_avg" in now:
        m, v = now["exp_avg"], now["exp_avg_sq"]
    else:
        m = state["m"] = b1 * state.get("m", 0.0) + (1 - b1) * g
        v = state["v"] = b2 * state.get("v", 0.0) + (1 - b2) * g * g
    if s.amsgrad:
        v = state["largest"] = now["max_exp_avg_sq"] if "exp_avg" in now else v.maximum(state.get("largest", v))
    d = v.sqrt() / (1 - b2**t) ** 0.5 + s.eps
    return -lr * s.decoupled_decay * w - lr / (1 - b1**t) * m / d


def _nearest(x: Tensor) -> Tensor:
    return x.bfloat16().float()


def _stochastic(x: Tensor, noise: NDArray[np.uint16]) -> Tensor:
    """Add 16 random bits below bfloat16's last one, and truncate: round up with the probability of the rest."""
    import torch

    words = x.numpy().view(np.uint32)
    finite = np.isfinite(x.numpy())
    up = (words + noise.astype(np.uint32)) & np.uint32(0xFFFF0000)
    return torch.from_numpy(np.where(finite, up, words).astype(np.uint32).view(np.float32))


def _noise(seed: int, t: int, token: NDArray[np.uint64], n_dims: int) -> NDArray[np.uint16]:
    """Return 16 random bits per element, which depend on its position alone: splitmix64 of (seed, t, token, dim)."""
    with np.errstate(over="ignore"):
        key = _mix(_mix(np.array([seed], np.uint64)) + np.uint64(t))
        rows = _mix(key + token)[:, None]
        return (_mix(rows + np.arange(n_dims, dtype=np.uint64)) >> np.uint64(48)).astype(np.uint16)


def _mix(x: NDArray[Any]) -> NDArray[Any]:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _step_fields(parts: list[dict[str, Any]]) -> dict[str, NDArray[np.float64]]:
    moved, recorded = (np.concatenate([p[n] for p in parts], axis=1) for n in ("moved_dims", "recorded"))
    return {"moved_fraction": _share(moved), "recorded_moved_fraction": _share(recorded)}


def _share(moved: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the share of tokens that moved, over those for which that is known; NaN without any."""
    known = (moved >= 0).sum(axis=1)
    return np.where(known > 0, (moved > 0).sum(axis=1) / np.maximum(known, 1), np.nan)
