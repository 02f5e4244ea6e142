"""The analyses, computed from their definitions in plain numpy float64, without the package.

Everything here takes whole arrays and shares no code with `deadtok_xr`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def ulp(x: Array, mantissa: int = 7, smallest: int = -126) -> Array:
    """The gap above |x| of a format, by frexp: x = m·2^e with m in [0.5, 1)."""
    _, e = np.frexp(np.abs(np.asarray(x, np.float64)))
    gap = np.ldexp(1.0, np.maximum(np.where(x == 0, smallest, e - 1), smallest) - mantissa)
    return np.where(np.isfinite(x), gap, np.nan)


def motion(W: Array) -> dict[str, Array]:
    W = W.astype(np.float64)
    before, after = W[:-1], W[1:]
    valid = np.isfinite(before).all(-1) & np.isfinite(after).all(-1)
    with np.errstate(invalid="ignore", over="ignore"):
        step = after - before
        cells = np.abs(step / ulp(before))
        length = np.sqrt((step**2).sum(-1))
        norm = np.sqrt((before**2).sum(-1))
        out = {
            "displacement": length,
            "displacement_ulp": length / np.maximum(norm / 128, 1e-10),
            "lattice_l1": cells.sum(-1),
            "lattice_l2": np.sqrt((cells**2).sum(-1)),
            "lattice_linf": cells.max(-1),
        }
        for name in (
            "displacement",
            "displacement_ulp",
        ):  # float32 by contract: 1e38 / 1e-10 is infinite there
            out[name] = out[name].astype(np.float32).astype(np.float64)
    out = {k: np.where(valid, v, np.nan) for k, v in out.items()}
    out["moved_dims"] = np.where(valid, (after != before).sum(-1), -1)
    rows = [row[~np.isnan(row)] for row in out["displacement_ulp"]]
    out["displacement_ulp_mean"] = np.array([r.mean() if len(r) else np.nan for r in rows])
    out["displacement_ulp_std"] = np.array([r.std(ddof=1) if len(r) > 1 else np.nan for r in rows])
    out["n_invalid"] = (~valid).sum(1)
    return out


def phases(W: Array, scheme: str) -> tuple[Array, list[int]]:
    m = motion(W)
    if scheme == "lattice":
        conditions = [
            m["lattice_l1"] == 0,
            m["lattice_linf"] <= 1,
            m["lattice_l2"] <= math.sqrt(W.shape[2]),
        ]
    else:
        conditions = [m["displacement_ulp"] < limit for limit in (0.1, 10, 100)]
    valid = m["moved_dims"] >= 0
    left, members = valid.copy(), []
    for condition in conditions:
        members.append(left & condition)
        left &= ~condition
    members.append(left)
    with np.errstate(invalid="ignore"):
        fraction = np.stack([p.sum(1) / valid.sum(1) for p in members], axis=-1)
    begins = []
    for k in range(4):
        over = [t + 1 for t in range(len(fraction)) if fraction[t, : k + 1].sum() > 0.5]
        begins.append(over[0] if over else -1)
    return fraction, begins


def kinematics(W: Array) -> dict[str, Array]:
    W = W.astype(np.float64)
    with np.errstate(invalid="ignore"):
        centroid = W.mean(1)
        centroid[~np.isfinite(centroid)] = np.nan
        bulk = np.full_like(centroid, np.nan)
        bulk[1:] = centroid[1:] - centroid[:-1]
        step = np.full_like(W, np.nan)
        step[1:] = W[1:] - W[:-1]
        thermal = step - bulk[:, None]
        distance = np.sqrt(((W - centroid[:, None]) ** 2).sum(-1))
        return {
            "centroid": centroid,
            "bulk_velocity": bulk,
            "bulk_speed": np.sqrt((bulk**2).sum(-1)),
            "thermal_rms": np.sqrt((thermal**2).sum(-1).mean(1)),
            "radius": distance.mean(1),
            "radius_max": distance.max(1),
            "n_invalid": (~np.isfinite(W).all(-1)).sum(1),
            "position": W,
            "thermal_velocity": thermal,
        }


def topology(W: Array, bf16_centroid: Array, *, linked: bool = False) -> dict[str, Array]:
    """The notebook's dense graph, with exact distances; ``bf16_centroid`` (step, dim) as float values."""
    from scipy.sparse.csgraph import connected_components

    rows = []
    for positions, centre in zip(W.astype(np.float64), bf16_centroid, strict=True):
        threshold = ulp(centre).mean()
        if not np.isfinite(positions).all():
            rows.append((threshold, np.nan, -1, -1, -1))
            continue
        distance = np.abs(positions[:, None] - positions[None]).max(-1)
        adjacent = (distance <= threshold) & ((distance > 0) | linked)
        np.fill_diagonal(adjacent, False)
        n = len(positions)
        count, labels = connected_components(adjacent, directed=False)
        sizes = np.bincount(labels)
        density = adjacent.sum() / 2 / (n * (n - 1) / 2) if n > 1 else 0.0
        rows.append((threshold, density, sizes.max(), (sizes == 1).sum(), count))
    names = ("mean_ulp", "density", "largest_component", "n_singletons", "n_components")
    return {name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def round_to_bfloat16(x: Array) -> Array:
    """float64 → float32 → bfloat16 by round to nearest, ties to even, on the bits; values as float64."""
    bits = np.asarray(x, np.float64).astype(np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16
    return rounded.astype(np.uint32).view(np.float32).astype(np.float64)


def assert_agree(found: Array, expected: Array, name: str = "") -> None:
    """Two results agree when |a - b| <= 1e-5·|b| + 1e-12·max|b|; integers and NaN positions exactly."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape, (name, found.shape, expected.shape)
    if found.dtype.kind in "iub":
        np.testing.assert_array_equal(found, expected, err_msg=name)
        return
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected), err_msg=name)
    there = np.isfinite(expected)
    np.testing.assert_array_equal(found[~there & ~np.isnan(expected)], expected[~there & ~np.isnan(expected)])
    a, b = found[there].astype(np.float64), expected[there].astype(np.float64)
    scale = np.abs(b).max(initial=0.0)
    assert (np.abs(a - b) <= 1e-5 * np.abs(b) + 1e-12 * scale).all(), (name, np.abs(a - b).max())


def pairs(rows: Array) -> dict[str, float]:
    """Mean and deviation of the cosines of every pair, one pair at a time in extended precision."""
    x = rows[np.isfinite(rows).all(1)].astype(np.longdouble)
    norm = np.sqrt((x**2).sum(1))
    x = x[norm > 0] / norm[norm > 0][:, None]
    i, j = np.triu_indices(len(x), 1)
    if not len(i):
        return {"mean": np.nan, "std": np.nan, "n_used": len(x)}
    c = (x[i] * x[j]).sum(1)
    return {"mean": float(c.mean()), "std": float(np.sqrt(((c - c.mean()) ** 2).mean())), "n_used": len(x)}


def cos(a: Array, b: Array) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    sizes = math.sqrt((a**2).sum()) * math.sqrt((b**2).sum())
    return float((a * b).sum() / sizes) if sizes > 0 else np.nan


def coherence(ds: dict[str, Array]) -> dict[str, Array]:
    """Every variable whose inputs are in ``ds``, step by step and token by token."""
    W, rows = ds["W"].astype(np.float64), []
    for t in range(1, len(W)):
        step = W[t] - W[t - 1]
        finite = np.isfinite(step).all(1)
        bulk = step[finite].mean(0)
        moved = pairs(step)
        out = {
            "displacement_cosine_mean": moved["mean"], "displacement_cosine_std": moved["std"],
            "n_used": moved["n_used"], "n_invalid": (~finite).sum(),
            "bulk_alignment": _mean([cos(v, bulk) for v in step[finite] if v.any()]),
        }  # fmt: skip
        if "h_mean" in ds:
            out["h_alignment"] = cos(bulk, -ds["h_mean"][t])
            out["h_norm_ratio"] = ds["h_norm"][t] / math.sqrt(W.shape[2])
        if "update" in ds:
            u = pairs(ds["update"][t])
            out |= {"update_cosine_mean": u["mean"], "update_cosine_std": u["std"], "update_n_used": u["n_used"]}
        if "grad" in ds:
            out |= _gradients(ds, t, step)
        if "dead" in ds and ds["dead"].any() and not ds["dead"].all():
            a, b = W[t][ds["dead"]].mean(0), W[t][~ds["dead"]].mean(0)
            out["separation"], out["separation_cosine"] = math.sqrt(((a - b) ** 2).sum()), cos(a, b)
            out["dead_centroid_norm"], out["live_centroid_norm"] = (math.sqrt((v**2).sum()) for v in (a, b))
        rows.append(out)
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def _gradients(ds: dict[str, Array], t: int, step: Array) -> dict[str, Any]:
    g = ds["grad"][t].astype(np.float64)
    found, mean = pairs(g), g.mean(0)
    both = [(s, v) for s, v in zip(step, g, strict=True) if np.isfinite(s).all() and s.any() and v.any()]
    out = {
        "gradient_cosine_mean": found["mean"], "gradient_cosine_std": found["std"], "gradient_n_used": found["n_used"],
        "gradient_norm_mean": np.mean([math.sqrt((v**2).sum()) for v in g]),
        "mean_gradient_norm": math.sqrt((mean**2).sum()),
        "gradient_update_cosine": _mean([cos(s, -v) for s, v in both]),
        "gradient_h_alignment": cos(mean, ds["h_mean"][t]),
    }  # fmt: skip
    if "p_h_dead" in ds and ds["dead"].any():
        law, of_dead = ds["p_h_dead"][t].astype(np.float64), g[ds["dead"]].mean(0)
        out["gradient_p_h_alignment"] = cos(of_dead, law)
        out["gradient_p_h_deviation"] = math.sqrt(((of_dead - law) ** 2).sum() / (law**2).sum())
    return out


def _mean(values: list[float]) -> float:
    there = [v for v in values if not math.isnan(v)]
    return float(np.mean(there)) if there else np.nan
