"""Find out which arithmetic made the recorded updates: replay each with every candidate, and count equal elements."""

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

MIN_DIFFERENT = 20
"""The number of elements on which two candidates must differ before one of them can be named."""
MIN_AGREEMENT = 0.999
"""The share of elements that an arithmetic must reproduce bit for bit to be named."""

_NEARLY_EQUAL = {"single", "foreach"}
"""These differ only in the scalars that foreach rounds on CPUs, which often changes no element."""


@dataclass
class Count:
    """How many elements were compared for one candidate and how many were equal bit for bit; also of moved ones."""

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
    """The counts of all candidates over one update or several."""

    counts: dict[str, Count] = field(default_factory=dict)
    differ: dict[tuple[str, str], int] = field(default_factory=dict)
    """The number of elements on which two candidates differ."""
    along: float = 0.0
    squares: float = 0.0
    """``along`` is Σ ΔW·u and ``squares`` Σ u², where |u| is far above the gap between numbers: see `lr_ratio`."""

    def add(self, s: Settings, t: int, lr: float, before: Tensors, after: Tensors) -> None:
        """Count the elements of one update. Candidates for which a tensor is missing are left out."""
        w0, w1 = before["W"], after["W"]
        moved = w0 != w1
        predicted = {name: arithmetics.update(name, s, t, lr, before, after) for name in applicable(s, before, after)}
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
        u = arithmetics.unrounded_update(name, s, t, lr, before, after).cpu().numpy()
        w0, w1 = before["W"].double().numpy(), after["W"].double().numpy()
        with np.errstate(invalid="ignore"):
            step = w1 - w0
            far = np.isfinite(u) & np.isfinite(step) & (np.abs(u) > 2.0**-5 * np.abs(w0))
        self.along += float((step[far] * u[far]).sum())
        self.squares += float((u[far] * u[far]).sum())

    @property
    def lr_ratio(self) -> float:
        """The learning rate that explains the motion, divided by the given one; NaN if no element moves far."""
        return self.along / self.squares if self.squares else float("nan")

    @property
    def best_candidates(self) -> list[str]:
        """The candidate that agrees best, and after it those that cannot be distinguished from it."""
        if not self.counts:
            return []
        best = max(self.counts, key=lambda name: self.counts[name].equal)
        return [best, *(name for name in self.counts if name != best and self.n_different(best, name) < MIN_DIFFERENT)]

    def n_different(self, one: str, other: str) -> int:
        """Return the number of elements on which two candidates differ."""
        return self.differ.get((one, other), self.differ.get((other, one), 0))

    @property
    def verdict(self) -> str:
        """The arithmetic that made the updates; "none" if none reproduces them, "undetermined" if several do."""
        best = self.best_candidates
        if not best or not self.counts[best[0]].compared:
            return "undetermined"
        if max(self.counts[name].agreement for name in best) < MIN_AGREEMENT:
            return "none"
        return best[0] if set(best) <= _NEARLY_EQUAL or len(best) == 1 else "undetermined"


def bits(x: Any) -> Any:
    """Return the bits of a tensor as integers."""
    import torch

    return x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def applicable(s: Settings, before: Tensors, after: Tensors) -> list[str]:
    """Return the candidates whose tensors were all recorded."""
    names = []
    for name in arithmetics.candidates(s):
        if name == "float32_once" and before["W"].element_size() == 4:
            continue  # with float32 weights it is the same as single
        earlier, later = arithmetics.required_tensors(name, s)
        if not (set(earlier) <= before.keys() and set(later) <= after.keys()):
            continue
        dtypes = {x.dtype for x in (*(before[n] for n in earlier), *(after[n] for n in later))}
        if name == "fused" and len(dtypes) > 1:
            continue  # torch's fused kernels need one dtype for all tensors
        names.append(name)
    return names


def sentence(found: Comparison, s: Settings, lr: float, flagged: str | None = None) -> str:
    """Describe a comparison in a sentence or two; ``flagged`` is the arithmetic that torch's flags select, if known."""
    candidates, baseline = found.best_candidates, f"baseline without motion: {_baseline(found):.2%}"
    if flagged in candidates and found.counts[flagged].agreement >= MIN_AGREEMENT:
        return (
            f"the updates are reproduced by {flagged}, which torch was set to use ({_share(found.counts[flagged])}; "
            f"{baseline})"
        )
    if found.verdict == "undetermined" and len(candidates) > 1:
        n = max(found.n_different(a, b) for a, b in combinations(candidates, 2))
        share = _share(found.counts[candidates[0]])
        return (
            f"the updates are reproduced by {' and '.join(candidates)} alike ({share}; {baseline}): undetermined, "
            + ("since these give the same bits here" if not n else f"since these differ on only {n} elements")
        )
    if not candidates:
        return "undetermined: for every arithmetic a tensor that it needs was not recorded"
    best = candidates[0]
    count = found.counts[best]
    if not count.compared:
        return "undetermined: no element could be compared"
    if found.verdict == "none":
        return (
            f"no arithmetic reproduces the updates; {best} comes closest ({_share(count)}){_likely_cause(found, s, lr)}"
        )
    return f"the updates are reproduced by {best} ({_share(count)}; {baseline})"


def _likely_cause(found: Comparison, s: Settings, lr: float) -> str:
    if not any(c.moved for c in found.counts.values()):
        broken = s.optimizer == "SGD" and s.fused
        return ": no element moved" + (
            ", as with torch's fused SGD in 16 bits on CPUs (pytorch/pytorch#191763)" if broken else ""
        )
    ratio = found.lr_ratio
    if np.isfinite(ratio) and abs(ratio - 1) > 0.02:
        return (
            f": the motion fits a learning rate of about {ratio * lr:.3g}, and {lr:.3g} was given; was there a "
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
    """Say which arithmetic reproduces one update, and whether the gradient belongs to it.

    Parameters
    ----------
    previous, current
        Arrays of (token, dim) at t-1 and t: ``W`` and, as far as they were recorded, ``grad``, ``exp_avg``,
        ``exp_avg_sq``, ``max_exp_avg_sq``, ``momentum_buffer``.
    settings
        torch's names: ``optimizer`` ("AdamW", "Adam", "SGD"), ``step`` (t), ``lr`` of this update, and the
        hyperparameters of the parameter group, here or under ``hyperparameters``; ``implementation`` (single, foreach,
        fused) if it is known which one torch chose, and ``device`` if it was not a CPU.

    Returns
    -------
    str
        A sentence or two for a report.

    Raises
    ------
    InputError
        If the optimizer cannot be replayed, or ``step`` or ``lr`` is missing.

    Examples
    --------
    >>> import numpy as np
    >>> w, g = np.ones((2, 2), "f4"), np.full((2, 2), 0.5, "f4")
    >>> check({"W": w}, {"W": w - np.float32(0.05), "grad": g}, {"optimizer": "SGD", "lr": 0.1, "step": 1})
    'the updates are reproduced by single and foreach and fused alike (100.0000% of 4 elements, 0 missed, 100.0000% of \
the 4 that moved; baseline without motion: 0.00%): undetermined, since these give the same bits here'
    """
    nested = settings.get("hyperparameters") or {}
    settings = {**nested, **{k: v for k, v in settings.items() if k != "hyperparameters"}}
    missing = [k for k in ("step", "lr") if settings.get(k) is None]
    if missing or "W" not in previous or "W" not in current:
        raise InputError(f"check needs {missing[0] if missing else 'W at both steps'}, which is missing: add it")
    known = {k: v for k, v in settings.items() if k in Settings.__dataclass_fields__ or k == "decoupled_weight_decay"}
    s = read_settings({"optimizer": settings.get("optimizer"), "hyperparameters": known}, {}, where="check")
    before, after = ({k: arithmetics.to_tensor(x) for k, x in side.items()} for side in (previous, current))
    t, lr = int(settings["step"]), float(settings["lr"])
    found = Comparison()
    found.add(s, t, lr, before, after)
    return "; ".join([sentence(found, s, lr, _flagged(s, settings)), *_gradient_check(s, t, before, after)])


def _flagged(s: Settings, settings: Mapping[str, Any]) -> str | None:
    """Return the arithmetic of the implementation that torch chose; None if that was not recorded."""
    chosen = settings.get("implementation")
    if chosen not in ("single", "foreach", "fused"):
        return None
    return replace(
        s, foreach=chosen == "foreach", fused=chosen == "fused", on_accelerator="cuda" in str(settings.get("device"))
    ).arithmetic


def _gradient_check(s: Settings, t: int, before: Tensors, after: Tensors) -> list[str]:
    """Say whether the recorded first moment follows from the recorded gradient; nothing if that cannot be checked."""
    if not s.is_adam or "grad" not in after or not {"exp_avg", "exp_avg_sq"} <= before.keys() & after.keys():
        return []
    best = 0.0
    for name in ("single", "foreach", "fused"):
        if name == "fused" and s.amsgrad and "max_exp_avg_sq" not in before:
            continue
        m = arithmetics.moments(name, s, t, before, after)["exp_avg"]
        best = max(best, float((bits(m) == bits(after["exp_avg"])).double().mean()))
    if best >= MIN_AGREEMENT:
        return [f"the gradient is the one that update {t} used ({best:.4%} of exp_avg follow from it)"]
    return [f"the gradient is not the one that update {t} used: only {best:.2%} of exp_avg follow from it"]
