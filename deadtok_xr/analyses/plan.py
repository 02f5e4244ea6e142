"""Plan analyses of a recording: which are possible, what each costs, and which run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask
import numpy as np
import xarray as xr
from dask.system import CPU_COUNT
from dask.utils import format_bytes, parse_bytes

from deadtok_xr.analyses.common import checks
from deadtok_xr.analyses.registry import ANALYSES
from deadtok_xr.attributes import plain, portable
from deadtok_xr.engine import AnalysisSpec, PassCost, cluster, pass_cost, run
from deadtok_xr.errors import InputError
from deadtok_xr.text import duration

BUDGET_S = 600.0
"""The CPU time that an analysis may take by default, in seconds."""
TIMES_READING = 10
"""Or this many times the CPU time of only reading what it uses, if that is more."""
_UNITS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Plan:
    """The analyses that run.

    Attributes
    ----------
    ds
        The recording.
    specs
        The analyses by name.
    left_out
        Why others do not run, by name: the sentence of an error.
    too_long
        Those of them that would take longer than the budget.
    cost
        What those that run cost together.
    """

    ds: xr.Dataset
    specs: Mapping[str, AnalysisSpec]
    left_out: Mapping[str, str]
    too_long: Sequence[str]
    cost: PassCost

    def tree(self, device: str = "auto") -> xr.DataTree:
        """Return the analyses as one lazy tree, a group for each."""
        attrs = {
            **checks.result_attrs(self.ds, left_out=dict(self.left_out)),
            "recording": {k: v for k, v in plain(self.ds.attrs).items() if k not in ("source", "tokens")},
        }
        results: dict[str, xr.Dataset] = {}
        for group in _groups(self.specs):
            results |= zip(group, run(list(group.values()), device), strict=True)
        datasets = {name: results[name] for name in self.specs}
        return xr.DataTree.from_dict({"/": xr.Dataset(attrs=portable(attrs)), **datasets})

    def describe(self) -> list[str]:
        """Return lines: which analyses take most of the time, and which are left out because of it."""
        total, alike = self.cost.seconds, dict[frozenset[str], list[str]]()
        for name in self.specs:
            alike.setdefault(frozenset(self.cost.used[name]), []).append(name)  # these share all their work
        shares = {" and ".join(names): self.cost.seconds_of(names[0]) for names in alike.values()}
        most = sorted(shares, key=lambda names: -shares[names])[:4]
        longest = ", ".join(f"{names} {duration(shares[names])}" for names in most if shares[names] > 0.05 * total)
        lines = [f"  most of the time: {longest}"] if len(shares) > 1 and longest and total > 1 else []
        return lines + [f"  left out: {name}, {self.left_out[name]}" for name in self.too_long]


def make_plan(
    ds: xr.Dataset,
    names: Sequence[str] | None,
    options: Mapping[str, Mapping[str, Any]],
    *,
    allow_gaps: bool = False,
    precision: str | None = None,
    budget: float | str | None = None,
) -> Plan:
    """Plan analyses of an open recording; parameters as for `analyze`.

    Parameters
    ----------
    ds
        The recording.
    names
        Names of analyses, which must be possible; None for all that are.
    options
        Options of single analyses.
    allow_gaps, precision
        Options of every analysis that has them.
    budget
        Seconds, or a text such as "2h".

    Raises
    ------
    InputError
        If a named analysis is not possible or takes longer than a given budget, or if no analysis is possible.
    """
    allowed = None if budget is None else seconds(budget)
    specs: dict[str, AnalysisSpec] = {}
    left_out = {}
    checkpoints = are_checkpoints(ds)
    for name in names or ANALYSES:
        analysis, by_name = ANALYSES[name], bool(names) or name in options
        if analysis.only_checkpoints and not checkpoints and not by_name:
            continue
        gaps = allow_gaps or (checkpoints and analysis.across_gaps)
        if checkpoints and not gaps and "allow_gaps" in analysis.options and not by_name:
            left_out[name] = _needs_every_step(ds)
            continue
        shared = {"allow_gaps": gaps, "precision": precision}
        given = {k: v for k, v in shared.items() if k in analysis.options and v is not None}
        try:
            specs[name] = analysis.spec(ds, **{**given, **options.get(name, {})})
        except InputError as error:
            if by_name:
                raise
            left_out[name] = error.advice
    if not specs:
        raise InputError(f"no analysis is possible: {next(iter(left_out.values()))}")
    cost = pass_cost(specs)
    wanted = {*(names or ()), *options}
    too_long = _too_long(cost, wanted if allowed is None else set(), allowed)
    for name in too_long:
        taken = duration(cost.seconds_of(name))
        if name in wanted:
            raise InputError(
                f"{name} is expected to take {taken} of CPU time, and {duration(allowed or 0)} are allowed: allow more "
                "with budget= (--budget), or select fewer tokens or steps"
            )
        budget_for = _rounded_up(cost.seconds_of(name))
        limit = "longer than the budget" if allowed is not None else "much longer than reading what it uses"
        left_out[name] = (
            f"expected to take {taken} of CPU time, {limit}: ask for it with analyses=[{name!r}] (--only {name}), "
            f"or allow more with budget={budget_for!r} (--budget {budget_for})"
        )
    running = [name for name in specs if name not in too_long]
    if not running:
        raise InputError(f"no analysis is within the budget: {next(iter(left_out.values()))}")
    return Plan(ds, {name: specs[name] for name in running}, left_out, too_long, cost.of(running))


def are_checkpoints(ds: xr.Dataset) -> bool:
    """Return whether most recorded steps are several updates apart, as the checkpoints of a run are.

    A recorder with ``every=`` records pairs of steps: these are no checkpoints.
    """
    steps = ds["step"].values if "step" in ds.coords else np.arange(ds.sizes.get("step", 0))
    span = np.diff(steps)
    return steps.dtype.kind in "iu" and len(span) > 0 and bool(span.min() > 0 and (span == 1).mean() < 0.25)


def _needs_every_step(ds: xr.Dataset) -> str:
    span = np.diff(ds["step"].values)
    apart = f"{span.min():,}" if span.min() == span.max() else f"{span.min():,} to {span.max():,}"
    return (
        f"These need single updates, and the {len(span) + 1:,} recorded steps are {apart} apart: allow_gaps=True "
        "(--allow-gaps) measures them anyway"
    )


def _groups(specs: Mapping[str, AnalysisSpec]) -> list[dict[str, AnalysisSpec]]:
    """Return the analyses that can share a pass: in a pass one name means one array, and options can change that."""
    groups: list[dict[str, AnalysisSpec]] = []
    for name, spec in specs.items():
        compatible = (g for g in groups if all(_compatible(spec, other) for other in g.values()))
        group = next(compatible, None)
        if group is None:
            groups.append({name: spec})
        else:
            group[name] = spec
    return groups


def _compatible(one: AnalysisSpec, other: AnalysisSpec) -> bool:
    shared = one.matrices.keys() & other.matrices.keys()
    return all(one.matrices[name].name == other.matrices[name].name for name in shared)


def _too_long(cost: PassCost, wanted: set[str], allowed: float | None) -> list[str]:
    """Return the analyses that take longer than the budget, the longest first; not those that are wanted."""
    found = []
    for name in sorted(cost.used, key=lambda name: -cost.seconds_of(name)):
        limit = max(BUDGET_S, TIMES_READING * cost.of([name]).reading) if allowed is None else allowed
        if name not in wanted and cost.seconds_of(name) > limit:
            found.append(name)
    return found


def _rounded_up(taken: float) -> str:
    """Return a budget that suffices, as a short option: "90s", "40min", "3h"."""
    for unit, size in (("h", 3600), ("min", 60)):
        if taken >= 2 * size:
            return f"{int(taken // size) + 1}{unit}"
    return f"{int(taken) + 1}s"


def seconds(budget: float | str) -> float:
    """Return a time in seconds, given a number or a text such as "90s", "30min" or "2h".

    Raises
    ------
    InputError
        If it is not a time above 0.
    """
    match = re.fullmatch(r"\s*([\d.e+-]+)\s*([a-z]*)\s*", str(budget).lower())
    try:
        found = float(match[1]) * _UNITS[match[2]] if match else 0.0
    except (KeyError, ValueError):
        found = 0.0
    if not found > 0:
        raise InputError(f"budget={budget!r} (--budget); expected a time, such as 90s, 30min or 2h")
    return found


def check_memory(plan: Plan, memory: int | str, threads: int) -> None:
    """Refuse a plan that needs more memory than is allowed, with what would fit.

    Raises
    ------
    InputError
        If it does not fit.
    """
    allowed, needed = size(memory), plan.cost.memory(threads)
    if needed <= allowed:
        return
    with_threads = f"about {format_bytes(needed)} of memory with {_threads(threads)}"
    what = f"analysing needs {with_threads}, and {format_bytes(allowed)} are allowed"
    if fitting := fitting_threads(plan, allowed, threads):
        raise InputError(
            f"{what}: {_threads(fitting)} would fit; use dask.config.set(num_workers={fitting}), or allow more with "
            "memory= (--memory)"
        )
    raise InputError(f"{what}: {_smaller(plan, allowed)}, or allow more with memory= (--memory)")


def fitting_threads(plan: Plan, memory: int, threads: int) -> int:
    """Return the largest number of threads, at most so many, that fit; 0 if not even one does."""
    return next((n for n in range(threads, 0, -1) if plan.cost.memory(n) <= memory), 0)


def _smaller(plan: Plan, allowed: int) -> str:
    """Say what would fit: the analyses that need less memory, else fewer tokens."""
    remaining = [*plan.specs]
    while len(remaining) > 1:
        remaining.remove(max(remaining, key=lambda name: plan.cost.of([name]).memory(1)))
        if plan.cost.of(remaining).memory(1) <= allowed:
            return f"{_threads(1)} would fit with analyses={remaining!r} (--only {','.join(remaining)})"
    least = format_bytes(plan.cost.of(remaining).memory(1))
    return f"{remaining[0]} alone needs {least}; select fewer tokens, such as tokens='dead' (--tokens dead)"


def dask_threads() -> int:
    """Return how many threads of a process Dask would use now."""
    if cluster.current() is not None:
        return 1  # a worker is a process of its own; one thread is what docs and the command line give it
    if dask.config.get("scheduler", None) in ("synchronous", "sync", "single-threaded", "processes"):
        return 1
    return int(dask.config.get("num_workers", None) or CPU_COUNT)


def _threads(n: int) -> str:
    return "1 thread" if n == 1 else f"{n} threads"


def size(memory: int | str) -> int:
    """Return a size in bytes, given a number or a text such as "500MB".

    Raises
    ------
    InputError
        If it is not a size above 0.
    """
    try:
        found = int(parse_bytes(memory))
    except (OverflowError, TypeError, ValueError):
        found = 0
    if found <= 0:
        raise InputError(f"memory={memory!r} (--memory); expected a size, such as 500MB or 2GB")
    return found
