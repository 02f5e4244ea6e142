"""A reference of the census, in Python sets and dicts from its definitions, one step at a time, without the package."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Place = list[Any]


def places(rows: Array, *, distinct: bool) -> Place:
    """A key for the place of each row of values (n, d); None where one is not finite."""
    keys: Place = []
    for row in rows:
        values = row.astype(np.float64)
        bits = np.copysign(1.0, values) if distinct else np.zeros(len(values))
        keys.append((tuple(values.tolist()), tuple(bits.tolist())) if np.isfinite(values).all() else None)
    return keys


def members(keys: Place) -> dict[Any, list[int]]:
    found: dict[Any, list[int]] = {}
    for n, key in enumerate(keys):
        if key is not None:
            found.setdefault(key, []).append(n)
    return found


def figures(keys: Place) -> dict[str, float]:
    sizes = sorted(len(m) for m in members(keys).values())
    holes = [s for s in sizes if s > 1]
    total, K = sum(holes), len(holes)
    mean_difference = sum(abs(a - b) for a in holes for b in holes) / K**2 if K else np.nan
    return {
        "n_unique": len(sizes), "n_black_holes": K, "population": total, "largest": max(holes, default=0),
        "n_singletons": len(sizes) - K, "n_invalid": sum(key is None for key in keys),
        "herfindahl": sum((s / total) ** 2 for s in holes) if K else np.nan,
        "gini": mean_difference / (2 * total / K) if K else np.nan,
        "top_two_share": sum(holes[-2:]) / total if K else np.nan,
    }  # fmt: skip


def events(before: Place, now: Place) -> dict[str, int]:
    both = {n for n in range(len(now)) if before[n] is not None and now[n] is not None}

    def torn(one: Place, other: Place) -> int:
        holes = [m for m in members(one).values() if len(m) > 1]
        return sum(len({other[n] for n in m if n in both}) > 1 for m in holes)

    alone = [{m[0] for m in members(keys).values() if len(m) == 1} for keys in (before, now)]
    return {
        "fissions": torn(before, now), "fusions": torn(now, before),
        "evaporated": sum(n not in alone[0] and n in alone[1] for n in both),
        "accreted": sum(n in alone[0] and n not in alone[1] for n in both),
    }  # fmt: skip


def census(W: Array, *, distinct: bool = False) -> dict[str, Array]:
    keys = [places(rows, distinct=distinct) for rows in W]
    none = dict.fromkeys(("fissions", "fusions", "evaporated", "accreted"), -1)
    rows = [{**figures(k), **(events(keys[t - 1], k) if t else none)} for t, k in enumerate(keys)]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def coincidence_history(W: Array, at: int, *, distinct: bool = False) -> tuple[Array, Array, Array]:
    """At step ``at``, for each token: the rank of its black hole, the first token there, since when they are."""
    keys = [places(rows, distinct=distinct) for rows in W[: at + 1]]
    now = keys[at]
    holes = sorted((m for m in members(now).values() if len(m) > 1), key=lambda m: (-len(m), m[0]))
    rank = np.array([-1 if key is None else 0 for key in now])
    leader, since = np.full((2, len(now)), -1)
    for k, hole in enumerate(holes):
        for n in hole:
            rank[n], leader[n] = k + 1, hole[0]
        for n in hole[1:]:
            t = at
            while t > 0 and keys[t - 1][n] is not None and keys[t - 1][n] == keys[t - 1][hole[0]]:
                t -= 1
            since[n] = t
        since[hole[0]] = min(since[n] for n in hole[1:])
    return rank, leader, since
