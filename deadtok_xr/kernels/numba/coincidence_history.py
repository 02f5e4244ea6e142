"""What becomes of the places that rows share: how many, what breaks up and meets, and who is with whom since when.

The place of each row at each step is told, by whichever engine; no value is looked at. A step at which no row changed
keeps its answer.

Who has been together since when is kept as a sequence of the rows in which those of one place stand side by side, and
the step since which each has been with the one before it. Of any two rows of a place, the answer is then the latest
step between them. A place that breaks up, or several that meet, only take such sequences apart and put them together.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.kernels.numba.jit import compiled

Longs = NDArray[np.int64]
APART = np.iinfo(np.int64).max
"""In place of a step: not together."""
FIGURES = (
    "n_unique", "n_black_holes", "population", "largest", "n_singletons", "n_invalid", "herfindahl", "gini",
    "top_two_share",
)  # fmt: skip
EVENTS = ("fissions", "fusions", "evaporated", "accreted")


@dataclass
class CoincidenceHistory:
    """Who is with whom at one step.

    Attributes
    ----------
    label
        The first row in the same place, (n,); -1 where a value is not finite.
    order
        The rows, those of one place side by side, (n,).
    since
        Since which step each of ``order`` has been with the one before it; `APART` where it is not. (n,)
    """

    label: Longs
    order: Longs
    since: Longs
    figures: NDArray[np.float64] = field(default_factory=lambda: np.zeros(len(FIGURES)))


def coincidence_history(
    labels: Longs,
    changed: NDArray[np.bool_],
    state: CoincidenceHistory | None,
    first: int,
    wanted: Longs,
    out: dict[str, NDArray[Any]],
    snapshots: dict[str, Longs],
) -> CoincidenceHistory:
    """Fill ``out`` with the figures of some steps, and what became of the places of the step before.

    Parameters
    ----------
    labels
        The first row in the same place as each, (t + 1, n), or (t, n) where no step follows; -1 where a value is not
        finite.
    changed
        Which rows differ from the step before, one step less.
    state
        Who was with whom at the first step, as an earlier call returned it; None to begin there.
    first
        The number of the first step.
    wanted
        For each of the steps, the number of its snapshot; negative for none.
    out
        Arrays to fill: `FIGURES`, for the steps without the one that follows, and `EVENTS`, for the transitions.
    snapshots
        label, order and since, (snapshot, n), to fill.

    Returns
    -------
    Who is with whom at the last step.
    """
    state = _begin(labels[0], first) if state is None else CoincidenceHistory(*(x.copy() for x in vars(state).values()))
    figures = np.empty((len(labels), len(FIGURES)))
    events = np.zeros((len(changed), len(EVENTS)), np.int64)
    _follow(
        labels, changed.any(axis=1), first, state.label, state.order, state.since, state.figures, figures, events,
        wanted, snapshots["label"], snapshots["order"], snapshots["since"],
    )  # fmt: skip
    for i, name in enumerate(FIGURES):
        out[name][:] = figures[: len(out[name]), i]
    for i, name in enumerate(EVENTS):
        out[name][:] = events[:, i]
    return state


def _begin(label: Longs, first: int) -> CoincidenceHistory:
    n = len(label)
    order, since = regroup(np.arange(n), np.full(n, APART), label, first)
    state = CoincidenceHistory(label.copy(), order, since)
    _measure(label, _sizes(label), state.figures)
    return state


@compiled
def _follow(labels, anything, first, label, order, since, current, figures, events, wanted, kept, orders, sinces):
    for t in range(len(labels)):
        if t > 0 and anything[t - 1] and (labels[t] != label).any():
            sizes = _sizes(labels[t])
            _measure(labels[t], sizes, current)
            _count(label, _sizes(label), labels[t], sizes, events[t - 1])
            order[:], since[:] = regroup(order, since, labels[t], first + t)
            label[:] = labels[t]
        figures[t] = current
        if wanted[t] >= 0:
            kept[wanted[t]] = label
            orders[wanted[t]] = order
            sinces[wanted[t]] = since


@compiled
def _sizes(label):
    """How many rows are in the place of each first row."""
    sizes = np.zeros(len(label), np.int64)
    for n in range(len(label)):
        if label[n] >= 0:
            sizes[label[n]] += 1
    return sizes


@compiled
def _measure(label, sizes, figures):
    """Fill the `FIGURES` of a step. Shares are of the rows in black holes, the places of two rows or more."""
    N = len(label)
    how_many = np.zeros(N + 1, np.int64)
    valid = 0
    for n in range(N):
        valid += label[n] >= 0
        how_many[sizes[n]] += 1
    holes, population, squares, ranked, largest, second = 0, 0, 0, 0, 0, 0
    for size in range(2, N + 1):
        c = how_many[size]
        if c:
            ranked += size * (c * holes + c * (c + 1) // 2)  # Σ rank · size, sizes ascending
            holes += c
            population += c * size
            squares += c * size * size
            second = size if c > 1 else largest
            largest = size
    figures[0] = how_many[1] + holes
    figures[1] = holes
    figures[2] = population
    figures[3] = largest
    figures[4] = how_many[1]
    figures[5] = N - valid
    figures[6] = squares / population**2 if holes else np.nan
    figures[7] = (2 * ranked / population - (holes + 1)) / holes if holes else np.nan
    figures[8] = (largest + second) / population if holes else np.nan


@compiled
def _count(old, old_sizes, label, sizes, events):
    """Count the `EVENTS` between two steps, among rows that are finite at both."""
    events[0] = _torn(old, old_sizes, label)
    events[1] = _torn(label, sizes, old)
    for n in range(len(old)):
        if old[n] >= 0 and label[n] >= 0:
            shared, shares = old_sizes[old[n]] > 1, sizes[label[n]] > 1
            events[2] += shared and not shares
            events[3] += shares and not shared


@compiled
def _torn(one, sizes, other):
    """How many black holes of one step have their rows in more than one place at another step."""
    place = np.full(len(one), -1)
    torn = 0
    for n in range(len(one)):
        k = one[n]
        if k < 0 or other[n] < 0 or sizes[k] < 2:
            continue
        if place[k] == -1:
            place[k] = other[n]
        elif place[k] >= 0 and place[k] != other[n]:
            torn += 1
            place[k] = -2  # counted
    return torn


@compiled
def regroup(order, since, group, now):
    """Another order, by ascending ``group`` (n,), and since when each row has been with the one before it.

    Rows that were not together begin to be at step ``now``. Those of group -1 stand alone, in front.
    """
    N = len(order)
    begins = np.zeros(N + 2, np.int64)
    for n in range(N):
        begins[group[n] + 2] += 1
    for k in range(1, N + 2):
        begins[k] += begins[k - 1]
    place, last = begins[: N + 1].copy(), np.full(N + 1, -1)
    new_order, new_since = np.empty(N, np.int64), np.full(N, APART)
    stack, height = np.empty(N, np.int64), 0  # positions whose `since` is later than all that follow
    for p in range(N):
        while height and since[stack[height - 1]] <= since[p]:
            height -= 1
        stack[height] = p
        height += 1
        k = group[order[p]] + 1
        if k > 0 and last[k] >= 0:
            latest = since[stack[np.searchsorted(stack[:height], last[k] + 1)]]
            new_since[place[k]] = now if latest == APART else latest
        new_order[place[k]] = order[p]
        place[k] += 1
        last[k] = p
    return new_order, new_since


def extend_back(earlier: tuple[Longs, Longs], later: tuple[Longs, Longs], first: int) -> tuple[Longs, Longs]:
    """A sequence that looks back no further than step ``first``, with what was known there.

    Each is `order` and `since`; ``earlier`` is that of step ``first``.
    """
    order, since = later
    begins = since != first
    group = np.empty(len(order), np.int64)
    group[order] = np.cumsum(begins) - 1  # those that have been together since then, or longer
    new_order, new_since = regroup(*earlier, group, first)
    return new_order, np.where(begins, since, new_since)


@compiled
def together_since(order, since, label):
    """Since when each row has been with the first one of its place, (n,): -1 alone. The first one: since its oldest
    companion."""  # fmt: skip
    N = len(order)
    out = np.full(N, -1)
    for p in range(N):
        n = order[p]
        if label[n] != n:
            continue
        oldest = APART
        latest = np.int64(-1)
        q = p + 1
        while q < N and since[q] != APART:
            latest = max(latest, since[q])
            out[order[q]] = latest
            oldest = min(oldest, latest)
            q += 1
        latest = np.int64(-1)
        q = p
        while since[q] != APART:
            latest = max(latest, since[q])
            q -= 1
            out[order[q]] = latest
            oldest = min(oldest, latest)
        if oldest != APART:
            out[n] = oldest
    return out
