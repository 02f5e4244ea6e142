"""References of the cloud and of pairs of runs, from their definitions in plain numpy float64, one token at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def _norm(x: Array) -> float:
    return math.sqrt(math.fsum(float(v) ** 2 for v in x))


def _divide(a: float, b: float) -> float:
    return a / b if b else (np.nan if a == 0 or math.isnan(a) else math.inf)


def cloud(W: Array) -> dict[str, Array]:
    """What belongs to steps; the first entry is the first step."""
    W = W.astype(np.float64)
    rows = [{**_none(), **_place(W[0])}]
    for t in range(1, len(W)):
        rows.append({**_moves(W[t - 1], W[t]), **_place(W[t]), **_lag(W, t)})
    return {name: np.array([row[name] for row in rows]) for name in rows[-1]}


def _place(step: Array) -> dict[str, float]:
    radii = [_norm(x) for x in step if np.isfinite(x).all()]
    return {"origin_radius": np.mean(radii), "origin_radius_max": max(radii)} if radii else {
        "origin_radius": np.nan, "origin_radius_max": np.nan}  # fmt: skip


_FLOATS = (
    "temperature", "temperature_effective", "temperature_l2", "temperature_linf", "bulk_thermal_ratio", "shear_ratio",
    "radial_mean", "tangential_mean", "outward_fraction", "inward_fraction", "total_l2", "total_l1", "kinetic_energy",
    "displacement_max", "l2_over_linf", "participation", "lag1_mean", "lag1_low", "lag1_median", "lag1_high",
)  # fmt: skip
_COUNTS = ("n_aligned", "n_moving", "n_invalid", "n_lag1", "n_lag1_one_rests", "n_lag1_both_rest")


def _none() -> dict[str, Any]:
    return {**dict.fromkeys(_FLOATS, np.nan), **dict.fromkeys(_COUNTS, -1)}


def _moves(before: Array, after: Array) -> dict[str, Any]:
    valid = np.isfinite(before).all(1) & np.isfinite(after).all(1)
    out = _none()
    out["n_invalid"] = int((~valid).sum())
    pairs = [(a, b - a) for a, b in zip(before[valid], after[valid], strict=True)]
    movers = [(a, v, _norm(v)) for a, v in pairs if v.any()]
    out["n_moving"] = len(movers)
    if pairs:
        lengths = [_norm(v) for _, v in pairs]
        squares = sum(x**2 for x in lengths)
        out |= {
            "temperature_effective": squares / len(pairs), "temperature_l2": np.mean(lengths),
            "temperature_linf": np.mean([np.abs(v).max() for _, v in pairs]), "total_l2": sum(lengths),
            "total_l1": sum(np.abs(v).sum() for _, v in pairs), "kinetic_energy": squares / 2,
            "displacement_max": max(lengths),
        }  # fmt: skip
    if movers:
        out["l2_over_linf"] = np.mean([s / np.abs(v).max() for _, v, s in movers])
        out["participation"] = sum(lengths) ** 2 / (len(pairs) * squares)
        away = [float(v @ a) / (_norm(a) * s) for a, v, s in movers if a.any()]
        if away:
            away = np.clip(away, -1, 1)
            out["radial_mean"], out["tangential_mean"] = np.mean(away), np.mean(np.sqrt(1 - np.square(away)))
            out["outward_fraction"], out["inward_fraction"] = np.mean(np.array(away) > 0), np.mean(np.array(away) < 0)
    if valid.all():
        bulk = np.mean([v for _, v in pairs], axis=0)
        own = [_norm(v - bulk) for _, v in pairs]
        speed = _norm(bulk)
        out["temperature"] = np.mean(np.square(own))
        out["bulk_thermal_ratio"] = _divide(speed, math.sqrt(out["temperature"]))
        out["shear_ratio"] = _divide(np.mean(own), speed)
        out["n_aligned"] = sum(float(v @ bulk) > 0.9 * speed * s for _, v, s in movers)
    return out


def _lag(W: Array, t: int) -> dict[str, Any]:
    if t < 2:
        return {}
    one, two = W[t - 1] - W[t - 2], W[t] - W[t - 1]
    valid = np.isfinite(W[t - 2 : t + 1]).all((0, 2))
    moved = [(a.any(), b.any()) for a, b in zip(one[valid], two[valid], strict=True)]
    cosines = [
        min(1.0, max(-1.0, float(a @ b) / (_norm(a) * _norm(b))))
        for a, b in zip(one[valid], two[valid], strict=True) if a.any() and b.any()
    ]  # fmt: skip
    out: dict[str, Any] = {
        "n_lag1": len(cosines), "n_lag1_one_rests": sum(a != b for a, b in moved),
        "n_lag1_both_rest": sum(not a and not b for a, b in moved),
    }  # fmt: skip
    if cosines:
        ordered = np.sort(cosines)
        place = [q * (len(ordered) - 1) for q in (0.25, 0.5, 0.75)]
        low, mid, high = (np.interp(p, np.arange(len(ordered)), ordered) for p in place)
        out |= {"lag1_mean": np.mean(cosines), "lag1_low": low, "lag1_median": mid, "lag1_high": high}
    return out


def paths(W: Array) -> dict[str, Array]:
    W = W.astype(np.float64)
    rows = []
    for path in W.transpose(1, 0, 2):
        steps = [_norm(v) for v in np.diff(path, axis=0)]
        net, length, squares = _norm(path[-1] - path[0]), sum(steps), sum(s**2 for s in steps)
        if not np.isfinite(path).all():
            rows.append((np.nan, np.nan, np.nan, np.nan, -1))
            continue
        D = net**2 / squares if squares else np.nan
        kind = -1 if math.isnan(D) else 0 if D < 0.5 else 1 if D <= 2 else 2
        rows.append((net, length, net / length if length else np.nan, D, kind))
    names = ("net_displacement", "path_length", "path_efficiency", "diffusivity", "diffusivity_class")
    return {name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def walk(W: Array, lags: int) -> dict[str, Array]:
    C = np.array([[math.fsum(column) / len(column) for column in step.T] for step in W.astype(np.float64)])
    T = len(C) - 1
    v = [C[t + 1] - C[t] for t in range(T)]
    bias = (C[-1] - C[0]) / T
    s = math.sqrt(sum(_norm(x - bias) ** 2 for x in v) / (T - 1)) if T > 1 else math.nan
    square = np.mean([float(x @ x) for x in v])
    rho = (
        [np.mean([float(v[t] @ v[t + k]) for t in range(T - k)]) / square for k in range(lags)]
        if square
        else [np.nan] * lags
    )
    first = {limit: next((k for k, r in enumerate(rho) if r <= limit), -1) for limit in (0.5, 0.1)}
    return {
        "bias": bias, "walk_residual": np.array([*(_norm(C[n] - C[0] - n * bias) for n in range(T)), 0.0]),
        "walk_envelope": np.array([s * math.sqrt(n) for n in range(T + 1)]),
        "walk_bridge": np.array([s * math.sqrt(n * (T - n) / T) for n in range(T + 1)]),
        "bias_to_noise": np.array(_norm(C[-1] - C[0]) / (s * math.sqrt(T)) if s > 0 else math.nan),
        "bulk_autocorrelation": np.array(rho), "half_lag": np.array(first[0.5]), "tenth_lag": np.array(first[0.1]),
    }  # fmt: skip


def spectrum(step: Array) -> dict[str, Array]:
    """By the singular values of the centred rows, in extended precision where numpy has it only for sums."""
    x = step.astype(np.float64)
    x = x - np.array([math.fsum(column) / len(column) for column in x.T])
    eigenvalue = np.zeros(x.shape[1])
    values = np.linalg.svd(x, compute_uv=False) ** 2 / (len(x) - 1)
    eigenvalue[: len(values)] = values
    return {
        "eigenvalue": eigenvalue, "std_dim": np.array([math.sqrt(math.fsum(c**2) / (len(x) - 1)) for c in x.T]),
        "total_variance": eigenvalue.sum(), "participation_ratio": eigenvalue.sum() ** 2 / (eigenvalue**2).sum(),
    }  # fmt: skip


def differences(A: Array, B: Array) -> dict[str, Array]:
    """Two runs of the same steps and tokens; both of one dtype."""
    bits = [np.ascontiguousarray(x).view(f"u{x.dtype.itemsize}") for x in (A, B)]
    differ = bits[0] != bits[1]
    a, b = A.astype(np.float64), B.astype(np.float64)
    valid = np.isfinite(a).all(2) & np.isfinite(b).all(2)
    with np.errstate(invalid="ignore"):
        apart = np.abs(a - b)
    far = np.where(valid, np.sqrt((np.where(valid[..., None], apart, 0) ** 2).sum(2)), np.nan)
    tokens = differ.any(2)
    first = [int(np.flatnonzero(t)[0]) if t.any() else -1 for t in tokens.T]
    begun = np.flatnonzero(tokens.any(1))
    return {
        "n_different": differ.sum((1, 2)), "n_unequal": (a != b).sum((1, 2)), "n_different_tokens": tokens.sum(1),
        "different_fraction": tokens.mean(1), "n_invalid": (~valid).sum(1), "distance": far,
        "frobenius": np.where(valid.any(1), np.sqrt(np.nansum(far**2, axis=1)), np.nan),
        "difference_max": np.array([apart[t][valid[t]].max() if valid[t].any() else np.nan for t in range(len(a))]),
        "token_first_difference": np.array(first), "first_difference": np.array(begun[0] if begun.size else -1),
        "n_common_prefix": np.array(begun[0] if begun.size else len(a)), "n_equal": np.array((~differ).sum()),
        "n_elements": np.array(differ.size),
    }  # fmt: skip
