"""Collect what a replay of recorded updates needs: tensors, learning rates, update counts and settings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deadtok_xr.analyses.common import checks
from deadtok_xr.bfloat16 import GRIDS, get_grid, to_bits
from deadtok_xr.dask_arrays import with_all_functions
from deadtok_xr.engine.scan import scan_fields
from deadtok_xr.errors import InputError
from deadtok_xr.replay import arithmetic as arithmetics
from deadtok_xr.replay.settings import Settings
from deadtok_xr.store.stored_array import stored_dtype

TENSORS = ("grad", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")
ELEMENTS_PER_CALL = 2**15
"""Elements per call of torch: for more, torch starts its own threads, which would compete with those of Dask."""


@dataclass(frozen=True)
class Updates:
    """The recorded updates of one variable.

    Attributes
    ----------
    settings
        The settings of the optimizer.
    arrays
        W and the recorded tensors of its optimizer, (step, token, dim); `lr`, `step` and `t`, the optimizer's own
        count of updates, (step, 1, 1).
    grids
        The number format of each tensor.
    notes
        Attributes of results: where the learning rates come from.
    """

    settings: Settings
    arrays: dict[str, da.Array]
    grids: dict[str, str]
    notes: dict[str, Any]
    found: str | None = None
    """The arithmetic that replay found, if the recording does not say which optimizer made it."""

    @property
    def arithmetic(self) -> str:
        """The arithmetic that made the updates: the one that replay found, or that the recording's flags select."""
        return self.found or self.settings.arithmetic

    def require(self, arithmetic: str, purpose: str) -> None:
        """Check that an arithmetic is known, and that all tensors that it needs were recorded.

        Raises
        ------
        InputError
            If it is unknown, or a tensor is missing.
        """
        known = arithmetics.candidates(self.settings)
        if arithmetic not in known:
            hint = (
                "; with float32 master weights, updates do not round to zero but accumulate between the recorded "
                "values: see replay_open_loop"
                if arithmetic == "float32_master"
                else ""
            )
            raise InputError(
                f"{purpose}: {self.settings.optimizer} has no arithmetic {arithmetic!r}: choose 'auto', "
                f"'find' or one of {', '.join(known)}{hint}"
            )
        missing = [name for side in arithmetics.required_tensors(arithmetic, self.settings) for name in side]
        missing = [name for name in dict.fromkeys(missing) if name not in self.arrays]
        if missing:
            recorded = ", ".join(name for name in self.arrays if name in self.grids)
            raise InputError(
                f"{purpose} needs {' and '.join(map(repr, missing))} to replay {self.settings.optimizer} "
                f"({arithmetic}); this recording has {recorded}: "
                f'record with variables=("W", "grad", "exp_avg", "exp_avg_sq"){self._hint(missing)}'
            )

    def _hint(self, missing: list[str]) -> str:
        derived = [name for name in missing if name in ("momentum_buffer", "max_exp_avg_sq")]
        frozen = "; a parameter without gradients (requires_grad=False) has none to replay" if "grad" in missing else ""
        return (f", from step 0 and without gaps, from which {derived[0]} is computed" if derived else "") + frozen


def collect_updates(
    ds: xr.Dataset, purpose: str, x: xr.DataArray, variable: str, settings: Settings, lr: Any, precision: str | None,
    updates_before: int,
) -> Updates:  # fmt: skip
    """Collect the tensors and rates of updates with these settings."""
    if "cuda" in str(ds.attrs.get("device", "")):
        settings = replace(settings, on_accelerator=True)
    suffix = "" if variable == "W" else f"_{variable}"
    tensors = {"W": x, **{n: checks.require(ds, n + suffix, purpose) for n in TENSORS if n + suffix in ds}}
    grids = {n: _grid(a, precision if n == "W" else None) for n, a in tensors.items()}
    arrays = {n: checks.as_dask(a.data) for n, a in tensors.items()}
    rates, source = _rates(ds, settings, lr, purpose)
    chunks = arrays["W"].chunks[0]
    arrays["lr"] = with_all_functions(rates)[:, None, None].rechunk({0: chunks})
    labels = with_all_functions(da.from_array(ds["step"].values.astype(np.float64), chunks=(chunks,)))
    counts = labels + updates_before - _skipped(ds, suffix, chunks)
    arrays["step"], arrays["t"] = (x[:, None, None] for x in (labels, counts))
    updates = Updates(settings, arrays, grids, {"lr_from": source})
    return _with_running_state(updates, ds["step"].values + updates_before)


def _skipped(ds: xr.Dataset, suffix: str, chunks: tuple[int, ...]) -> da.Array | float:
    """Return how many updates up to each step skipped the parameter; the optimizer did not count them."""
    if f"skipped{suffix}" not in ds or ds[f"skipped{suffix}"].dims != ("step",):
        return 0.0
    return (
        da.asarray(ds[f"skipped{suffix}"].data).astype(np.float64).rechunk(-1).map_blocks(np.cumsum).rechunk((chunks,))
    )


def _grid(x: xr.DataArray, precision: str | None) -> str:
    if precision is not None and precision not in GRIDS:
        raise InputError(f"precision={precision!r}: choose from {', '.join(GRIDS)}")
    name = precision or x.attrs.get("precision")
    if name in GRIDS:
        return str(name)
    return str(stored_dtype(x.data).name)


def _rates(ds: xr.Dataset, s: Settings, given: Any, purpose: str) -> tuple[da.Array, str]:
    n = ds.sizes["step"]
    if given is not None:
        return da.from_array(_given_rates(given, n, purpose)), "given"
    if "lr" in ds and ds["lr"].dims == ("step",):
        return da.asarray(ds["lr"].data).astype(np.float64), "the variable lr"
    if s.lr is None:
        raise InputError(f"{purpose}: the recording has no variable 'lr' and no hyperparameter lr: give lr= (--lr)")
    return da.full((n,), float(s.lr)), "the hyperparameter lr, assumed constant: the recording has no variable 'lr'"


def _given_rates(given: Any, n: int, purpose: str) -> NDArray[np.float64]:
    """Return one rate per step; given one per update, NaN at the first step, to which no update leads."""
    try:
        rates = np.asarray(given, np.float64)
    except (TypeError, ValueError):
        raise InputError(
            f"{purpose}: lr is a {type(given).__name__} without numbers; expected learning rates"
        ) from None
    if rates.shape not in ((), (n,), (n - 1,)):
        raise InputError(
            f"{purpose}: lr has the shape {rates.shape}; expected one number, one per step ({n},), or one per update "
            f"({n - 1},)"
        )
    if rates.shape == () and np.isnan(rates):
        raise InputError(f"{purpose}: lr is NaN; expected a learning rate")
    if (rates < 0).any() or np.isinf(rates).any():
        raise InputError(f"{purpose}: lr holds {rates[(rates < 0) | np.isinf(rates)][0]}; expected rates of 0 or more")
    return np.append(np.nan, rates) if rates.shape == (n - 1,) else np.broadcast_to(rates, (n,)).copy()


def _with_running_state(u: Updates, steps: NDArray[np.int64]) -> Updates:
    """Add the momentum buffer, or amsgrad's largest second moment, if it can be computed from the rest."""
    from_start = steps[0] == 0 and (np.diff(steps) == 1).all()
    s = u.settings
    if s.is_adam:
        name, needed = "max_exp_avg_sq", ("W", "exp_avg_sq")
        wanted = s.amsgrad
    else:
        name, needed, wanted = "momentum_buffer", ("W", "grad"), bool(s.momentum)
    if not wanted or name in u.arrays or not from_start or not set(needed) <= u.arrays.keys():
        return u
    grid = u.grids[needed[-1]]
    fields = np.dtype([("state", get_grid(grid).dtype)])
    parts = {n: u.arrays[n] for n in (*needed, "lr", "t")}
    x = u.arrays["W"]
    filled = scan_fields(parts, _running_state, np.dtype([]), settings=s, grids=u.grids, name=name)
    data = filled.map_blocks(
        _pick, name, dtype=fields["state"], chunks=x.chunks, new_axis=2, meta=np.empty((0, 0, 0), fields["state"])
    )
    return replace(u, arrays={**u.arrays, name: data}, grids={**u.grids, name: grid})


def _pick(block: Any, name: str) -> NDArray[Any]:
    return block[name]


def _running_state(parts: dict[str, NDArray[Any]], state: Any, out: dict[str, Any], *, settings: Settings,
                   grids: dict[str, str], name: str) -> Any:  # fmt: skip
    """Compute `momentum_buffer` or `max_exp_avg_sq` at every step of a block; the state is that of the block before.

    The buffer of a recording made on a GPU is computed on a GPU if there is one, whatever the device of the analysis:
    a CPU rounds some of its bits differently.
    """
    import torch

    device = "cuda" if settings.on_accelerator and torch.cuda.is_available() else "cpu"
    recorded = {n: as_grid(parts[n], grid) for n, grid in grids.items() if n in parts}
    dtype = get_grid(grids[source_of(name)]).dtype
    out[name] = np.empty(parts["W"].shape, dtype)
    previous: Any = _on(device, state)
    for i in range(len(parts["W"])):
        t, rate = int(parts["t"][i, 0, 0]), float(parts["lr"][i, 0, 0])
        tensors = {n: arithmetics.to_tensor(x[i]).to(device) for n, x in recorded.items()}
        if name == "max_exp_avg_sq":
            v = tensors["exp_avg_sq"]
            now = v if previous is None else torch.maximum(previous["tensors"][name], v)
        elif t == 0:
            now = torch.zeros_like(tensors["grad"])
        elif t == previous["t"]:  # the update skipped the parameter
            now = previous["tensors"][name]
        else:
            now = arithmetics.momentum(settings.arithmetic, settings, t, rate, previous["tensors"], tensors)
        previous = {"tensors": {name: now, "W": tensors["W"]}, "t": t}
        out[name][i] = to_array(now, dtype)
    return _on("cpu", previous)


def _on(device: str, state: Any) -> Any:
    """Return the state between blocks with its tensors on a device; between tasks it stays on the CPU."""
    return state and {**state, "tensors": {n: x.to(device) for n, x in state["tensors"].items()}}


def source_of(name: str) -> str:
    """Return the tensor that a running state is computed from."""
    return "exp_avg_sq" if name == "max_exp_avg_sq" else "grad"


def to_array(x: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return a tensor as an array of a dtype with the same bits."""
    import torch

    x = x.cpu()
    return x.view(torch.int16).numpy().view(dtype) if x.dtype == torch.bfloat16 else x.numpy()


def as_grid(block: NDArray[Any], grid: str) -> NDArray[Any]:
    """Return a block in the dtype of its number format; values that are not on its grid are refused."""
    dtype = get_grid(grid).dtype
    return block if block.dtype == dtype else to_bits(block, grid).view(dtype)
