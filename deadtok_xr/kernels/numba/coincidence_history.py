"""Follow groups of equal rows: how many there are, how they break up and merge, and since when rows are together.

A *place* is the position of a row: equal rows are in the same place. `census` gives, for each row, the first row in the
same place; no value is read here. A step at which no row changed repeats the step before.

Since when rows have been together is stored as a sequence of the rows, in which the rows of a place are adjacent, and
for each row the step since which it has been together with the row before it. Two rows of a place have been together
since the latest of the steps between them in the sequence: the steps form an ultrametric, as in a dendrogram of single
linkage (Jardine and Sibson 1971). If places break up or merge, such sequences only have to be split and joined.

herfindahl   Σ s² of the shares s of black holes, the places of two rows or more
gini         (2 Σ i·nᵢ / Σ nᵢ - (m + 1)) / m of their m sizes nᵢ, ascending
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.kernels.numba.jit import compiled, inner
from deadtok_xr.kernels.numba.rows import copy_to

Longs = NDArray[np.int64]
APART = np.iinfo(np.int64).max
"""Instead of a step: the rows are not together."""
FIGURES = (
    "n_unique", "n_black_holes", "population", "largest", "n_singletons", "n_invalid", "herfindahl", "gini",
    "top_two_share",
)  # fmt: skip
"""The figures of a step."""
EVENTS = ("fissions", "fusions", "evaporated", "accreted")
"""The events of a transition, among rows that are finite at both steps: black holes that break up and that merge, rows
that leave black holes and that join them."""


class CoincidenceHistory(NamedTuple):
    """Which rows are together at one step, and since which step."""

    label: Longs
    """The first row in the same place, (n,); -1 where a value is not finite."""
    order: Longs
    """The rows, with those of one place adjacent, (n,)."""
    since: Longs
    """The step since which each row of ``order`` has been with the row before it; `APART` if it is not. (n,)"""
    figures: NDArray[np.float64]
    """See `FIGURES`."""


class HistorySnapshots(NamedTuple):
    """Histories at some steps, (snapshot, n)."""

    label: Longs
    order: Longs
    since: Longs


def coincidence_history(
    labels: Longs,
    changed: NDArray[np.bool_],
    state: CoincidenceHistory | None,
    first: int,
    wanted: Longs,
    out: dict[str, NDArray[Any]],
    snapshots: dict[str, Longs],
) -> CoincidenceHistory:
    """Fill ``out`` with the figures of some steps, and the events between them.

    Parameters
    ----------
    labels
        For each row the first row in the same place, (t + 1, n), or (t, n) if no step follows; -1 where a value is not
        finite.
    changed
        Which rows differ from the step before, (t, n), or (t - 1, n) if no step follows.
    state
        The history at the first step, as an earlier call returned it; None to begin there.
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
    The history at the last step.
    """
    if state is None:
        state = _begin(labels[0], first)
    else:
        state = CoincidenceHistory(state.label.copy(), state.order.copy(), state.since.copy(), state.figures.copy())
    figures = np.empty((len(labels), len(FIGURES)))
    events = np.zeros((len(changed), len(EVENTS)), np.int64)
    kept = HistorySnapshots(*(snapshots[name] for name in HistorySnapshots._fields))
    _follow(labels, changed.any(axis=1), first, state, figures, events, wanted, kept)
    for i, name in enumerate(FIGURES):
        out[name][:] = figures[: len(out[name]), i]
    for i, name in enumerate(EVENTS):
        out[name][:] = events[:, i]
    return state


def _begin(label: Longs, first: int) -> CoincidenceHistory:
    n = len(label)
    order, since = regroup(np.arange(n), np.full(n, APART), label, first)
    state = CoincidenceHistory(label.copy(), order, since, np.zeros(len(FIGURES)))
    _measure(label, _sizes(label), state.figures)
    return state


@compiled
def _follow(labels, any_changed, first, state, figures, events, wanted, snapshots):
    for t in range(len(labels)):
        if t > 0 and any_changed[t - 1] and _differ(labels[t], state.label):
            sizes = _sizes(labels[t])
            _measure(labels[t], sizes, state.figures)
            _count_events(state.label, _sizes(state.label), labels[t], sizes, events[t - 1])
            order, since = regroup(state.order, state.since, labels[t], first + t)
            copy_to(order, state.order)
            copy_to(since, state.since)
            copy_to(labels[t], state.label)
        copy_to(state.figures, figures[t])
        if wanted[t] >= 0:
            copy_to(state.label, snapshots.label[wanted[t]])
            copy_to(state.order, snapshots.order[wanted[t]])
            copy_to(state.since, snapshots.since[wanted[t]])


@compiled
def _sizes(label):
    """Return how many rows are in the place of each first row."""
    sizes = np.zeros(len(label), np.int64)
    for n in range(len(label)):
        if label[n] >= 0:
            sizes[label[n]] += 1
    return sizes


@compiled
def _measure(label, sizes, figures):
    """Fill in the `FIGURES` of a step. Shares are relative to all rows in black holes."""
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


@inner
def _differ(a, b):
    for n in range(len(a)):
        if a[n] != b[n]:
            return True
    return False


@inner
def _count_events(old, old_sizes, label, sizes, events):
    """Count the `EVENTS` between two steps."""
    events[0] = _n_broken_up(old, old_sizes, label)
    events[1] = _n_broken_up(label, sizes, old)
    for n in range(len(old)):
        if old[n] >= 0 and label[n] >= 0:
            shared, shares = old_sizes[old[n]] > 1, sizes[label[n]] > 1
            events[2] += shared and not shares
            events[3] += shares and not shared


@inner
def _n_broken_up(one, sizes, other):
    """Count the black holes of one step whose rows are in more than one place at another step."""
    place = np.full(len(one), -1)
    broken_up = 0
    for n in range(len(one)):
        k = one[n]
        if k < 0 or other[n] < 0 or sizes[k] < 2:
            continue
        if place[k] == -1:
            place[k] = other[n]
        elif place[k] >= 0 and place[k] != other[n]:
            broken_up += 1
            place[k] = -2  # counted
    return broken_up


@compiled
def regroup(order, since, group, now):
    """Sort a sequence by group, and update the step since which each row has been with the one before it.

    Parameters
    ----------
    order, since
        The sequence: see `CoincidenceHistory`.
    group
        The group of each row, (n,); rows of group -1 come first, each by itself.
    now
        The step since which rows are together that were apart before.

    Returns
    -------
    The new order and since.
    """
    N = len(order)
    begins = np.zeros(N + 2, np.int64)
    for n in range(N):
        begins[group[n] + 2] += 1
    for k in range(1, N + 2):
        begins[k] += begins[k - 1]
    place, last = begins[: N + 1].copy(), np.full(N + 1, -1)
    new_order, new_since = np.empty(N, np.int64), np.full(N, APART)
    stack, height = np.empty(N, np.int64), 0  # positions whose `since` is later than all that follow them
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
    """Extend a history that begins at step ``first`` to the steps before it.

    Parameters
    ----------
    earlier
        order and since at step ``first``.
    later
        order and since at a later step, by a history that begins at ``first``.
    first
        The step.

    Returns
    -------
    order and since at the later step.
    """
    order, since = later
    begins = since != first
    group = np.empty(len(order), np.int64)
    group[order] = np.cumsum(begins) - 1  # rows that have been together since step `first` or longer
    new_order, new_since = regroup(*earlier, group, first)
    return new_order, np.where(begins, since, new_since)


@compiled
def together_since(order, since, label):
    """Return the step since which each row has been with the first one of its place, (n,); -1 for rows that are alone.

    For the first row itself: the step since which it has been with the row that joined it first. The parameters are
    those of `CoincidenceHistory`.
    """
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
