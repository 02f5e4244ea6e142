"""How elements step on the lattice: how many numbers far, across exponents, by whole cells, to and from zero."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr

from deadtok_xr.analyses.common import cells, checks, per_step, summary_text, transitions
from deadtok_xr.analyses.registry import Picture, built_in
from deadtok_xr.engine import AnalysisSpec, ReductionResults
from deadtok_xr.engine.small_results import Arrays, compute_together

_STEP = "ΔW'[t] = (W[t] - W[t-1]) / ULP(W[t-1])"
_HOPS = "frozen: d = 0; lattice: d <= 8·u; thermal: the rest; d = ‖ΔW‖₂, u the token's ULP at t-1"
_REGIMES = (
    "frozen: ΔW = 0; quantum: more than 70% of the dims moved by a whole number of ULP (0 among them), and "
    "‖ΔW‖₂ < 10·mean_d ULP(W[t-1]); classical: the rest"
)
ATTRS: dict[str, dict[str, Any]] = {
    "ordinal_l1": {
        "long_name": "representable numbers passed, over all dims", "units": "1",
        "formula": "Σ_d |ordinal(W[t]) - ordinal(W[t-1])|", "comment": "-1 where W[t] or W[t-1] holds NaN or infinity",
    },
    "ordinal_linf": {
        "long_name": "most representable numbers passed in a dim", "units": "1",
        "formula": "max_d |ordinal(W[t]) - ordinal(W[t-1])|",
        "comment": "-1 where W[t] or W[t-1] holds NaN or infinity",
    },
    "exponent_crossings": {
        "long_name": "dims whose exponent changed", "units": "1", "formula": "#{d: E[t] ≠ E[t-1]}",
        "comment": "-1 where W[t] or W[t-1] holds NaN or infinity",
    },
    "moved_fraction": {
        "long_name": "share of the elements that moved", "units": "1", "formula": "n_moved / n_elements",
    },
    "lattice_mean": {
        "long_name": "mean lattice displacement of the elements", "units": "ULP", "formula": f"mean |ΔW'|, {_STEP}",
        "comment": "elements that stand still count as 0",
    },
    "lattice_max": {
        "long_name": "largest lattice displacement of an element", "units": "ULP", "formula": f"max |ΔW'|, {_STEP}",
    },
    "half_fraction": {
        "long_name": "share of the moved elements that moved by half cells", "units": "1",
        "formula": f"#{{|ΔW'| mod 1 = 1/2}} / n_moved, {_STEP}",
    },
    "fractional_fraction": {
        "long_name": "share of the moved elements that moved by no whole number of cells", "units": "1",
        "formula": f"#{{|ΔW'| mod 1 ≠ 0}} / n_moved, {_STEP}",
    },
    "outward_fraction": {
        "long_name": "share of the moved elements that moved away from zero", "units": "1",
        "formula": "#{|W[t]| > |W[t-1]|} / n_moved",
    },
    "crossing_fraction": {
        "long_name": "share of the elements whose exponent changed", "units": "1",
        "formula": "#{E[t] ≠ E[t-1]} / n_elements",
    },
    "l2_over_l1": {
        "long_name": "mean shape of the moved tokens' lattice displacement, L2 to L1", "units": "1",
        "formula": "mean_i ‖ΔW'‖₂ / ‖ΔW'‖₁",
        "comment": "1/√D if all dims move alike, 1 if one moves; NaN if none moved",
    },
    "linf_over_l2": {
        "long_name": "mean shape of the moved tokens' lattice displacement, L∞ to L2", "units": "1",
        "formula": "mean_i ‖ΔW'‖∞ / ‖ΔW'‖₂",
        "comment": "1/√D if all dims move alike, 1 if one moves; NaN if none moved",
    },
    "hop_fraction": {
        "long_name": "share of the valid tokens by size of their hop", "units": "1", "formula": _HOPS,
        "comment": "token_ulp mean: mean_d ULP; mean_upward: mean_d of the gap towards +∞ (half at negative powers of "
        "two), as notebooks 1.27c to 1.30c; largest: max_d ULP, as 1.13a and 1.17b",
    },
    "regime_fraction": {
        "long_name": "share of the valid tokens by regime of motion", "units": "1", "formula": _REGIMES,
        "comment": "notebook 1.24b with the exact ULP; its own, by frexp, was twice as large",
    },
    "n_moved": {"long_name": "elements that moved", "units": "1", "formula": "#{W[t] ≠ W[t-1]}"},
    "n_outward": {"long_name": "elements that moved away from zero", "units": "1", "formula": "#{|W[t]| > |W[t-1]|}"},
    "n_upward": {"long_name": "elements that moved towards +∞", "units": "1", "formula": "#{W[t] > W[t-1]}"},
    "n_half": {"long_name": "elements that moved by half cells", "units": "1", "formula": "#{|ΔW'| mod 1 = 1/2}"},
    "n_fractional": {
        "long_name": "elements that moved by no whole number of cells", "units": "1", "formula": "#{|ΔW'| mod 1 ≠ 0}",
        "comment": "inwards across a power of two, where cells become smaller",
    },
    "n_crossings_up": {"long_name": "elements whose exponent grew", "units": "1", "formula": "#{E[t] > E[t-1]}"},
    "n_crossings_down": {"long_name": "elements whose exponent fell", "units": "1", "formula": "#{E[t] < E[t-1]}"},
    "n_sign_changes": {"long_name": "elements that changed their sign", "units": "1", "formula": "#{W[t]·W[t-1] < 0}"},
    "n_from_zero": {"long_name": "elements that left zero", "units": "1", "formula": "#{W[t-1] = 0, W[t] ≠ 0}"},
    "n_to_zero": {"long_name": "elements that came to zero", "units": "1", "formula": "#{W[t-1] ≠ 0, W[t] = 0}"},
    "n_elements": {"long_name": "elements of the valid tokens", "units": "1"},
    "n_invalid": {"long_name": "tokens with NaN or infinity at t - 1 or t, which are left out", "units": "1"},
}  # fmt: skip
_OF_STEPS = tuple(name for name in ATTRS if name not in cells.PER_TOKEN)


@built_in
def lattice(
    ds: xr.Dataset, *, variable: str = "W", precision: str | None = None, allow_gaps: bool = False
) -> AnalysisSpec:
    """How elements step on the lattice of representable numbers.

    The norms of ΔW' itself are in `motion`; `exponents` has where elements are; `elements` has ΔW', ordinals and
    exponents of every element, lazily.

    Parameters
    ----------
    ds
        A recording, (step, token, dim).
    variable, precision, allow_gaps
        As for `motion`.

    Returns
    -------
    xarray.Dataset
        Lazy dataset over t = 1..T. Per (step, token), int64 and -1 where a value is not finite: `ordinal_l1`,
        `ordinal_linf`, the numbers of the format that were passed, and `exponent_crossings`. Per step, float64: shares
        of elements `moved_fraction`, `half_fraction`, `fractional_fraction`, `outward_fraction`, `crossing_fraction`;
        `lattice_mean`, `lattice_max` of |ΔW'|; `l2_over_l1`, `linf_over_l2`, the shape of displacements; `hop_fraction`
        (step, token_ulp, hop) and `regime_fraction` (step, regime). Counts of elements, int64: `n_moved`, `n_outward`,
        `n_upward`, `n_half`, `n_fractional`, `n_crossings_up`, `n_crossings_down`, `n_sign_changes`, `n_from_zero`,
        `n_to_zero`, `n_elements`; and of tokens, `n_invalid`. A share of nothing is NaN.

    Raises
    ------
    InputError
        For fewer than two steps, gaps, or a recording without absolute positions or without a lattice.
    OffGridError
        When computed, if the values are not on the grid.

    Notes
    -----
    -0 and +0 are one place. ΔW' is formed in float64: it reaches 1e37 at W = 0, where float32 overflows and notebooks
    that replaced what is not finite by 0 took such a step for frozen. Ordinals ascend through zero and across
    exponents; lattice coordinates W/ULP(W) do not, and are not used here.
    """
    x = checks.require(ds, variable, "lattice")
    extra = checks.check_steps(ds, "lattice", allow_gaps=allow_gaps)
    grid = transitions.grid_name(x, precision)

    def finish(found: ReductionResults) -> xr.Dataset:
        labels = {"token_ulp": list(cells.TOKEN_ULPS), "hop": list(cells.HOPS), "regime": list(cells.REGIMES)}
        attrs = checks.result_attrs(ds, variable=variable, precision=grid)
        inputs = {"series": per_step.chained(found, "cells")}
        shapes = cells.steps_of(grid, ds.sizes["step"] - 1, _OF_STEPS)
        small = compute_together(inputs, _transitions, shapes, ATTRS)
        values = {**found.variables("cells", ATTRS), **small, **extra}
        return xr.Dataset(values, {**transitions.step_and_token_coords(ds), **labels}, attrs)

    return AnalysisSpec(cells.matrix(x), {"cells": cells.Cells(variable, grid)}, finish)


def _transitions(inputs: dict[str, list[Any]]) -> Arrays:
    return per_step.joined(inputs["series"], _OF_STEPS)


STATE_ATTRS: dict[str, dict[str, Any]] = {
    "exponent_count": {
        "long_name": "elements by exponent", "units": "1", "formula": "#{E[t] = e}, E the exponent field",
        "comment": "0: zero and subnormals",
    },
    "mantissa_count": {
        "long_name": "elements by mantissa", "units": "1", "formula": "#{the leading 7 bits of the mantissa = m}",
        "comment": "without zero and subnormals; of bfloat16 that is all of it, and ULP/|W| = 1/(128 + m)",
    },
    "n_zero": {"long_name": "elements that are exactly zero", "units": "1", "formula": "#{W = ±0}"},
    "n_negative": {"long_name": "elements below zero", "units": "1", "formula": "#{W < 0}"},
    "n_power_of_two": {
        "long_name": "elements at a power of two, where cells are smaller inwards", "units": "1",
        "formula": "#{|W| = 2^k}",
    },
    "ulp_min": {"long_name": "smallest ULP of an element", "units": "1", "formula": "min ULP(W)"},
    "ulp_max": {"long_name": "largest ULP of an element", "units": "1", "formula": "max ULP(W)"},
    "n_invalid": {"long_name": "tokens with NaN or infinity at t, which are left out", "units": "1"},
}  # fmt: skip
_OF_STATES = tuple(STATE_ATTRS)[2:]


@built_in
def exponents(ds: xr.Dataset, *, variable: str = "W", precision: str | None = None) -> AnalysisSpec:
    """Where the elements are on the lattice: their exponents, mantissas, zeros and powers of two.

    Parameters
    ----------
    ds
        A recording, (step, token, dim); one step is enough, and gaps do not matter.
    variable, precision
        As for `motion`.

    Returns
    -------
    xarray.Dataset
        Lazy dataset over all steps, of the elements of tokens without NaN or infinity. int64: `exponent_count` (step,
        exponent), `mantissa_count` (step, mantissa), `n_zero`, `n_negative`, `n_power_of_two`, and `n_invalid` tokens.
        float64: `ulp_min`, `ulp_max`, NaN where no token is valid.

    Raises
    ------
    InputError
        For a recording without absolute positions or without a lattice.
    OffGridError
        When computed, if the values are not on the grid.
    """
    x = checks.require(ds, variable, "exponents")
    grid = transitions.grid_name(x, precision)

    def finish(found: ReductionResults) -> xr.Dataset:
        values = found.variables("cells", STATE_ATTRS)
        inputs = {"series": per_step.chained(found, "cells")}
        shapes = cells.steps_of(grid, ds.sizes["step"], _OF_STATES)
        values |= compute_together(inputs, _states, shapes, STATE_ATTRS)
        labels = {
            "exponent": np.arange(values["exponent_count"].sizes["exponent"]),
            "mantissa": np.arange(cells.MANTISSAS),
        }
        attrs = checks.result_attrs(ds, variable=variable, precision=grid)
        return xr.Dataset(values, {**cells.step_coords(ds), **labels}, attrs)

    return AnalysisSpec(cells.matrix(x), {"cells": cells.Cells(variable, grid)}, finish)


def _states(inputs: dict[str, list[Any]]) -> Arrays:
    names = tuple("n_invalid_now" if name == "n_invalid" else name for name in _OF_STATES)
    found = per_step.joined(inputs["series"], names)
    return {name: found[key] for name, key in zip(_OF_STATES, names, strict=True)}


@lattice.summarize
def _summary(ds: xr.Dataset) -> Iterator[str]:
    moved = int(ds["n_moved"].sum())
    crossed = ds["n_crossings_up"] + ds["n_crossings_down"]
    yield (
        f"Lattice: elements moved {moved} times, {_of(ds['n_half'], moved)} by half cells, {_of(crossed, moved)} "
        f"across an exponent, {_of(ds['n_outward'], moved)} outwards; |ΔW'| up to "
        f"{summary_text.largest_value(ds['lattice_max'].values):.4g} ULP"
    )
    yield from summary_text.invalid_steps(ds, "which are left out")


def _of(counts: xr.DataArray, total: int) -> str:
    return f"{100 * int(counts.sum()) / total:.2f}%" if total else "none"


lattice.pictures = (
    Picture(
        "lattice",
        "lattice.lattice",
        "Steps on the lattice",
        "Top: the share of elements that moved, that changed their exponent, and of those that moved, that moved "
        "by half cells, inwards from a power of two. Bottom: tokens by the length of their hop against their mean "
        "ULP.",
    ),
)


@exponents.summarize
def _summary_of_exponents(ds: xr.Dataset) -> Iterator[str]:
    first, last = ds.isel(step=0), ds.isel(step=-1)
    zeros, powers = ([int(at[name]) for at in (first, last)] for name in ("n_zero", "n_power_of_two"))
    yield (
        f"Elements, first and last: {zeros[0]}, {zeros[1]} exactly zero; {powers[0]}, {powers[1]} at powers of 2; ULP "
        f"{_gaps(first)}, {_gaps(last)}"
    )


def _gaps(ds: xr.Dataset) -> str:
    return f"[{float(ds['ulp_min']):.4g}, {float(ds['ulp_max']):.4g}]"


exponents.pictures = (
    Picture(
        "exponents",
        "lattice.exponents",
        "Where on the lattice the elements are",
        "Each column is a step, each row an exponent, twice as large as the one below it. The brighter a place, "
        "the more elements have that exponent; white means none.",
    ),
)
