"""Which arithmetic closes an update: candidates beside what was recorded, counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.errors import InputError
from deadtok_xr.replay import arithmetic as arithmetics
from deadtok_xr.replay.arithmetic import Tensors
from deadtok_xr.replay.settings import Settings, read_settings

ENOUGH = 20
"""Elements on which two candidates must differ before one of them is said to have made a recording."""
CLOSES = 0.999
"""The share of elements that an arithmetic must give to the bit, to be said to have made a recording."""

_ALIKE = {"single", "foreach"}
"""These are one arithmetic but for scalars that foreach rounds on CPUs, which often changes no element."""


@dataclass
class Count:
    """How one candidate did: elements compared, equal to the bit, and the same of those that moved."""

    compared: int = 0
    equal: int = 0
    moved: int = 0
    moved_equal: int = 0

    @property
    def agreement(self) -> float:
        return self.equal / self.compared if self.compared else float("nan")

    @property
    def agreement_moved(self) -> float:
        return self.moved_equal / self.moved if self.moved else float("nan")


@dataclass
class Comparison:
    """Candidates over one or several updates."""

    counts: dict[str, Count] = field(default_factory=dict)
    differ: dict[tuple[str, str], int] = field(default_factory=dict)
    """Elements on which two candidates differ."""
    along: float = 0.0
    squares: float = 0.0
    """Σ ΔW·u and Σ u² where |u| is far above the gap: their ratio is the share of the learning rate that was used."""

    def add(self, s: Settings, t: int, lr: float, before: Tensors, after: Tensors) -> None:
        """Count one update. A candidate that lacks a tensor is left out."""
        w0, w1 = before["W"], after["W"]
        moved = w0 != w1
        predicted = {name: arithmetics.update(name, s, t, lr, before, after) for name in possible(s, before, after)}
        known = w1.isfinite() & w0.isfinite()
        for x in predicted.values():
            known &= ~x.isnan()
        for name, x in predicted.items():
            equal = (bits(x) == bits(w1)) & known
            count = self.counts.setdefault(name, Count())
            count.compared += int(known.sum())
            count.equal += int(equal.sum())
            count.moved += int((moved & known).sum())
            count.moved_equal += int((moved & equal).sum())
        for one, other in combinations(predicted, 2):
            n = int(((bits(predicted[one]) != bits(predicted[other])) & known).sum())
            self.differ[one, other] = self.differ.get((one, other), 0) + n
        if predicted:
            self._estimate(next(iter(predicted)), s, t, lr, before, after)

    def _estimate(self, name: str, s: Settings, t: int, lr: float, before: Tensors, after: Tensors) -> None:
        u = arithmetics.unrounded(name, s, t, lr, before, after)
        w0, w1 = before["W"].double().numpy(), after["W"].double().numpy()
        with np.errstate(invalid="ignore"):
            step = w1 - w0
            far = np.isfinite(u) & np.isfinite(step) & (np.abs(u) > 2.0**-5 * np.abs(w0))
        self.along += float((step[far] * u[far]).sum())
        self.squares += float((u[far] * u[far]).sum())

    @property
    def lr_ratio(self) -> float:
        """The learning rate that the motion shows, as a share of the one given; NaN where nothing moves far."""
        return self.along / self.squares if self.squares else float("nan")

    @property
    def winners(self) -> list[str]:
        """The candidate that agrees best, and after it those that cannot be told from it."""
        if not self.counts:
            return []
        best = max(self.counts, key=lambda name: self.counts[name].equal)
        return [best, *(name for name in self.counts if name != best and self.apart(best, name) < ENOUGH)]

    def apart(self, one: str, other: str) -> int:
        """The number of elements on which two candidates differ."""
        return self.differ.get((one, other), self.differ.get((other, one), 0))

    @property
    def verdict(self) -> str:
        """The arithmetic that made the updates; "undetermined" or "none" where the data do not tell one."""
        winners = self.winners
        if not winners or not self.counts[winners[0]].compared:
            return "undetermined"
        if max(self.counts[name].agreement for name in winners) < CLOSES:
            return "none"
        return winners[0] if set(winners) <= _ALIKE or len(winners) == 1 else "undetermined"


def bits(x: Any) -> Any:
    """A tensor's bits as integers."""
    import torch

    return x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def possible(s: Settings, before: Tensors, after: Tensors) -> list[str]:
    """The arithmetics for which every tensor is there."""
    names = []
    for name in arithmetics.arithmetics(s):
        if name == "float32_once" and before["W"].element_size() == 4:
            continue  # there it is the same as single
        earlier, later = arithmetics.needs(name, s)
        if not (set(earlier) <= before.keys() and set(later) <= after.keys()):
            continue
        dtypes = {x.dtype for x in (*(before[n] for n in earlier), *(after[n] for n in later))}
        if name == "fused" and len(dtypes) > 1:
            continue  # torch's fused kernels take one dtype
        names.append(name)
    return names


def sentence(found: Comparison, s: Settings, lr: float, told: str | None = None) -> str:
    """What a comparison says, in a sentence or two; ``told`` is the arithmetic that torch was told to use."""
    winners, baseline = found.winners, _baseline(found)
    if told in winners and found.counts[told].agreement >= CLOSES:
        return (
            f"the updates close under {told}, as torch was told to compute ({_share(found.counts[told])}; nothing "
            f"moved: {baseline:.2%})"
        )
    if found.verdict == "undetermined" and len(winners) > 1:
        n = max(found.apart(a, b) for a, b in combinations(winners, 2))
        count = found.counts[winners[0]]
        return (
            f"the updates close under {' and '.join(winners)} alike ({_share(count)}; nothing moved: {baseline:.2%}): "
            f"undetermined, since they differ on {n} elements"
        )
    if not winners:
        return "undetermined: no candidate has all the tensors that it needs"
    best = winners[0]
    count = found.counts[best]
    if not count.compared:
        return "undetermined: no element could be compared"
    if found.verdict == "none":
        return f"no arithmetic closes the updates; {best} comes closest ({_share(count)}){_why(found, s, lr)}"
    return f"the updates close under {best} ({_share(count)}; nothing moved: {baseline:.2%})"


def _why(found: Comparison, s: Settings, lr: float) -> str:
    if not any(c.moved for c in found.counts.values()):
        broken = s.optimizer == "SGD" and s.fused
        return ": nothing moved at all" + (
            ", as under torch's fused SGD in 16 bits on CPUs (pytorch/pytorch#191763)" if broken else ""
        )
    ratio = found.lr_ratio
    if np.isfinite(ratio) and abs(ratio - 1) > 0.02:
        return (
            f": the motion is that of a learning rate of about {ratio * lr:.3g} where {lr:.3g} was given; was there a "
            "schedule? Give the rate of each step (lr=, --lr)"
        )
    return ": other hyperparameters, a gradient of another step, or an arithmetic that is not known here"


def _baseline(found: Comparison) -> float:
    count = next(iter(found.counts.values()), Count())
    return 1 - count.moved / count.compared if count.compared else float("nan")


def _share(count: Count) -> str:
    missed = count.compared - count.equal
    text = f"{count.agreement:.4%} of {count.compared} elements, {missed} missed"
    return text + (f", {count.agreement_moved:.4%} of the {count.moved} that moved" if count.moved else ", none moved")


def check(
    previous: Mapping[str, NDArray[Any]], current: Mapping[str, NDArray[Any]], settings: Mapping[str, Any]
) -> str:
    """Say which arithmetic closes one update, and whether the gradient belongs to it.

    Parameters
    ----------
    previous, current
        Arrays of (token, dim) at t-1 and t: ``W`` and, as far as they were recorded, ``grad``, ``exp_avg``,
        ``exp_avg_sq``, ``max_exp_avg_sq``, ``momentum_buffer``.
    settings
        torch's names: ``optimizer`` ("AdamW", "Adam", "SGD"), ``step`` (t), ``lr`` of this update, and the
        hyperparameters of the parameter group, here or under ``hyperparameters``; ``implementation`` (single, foreach,
        fused) where it is known which one torch chose, and ``device`` if that was no CPU.

    Returns
    -------
    A sentence or two for people.

    Raises
    ------
    InputError
        If the optimizer is none that can be replayed, or ``step`` or ``lr`` is missing.

    Examples
    --------
    >>> import numpy as np
    >>> w, g = np.ones((2, 2), "f4"), np.full((2, 2), 0.5, "f4")
    >>> check({"W": w}, {"W": w - np.float32(0.05), "grad": g}, {"optimizer": "SGD", "lr": 0.1, "step": 1})
    'the updates close under single and foreach and fused alike (100.0000% of 4 elements, 0 \
missed, 100.0000% of the 4 that moved; nothing moved: 0.00%): undetermined, since they differ on 0 elements'
    """
    nested = settings.get("hyperparameters") or {}
    settings = {**nested, **{k: v for k, v in settings.items() if k != "hyperparameters"}}
    missing = [k for k in ("step", "lr") if settings.get(k) is None]
    if missing or "W" not in previous or "W" not in current:
        raise InputError(f"check needs {missing[0] if missing else 'W at both steps'}, which is not there: add it")
    known = {k: v for k, v in settings.items() if k in Settings.__dataclass_fields__ or k == "decoupled_weight_decay"}
    s = read_settings({"optimizer": settings.get("optimizer"), "hyperparameters": known}, {}, where="check")
    before, after = ({k: arithmetics.to_tensor(x) for k, x in side.items()} for side in (previous, current))
    t, lr = int(settings["step"]), float(settings["lr"])
    found = Comparison()
    found.add(s, t, lr, before, after)
    return "; ".join([sentence(found, s, lr, _told(s, settings)), *_alignment(s, t, before, after)])


def _told(s: Settings, settings: Mapping[str, Any]) -> str | None:
    """The arithmetic of the implementation that torch chose, where that was recorded."""
    chosen = settings.get("implementation")
    if chosen not in ("single", "foreach", "fused"):
        return None
    return replace(
        s, foreach=chosen == "foreach", fused=chosen == "fused", on_accelerator="cuda" in str(settings.get("device"))
    ).arithmetic


def _alignment(s: Settings, t: int, before: Tensors, after: Tensors) -> list[str]:
    """Whether the first moment is the one that the recorded gradient makes."""
    if not s.is_adam or "grad" not in after or not {"exp_avg", "exp_avg_sq"} <= before.keys() & after.keys():
        return []
    best = 0.0
    for name in ("single", "foreach", "fused"):
        if name == "fused" and s.amsgrad and "max_exp_avg_sq" not in before:
            continue
        m = arithmetics.moments(name, s, t, before, after)["exp_avg"]
        best = max(best, float((bits(m) == bits(after["exp_avg"])).double().mean()))
    if best >= CLOSES:
        return [f"the gradient is the one that update {t} used ({best:.4%} of exp_avg follow from it)"]
    return [f"the gradient is not the one that update {t} used: only {best:.2%} of exp_avg follow from it"]
