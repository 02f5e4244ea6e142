"""Measure how elements move on the lattice of representable numbers, and where on it they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr

from deadtok_xr.analyses.common import checks, coordinates, lattice_counts, step_series, summary_text
from deadtok_xr.analyses.registry import Finding, KeyFigure, Picture, built_in
from deadtok_xr.engine import AnalysisSpec, ReductionResults
from deadtok_xr.engine.small_results import Arrays, compute_together

_STEP = "ΔW'[t] = (W[t] - W[t-1]) / ULP(W[t-1])"
_HOPS = "frozen: d = 0; lattice: d <= 8·u; thermal: all others; d = ‖ΔW‖₂, u the token's ULP at t-1"
_REGIMES = (
    "frozen: ΔW = 0; quantum: more than 70% of the dims moved by a whole number of ULP (0 among them), and "
    "‖ΔW‖₂ < 10·mean_d ULP(W[t-1]); classical: all others"
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
        "comment": "elements at rest count as 0",
    },
    "lattice_max": {
        "long_name": "largest lattice displacement of an element", "units": "ULP", "formula": f"max |ΔW'|, {_STEP}",
    },
    "half_fraction": {
        "long_name": "share of the moved elements that moved by half cells", "units": "1",
        "formula": f"#{{|ΔW'| mod 1 = 1/2}} / n_moved, {_STEP}",
    },
    "fractional_fraction": {
        "long_name": "share of the moved elements that moved by a fraction of a cell", "units": "1",
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
        "long_name": "mean ratio of the L2 to the L1 norm of the moved tokens' lattice displacement", "units": "1",
        "formula": "mean_i ‖ΔW'‖₂ / ‖ΔW'‖₁",
        "comment": "1/√D if all dims move equally far, 1 if one moves; NaN if none moved",
    },
    "linf_over_l2": {
        "long_name": "mean ratio of the L∞ to the L2 norm of the moved tokens' lattice displacement", "units": "1",
        "formula": "mean_i ‖ΔW'‖∞ / ‖ΔW'‖₂",
        "comment": "1/√D if all dims move equally far, 1 if one moves; NaN if none moved",
    },
    "hop_fraction": {
        "long_name": "share of the valid tokens by the size of their displacement", "units": "1", "formula": _HOPS,
        "comment": "token_ulp mean: mean_d ULP; mean_upward: mean_d of the gap towards +∞ (half at negative powers of "
        "two), as notebooks 1.27c to 1.30c; largest: max_d ULP, as 1.13a and 1.17b",
    },
    "regime_fraction": {
        "long_name": "share of the valid tokens by regime of motion", "units": "1", "formula": _REGIMES,
        "comment": "notebook 1.24b with the exact ULP; the notebook's, by frexp, was twice as large",
    },
    "n_moved": {"long_name": "elements that moved", "units": "1", "formula": "#{W[t] ≠ W[t-1]}"},
    "n_outward": {"long_name": "elements that moved away from zero", "units": "1", "formula": "#{|W[t]| > |W[t-1]|}"},
    "n_upward": {"long_name": "elements that moved towards +∞", "units": "1", "formula": "#{W[t] > W[t-1]}"},
    "n_half": {"long_name": "elements that moved by half cells", "units": "1", "formula": "#{|ΔW'| mod 1 = 1/2}"},
    "n_fractional": {
        "long_name": "elements that moved by a fraction of a cell", "units": "1", "formula": "#{|ΔW'| mod 1 ≠ 0}",
        "comment": "inwards across a power of two, where cells become smaller",
    },
    "n_crossings_up": {"long_name": "elements whose exponent grew", "units": "1", "formula": "#{E[t] > E[t-1]}"},
    "n_crossings_down": {"long_name": "elements whose exponent fell", "units": "1", "formula": "#{E[t] < E[t-1]}"},
    "n_sign_changes": {"long_name": "elements that changed their sign", "units": "1", "formula": "#{W[t]·W[t-1] < 0}"},
    "n_from_zero": {"long_name": "elements that left zero", "units": "1", "formula": "#{W[t-1] = 0, W[t] ≠ 0}"},
    "n_to_zero": {"long_name": "elements that moved to zero", "units": "1", "formula": "#{W[t-1] ≠ 0, W[t] = 0}"},
    "n_elements": {"long_name": "elements of the valid tokens", "units": "1"},
    "n_invalid": {"long_name": "tokens with NaN or infinity at t - 1 or t, which are left out", "units": "1"},
}  # fmt: skip
_STEP_NAMES = tuple(name for name in ATTRS if name not in lattice_counts.PER_TOKEN)


@built_in
def lattice(
    ds: xr.Dataset, *, variable: str = "W", precision: str | None = None, allow_gaps: bool = False
) -> AnalysisSpec:
    """Measure how elements move on the lattice of representable numbers.

    `motion` has the norms of ΔW', `exponents` the distribution of the elements, and `elements` ΔW', ordinals and
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
        `ordinal_linf`, counted in representable numbers, and `exponent_crossings`. Per step, float64: shares of
        elements `moved_fraction`, `half_fraction`, `fractional_fraction`, `outward_fraction`, `crossing_fraction`;
        `lattice_mean`, `lattice_max` of |ΔW'|; `l2_over_l1`, `linf_over_l2`, ratios of norms of the displacements;
        `hop_fraction` (step, token_ulp, hop) and `regime_fraction` (step, regime). Counts of elements, int64:
        `n_moved`, `n_outward`, `n_upward`, `n_half`, `n_fractional`, `n_crossings_up`, `n_crossings_down`,
        `n_sign_changes`, `n_from_zero`, `n_to_zero`, `n_elements`; and of tokens, `n_invalid`. Shares of an empty set
        are NaN.

    Raises
    ------
    InputError
        For fewer than two steps, gaps, or a recording without absolute positions or without a lattice.
    OffGridError
        When computed, if the values are not on the grid.

    Notes
    -----
    -0 and +0 are the same number. ΔW' is computed in float64: it reaches 1e37 at W = 0, where float32 overflows;
    notebooks that replaced non-finite values by 0 counted such a step as frozen. Ordinals ascend through zero and
    across exponents; lattice coordinates W/ULP(W) do not, and are not used here.
    """
    x = checks.require(ds, variable, "lattice")
    extra = checks.check_steps(ds, "lattice", allow_gaps=allow_gaps)
    grid = checks.grid_name(x, precision)

    def finish(results: ReductionResults) -> xr.Dataset:
        labels = {
            "token_ulp": list(lattice_counts.TOKEN_ULPS),
            "hop": list(lattice_counts.HOPS),
            "regime": list(lattice_counts.REGIMES),
        }
        attrs = checks.result_attrs(ds, variable=variable, precision=grid)
        inputs = {"series": step_series.collect(results, "counts")}
        shapes = lattice_counts.step_shapes(grid, ds.sizes["step"] - 1, _STEP_NAMES)
        series = compute_together(inputs, _collect_transitions, shapes, ATTRS)
        values = {**results.variables("counts", ATTRS), **series, **extra}
        return xr.Dataset(values, {**coordinates.of_transitions(ds), **labels}, attrs)

    return AnalysisSpec(
        {variable: checks.as_dask(x.data)}, {"counts": lattice_counts.LatticeCounts(variable, grid)}, finish
    )


def _collect_transitions(inputs: dict[str, list[Any]]) -> Arrays:
    return step_series.concatenate(inputs["series"], _STEP_NAMES)


STATE_ATTRS: dict[str, dict[str, Any]] = {
    "exponent_count": {
        "long_name": "elements by exponent", "units": "1", "formula": "#{E[t] = e}, E the exponent field",
        "comment": "0: zero and subnormals",
    },
    "mantissa_count": {
        "long_name": "elements by mantissa", "units": "1", "formula": "#{the leading 7 bits of the mantissa = m}",
        "comment": "without zero and subnormals; in bfloat16 these are all bits, and ULP/|W| = 1/(128 + m)",
    },
    "n_zero": {"long_name": "elements that are exactly zero", "units": "1", "formula": "#{W = ±0}"},
    "n_negative": {"long_name": "elements below zero", "units": "1", "formula": "#{W < 0}"},
    "n_power_of_two": {
        "long_name": "elements at a power of two, where the cell towards zero is smaller", "units": "1",
        "formula": "#{|W| = 2^k}",
    },
    "ulp_min": {"long_name": "smallest ULP of an element", "units": "1", "formula": "min ULP(W)"},
    "ulp_max": {"long_name": "largest ULP of an element", "units": "1", "formula": "max ULP(W)"},
    "n_invalid": {"long_name": "tokens with NaN or infinity at t, which are left out", "units": "1"},
}  # fmt: skip
_STATE_NAMES = tuple(STATE_ATTRS)[2:]


@built_in
def exponents(ds: xr.Dataset, *, variable: str = "W", precision: str | None = None) -> AnalysisSpec:
    """Count the elements by exponent and mantissa, and those at zero and at powers of two.

    Parameters
    ----------
    ds
        A recording, (step, token, dim); one step is enough, and gaps do not matter.
    variable, precision
        As for `motion`.

    Returns
    -------
    xarray.Dataset
        Lazy dataset over all steps, for the elements of tokens without NaN or infinity. int64: `exponent_count` (step,
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
    grid = checks.grid_name(x, precision)

    def finish(results: ReductionResults) -> xr.Dataset:
        values = results.variables("counts", STATE_ATTRS)
        inputs = {"series": step_series.collect(results, "counts")}
        shapes = lattice_counts.step_shapes(grid, ds.sizes["step"], _STATE_NAMES)
        values |= compute_together(inputs, _collect_states, shapes, STATE_ATTRS)
        labels = {
            "exponent": np.arange(values["exponent_count"].sizes["exponent"]),
            "mantissa": np.arange(lattice_counts.MANTISSAS),
        }
        attrs = checks.result_attrs(ds, variable=variable, precision=grid)
        return xr.Dataset(values, {**coordinates.along(ds, "step"), **labels}, attrs)

    return AnalysisSpec(
        {variable: checks.as_dask(x.data)}, {"counts": lattice_counts.LatticeCounts(variable, grid)}, finish
    )


def _collect_states(inputs: dict[str, list[Any]]) -> Arrays:
    names = tuple("n_invalid_now" if name == "n_invalid" else name for name in _STATE_NAMES)
    series = step_series.concatenate(inputs["series"], names)
    return {name: series[key] for name, key in zip(_STATE_NAMES, names, strict=True)}


@lattice.summarize
def _summary(ds: xr.Dataset) -> Iterator[str]:
    moved = int(ds["n_moved"].sum())
    crossed = ds["n_crossings_up"] + ds["n_crossings_down"]
    yield (
        f"Lattice: elements moved {moved} times, {_percent(ds['n_half'], moved)} by half cells, "
        f"{_percent(crossed, moved)} across an exponent, {_percent(ds['n_outward'], moved)} outwards; |ΔW'| up to "
        f"{summary_text.largest_value(ds['lattice_max'].values):.4g} ULP"
    )


def _percent(counts: xr.DataArray, total: int) -> str:
    return f"{100 * int(counts.sum()) / total:.2f}%" if total else "none"


@lattice.find
def _findings(ds: xr.Dataset) -> Iterator[Finding]:
    moved, outward = int(ds["n_moved"].sum()), int(ds["n_outward"].sum())
    if moved:
        farthest = summary_text.largest_value(ds["lattice_max"].values)
        yield Finding(
            0.35, f"Single weights changed {moved:,} times, {summary_text.percent(outward / moved)} of them away from "
            f"zero, by at most {summary_text.number(farthest)} ULP."
        )  # fmt: skip


@lattice.measure
def _key_figure(ds: xr.Dataset) -> KeyFigure:
    first, last = (summary_text.percent(ds["moved_fraction"].values[i]) for i in (0, -1))
    return KeyFigure("single weights that change", first, last)


lattice.invalid = "which are left out"
lattice.over_runs = "moved_fraction"
lattice.pictures = (
    Picture(
        "lattice",
        "lattice.lattice",
        "Motion on the lattice",
        "Top: the share of elements that moved, that changed their exponent, and, among those that moved, that moved "
        "by half cells, inwards from a power of two. Bottom: the share of tokens by displacement relative to their "
        "mean ULP.",
    ),
)


@exponents.summarize
def _summary_of_exponents(ds: xr.Dataset) -> Iterator[str]:
    first, last = ds.isel(step=0), ds.isel(step=-1)
    zeros, powers = ([int(at[name]) for at in (first, last)] for name in ("n_zero", "n_power_of_two"))
    yield (
        f"Elements, first and last step: {zeros[0]}, {zeros[1]} exactly zero; {powers[0]}, {powers[1]} at powers of 2; "
        f"ULP {_ulp_range(first)}, {_ulp_range(last)}"
    )


def _ulp_range(ds: xr.Dataset) -> str:
    return f"[{float(ds['ulp_min']):.4g}, {float(ds['ulp_max']):.4g}]"


@exponents.find
def _findings_of_exponents(ds: xr.Dataset) -> Iterator[Finding]:
    zeros, steps = ds["n_zero"].values, ds["step"].values
    if zeros.any():
        yield Finding(
            0.25, f"{zeros[0]:,} weights are exactly zero at step {steps[0]}, {zeros[-1]:,} at step {steps[-1]}."
        )


@exponents.measure
def _key_figure_of_exponents(ds: xr.Dataset) -> KeyFigure:
    powers = ds["n_power_of_two"].values
    return KeyFigure("single weights at a power of two", powers[0], powers[-1])


exponents.over_runs = "n_power_of_two"
exponents.pictures = (
    Picture(
        "exponents",
        "lattice.exponents",
        "Exponents of the elements",
        "Each column is a step, each row an exponent, twice as large as the one below. Brighter colours mean that more "
        "elements have that exponent; white means none.",
    ),
)
