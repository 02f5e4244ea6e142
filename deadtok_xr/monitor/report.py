"""What a monitored training says so far, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.monitor.rows import Columns, Row, median_margin
from deadtok_xr.text import table

_SHOWN = 5
_ROWS = 10


class Totals:
    """Sums over the monitored updates, per parameter."""

    def __init__(self, fixed: Columns) -> None:
        n = len(fixed["parameter"])
        self.fixed = fixed
        self.n_updates = self.n_skipped = 0
        self.last: Row = {}
        self.counts = {name: np.zeros(n, np.int64) for name in ("moved", "rounded_to_zero", "no_gradient")}
        self.margins = np.zeros((n, len(fixed["margin_bin"])), np.int64)
        self.exact, self.with_gradient = np.ones(n, bool), np.zeros(n, bool)

    def add(self, row: Row) -> None:
        """Add an update."""
        self.n_updates, self.last = self.n_updates + 1, row
        self.n_skipped += int(row["skipped_before"])
        for name, total in self.counts.items():
            total += np.maximum(row[name], 0)
        self.margins += np.maximum(row["margin_count"], 0)
        self.exact &= row["exact"]
        norm = np.nan_to_num(row["gradient_norm"], nan=0.0, posinf=1.0)
        self.with_gradient |= (norm > 0) | (row["unknown"] > 0)  # the norm of a gradient with NaN is NaN


def report(totals: Totals) -> str:
    """Return findings, and a table of the parameters that lose most to rounding; empty before the first update."""
    return "\n".join([*_findings(totals), *_table(totals)]) if totals.n_updates else ""


def _findings(totals: Totals) -> Iterator[str]:
    fixed, last = totals.fixed, totals.last
    numel = fixed["numel"]
    n = int(numel.sum())
    known = last["rounded_to_zero"] >= 0
    parts = [f"moved {last['moved'].sum() / max(n, 1):.2%} of {n:,} values"]
    if known.any():
        of_known = max(int(numel[known].sum()), 1)
        parts += [f"rounded {last['rounded_to_zero'][known].sum() / of_known:.2%} to zero"]
        parts += [f"found no gradient for {last['no_gradient'][known].sum() / of_known:.2%}"]
        if unknown := last["unknown"][known].sum():
            parts += [f"and NaN or infinity in {unknown / of_known:.2%}"]
    yield (
        f"{totals.n_updates} update{'s' * (totals.n_updates > 1)} monitored; the last, update {last['step']}, "
        f"{', '.join(parts)}."
    )
    masters = fixed["dtype"] == "float32"
    if masters.any():
        share = last["visible"][masters].sum() / max(int(numel[masters].sum()), 1)
        yield f"As bfloat16, {share:.2%} of the values of the float32 parameters changed in update {last['step']}."
    at_rest = (totals.counts["moved"] == 0) & (totals.counts["rounded_to_zero"] > 0)
    any_of_them = (
        "the monitored update" if totals.n_updates == 1 else f"any of the {totals.n_updates} monitored updates"
    )
    for chosen, why in (
        (at_rest & totals.margins.any(axis=1), f", although there were updates{_advice(totals, at_rest)}"),
        (at_rest & ~totals.margins.any(axis=1), ": each update was exactly 0, as with a learning rate of 0"),
    ):
        if chosen.any():
            yield f"{_named(fixed, chosen)} did not move in {any_of_them}{why}."
    idle = (totals.counts["moved"] == 0) & ~totals.with_gradient & (numel > 0)
    if idle.any():
        yield f"{_named(fixed, idle)} never had a gradient."
    bad = last["unknown"] > 0
    if (bad & known).any():
        yield f"{_named(fixed, bad & known)} had NaN or infinite values in update {last['step']}."
    if not totals.exact.all():
        yield (
            f"The counts of {_named(fixed, ~totals.exact)} are estimates: the weights were not those that the "
            "optimizer's arithmetic gives; copy=True counts exactly."
        )
    if totals.n_skipped:
        yield f"{totals.n_skipped} attempts were skipped by a GradScaler."


def _advice(totals: Totals, at_rest: NDArray[np.bool_]) -> str:
    """Say how far the updates of parameters at rest lie below the grid; a bin is known up to a factor of 2."""
    found = totals.margins[at_rest].sum(0)
    if not found.any():
        return ""
    largest = int(totals.fixed["margin_bin"][np.flatnonzero(found)[-1]]) + 1
    if largest > 0:
        return ""
    part = f"1/{2**-largest:,} of " if largest else ""
    return (
        f": even the largest were below {part}the half gap that they would have to cross; keep these parameters in "
        f"float32, or the learning rate more than {2 ** (1 - largest):,} times as high"
    )


def _named(fixed: Columns, chosen: NDArray[np.bool_]) -> str:
    """Return how many parameters, and the names of the first."""
    names: Sequence[Any] = list(fixed["parameter"][chosen])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    count = f"{len(names)} parameter{'s' * (len(names) > 1)}"
    return f"{count} ({', '.join(map(str, names[:_SHOWN]))}{more})"


def _table(totals: Totals) -> list[str]:
    counts = np.stack(list(totals.counts.values())).astype(np.float64)
    with np.errstate(invalid="ignore"):
        shares = counts / counts.sum(0)
    order = [i for i in np.argsort(-shares[1], kind="stable") if shares[1][i] > 0]
    if not order:
        return []
    which = f"The {_ROWS} of {len(order)} parameters" if len(order) > _ROWS else "The parameters"
    title = f"{which} that lose most to rounding, over all monitored updates:"
    lines = [("parameter", "dtype", "moved", "rounded", "no gradient", "median log2(update / half gap)")]
    for i in order[:_ROWS]:
        middle = median_margin(totals.margins[i], totals.fixed["margin_bin"])
        of_all = (f"{share:.2%}" for share in shares[:, i])
        lines.append((totals.fixed["parameter"][i], totals.fixed["dtype"][i], *of_all, f"{middle:.0f}"))
    return ["", title, *table(lines, "<<>>>>")]
