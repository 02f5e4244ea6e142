"""How tokens move together and each by itself: sizes, directions, persistence. Tokens that rest cost nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.kernels.numba.jit import compiled, compiled_sums

QUARTILES = (0.25, 0.5, 0.75)


class PreviousTransition:
    """What a transition needs to know of the one before it: the step that it began with, and how far it took each."""

    def __init__(self, steps: NDArray[Any]) -> None:
        self.step: NDArray[Any] | None = None
        self.lengths = np.full(steps.shape[1], np.nan)
        self.norms = np.empty(steps.shape[1])
        _norms(steps, self.norms)


def cloud_steps(
    steps: NDArray[Any],
    changed: NDArray[np.bool_],
    before: PreviousTransition,
    totals: NDArray[np.float64],
    out: dict[str, NDArray[Any]],
) -> None:
    """Fill ``out`` with the transitions between steps, and carry ``before`` on.

    Parameters
    ----------
    steps
        (t + 1, n, d), float32 or float64.
    changed
        Which rows differ from the step before, (t, n).
    before
        Of the first step.
    totals
        (2, n), updated: the sums over transitions of ‖ΔW‖ and of its square; NaN where a value was not finite.
    out
        Arrays of zeros, (t,): `SUMS` and `LAG`. States, (t,) or (t + 1,): origin_radius, origin_radius_max.
    """
    for t in range(len(changed)):
        _state(before.norms, out, t)
        earlier = before.step if t == 0 else steps[t - 1]
        speeds = np.zeros(steps.shape[1])
        bulk = np.zeros(steps.shape[2])
        found = _moves(steps, t, changed, speeds, before.norms, bulk)
        for name, value in zip(SUMS, found, strict=True):
            out[name][t] = value
        for name, value in zip(SHEAR, _shear(steps, t, speeds, bulk), strict=True):
            out[name][t] = value
        if earlier is not None:
            lag_one(earlier, steps[t], steps[t + 1], before.lengths, speeds, out, t)
        _add(totals, speeds)
        before.lengths = speeds
    if len(out["origin_radius"]) > len(changed):
        _state(before.norms, out, len(changed))
    before.step = steps[-2].copy() if len(steps) > 1 else None


SUMS = (
    "n_valid", "n_moving", "total_l2", "total_l1", "kinetic_energy", "displacement_max", "temperature_linf",
    "l2_over_linf", "participation", "radial_mean", "tangential_mean", "outward_fraction", "inward_fraction",
)  # fmt: skip
SHEAR = ("bulk_speed", "thermal_speed_mean", "temperature", "n_aligned")
LAG = (
    "lag1_mean", "lag1_low", "lag1_median", "lag1_high", "n_lag1", "n_lag1_one_rests", "n_lag1_both_rest",
)  # fmt: skip


def _state(norms: NDArray[np.float64], out: dict[str, NDArray[Any]], t: int) -> None:
    out["origin_radius"][t], out["origin_radius_max"][t] = _mean_and_most(norms)


@compiled
def _mean_and_most(norms):
    """Of the norms that are finite; NaN if none is."""
    total = 0.0
    most = -1.0
    there = 0
    for x in norms:
        if np.isfinite(x):
            total += x
            there += 1
            most = max(most, x)
    return (total / there, most) if there else (np.nan, np.nan)


@compiled
def _add(totals, speeds):
    for n in range(len(speeds)):
        totals[0, n] += speeds[n]
        totals[1, n] += speeds[n] * speeds[n]


@compiled
def _norms(steps, norms):
    for n in range(steps.shape[1]):
        norms[n] = np.sqrt(_square(steps, 0, n))


@compiled_sums
def _square(steps, t, n):
    total = 0.0
    for d in range(steps.shape[2]):
        total += np.float64(steps[t, n, d]) * np.float64(steps[t, n, d])
    return total


@compiled_sums
def _sums(steps, t, n, bulk):
    """‖ΔW‖₁, ‖ΔW‖₂², ‖W[t]‖₂² and ΔW·W[t-1] of a token, whose displacement is added to ``bulk``."""
    l1 = 0.0
    squares = 0.0
    after = 0.0
    outwards = 0.0
    for d in range(steps.shape[2]):
        a, b = np.float64(steps[t, n, d]), np.float64(steps[t + 1, n, d])
        step = b - a
        bulk[d] += step
        l1 += abs(step)
        squares += step * step
        after += b * b
        outwards += step * a
    return l1, squares, after, outwards


@compiled
def _largest(steps, t, n):
    """‖ΔW‖∞ of a token, by the bits of its elements: those of non-negative floats order as the floats do."""
    top = np.int64(0)
    for d in range(steps.shape[2]):
        step = abs(np.float64(steps[t + 1, n, d]) - np.float64(steps[t, n, d]))
        top = max(top, np.float64(step).view(np.int64))
    return np.int64(top).view(np.float64)


@compiled
def _moves(steps, t, changed, speeds, norms, bulk):
    N = steps.shape[1]
    valid = moving = radial = outward = inward = 0
    l2 = l1 = squares = most = tops = shape = along = across = 0.0
    for n in range(N):
        if not changed[t, n]:
            if np.isfinite(norms[n]):
                valid += 1
            else:
                speeds[n] = np.nan
            continue
        scratch_l1, square, after, outwards = _sums(steps, t, n, bulk)
        before = norms[n]
        norms[n] = np.sqrt(after)
        if not (np.isfinite(before) and np.isfinite(norms[n])):
            speeds[n] = np.nan
            continue
        valid += 1
        if square == 0:
            continue  # -0 and +0
        speed = speeds[n] = np.sqrt(square)
        moving += 1
        l1 += scratch_l1
        l2 += speed
        squares += square
        most = max(most, speed)
        top = _largest(steps, t, n)
        tops += top
        shape += speed / top
        if before > 0:
            share = min(max(outwards / (before * speed), -1.0), 1.0)
            radial += 1
            along += share
            across += np.sqrt(1 - share * share)
            outward += share > 0
            inward += share < 0
    return (
        valid, moving, l2 if valid else np.nan, l1 if valid else np.nan, squares / 2 if valid else np.nan,
        most if valid else np.nan, tops / valid if valid else np.nan, shape / moving if moving else np.nan,
        l2 * l2 / (valid * squares) if moving else np.nan, along / radial if radial else np.nan,
        across / radial if radial else np.nan, outward / radial if radial else np.nan,
        inward / radial if radial else np.nan,
    )  # fmt: skip


@compiled
def _shear(steps, t, speeds, bulk):
    """‖ΔC‖, the means of ‖ΔW - ΔC‖ and of its square, and how many tokens go along with ΔC, by a cosine above 0.9."""
    N = steps.shape[1]
    squares = 0.0
    for d in range(len(bulk)):
        bulk[d] /= N
        squares += bulk[d] * bulk[d]
    speed = np.sqrt(squares)
    if not np.isfinite(speed):
        return np.nan, np.nan, np.nan, -1
    total = 0.0
    heat = 0.0
    aligned = 0
    resting = 0
    for n in range(N):
        if np.isnan(speeds[n]):
            return np.nan, np.nan, np.nan, -1
        if speeds[n] == 0:
            resting += 1
            continue
        own, along = _own(steps, t, n, bulk)
        total += np.sqrt(own)
        heat += own
        aligned += along > 0.9 * speed * speeds[n]
    return speed, (total + resting * speed) / N, (heat + resting * squares) / N, aligned


@compiled_sums
def _own(steps, t, n, bulk):
    own = 0.0
    along = 0.0
    for d in range(steps.shape[2]):
        step = np.float64(steps[t + 1, n, d]) - np.float64(steps[t, n, d])
        own += (step - bulk[d]) * (step - bulk[d])
        along += step * bulk[d]
    return own, along


def lag_one(
    first: NDArray[Any],
    second: NDArray[Any],
    third: NDArray[Any],
    lengths: NDArray[np.float64],
    later: NDArray[np.float64],
    out: dict[str, NDArray[Any]],
    t: int,
) -> None:
    """Fill `LAG` of ``out`` at t: the cosines between the displacements first → second and second → third.

    ``lengths`` and ``later`` are the lengths of these, NaN where a value is not finite.
    """
    cosines = np.empty(len(first))
    n, one, none = _cosines(first, second, third, lengths, later, cosines)
    out["n_lag1"][t], out["n_lag1_one_rests"][t], out["n_lag1_both_rest"][t] = n, one, none
    out["lag1_mean"][t] = out["lag1_low"][t] = out["lag1_median"][t] = out["lag1_high"][t] = np.nan
    if n:
        out["lag1_mean"][t] = cosines[:n].mean()
        out["lag1_low"][t], out["lag1_median"][t], out["lag1_high"][t] = np.quantile(cosines[:n], QUARTILES)


@compiled
def _cosines(first, second, third, lengths, later, cosines):
    n = one = none = 0
    for i in range(len(first)):
        if np.isnan(lengths[i]) or np.isnan(later[i]):
            continue
        if lengths[i] > 0 and later[i] > 0:
            dot = _dot(first, second, third, i)
            cosines[n] = min(max(dot / (lengths[i] * later[i]), -1.0), 1.0)
            n += 1
        elif lengths[i] > 0 or later[i] > 0:
            one += 1
        else:
            none += 1
    return n, one, none


@compiled_sums
def _dot(first, second, third, n):
    total = 0.0
    for d in range(first.shape[1]):
        middle = np.float64(second[n, d])
        total += (middle - np.float64(first[n, d])) * (np.float64(third[n, d]) - middle)
    return total
