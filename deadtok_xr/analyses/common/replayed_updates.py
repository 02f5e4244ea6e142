"""The reduction of `mechanism`: replay each update, classify each element, and sum up each step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from deadtok_xr import kernels
from deadtok_xr.analyses.common import fused_replay
from deadtok_xr.analyses.common.recorded_updates import ELEMENTS_PER_CALL, as_grid
from deadtok_xr.bfloat16 import get_grid
from deadtok_xr.engine import TORCH, Batch, BlockResult, Cost, Output, Sizes, StepBlock, allocate_outputs
from deadtok_xr.engine.series import Series
from deadtok_xr.replay import arithmetic as arithmetics
from deadtok_xr.replay.settings import Settings

COUNTS = (
    "no_gradient", "rounded_to_zero", "moved", "unknown", "compared", "equal", "compared_moved", "equal_moved",
    "at_power_of_two",
)  # fmt: skip
OPTIMIZER_COUNTS = (*fused_replay.OPTIMIZER_COUNTS, "decay_known")
SUMS = ("intended_squares", "realised_squares", "along", "squares", "lr")
RATIOS = (
    "replay_agreement", "replay_agreement_moved", "baseline_agreement", "exp_avg_agreement", "exp_avg_sq_agreement",
    "stalled_fraction", "weight_decay_only", "at_power_of_two", "lr", "lr_estimate", "intended_norm", "realised_norm",
)  # fmt: skip
PARTIAL = np.dtype([(n, "i8") for n in (*COUNTS, *OPTIMIZER_COUNTS)] + [(n, "f8") for n in SUMS])

Tensors = arithmetics.Tensors
SKIPPED = -1
"""Instead of t: the update skipped the parameter, which had no gradient."""

_STEP = Output("step", dtype="i8", at="transitions")
OUTPUTS = {
    "cause": Output(("step", "token"), dtype="i1", at="transitions"),
    "margin": Output(("step", "token"), dtype="f8", at="transitions"),
    "intended": Output(("step", "token"), dtype="f4", at="transitions"),
    **{
        f"n_{name}": _STEP
        for name in ("no_gradient", "rounded_to_zero", "moved", "unknown", "compared", "missed", "visible")
    },
    **{name: Output("step", at="transitions") for name in RATIOS},
    "net": Output(at="block"),
    "freeze": Output(at="block"),
}


@dataclass(frozen=True)
class Replay:
    """The reduction that replays updates; see `OUTPUTS`.

    Attributes
    ----------
    settings, arithmetic
        How the optimizer computed an update.
    grids
        The number format of each tensor that it reads.
    series
        Per step, `t`, the optimizer's count of updates, `lr`, and `step`, the label.
    """

    label: ClassVar[str] = "mechanism"

    settings: Settings
    arithmetic: str
    grids: dict[str, str]
    series: dict[str, Series]

    @property
    def matrices(self) -> tuple[str, ...]:
        """The tensors that it reads."""
        return tuple(self.grids)

    @property
    def faster_on_gpu(self) -> bool:
        """Whether "auto" takes a GPU: five times as fast on one, for recordings that were made on one."""
        return self.settings.on_accelerator

    def outputs(self) -> dict[str, Output]:
        """Return `OUTPUTS`."""
        return OUTPUTS

    def start(self, block: StepBlock) -> _Accumulator:
        """Return an accumulator for a block."""
        return _Accumulator(self, block)

    def cost(self, sizes: Sizes) -> Cost:
        """Return what it costs."""
        held = 2 * 8 * sizes.step + PARTIAL.itemsize * sizes.block
        compiled = fused_replay.format_of(self.settings, self.arithmetic, self.grids)
        seconds = (30e-9 if compiled else 150e-9) * sizes.elements
        return Cost(seconds, held=held, temporary=30 * 8 * ELEMENTS_PER_CALL, kept=TORCH + 4 * held)


_ELEMENTS_ON_DEVICE = 2**22
"""Elements per call on a device, which needs about ten temporaries of float64."""


class _Accumulator:
    def __init__(self, reduction: Replay, block: StepBlock) -> None:
        self.reduction, self.block, self.out = reduction, block, allocate_outputs(OUTPUTS, block)
        # the bits of a replay depend on the device: a recording made on a CPU is replayed on the CPU
        same_device = reduction.settings.on_accelerator or block.device.name == "cpu"
        self.on_device = block.device.runs("mechanism") and same_device
        self.lattice = kernels.lattice(reduction.grids["W"])
        self.partial = np.zeros(block.n_transitions, PARTIAL)
        self.net = np.zeros((block.n_tokens, 2, block.n_dims))
        at = slice(block.first, block.later.stop)
        self.fuses = None
        if not self.on_device:
            self.fuses = fused_replay.fused_operations(reduction.settings, reduction.arithmetic, reduction.grids)
        self.t, self.lr, self.steps = (reduction.series[n].values(at) for n in ("t", "lr", "step"))

    def update(self, batch: Batch) -> None:
        height = max(1, (_ELEMENTS_ON_DEVICE if self.on_device else ELEMENTS_PER_CALL) // self.block.n_dims)
        for first in range(0, self.block.n_tokens, height):
            rows = slice(first, min(first + height, self.block.n_tokens))
            before: Tensors = {}
            for i in range(batch.n_transitions):
                if self._is_compiled(batch.start + i, rows):
                    self._update_compiled(batch, i, rows)
                    before = {}
                    continue
                before = before or self._tensors(batch, i, rows)
                after = self._tensors(batch, i + 1, rows)
                self._update(batch.start + i, before, after, rows)
                before = after

    def _is_compiled(self, i: int, rows: slice) -> bool:
        """Return whether the kernel computes an update: one update, of whole vectors, with a known learning rate."""
        is_one = self.t[i + 1] - self.t[i] == 1 and self.t[i + 1] > 0 and not np.isnan(self.lr[i + 1])
        whole = (rows.stop - rows.start) * self.block.n_dims % fused_replay.WHOLE == 0
        return bool(is_one and whole and self.fuses is not None)

    def _update_compiled(self, batch: Batch, i: int, rows: slice) -> None:
        at, s, lr = batch.start + i, self.reduction.settings, float(self.lr[batch.start + i + 1])
        grids = self.reduction.grids
        before, after = (
            {name: as_grid(batch.values[name][k, rows], grid) for name, grid in grids.items()} for k in (i, i + 1)
        )
        out = fused_replay.outputs(rows.stop - rows.start, self.block.n_dims)
        of_tokens = {"cause": "cause", "margin": "margin", "length": "intended"}
        out |= {key: self.out[name][at, rows] for key, name in of_tokens.items()} | {"net": self.net[rows]}
        fused_replay.replay(
            s, self.reduction.arithmetic, bool(self.fuses), int(self.t[at + 1]), lr, before, after, self.lattice, out
        )
        partial = self.partial[at]
        names = (*COUNTS, *SUMS[: len(out["sums"])], *fused_replay.OPTIMIZER_COUNTS)
        for name, value in zip(names, (*out["counts"], *out["sums"], *out["optimizer"]), strict=True):
            partial[name] += value
        partial["lr"] = lr
        partial["decay_known"] += out["net"][:, 0].size

    def _tensors(self, batch: Batch, i: int, rows: slice) -> Tensors:
        return {name: self._tensor(batch, name, i, rows) for name in self.reduction.grids}

    def _tensor(self, batch: Batch, name: str, i: int, rows: slice) -> Any:
        grid, values = self.reduction.grids[name], batch.values[name]
        if self.on_device and values.dtype == get_grid(grid).dtype:
            return batch.tensor(name)[i, rows]
        tensor = arithmetics.to_tensor(as_grid(values[i, rows], grid))
        return tensor.to(self.block.device.name) if self.on_device else tensor

    def _update(self, i: int, before: Tensors, after: Tensors, rows: slice) -> None:
        n_updates = self.t[i + 1] - self.t[i]
        t = int(self.t[i + 1]) if n_updates == 1 else SKIPPED if n_updates == 0 else 0
        out = {name: self.out[name][i, rows] for name in ("cause", "margin", "intended")}
        s, arithmetic, lr = self.reduction.settings, self.reduction.arithmetic, float(self.lr[i + 1])
        engine = kernels.engine("mechanism", self.on_device)
        _replay(engine, s, arithmetic, self.lattice, t, lr, before, after, out, self.net[rows], self.partial[i])

    def result(self) -> BlockResult:
        out = {**self.out, **step_outputs(self.partial)}
        labels, updated = self.steps[1:].astype(np.int64), np.diff(self.t) > 0
        return {**out, "net": self.net, "freeze": freezes(out["cause"], out["margin"], labels, updated)}


def _replay(engine: Any, s: Settings, arithmetic: str, lattice: kernels.Lattice, t: int, lr: float, before: Tensors,
            after: Tensors, out: BlockResult, net: NDArray[Any], partial: Any) -> None:  # fmt: skip
    """Replay the update of some tokens, and add its counts and sums to those of the step."""
    import torch

    w = before["W"]
    single = t > 0 and not np.isnan(lr)  # else the transition is not a single update, or its learning rate is unknown
    none = torch.full_like(w, 0.0 if t == SKIPPED else np.nan, dtype=torch.float64)
    u = arithmetics.unrounded_update(arithmetic, s, t, lr, before, after) if single else none
    predicted = arithmetics.update(arithmetic, s, t, lr, before, after).to(w.dtype) if single else w
    has_gradient = "grad" in after or t == SKIPPED
    g = after["grad"] if "grad" in after and t != SKIPPED else torch.zeros_like(w)
    counts, sums = np.zeros(len(COUNTS), np.int64), np.zeros(len(SUMS) - 1)
    w0, w1, predicted, g = (_to_engine(engine, x.float()) for x in (w, after["W"], predicted, g))
    update = kernels.ReplayedUpdate(predicted, single, g, has_gradient, _to_engine(engine, u))
    of_tokens = {"cause": out["cause"], "margin": out["margin"], "length": out["intended"]}
    engine.mechanism(w0, w1, update, lattice, {**of_tokens, "net": net, "counts": counts, "sums": sums})
    for name, value in zip(COUNTS, counts, strict=True):
        partial[name] += value
    for name, total in zip(SUMS, sums, strict=False):
        partial[name] += total
    partial["lr"] = lr
    partial["visible"] += _visible(w, after["W"])
    if single:
        _decay(s, arithmetic, t, lr, before, after, partial)
        _moments(engine, s, arithmetic, t, before, after, partial)


def _visible(before: Any, after: Any) -> int:
    """Count the finite elements whose value as bfloat16 changed."""
    finite = before.isfinite() & after.isfinite()
    return int(((before.bfloat16() != after.bfloat16()) & finite).sum())


def _to_engine(engine: Any, x: Any) -> Any:
    """Return a tensor as the kernels of an engine expect it: an array for numba."""
    return x if engine.__name__.startswith("deadtok_xr.kernels.torch") else x.numpy()


def _decay(s: Settings, arithmetic: str, t: int, lr: float, before: Tensors, after: Tensors, partial: Any) -> None:
    """Count the elements that moved, and would not have moved without weight decay."""
    from dataclasses import replace

    partial["decay_known"] += before["W"].numel()
    if s.decoupled_decay:
        moved = before["W"] != after["W"]
        finite = before["W"].isfinite() & after["W"].isfinite()
        without = arithmetics.update(arithmetic, replace(s, weight_decay=0.0), t, lr, before, after)
        partial["decay_only"] += int((moved & finite & (without == before["W"])).sum())


def _moments(engine: Any, s: Settings, arithmetic: str, t: int, before: Tensors, after: Tensors, partial: Any) -> None:
    """Count the moments that the replay gives to the bit, and the second moments that are stalled."""
    if not s.is_adam or not {"grad", "exp_avg", "exp_avg_sq"} <= after.keys():
        return
    if len({after[n].dtype for n in ("W", "grad", "exp_avg", "exp_avg_sq")}) == 1:
        replayed = arithmetics.moments(arithmetic, s, t, before, after)
        for short, name in (("m", "exp_avg"), ("v", "exp_avg_sq")):
            n_same, n = engine.same(*(_to_engine(engine, x[name].reshape(-1).float()) for x in (replayed, after)))
            partial[f"{short}_equal"] += n_same
            partial[f"{short}_compared"] += n
    g = arithmetics.gradient(s, before, after)
    moments = (before["exp_avg_sq"], after["exp_avg_sq"], g)
    n_stalled, n = engine.stalled(*(_to_engine(engine, x.reshape(-1).float()) for x in moments))
    partial["stalled"] += n_stalled
    partial["v_known"] += n


def step_outputs(n: NDArray[Any]) -> BlockResult:
    """Return the outputs per step from its counts and sums."""
    elements = n["no_gradient"] + n["rounded_to_zero"] + n["moved"] + n["unknown"]
    explained = n["compared"] + n["no_gradient"] + n["rounded_to_zero"] > 0
    return {
        **{
            f"n_{name}": n[name]
            for name in ("no_gradient", "rounded_to_zero", "moved", "unknown", "compared", "visible")
        },
        "n_missed": n["compared"] - n["equal"],
        "replay_agreement": _ratio(n["equal"], n["compared"]),
        "replay_agreement_moved": _ratio(n["equal_moved"], n["compared_moved"]),
        "baseline_agreement": _ratio(n["compared"] - n["compared_moved"], n["compared"]),
        "exp_avg_agreement": _ratio(n["m_equal"], n["m_compared"]),
        "exp_avg_sq_agreement": _ratio(n["v_equal"], n["v_compared"]),
        "stalled_fraction": _ratio(n["stalled"], n["v_known"]),
        "weight_decay_only": _ratio(n["decay_only"], n["decay_known"]),
        "at_power_of_two": _ratio(n["at_power_of_two"], elements),
        "lr": n["lr"].copy(),
        "lr_estimate": n["lr"] * _ratio(n["along"], n["squares"]),
        "intended_norm": np.where(explained, np.sqrt(n["intended_squares"]), np.nan),
        "realised_norm": np.where(explained | (n["moved"] > 0), np.sqrt(n["realised_squares"]), np.nan),
    }


def _ratio(part: Any, whole: Any) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


def freezes(
    cause: NDArray[np.int8], margin: NDArray[np.float64], labels: NDArray[np.int64], updated: NDArray[np.bool_]
) -> BlockResult:
    """Return each token's last motion in a block, and the next update after it; `merge_freezes` joins blocks.

    Transitions that are not ``updated`` skipped the parameter, and freeze nothing.
    """
    n, tokens = cause.shape
    if not n:  # the last block of a recording may hold one step, and no transition
        never = np.full(tokens, -1)
        return {
            "last_motion": never, "next_step": never, "next_cause": never.astype(np.int8),
            "margin_after": np.full(tokens, np.nan),
        }  # fmt: skip
    moved = cause == 2
    last = np.where(moved.any(axis=0), n - 1 - moved[::-1].argmax(axis=0), -1)
    after = np.arange(n)[:, None] > last
    next_update = np.minimum.accumulate(np.append(np.where(updated, np.arange(n), n), n)[::-1])[::-1]
    following = next_update[last + 1]
    follows = following < n
    following = np.minimum(following, n - 1)
    return {
        "last_motion": np.where(last >= 0, labels[np.maximum(last, 0)], -1),
        "next_step": np.where(follows, labels[following], -1),
        "next_cause": np.where(follows, cause[following, np.arange(tokens)], -1).astype(np.int8),
        "margin_after": np.fmax.reduce(np.where(after, margin, np.nan), axis=0),
    }


def merge_freezes(a: BlockResult, b: BlockResult) -> BlockResult:
    """Merge the results of `freezes` for two consecutive blocks."""
    moved = b["last_motion"] >= 0
    fresh = moved | (a["next_step"] < 0)  # nothing followed the last motion so far
    return {
        "last_motion": np.where(moved, b["last_motion"], a["last_motion"]),
        "next_step": np.where(fresh, b["next_step"], a["next_step"]),
        "next_cause": np.where(fresh, b["next_cause"], a["next_cause"]),
        "margin_after": np.where(moved, b["margin_after"], np.fmax(a["margin_after"], b["margin_after"])),
    }
