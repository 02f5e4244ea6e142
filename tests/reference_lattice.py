"""References of lattice, cloud and runs, from their definitions in plain numpy float64, one step and token at a time.

Shares no code with `deadtok_xr`; formats are described by their mantissa bits and smallest exponent.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.reference import ulp

Array = NDArray[Any]
BFLOAT16, FLOAT16, FLOAT32 = (7, -126), (10, -14), (23, -126)


def field(x: float, smallest: int) -> int:
    """The exponent field: 0 for zero and subnormals."""
    return max(math.frexp(x)[1] - 1 - smallest + 1, 0) if x else 0


def ordinal(x: float, mantissa: int, smallest: int) -> int:
    """The number of representable values between 0 and x, counted by scaling, not by bits."""
    size = abs(x)
    e = field(x, smallest)
    inside = size / 2.0 ** (smallest - mantissa) if e == 0 else (size / 2.0 ** (e + smallest - 1) - 1) * 2**mantissa
    return int(math.copysign(e * 2**mantissa + inside, x)) if x else 0


def upward_gap(x: Array, mantissa: int, smallest: int) -> Array:
    """The gap from x towards +∞."""
    gap = ulp(x, mantissa, smallest)
    at_power = np.isin(np.frexp(x)[0], (-0.5,)) & (np.abs(x) > 2.0**smallest)
    return np.where((x < 0) & at_power, gap / 2, gap)


def lattice(W: Array, mantissa: int = 7, smallest: int = -126) -> dict[str, Array]:
    rows = [_transition(a, b, mantissa, smallest) for a, b in zip(W[:-1].astype("f8"), W[1:].astype("f8"), strict=True)]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def _transition(before: Array, after: Array, mantissa: int, smallest: int) -> dict[str, Any]:
    N = len(before)
    valid = np.isfinite(before).all(1) & np.isfinite(after).all(1)
    one, two = before[valid].ravel(), after[valid].ravel()
    cells = np.abs(two - one) / ulp(one, mantissa, smallest)
    moved, part = two != one, cells % 1
    E0, E1 = (np.array([field(v, smallest) for v in x], int) for x in (one, two))
    counts = {
        "n_moved": moved.sum(), "n_outward": (np.abs(two) > np.abs(one)).sum(), "n_upward": (two > one).sum(),
        "n_half": (part == 0.5).sum(), "n_fractional": (part != 0).sum(), "n_crossings_up": (E1 > E0).sum(),
        "n_crossings_down": (E1 < E0).sum(), "n_sign_changes": (np.sign(one) * np.sign(two) < 0).sum(),
        "n_from_zero": ((one == 0) & moved).sum(), "n_to_zero": ((two == 0) & moved).sum(), "n_elements": len(one),
        "n_invalid": (~valid).sum(),
    }  # fmt: skip
    out: dict[str, Any] = dict(counts)
    total, n = len(one), counts["n_moved"]
    out["moved_fraction"] = n / total if total else np.nan
    out["crossing_fraction"] = (E0 != E1).sum() / total if total else np.nan
    out["half_fraction"] = counts["n_half"] / n if n else np.nan
    out["fractional_fraction"] = counts["n_fractional"] / n if n else np.nan
    out["outward_fraction"] = counts["n_outward"] / n if n else np.nan
    out["lattice_mean"] = cells.mean() if total else np.nan
    out["lattice_max"] = cells.max() if total else np.nan
    hops, regimes, shapes = np.zeros((3, 3)), np.zeros(3), []
    names = ("ordinal_l1", "ordinal_linf", "exponent_crossings")
    out |= {name: np.full(N, -1) for name in names}
    for i in np.flatnonzero(valid):
        a, b = before[i], after[i]
        passed = [
            abs(ordinal(q, mantissa, smallest) - ordinal(p, mantissa, smallest)) for p, q in zip(a, b, strict=True)
        ]
        crossed = sum(field(p, smallest) != field(q, smallest) for p, q in zip(a, b, strict=True))
        out["ordinal_l1"][i], out["ordinal_linf"][i], out["exponent_crossings"][i] = sum(passed), max(passed), crossed
        d = math.sqrt(((b - a) ** 2).sum())
        gaps = ulp(a, mantissa, smallest)
        spacings = (gaps.mean(), upward_gap(a, mantissa, smallest).mean(), gaps.max())
        own = np.abs(b - a) / gaps
        for k, u in enumerate(spacings):
            hops[k, 0 if d == 0 else 1 if d <= 8 * u else 2] += 1
        whole = (own % 1 == 0).mean() > 0.7
        regimes[0 if d == 0 else 1 if whole and d < 10 * gaps.mean() else 2] += 1
        if d:
            l1, l2, top = own.sum(), math.sqrt((own**2).sum()), own.max()
            shapes.append((l2 / l1, top / l2))
    out["l2_over_l1"], out["linf_over_l2"] = np.mean(shapes, axis=0) if shapes else (np.nan, np.nan)
    with np.errstate(invalid="ignore"):
        out["hop_fraction"], out["regime_fraction"] = hops / valid.sum(), regimes / valid.sum()
    return out


def exponents(W: Array, mantissa: int = 7, smallest: int = -126) -> dict[str, Array]:
    rows = []
    n_fields = {7: 255, 10: 31, 23: 255}[mantissa]
    for step in W.astype("f8"):
        valid = np.isfinite(step).all(1)
        x = step[valid].ravel()
        E = np.array([field(v, smallest) for v in x], int)
        frac = np.frexp(np.abs(x))[0][E > 0] * 2 - 1
        gaps = ulp(x, mantissa, smallest)
        rows.append({
            "exponent_count": np.bincount(E, minlength=n_fields),
            "mantissa_count": np.bincount((frac * 128).astype(int), minlength=128),
            "n_zero": (x == 0).sum(), "n_negative": (x < 0).sum(),
            "n_power_of_two": (np.frexp(np.abs(x))[0] == 0.5).sum(), "n_invalid": (~valid).sum(),
            "ulp_min": gaps.min() if len(x) else np.nan, "ulp_max": gaps.max() if len(x) else np.nan,
        })  # fmt: skip
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}
