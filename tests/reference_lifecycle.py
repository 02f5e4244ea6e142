"""References of life cycles, freezing and epochs, token by token in plain Python from their definitions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests import reference

Array = NDArray[Any]
NAMES = {
    "lattice": ("frozen", "late", "midlife", "early"),
    "magnitude": ("fimbulwinter", "thermal_solid", "quantum", "classical_gas"),
    "cells": ("fimbulwinter", "stumbling", "spherical", "superluminal", "hypernova"),
}


def phase(m: dict[str, Array], t: int, n: int, scheme: str, dims: int) -> int:
    """Of transition t, 0 the coldest; -1 where it is not known."""
    if m["moved_dims"][t, n] < 0:
        return -1
    l1, l2, linf = (m[name][t, n] for name in ("lattice_l1", "lattice_l2", "lattice_linf"))
    root, x = math.sqrt(dims), float(m["displacement_ulp"][t, n])
    tests = {
        "lattice": (l1 == 0, linf <= 1, l2 <= root),
        "magnitude": (x < 0.1, x < 10, x < 100),
        "cells": (l1 == 0, l1 <= 1, l2 <= root, l2 <= 1000),
    }[scheme]
    return next((k for k, holds in enumerate(tests) if holds), len(tests))


def codes(W: Array, scheme: str) -> Array:
    m = reference.motion(W)
    T, N = m["moved_dims"].shape
    return np.array([[phase(m, t, n, scheme, W.shape[2]) for n in range(N)] for t in range(T)])


def label(position: int, steps: Array) -> int:
    return int(steps[position + 1]) if position >= 0 else -1


def last(flags: list[bool]) -> int:
    return max((t for t, flag in enumerate(flags) if flag), default=-1)


def first(flags: list[bool]) -> int:
    return next((t for t, flag in enumerate(flags) if flag), -1)


def of_token(code: list[int], moved: list[int], l1: list[float], n_phases: int, steps: Array) -> dict[str, Any]:
    T = len(code)
    valid = [m >= 0 for m in moved]
    motion = [m > 0 for m in moved]
    began = first(motion)
    freeze = first([began >= 0 and t > began and moved[t] == 0 for t in range(T)])
    pairs = [(code[t - 1], code[t]) for t in range(1, T) if valid[t - 1] and valid[t]]
    in_phase = [last([c == p for c in code]) for p in range(n_phases)]
    hotter = [last([c >= p for c in code]) for p in range(n_phases)]
    left = [label(x, steps) for x in hotter]
    until = [x if x >= 0 else int(steps[0]) for x in left] + [int(steps[0])]
    thrust = last([v and x > 1 for v, x in zip(valid, l1, strict=True)])
    return {
        "first_freeze": label(freeze, steps), "last_motion": label(last(motion), steps),
        "thaw_count": sum(freeze >= 0 and t > freeze and motion[t] and moved[t - 1] == 0 for t in range(T)),
        "censored": 1 if motion[-1] else 0 if valid[-1] else -1,
        "moved_steps": sum(motion), "invalid_steps": T - sum(valid),
        "reheats": sum(b > a for a, b in pairs), "cools": sum(b < a for a, b in pairs),
        "first_stumble": label(first([v and x <= 1 for v, x in zip(valid, l1, strict=True)]), steps),
        "last_thrust": label(thrust, steps),
        "thrust_period": label(last(motion), steps) - label(thrust, steps) if thrust >= 0 else -1,
        "last_step": [label(x, steps) for x in in_phase], "last_step_or_hotter": left,
        "duration": [until[p] - until[p + 1] if all(valid) else -1 for p in range(n_phases)],
        "stratigraphy": [max(code[t:]) if all(valid[t:]) else -1 for t in range(T)],
    }  # fmt: skip


def lifecycle(W: Array, scheme: str, steps: Array) -> dict[str, Array]:
    m, code, n_phases = reference.motion(W), codes(W, scheme), len(NAMES[scheme])
    moved, l1 = m["moved_dims"], m["lattice_l1"]
    T, N = code.shape
    columns = [list(x) for x in zip(code.T, moved.T, l1.T, strict=True)]
    rows = [of_token([int(c) for c in a], list(b), list(x), n_phases, steps) for a, b, x in columns]
    out = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    out["stratigraphy"] = out["stratigraphy"].T
    passages = np.zeros((n_phases, n_phases), int)
    for t in range(1, T):
        for n in range(N):
            if code[t - 1, n] >= 0 and code[t, n] >= 0:
                passages[code[t - 1, n], code[t, n]] += 1
    both = [(code[t - 1] >= 0) & (code[t] >= 0) for t in range(1, T)]
    valid = (moved >= 0).sum(1)
    still = (moved == 0).sum(1)
    known = out["invalid_steps"] == 0
    stopped = known & (out["censored"] == 0)
    at = steps[1:]
    return {
        **out, "passages": passages,
        "frozen_fraction": np.array([s / v if v else np.nan for s, v in zip(still, valid, strict=True)]),
        "global_freeze": still == N, "n_moving": (moved > 0).sum(1), "n_invalid": (moved < 0).sum(1),
        "n_reheats": np.array([0, *(((code[t + 1] > code[t]) & b).sum() for t, b in enumerate(both))]),
        "n_cools": np.array([0, *(((code[t + 1] < code[t]) & b).sum() for t, b in enumerate(both))]),
        "stumble_cohort": np.array([(out["first_stumble"] == t).sum() for t in at]),
        "freeze_cohort": np.array([(out["last_motion"][stopped] == t).sum() for t in at]),
        "n_never_moved": ((out["moved_steps"] == 0) & known).sum(), "n_censored": (out["censored"] == 1).sum(),
        "n_frozen": ((out["moved_steps"] > 0) & (out["censored"] == 0)).sum(),
    }  # fmt: skip


def runs(mask: list[bool]) -> list[tuple[int, int]]:
    """(start, length) of each run of True, one element at a time."""
    found: list[tuple[int, int]] = []
    for t, flag in enumerate(mask):
        if flag and t and mask[t - 1]:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        elif flag:
            found.append((t, 1))
    return found
