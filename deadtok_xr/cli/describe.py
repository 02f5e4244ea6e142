"""Describe a store as text for one screen, and estimate the memory needed to analyse it."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from dask.system import CPU_COUNT
from dask.utils import format_bytes
from numpy.typing import NDArray

from deadtok_xr import store
from deadtok_xr.kernels.device import BATCH_BYTES
from deadtok_xr.schema import MATRIX, without_run
from deadtok_xr.text import table

_BASE_BYTES = 400 * 10**6  # Python with xarray, Dask, zarr and the compiled kernels loaded
_TORCH_BYTES = 250 * 10**6  # torch, which replays updates
_OUTPUT_BYTES = 300  # per step and token, of all analyses together
_STREAM_BYTES = 10**6  # a decompressor with its window, and its read buffer
_NUMBERS_BYTES = 8 * 8  # per value of a step: displacements, directions and gradients in float64
_COPIES = 5  # of a batch: as recorded, as float32 twice as large, and as the words of float32
_KEPT_BYTES = 100  # per step and dim: centroid, velocity, drift
_TASKS_BYTES = 500_000  # the tasks of a block and what they return
_HEAD = ("variable", "dims", "shape", "dtype", "chunk", "stored", "ratio")
_TOGETHER = ("W", "delta", "grad", "exp_avg", "exp_avg_sq")


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
    lines.append(f"  memory to analyse all tokens with {CPU_COUNT} threads: about {format_bytes(memory_bound(arrays))}")
    return "\n".join(lines)


def facts(path: str | Path, *, partial: bool = False) -> dict[str, Any]:
    """Return the facts of `describe` for scripts: sizes, and the layout and stored bytes of each variable."""
    group, opened, n_steps = store.open_arrays(path, partial=partial)
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
        "memory_to_analyse": memory_bound(opened),
    }  # fmt: skip


def memory_bound(
    opened: Mapping[str, zarr.Array[Any]], n_tokens: int | None = None, *, threads: int | None = None
) -> int:
    """Estimate the peak memory of analysing a store, in bytes.

    Per thread: the outputs of the analyses for one block of steps, the decompressors of its chunks, and a batch as
    recorded and as numbers. In addition: what is kept for each step, and the tasks.

    Parameters
    ----------
    opened
        The arrays of a recording store.
    n_tokens
        How many tokens are analysed; None for all.
    threads
        Number of blocks that are processed at the same time; None for one per core.
    """
    arrays = [a for a in opened.values() if without_run(store.dimensions(a)) == MATRIX and a.basename in _TOGETHER]
    if not arrays:
        return _BASE_BYTES
    steps, tokens, dims = arrays[0].shape[-3:]
    height, tokens = arrays[0].chunks[-3], n_tokens or tokens
    outputs = height * tokens * _OUTPUT_BYTES
    streams = sum(math.ceil(tokens / a.chunks[-2]) for a in arrays) * _STREAM_BYTES
    step = tokens * dims * sum(a.dtype.itemsize for a in arrays)
    batch = max(BATCH_BYTES, 2 * step) * _COPIES + tokens * dims * _NUMBERS_BYTES
    kept = steps * dims * _KEPT_BYTES + math.ceil(steps / height) * _TASKS_BYTES
    base = _BASE_BYTES + (_TORCH_BYTES if "grad" in opened else 0)
    at_once = min(threads or CPU_COUNT, math.ceil(steps / height))
    return base + at_once * (outputs + streams + batch) + kept


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
