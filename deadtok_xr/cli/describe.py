"""Describe a store as text for one screen, and estimate the memory needed to analyse it."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from dask.system import CPU_COUNT
from dask.utils import format_bytes
from numpy.typing import NDArray

from deadtok_xr import store
from deadtok_xr.errors import InputError
from deadtok_xr.text import duration, table

if TYPE_CHECKING:
    from deadtok_xr.analyses.plan import Plan

_HEAD = ("variable", "dims", "shape", "dtype", "chunk", "stored", "ratio")


def describe(path: str | Path, *, partial: bool = False) -> str:
    """Describe a recording store.

    Parameters
    ----------
    path
        The store.
    partial
        Also describe a store that is not complete.

    Raises
    ------
    InputError
        As `open_recording`.
    """
    group, arrays, n_steps = store.open_arrays(path, partial=partial)
    lines = [f"{path}: recording format {group.attrs['deadtok_format']}"]
    lines += [f"  {name:10s} {text}" for name, text in _facts(group, n_steps)]
    names = sorted(arrays, key=lambda n: (-arrays[n].nbytes, n))  # zarr lists in no order
    rows = [_HEAD, *(_row(name, arrays[name]) for name in names)]
    lines += ["  " + line for line in table(rows, align="<<<<<>>")]
    return "\n".join(lines)


def analysis_cost(path: str | Path, *, partial: bool = False) -> str:
    """Estimate the memory and the time that analysing a store takes, in one line; empty if it cannot be analysed.

    This plans all analyses, which imports what they need and takes a second or two.
    """
    plan = _plan(path, partial=partial)
    return "" if plan is None else "  " + _needs(plan)


def facts(path: str | Path, *, partial: bool = False) -> dict[str, Any]:
    """Return the facts of `describe` for scripts: sizes, and the layout and stored bytes of each variable."""
    group, opened, n_steps = store.open_arrays(path, partial=partial)
    plan = _plan(path, partial=partial)
    arrays = {
        name: {
            "dims": list(store.dimensions(array)), "shape": list(array.shape), "chunks": list(array.chunks),
            "shards": None if array.shards is None else list(array.shards),
            "dtype": array.dtype.name if array.dtype.kind not in "OT" else "string",
            "bytes": int(array.nbytes), "bytes_stored": int(array.nbytes_stored()),
        }
        for name, array in sorted(opened.items())
    }  # fmt: skip
    return {
        "store": str(path), "format": group.attrs["deadtok_format"], "complete": bool(group.attrs.get("complete")),
        "n_steps": n_steps, "n_tokens": len(store.read_coordinate(group, "token")), "variables": arrays,
        "memory_to_analyse": plan and plan.cost.memory(CPU_COUNT), "seconds_to_analyse": plan and plan.cost.seconds,
    }  # fmt: skip


def _plan(path: str | Path, *, partial: bool) -> Plan | None:
    """Return what `deadtok analyze` would do with a store, with its defaults; None if nothing is possible."""
    from deadtok_xr.analyses import open_for_analysis, plan_analyses

    try:
        return plan_analyses(open_for_analysis(path, partial=partial))
    except (InputError, OSError):
        return None


def _needs(plan: Plan) -> str:
    tokens = {"dead": "the dead tokens", "live": "the live tokens"}.get(str(plan.ds.attrs.get("tokens")), "all tokens")
    threads = "1 thread" if CPU_COUNT == 1 else f"{CPU_COUNT} threads"
    return (
        f"memory to analyse {tokens} with {threads}: about {format_bytes(plan.cost.memory(CPU_COUNT))}, in "
        f"{duration(plan.cost.seconds)} of CPU time"
    )


def _facts(group: zarr.Group, n_steps: int) -> list[tuple[str, str]]:
    steps, tokens = store.read_coordinate(group, "step")[:n_steps], store.read_coordinate(group, "token")
    facts = [("steps", f"{n_steps}: {steps[0]} to {steps[-1]}" if n_steps else "0")]
    if "run" in group:
        runs = store.read_coordinate(group, "run").tolist()
        facts.append(("runs", f"{len(runs)}: {', '.join(map(str, runs[:8]))}{', ...' if len(runs) > 8 else ''}"))
    text = f"{len(tokens)}"
    if "dead" in group:
        dead = int(store.read_coordinate(group, "dead").sum())
        text += f": {dead} dead, {len(tokens) - dead} live"
    facts.append(("tokens", text))
    facts += [(key, str(group.attrs[key])) for key in ("made_by", "created") if key in group.attrs]
    facts += _training(group, n_steps)
    if not group.attrs.get("complete"):
        facts.append(("warning", "not complete; only the completely written steps are listed"))
    return facts


def _training(group: zarr.Group, n_steps: int) -> list[tuple[str, str]]:
    """Return the settings of the training, and the result of the recorder's self-check."""
    attrs = group.attrs
    facts = []
    if "optimizer" in attrs:
        how = f", computed as {attrs['implementation']}" if "implementation" in attrs else ""
        where = [f"torch {attrs['torch_version']}"] if "torch_version" in attrs else []
        where += [f"on {attrs['device']}"] if "device" in attrs else []
        facts.append(("optimizer", str(attrs["optimizer"]) + how + (f"; {' '.join(where)}" if where else "")))
    settings = attrs.get("hyperparameters")
    if isinstance(settings, dict) and settings:
        facts.append(("settings", ", ".join(_setting(k, v) for k, v in settings.items() if _matters(k, v))))
    if "lr" in group:
        rates = store.read_coordinate(group, "lr")[:n_steps].astype(np.float64)
        facts += [("lr", _rates(rates[np.isfinite(rates)]))] if rates.ndim == 1 else []
    checks = textwrap.wrap(str(attrs.get("self_check", "")).replace("\n", ". "), 100)
    return facts + [("" if i else "self-check", line) for i, line in enumerate(checks)]


def _matters(name: str, value: object) -> bool:
    """Return whether to show a setting: numbers, and flags that are on."""
    if name in ("lr", "initial_lr", "differentiable", "decoupled_weight_decay") or value is None:
        return False
    return value is not False


def _setting(name: str, value: object) -> str:
    if isinstance(value, (list, tuple)):
        return f"{name} {' '.join(map(str, value))}"
    return name if value is True else f"{name} {value}"


def _rates(rates: NDArray[np.float64]) -> str:
    if not rates.size:
        return "not known at any step"
    if rates.min() == rates.max():
        return f"{rates[0]:.6g} at every step"
    return f"{rates[0]:.6g} first, {rates[-1]:.6g} last, [{rates.min():.6g}, {rates.max():.6g}]"


def _row(name: str, array: zarr.Array) -> tuple[str, ...]:  # type: ignore[type-arg]
    dims = ", ".join(d or "?" for d in store.dimensions(array))
    stored = array.nbytes_stored()
    dtype = array.dtype.name if array.dtype.kind not in "OT" else "string"
    ratio = f"{array.nbytes / stored:.1f}x" if stored else ""
    shape, chunk = (" x ".join(map(str, sizes)) for sizes in (array.shape, array.chunks))
    return name, dims, shape, dtype, chunk, format_bytes(stored), ratio
