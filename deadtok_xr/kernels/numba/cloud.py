"""Measure how tokens move together and separately: sizes, directions, persistence. Tokens at rest cost no time.

For the displacements ΔW of N tokens, their mean ΔC and the directions between them:

kinetic_energy       Σ ‖ΔW‖₂² / 2
participation        (Σ ‖ΔW‖₂)² / (N Σ ‖ΔW‖₂²): 1 if all move equally far, 1/N if one does
radial, tangential   c = ΔW·W[t-1] / (‖ΔW‖₂ ‖W[t-1]‖₂) and √(1 - c²)
temperature          mean ‖ΔW - ΔC‖₂²
lag 1                the cosine of a token's displacement with the one before
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.kernels.numba.bit_words import to_float64
from deadtok_xr.kernels.numba.jit import compiled, inner, inner_sums

QUARTILES = (0.25, 0.5, 0.75)
SUMS = (
    "n_valid", "n_moving", "total_l2", "total_l1", "kinetic_energy", "displacement_max", "temperature_linf",
    "l2_over_linf", "participation", "radial_mean", "tangential_mean", "outward_fraction", "inward_fraction",
)  # fmt: skip
"""Sums over the displacements of a transition, of tokens that are finite at both steps."""
SHEAR = ("bulk_speed", "thermal_speed_mean", "temperature", "n_aligned")
"""Measures of the displacements relative to their mean."""
LAG = (
    "lag1_mean", "lag1_low", "lag1_median", "lag1_high", "n_lag1", "n_lag1_one_rests", "n_lag1_both_rest",
)  # fmt: skip
"""Measures of the cosines between the displacements of a transition and those of the one before it."""
_ALIGNED = 0.9


class PreviousTransition:
    """What a transition needs from the one before it: the step at its beginning, and how far each token moved.

    Parameters
    ----------
    steps
        (t, n, d), of which the first step is used.
    """

    def __init__(self, steps: NDArray[Any]) -> None:
        self.step: NDArray[Any] | None = None
        self.lengths = np.full(steps.shape[1], np.nan)
        self.norms = np.empty(steps.shape[1])
        _norms(steps, self.norms)

    def keep(self, step: NDArray[Any]) -> None:
        """Keep a step for the next transition, in the memory of the one before."""
        if self.step is None:
            self.step = np.empty_like(step)
        self.step[:] = step


class Displacements(NamedTuple):
    """The displacements of a transition, by token (n,). Tokens that rest or are not finite have ``l2`` alone."""

    l2: NDArray[np.float64]
    """0 at rest, NaN where a value is not finite at either step."""
    squares: NDArray[np.float64]
    """‖ΔW‖₂²."""
    l1: NDArray[np.float64]
    linf: NDArray[np.float64]
    radial: NDArray[np.float64]
    """The cosine between ΔW and W[t-1]; NaN where W[t-1] is 0."""


def cloud_steps(
    steps: NDArray[Any],
    changed: NDArray[np.bool_],
    before: PreviousTransition,
    totals: NDArray[np.float64],
    out: dict[str, NDArray[Any]],
) -> None:
    """Fill ``out`` with the transitions between steps.

    Parameters
    ----------
    steps
        (t + 1, n, d), floats or bfloat16 words.
    changed
        Which rows differ from the step before, (t, n).
    before
        The transition before the first step; updated to the last one.
    totals
        (2, n), added to: the sums over transitions of ‖ΔW‖₂ and of its square; NaN where a value was not finite.
    out
        Arrays of zeros, (t,): `SUMS`, `SHEAR` and `LAG`. States, (t,) or (t + 1,): origin_radius, origin_radius_max.
    """
    n, d = steps.shape[1:]
    for t in range(len(changed)):
        _fill_state(before.norms, out, t)
        lengths, bulk = np.zeros(n), np.zeros(d)
        sums = _transition(steps, t, changed, before.norms, bulk, lengths)
        for names, found in ((SUMS, sums), (SHEAR, _shear(steps, t, lengths, bulk))):
            for name, value in zip(names, found, strict=True):
                out[name][t] = value
        earlier = before.step if t == 0 else steps[t - 1]
        if earlier is not None:
            lag_one(earlier, steps[t], steps[t + 1], before.lengths, lengths, out, t)
        _add(totals, lengths)
        before.lengths = lengths
    if len(out["origin_radius"]) > len(changed):
        _fill_state(before.norms, out, len(changed))
    if len(steps) > 1:
        before.keep(steps[-2])


def _fill_state(norms: NDArray[np.float64], out: dict[str, NDArray[Any]], t: int) -> None:
    out["origin_radius"][t], out["origin_radius_max"][t] = _mean_and_max(norms)


@compiled
def _mean_and_max(norms):
    """Return the mean and the maximum of the norms that are finite; NaN if none is."""
    total = 0.0
    largest = -1.0
    n = 0
    for x in norms:
        if np.isfinite(x):
            total += x
            n += 1
            largest = max(largest, x)
    return (total / n, largest) if n else (np.nan, np.nan)


@compiled
def _add(totals, lengths):
    for n in range(len(lengths)):
        totals[0, n] += lengths[n]
        totals[1, n] += lengths[n] * lengths[n]


@compiled
def _norms(steps, norms):
    for n in range(steps.shape[1]):
        norms[n] = np.sqrt(_square(steps, 0, n))


@inner_sums
def _square(steps, t, n):
    total = 0.0
    for d in range(steps.shape[2]):
        total += to_float64(steps[t, n, d]) * to_float64(steps[t, n, d])
    return total


@compiled
def _transition(steps, t, changed, norms, bulk, lengths):
    """Return the `SUMS` of a transition; fill in the length of each displacement, and update the norms."""
    N = len(lengths)
    moves = Displacements(lengths, np.empty(N), np.empty(N), np.empty(N), np.empty(N))
    _displacements(steps, t, changed, norms, bulk, moves)
    return _summarize(moves)


@inner
def _displacements(steps, t, changed, norms, bulk, moves):
    """Fill in the displacement of each token, add them to ``bulk``, and update the norms."""
    lengths = moves.l2
    for n in range(steps.shape[1]):
        before = norms[n]
        l1, square, radial = 0.0, 0.0, 0.0
        if changed[t, n]:
            l1, square, after, radial = _sums(steps, t, n, bulk)
            norms[n] = np.sqrt(after)
        if not (np.isfinite(before) and np.isfinite(norms[n])):
            lengths[n] = np.nan
        elif square > 0:  # not from -0 to +0
            length = np.sqrt(square)
            lengths[n], moves.squares[n], moves.l1[n] = length, square, l1
            moves.linf[n] = _largest(steps, t, n)
            moves.radial[n] = min(max(radial / (before * length), -1.0), 1.0) if before > 0 else np.nan


@inner_sums
def _sums(steps, t, n, bulk):
    """Return ‖ΔW‖₁, ‖ΔW‖₂², ‖W[t]‖₂² and ΔW·W[t-1] of a token; add its displacement to ``bulk``."""
    l1 = 0.0
    squares = 0.0
    after = 0.0
    outwards = 0.0
    for d in range(steps.shape[2]):
        a, b = to_float64(steps[t, n, d]), to_float64(steps[t + 1, n, d])
        step = b - a
        bulk[d] += step
        l1 += abs(step)
        squares += step * step
        after += b * b
        outwards += step * a
    return l1, squares, after, outwards


@inner
def _largest(steps, t, n):
    """Return ‖ΔW‖∞ of a token, as a maximum of integers: the bits of non-negative floats ascend with their values."""
    top = np.int64(0)
    for d in range(steps.shape[2]):
        step = abs(to_float64(steps[t + 1, n, d]) - to_float64(steps[t, n, d]))
        top = max(top, np.float64(step).view(np.int64))
    return np.int64(top).view(np.float64)


@inner
def _summarize(moves):
    """Return the `SUMS` of a transition."""
    lengths = moves.l2
    n_valid = n_moving = n_radial = n_outward = n_inward = 0
    l2 = l1 = squares = largest = linf = ratio = radial = tangential = 0.0
    for n in range(len(lengths)):
        length = lengths[n]
        n_valid += not np.isnan(length)
        if not length > 0:
            continue
        n_moving += 1
        l1 += moves.l1[n]
        l2 += length
        squares += moves.squares[n]
        largest = max(largest, length)
        linf += moves.linf[n]
        ratio += length / moves.linf[n]
        cosine = moves.radial[n]
        if not np.isnan(cosine):
            n_radial += 1
            radial += cosine
            tangential += np.sqrt(1 - cosine * cosine)
            n_outward += cosine > 0
            n_inward += cosine < 0
    nan = np.nan
    return (
        n_valid,
        n_moving,
        l2 if n_valid else nan,
        l1 if n_valid else nan,
        squares / 2 if n_valid else nan,
        largest if n_valid else nan,
        linf / n_valid if n_valid else nan,
        ratio / n_moving if n_moving else nan,
        l2 * l2 / (n_valid * squares) if n_moving else nan,
        radial / n_radial if n_radial else nan,
        tangential / n_radial if n_radial else nan,
        n_outward / n_radial if n_radial else nan,
        n_inward / n_radial if n_radial else nan,
    )


@compiled
def _shear(steps, t, lengths, bulk):
    """Return the `SHEAR` of a transition: ‖ΔC‖₂, the means of ‖ΔW - ΔC‖₂ and of its square, and how many tokens move
    along with ΔC, with a cosine above 0.9; NaN and -1 if a token is not finite.

    ``bulk`` is the sum of the displacements; it is divided in place to become ΔC.
    """
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
        if np.isnan(lengths[n]):
            return np.nan, np.nan, np.nan, -1
        if lengths[n] == 0:
            resting += 1
            continue
        own, along = _beside_bulk(steps, t, n, bulk)
        total += np.sqrt(own)
        heat += own
        aligned += along > _ALIGNED * speed * lengths[n]
    return speed, (total + resting * speed) / N, (heat + resting * squares) / N, aligned


@inner_sums
def _beside_bulk(steps, t, n, bulk):
    """Return ‖ΔW - ΔC‖₂² and ΔW·ΔC of a token."""
    own = 0.0
    along = 0.0
    for d in range(steps.shape[2]):
        step = to_float64(steps[t + 1, n, d]) - to_float64(steps[t, n, d])
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
    """Fill in `LAG` at t: the cosines between the displacements of two consecutive transitions.

    Parameters
    ----------
    first, second, third
        Three consecutive steps, (n, d).
    lengths, later
        The lengths of the displacements first → second and second → third, (n,); NaN where a value is not finite.
    out
        Arrays (t,) to fill: see `LAG`.
    t
        The position in these arrays.
    """
    cosines = np.empty(len(first))
    n, *resting = list_cosines(first, second, third, lengths, later, cosines)
    describe_cosines(cosines[:n], np.array(resting), out, t)


def describe_cosines(
    cosines: NDArray[np.float64], rest: NDArray[np.int64], out: dict[str, NDArray[Any]], t: int
) -> None:
    """Fill in `LAG` at t from the cosines, and from how many tokens rest once, and twice."""
    out["n_lag1"][t], out["n_lag1_one_rests"][t], out["n_lag1_both_rest"][t] = len(cosines), *rest
    out["lag1_mean"][t] = out["lag1_low"][t] = out["lag1_median"][t] = out["lag1_high"][t] = np.nan
    if len(cosines):
        out["lag1_mean"][t] = cosines.mean()
        out["lag1_low"][t], out["lag1_median"][t], out["lag1_high"][t] = np.quantile(cosines, QUARTILES)


@compiled
def list_cosines(first, second, third, lengths, later, cosines):
    """List the cosines of tokens that move both times; return how many do, and how many rest once, and twice."""
    n = one_rests = both_rest = 0
    for i in range(len(first)):
        if np.isnan(lengths[i]) or np.isnan(later[i]):
            continue
        if lengths[i] > 0 and later[i] > 0:
            dot = _dot(first, second, third, i)
            cosines[n] = min(max(dot / (lengths[i] * later[i]), -1.0), 1.0)
            n += 1
        elif lengths[i] > 0 or later[i] > 0:
            one_rests += 1
        else:
            both_rest += 1
    return n, one_rests, both_rest


@inner_sums
def _dot(first, second, third, n):
    """Return the product of a token's two displacements."""
    total = 0.0
    for d in range(first.shape[1]):
        middle = to_float64(second[n, d])
        total += (middle - to_float64(first[n, d])) * (to_float64(third[n, d]) - middle)
    return total
