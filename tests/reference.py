"""The analyses once more, written from their definitions in plain numpy float64, without the package.

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
