"""Relate the indicators of several steps to dead tokens, to the steps at which tokens froze, and to occurrences."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.analyses.common.last_motion import INVALID, NEVER
from deadtok_xr.analyses.common.rank_correlation import concordance, spearman
from deadtok_xr.analyses.undertrained import references
from deadtok_xr.engine.small_results import Arrays

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
KINDS = ("none", "given", *references.FOUND)
ENOUGH = 0.9
"""The share of dead tokens among the lowest values from which on one could have told."""
OF_COUNT = ("count_correlation", "count_correlation_low", "count_correlation_high")
OF_P_DEAD = ("p_dead_correlation", "p_dead_correlation_low", "p_dead_correlation_high")
OF_FREEZING = ("freeze_correlation", "freeze_correlation_low", "freeze_correlation_high", "n_pairs")


def relate(
    inputs: dict[str, list[Any]], *, labels: NDArray[np.int64], at: tuple[int, ...], known: dict[str, Any],
    wanted: tuple[str, ...],
) -> Arrays:  # fmt: skip
    """Return the variables that are wanted.

    Parameters
    ----------
    inputs
        ``measured``: by position of a step, the measures for each reference; ``moved``: when tokens last moved.
    labels, at
        The labels of all steps, and the positions of those that were measured.
    known
        ``dead`` and ``count`` per token, ``p_dead`` per measured step; None or left out where they are not known.
    wanted
        Names of variables.
    """
    (measured,), (moved,) = inputs["measured"], inputs["moved"]
    states = [measured[i] for i in at]
    value = np.array([[state[r]["value"] for state in states] for r in range(len(states[0]))])
    candidate = np.array([[state[r]["candidate"] for state in states] for r in range(len(states[0]))])
    dead, counts = known["dead"], known["count"]
    used = (moved > NEVER) & (moved < INVALID) & (True if dead is None else dead)
    time, censored = np.where(used, moved, 0) + 1, used & (moved == labels[-1])
    last = candidate[:, -1:]
    found: Arrays = {
        "value": value,
        "candidate": candidate,
        "candidates_kept": _ratio((candidate & last).sum(axis=2), last.sum(axis=2)),
        "reference_kind": np.array([KINDS.index(state[0]["kind"]) for state in states]),
        "reference_size": np.array([[state[r]["size"] for state in states] for r in range(len(value))]),
        "n_frozen": np.array((used & ~censored).sum()),
        "n_censored": np.array(censored.sum()),
        **_correlations(OF_FREEZING, value, time, censored, used),
    }
    if "precision" in wanted:
        hits = (candidate & dead).sum(axis=2)
        found |= {"precision": _ratio(hits, candidate.sum(axis=2)), "recall": hits / dead.sum()}
        found["lowest_dead"] = np.apply_along_axis(_lowest_dead, 3, value, dead)
        found["auc"] = np.apply_along_axis(_auc, 3, value, dead)
        found["told_from"] = np.apply_along_axis(_told_from, 1, found["lowest_dead"], labels[list(at)])
    if "count_correlation" in wanted:
        known_times = np.zeros(len(counts), bool)
        found |= _correlations((*OF_COUNT, ""), value, counts.astype(np.int64), known_times, counts > 0)
    if "p_dead_correlation" in wanted:
        found |= _with_p_dead(value[..., dead].mean(axis=3, dtype=np.float64), known["p_dead"])
    return {name: found[name] for name in wanted}


def _ratio(n: NDArray[Any], of: NDArray[Any]) -> Floats:
    return np.divide(n, of, out=np.full(n.shape, np.nan), where=np.broadcast_to(of, n.shape) > 0)


def _correlations(
    names: tuple[str, ...], value: NDArray[np.float32], time: NDArray[np.int64], censored: Mask, used: Mask
) -> Arrays:
    """Return the rank correlation of each indicator with a time, its interval, and the number of pairs."""
    found = np.empty((4, *value.shape[:3]))
    for i in np.ndindex(value.shape[:3]):
        x = value[i].astype(np.float64)
        chosen = used & np.isfinite(x)
        found[(slice(None), *i)] = concordance(time[chosen], censored[chosen], x[chosen])
    return dict(zip(names, found, strict=True))


def _with_p_dead(mean: Floats, p_dead: Floats) -> Arrays:
    found = np.full((3, mean.shape[0], mean.shape[2]), np.nan)
    for r, k in np.ndindex(mean.shape[0], mean.shape[2]):
        there = np.isfinite(mean[r, :, k]) & np.isfinite(p_dead)
        found[:, r, k] = spearman(mean[r, there, k], p_dead[there])
    return dict(zip(OF_P_DEAD, found, strict=True))


def _lowest_dead(value: NDArray[np.float32], dead: Mask) -> float:
    """Return the share of dead tokens among the lowest values, as many as there are dead tokens."""
    n = int(dead.sum())
    if np.isnan(value).all():
        return np.nan
    value = np.where(np.isnan(value), np.inf, value)
    limit = np.partition(value, n - 1)[n - 1]
    below, equal = value < limit, value == limit
    rest = (n - below.sum()) / equal.sum()  # of equal values each has the same share of the places
    return float(((below & dead).sum() + rest * (equal & dead).sum()) / n)


def _auc(value: NDArray[np.float32], dead: Mask) -> float:
    known = ~np.isnan(value)
    low, live = value[known & dead], np.sort(value[known & ~dead])
    if not low.size or not live.size:
        return np.nan
    below, not_above = (np.searchsorted(live, low, side) for side in ("left", "right"))
    return float((1 - (below + not_above) / 2 / live.size).mean())


def _told_from(share: Floats, labels: NDArray[np.int64]) -> int:
    """Return the first label from which on the share is high enough; -1 if it is not at the end."""
    fails = np.flatnonzero(~(share >= ENOUGH))
    first = fails[-1] + 1 if fails.size else 0
    return int(labels[first]) if first < len(labels) else -1
