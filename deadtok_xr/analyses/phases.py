"""Classify the motion of every token into phases, and find when the majority passes from one to the next."""

from __future__ import annotations

from collections.abc import Iterator

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deadtok_xr.analyses.common import checks, summary_text, transitions
from deadtok_xr.analyses.registry import Finding, KeyFigure, Picture, built_in
from deadtok_xr.engine import AnalysisSpec, ReductionResults
from deadtok_xr.errors import InputError

LATTICE = ("frozen", "late", "midlife", "early")
MAGNITUDE = ("fimbulwinter", "thermal_solid", "quantum", "classical_gas")
CELLS = ("fimbulwinter", "stumbling", "spherical", "superluminal", "hypernova")
SCHEMES = {"lattice": LATTICE, "magnitude": MAGNITUDE, "cells": CELLS}
DEFINITION = {
    "lattice": "frozen: L1 = 0; late: L∞ <= 1; midlife: L2 <= √D; early: all others; first match, of ΔW' in ULP",
    "magnitude": "displacement in norm ULP: fimbulwinter < 0.1 <= thermal_solid < 10 <= quantum < 100 <= classical_gas",
    "cells": "fimbulwinter: L1 = 0; stumbling: L1 <= 1; spherical: L2 <= √D; superluminal: L2 <= 1000; hypernova: all "
    "others; first match, of ΔW' in ULP",
}


@built_in
def phases(
    ds: xr.Dataset,
    *,
    scheme: str = "lattice",
    variable: str = "W",
    precision: str | None = None,
    allow_gaps: bool = False,
) -> AnalysisSpec:
    """Classify every token at every step into a phase, and count.

    Parameters
    ----------
    ds
        A recording, (step, token, dim).
    scheme
        ``"lattice"``: frozen (L1 = 0), late (L∞ <= 1), midlife (L2 <= √D), early; by the lattice displacement in ULP,
        first match. ``"magnitude"``: the phases of notebook 1.31b, by the displacement in norm ULP, half-open at 0.1,
        10 and 100: fimbulwinter, thermal_solid, quantum, classical_gas. ``"cells"``: the phases of the notebooks
        phase_transitions_v2 and token_lifecycles, fimbulwinter (L1 = 0), stumbling (L1 <= 1), spherical (L2 <= √D),
        superluminal (L2 <= 1000), hypernova; by the lattice displacement in ULP, first match.
    variable, precision, allow_gaps
        As for `motion`.

    Returns
    -------
    xarray.Dataset
        Lazy dataset over t = 1..T. `fraction` (step, phase) float64, of the valid tokens, phases from coldest to
        hottest, NaN where no token is valid. `transition_step` (phase) int64: the first step at which more than half of
        the valid tokens are in that phase or a colder one; -1 for never. Updates that skipped the variable (`skipped`)
        are NaN and do not count: they say nothing about freezing.

    Raises
    ------
    InputError, OffGridError
        As for `motion`.
    """
    if scheme not in SCHEMES:
        raise InputError(f"scheme={scheme!r}: choose one of {', '.join(SCHEMES)}")
    x = checks.require(ds, variable, "phases")
    extra = checks.check_steps(ds, "phases", allow_gaps=allow_gaps)
    grid = checks.grid_name(x, precision)

    def finish(results: ReductionResults) -> xr.Dataset:
        counts = _without_skipped(results.array("transitions", scheme), transitions.skipped_updates(ds, variable))
        fraction = counts.map_blocks(_fraction, dtype=np.float64)
        first = counts.rechunk(-1).map_blocks(_transition_steps, ds["step"].values[1:], drop_axis=0, dtype=np.int64)
        names = ("share of the valid tokens in the phase", "first step with a majority in the phase or a colder one")
        formula = {"units": "1", "formula": DEFINITION[scheme]}
        values = {
            "fraction": (("step", "phase"), fraction, {"long_name": names[0], **formula}),
            "transition_step": ("phase", first, {"long_name": names[1], **formula}),
        }
        labels = {"phase": list(SCHEMES[scheme]), "step": ds["step"].variable[1:]}
        attrs = checks.result_attrs(ds, variable=variable, scheme=scheme, precision=grid)
        return xr.Dataset({**values, **extra}, labels, attrs)

    return transitions.specify(x, grid, finish)


def lattice_phase(motion: xr.Dataset, n_dims: int) -> xr.DataArray:
    """Return the phase of each token at each step in the scheme "lattice", int8; -1 where a value is not finite.

    Parameters
    ----------
    motion
        From `motion`: `lattice_l1`, `lattice_l2` and `lattice_linf`, over step and token.
    n_dims
        The number of dims of a token.
    """
    l1, l2, linf = (motion[f"lattice_{name}"] for name in ("l1", "l2", "linf"))
    phase = xr.where(l1 == 0, 0, xr.where(linf <= 1, 1, xr.where(l2 <= np.sqrt(n_dims), 2, 3)))
    return phase.where(np.isfinite(l1), -1).astype(np.int8)


def _without_skipped(counts: da.Array, skipped: xr.Variable | None) -> da.Array:
    if skipped is None:
        return counts
    return counts * ~da.asarray(skipped.data).astype(bool).rechunk((counts.chunks[0],))[:, None]


def _fraction(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    valid = counts.sum(axis=1, keepdims=True)
    return np.where(valid > 0, counts / np.maximum(valid, 1), np.nan)


def _transition_steps(counts: NDArray[np.int64], steps: NDArray[np.int64]) -> NDArray[np.int64]:
    majority = 2 * np.cumsum(counts, axis=1) > counts.sum(axis=1, keepdims=True)
    return np.where(majority.any(axis=0), steps[majority.argmax(axis=0)], -1)


@phases.summarize
@summary_text.in_one_line
def _summary(ds: xr.Dataset) -> Iterator[str]:
    names = ds["phase"].values
    final = ds["fraction"].isel(step=-1).values
    starts = ds["transition_step"].values
    yield f"Phases, scheme {ds.attrs.get('scheme', 'lattice')}"
    yield "  final state       " + ", ".join(f"{n} {100 * f:.1f}%" for n, f in zip(names, final, strict=True))
    yield "  majority reached  " + ", ".join(
        f"{n} or colder {'never' if t < 0 else f'at step {t}'}" for n, t in zip(names[:-1], starts[:-1], strict=True)
    )


IN_WORDS = {
    "frozen": "no change",
    "late": "changes of at most 1 ULP",
    "midlife": "some changes above 1 ULP, their root mean square at most 1 ULP",
    "early": "larger changes",
}


@phases.find
def _findings(ds: xr.Dataset) -> Iterator[Finding]:
    names, fraction = [str(name) for name in ds["phase"].values], ds["fraction"].values
    at = summary_text.ends(fraction[:, 0])
    if at is None:
        return
    scheme = ds.attrs.get("scheme", "lattice")
    usual = scheme == "lattice"
    shares = sorted(((f, name) for name, f in zip(names, fraction[at[1]], strict=True) if f > 0), reverse=True)
    words = [f"{summary_text.percent(f)} {'of the tokens are ' * (i == 0)}{name}" for i, (f, name) in enumerate(shares)]
    words[0] += f" ({IN_WORDS[shares[0][1]] if usual else f'phases by {scheme}'})"
    yield Finding(0.85 if usual else 0.15, f"At step {ds['step'].values[at[1]]}, {', '.join(words)}.")
    starts = zip(names[:-1], ds["transition_step"].values[:-1], strict=True)
    reached = [f"{name} at {start}" for name, start in starts if start > ds["step"].values[0]]
    if reached and usual:
        when = ", ".join(reversed(reached)).replace(" at ", " at step ", 1)
        yield Finding(0.8, f"More than half of the tokens have cooled to {when}.")


@phases.measure
def _key_figure(ds: xr.Dataset) -> KeyFigure:
    coldest = ds["fraction"].values[:, 0]
    first, last = (summary_text.percent(coldest[i]) for i in (0, -1))
    return KeyFigure(f"tokens in the coldest phase, {ds['phase'].values[0]}", first, last)


phases.over_runs = "fraction"
phases.pictures = (
    Picture(
        "phases",
        "phases.phases",
        "Phases on the lattice",
        "The height of a colour is the share of tokens in that phase, from frozen (dark) to early (bright). Vertical "
        "lines mark the first step at which the majority is in a phase or a colder one.",
    ),
)

phases_magnitude = phases.with_options(
    "phases_magnitude",
    (
        Picture(
            "phases_magnitude",
            "phases.phases",
            "Phases by magnitude",
            "The same with the regimes of notebook 1.31b, which compare the displacement with the norm of the token. A "
            "token in the coldest regime may still have moved in a few dims.",
        ),
    ),
    scheme="magnitude",
)

phases_cells = phases.with_options(
    "phases_cells",
    (
        Picture(
            "phases_cells",
            "phases.phases",
            "Phases by cells of the grid",
            "The same with the scheme of cells, which depends only on the length of the lattice displacement, from "
            "fimbulwinter (no motion) to hypernova.",
        ),
    ),
    scheme="cells",
)
