"""One task of `mechanism`: a block of updates replayed, each element classed, and the sums for each step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr import kernels
from deadtok_xr.analyses.updates import PIECE, held
from deadtok_xr.replay import arithmetic as arithmetics
from deadtok_xr.replay.settings import Settings

PER_TOKEN = np.dtype([("cause", "i1"), ("margin", "f8"), ("intended", "f4")])
COUNTS = (
    "no_gradient", "rounded_to_zero", "moved", "unknown", "compared", "equal", "compared_moved", "equal_moved",
    "at_power_of_two",
)  # fmt: skip
MORE = ("m_compared", "m_equal", "v_compared", "v_equal", "stalled", "v_known", "decay_only", "decay_known")
SUMS = ("intended_squares", "realised_squares", "along", "squares", "lr")
PARTIAL = np.dtype([(n, "i8") for n in (*COUNTS, *MORE)] + [(n, "f8") for n in SUMS])

Block = dict[str, Any]
Tensors = arithmetics.Tensors


def replay_block(
    parts: dict[str, tuple[NDArray[Any], NDArray[Any]]],
    out: Block,
    *,
    settings: Settings,
    arithmetic: str,
    grids: dict[str, str],
) -> None:
    """Fill ``out`` with what each transition of a block is like; adds ``partial``, ``net`` and ``freeze``."""
    n_steps, n_tokens = out["cause"].shape
    n_dims = parts["W"][0].shape[2]
    out["partial"] = np.zeros(n_steps, PARTIAL)
    out["net"] = np.zeros((n_tokens, 2, n_dims))
    lattice = kernels.lattice(grids["W"])
    height = max(1, PIECE // n_dims)
    for first in range(0, n_tokens, height):
        rows = slice(first, first + height)
        for i, (t, lr, before, after) in enumerate(_updates(parts, grids, rows, n_steps)):
            row: Block = {name: out[name][i, rows] for name in PER_TOKEN.names or ()}
            _one(settings, arithmetic, lattice, t, lr, before, after, row, out["net"][rows], out["partial"][i])
    out["freeze"] = freezes(out["cause"], out["margin"], parts["step"])


def _updates(
    parts: dict[str, tuple[NDArray[Any], NDArray[Any]]], grids: dict[str, str], rows: slice, n: int
) -> Iterator[tuple[int, float, Tensors, Tensors]]:
    """The updates of some rows, in order; t is 0 where a transition is more than one update."""

    def at(name: str, i: int) -> NDArray[Any]:
        now, after = parts[name]
        return now[i] if i < len(now) else after[i - len(now)]

    def tensors(i: int) -> Tensors:
        return {name: arithmetics.to_tensor(held(at(name, i)[rows], grids[name])) for name in grids}

    before = tensors(0)
    for i in range(n):
        after = tensors(i + 1)
        t, earlier = float(at("t", i + 1)[0, 0]), float(at("t", i)[0, 0])
        yield int(t) if t == earlier + 1 else 0, float(at("lr", i + 1)[0, 0]), before, after
        before = after


def _one(s: Settings, arithmetic: str, lattice: kernels.Lattice, t: int, lr: float, before: Tensors, after: Tensors,
         out: Block, net: NDArray[Any], partial: Any) -> None:  # fmt: skip
    from deadtok_xr.kernels.numba.mechanism import mechanism

    shape = tuple(before["W"].shape)
    single = t > 0 and not np.isnan(lr)  # else the transition is not one update, or its rate is not known
    u = arithmetics.unrounded(arithmetic, s, t, lr, before, after) if single else np.full(shape, np.nan)
    predicted = arithmetics.update(arithmetic, s, t, lr, before, after) if single else before["W"]
    g = after["grad"].float().numpy() if "grad" in after else np.empty((0, 0), np.float32)
    counts, sums = np.zeros(len(COUNTS), np.int64), np.zeros(len(SUMS) - 1)
    mechanism(
        before["W"].float().numpy(), after["W"].float().numpy(), predicted.to(before["W"].dtype).float().numpy(),
        single, g, "grad" in after, u, lattice.smallest, lattice.ulp_offset, out["cause"], out["margin"],
        out["intended"], net, counts, sums,
    )  # fmt: skip
    for name, value in zip(COUNTS, counts, strict=True):
        partial[name] += value
    for name, total in zip(SUMS, sums, strict=False):
        partial[name] += total
    partial["lr"] = lr
    if single:
        _decay(s, arithmetic, t, lr, before, after, partial)
        _moments(s, arithmetic, t, before, after, partial)


def _decay(s: Settings, arithmetic: str, t: int, lr: float, before: Tensors, after: Tensors, partial: Any) -> None:
    """Count what moved, and would not have moved without the decay of the weights."""
    from dataclasses import replace

    partial["decay_known"] += before["W"].numel()
    if s.decoupled_decay:
        moved = before["W"] != after["W"]
        finite = before["W"].isfinite() & after["W"].isfinite()
        without = arithmetics.update(arithmetic, replace(s, weight_decay=0.0), t, lr, before, after)
        partial["decay_only"] += int((moved & finite & (without == before["W"])).sum())


def _moments(s: Settings, arithmetic: str, t: int, before: Tensors, after: Tensors, partial: Any) -> None:
    """Count moments that follow from those before, and second moments that stand still for good."""
    from deadtok_xr.kernels.numba.mechanism import same, stalled

    if not s.is_adam or not {"grad", "exp_avg", "exp_avg_sq"} <= after.keys():
        return
    if len({after[n].dtype for n in ("W", "grad", "exp_avg", "exp_avg_sq")}) == 1:
        found = arithmetics.moments(arithmetic, s, t, before, after)
        for short, name in (("m", "exp_avg"), ("v", "exp_avg_sq")):
            n_same, n = same(_flat(found[name]), _flat(after[name]))
            partial[f"{short}_equal"] += n_same
            partial[f"{short}_compared"] += n
    g = arithmetics.gradient(s, before, after)
    n_stalled, n = stalled(_flat(before["exp_avg_sq"]), _flat(after["exp_avg_sq"]), _flat(g))
    partial["stalled"] += n_stalled
    partial["v_known"] += n


def _flat(x: Any) -> NDArray[np.float32]:
    return x.reshape(-1).float().numpy()


def freezes(cause: NDArray[np.int8], margin: NDArray[np.float64], steps: Any) -> Block:
    """What a block of steps tells of each token's last motion, and of what came after it: see `merge_freezes`."""
    n, tokens = cause.shape
    labels = np.concatenate([part[:, 0, 0] for part in steps])[1 : n + 1].astype(np.int64)
    moved = cause == 2
    last = np.where(moved.any(axis=0), n - 1 - moved[::-1].argmax(axis=0), -1)
    after = np.arange(n)[:, None] > last
    there = last + 1 < n
    following = np.minimum(last + 1, n - 1)
    return {
        "last_motion": np.where(last >= 0, labels[np.maximum(last, 0)], -1),
        "next_step": np.where(there, labels[following], -1),
        "next_cause": np.where(there, cause[following, np.arange(tokens)], -1).astype(np.int8),
        "margin_after": np.fmax.reduce(np.where(after, margin, np.nan), axis=0),
    }


def merge_freezes(parts: list[Block]) -> Block:
    """The same of several blocks in the order of their steps."""
    first = parts[0]
    last, step, cause, margin = (first[k] for k in ("last_motion", "next_step", "next_cause", "margin_after"))
    for p in parts[1:]:
        moved = p["last_motion"] >= 0
        fresh = moved | (step < 0)  # nothing followed the last motion so far
        last = np.where(moved, p["last_motion"], last)
        margin = np.where(moved, p["margin_after"], np.fmax(margin, p["margin_after"]))
        step, cause = np.where(fresh, p["next_step"], step), np.where(fresh, p["next_cause"], cause)
    return {"last_motion": last, "next_step": step, "next_cause": cause, "margin_after": margin}
