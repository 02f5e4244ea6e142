"""Count the frozen tokens by a chosen definition, and find the steps at which all tokens are frozen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deadtok_xr.analyses.common import checks, coordinates, summary_text, transitions
from deadtok_xr.analyses.registry import Finding, KeyFigure, Picture, built_in
from deadtok_xr.engine import AnalysisSpec, BlockResult, ReductionResults
from deadtok_xr.engine.small_results import Arrays, compute_together
from deadtok_xr.errors import InputError

Longs = NDArray[np.int64]
EXACT = ("value", "bits")
BELOW = ("displacement", "displacement_ulp", "lattice_l1", "lattice_l2", "lattice_linf")
"""Definitions by a measure of `motion` below a threshold."""
_WITHOUT_LATTICE = (*EXACT, "displacement")
ATTRS: dict[str, dict[str, Any]] = {
    "n_frozen": {"long_name": "frozen tokens", "units": "1"},
    "n_invalid": {"long_name": "tokens with NaN or infinity at t - 1 or t, neither frozen nor moving", "units": "1"},
    "frozen_fraction": {
        "long_name": "share of the valid tokens that are frozen", "units": "1", "comment": "NaN without valid tokens",
    },
    "global_freeze": {"long_name": "whether all tokens are frozen, and none is invalid", "units": "1"},
    "freeze_run": {
        "long_name": "length of the run of global freezes that begins at this step; 0 where none begins", "units": "1",
        "formula": "consecutive transitions from this one that are global freezes",
    },
    "last_motion": {"long_name": "last step at which the token was not frozen; -1 never", "units": "step"},
    "n_runs": {"long_name": "runs of global freezes", "units": "1"},
    "n_global": {"long_name": "steps of global freeze", "units": "1"},
    "longest_run": {"long_name": "length of the longest run of global freezes", "units": "1"},
    "mean_run": {"long_name": "mean length of the runs; NaN without any", "units": "1"},
    "median_run": {"long_name": "median length of the runs; NaN without any", "units": "1"},
    "final_motion": {"long_name": "last step at which any token was not frozen; -1 never", "units": "step"},
    "permanent_freeze": {
        "long_name": "length of the run of global freezes that lasts to the end; 0 if none does", "units": "1",
    },
}  # fmt: skip
_PER_STEP = tuple(ATTRS)[:5]


@built_in
def freezing(
    ds: xr.Dataset,
    *,
    definition: str = "value",
    threshold: float | None = None,
    variable: str = "W",
    precision: str | None = None,
    allow_gaps: bool = False,
) -> AnalysisSpec:
    """Count the frozen tokens, and the steps at which all tokens are frozen.

    Parameters
    ----------
    ds
        A recording, (step, token, dim).
    definition
        When a token is frozen. ``"value"``: no value changed, -0 and +0 being equal. ``"bits"``: no bit changed. Or a
        measure of `motion` is below ``threshold``: ``"displacement"`` ‖ΔW‖₂ (Goldilocks 05: 1e-4, of differences
        rounded to bfloat16, which these are not), ``"displacement_ulp"`` (1.31b: 0.1), ``"lattice_l1"``,
        ``"lattice_l2"`` (Crucible 1 and 2: 0.1), ``"lattice_linf"``, in ULP.
    threshold
        The threshold of such a measure.
    variable, precision, allow_gaps
        As for `motion`. Only the measures in ULP need a grid.

    Returns
    -------
    xarray.Dataset
        Lazy dataset over t = 1..T. Per step: `n_frozen`, `n_invalid` int64, `frozen_fraction` float64, `global_freeze`
        bool, `freeze_run` int64, the length of a run of global freezes at its first step. Per token: `last_motion`
        int64. Numbers: `n_runs`, `n_global`, `longest_run`, `final_motion`, `permanent_freeze` int64, `mean_run`,
        `median_run` float64. Lengths count transitions.

    Raises
    ------
    InputError, OffGridError
        As for `motion`, and for an unknown definition, or a threshold that is missing or does not apply.

    Notes
    -----
    Notebooks 1.29c, 1.30c (runs) and Crucible 1 (last motion, frozen periods), which label a transition by its earlier
    step: their run 1143-1145 is 1144-1146 here.
    """
    _check(definition, threshold)
    x = checks.require(ds, variable, "freezing")
    extra = checks.check_steps(ds, "freezing", allow_gaps=allow_gaps)
    recorded = x.attrs.get("precision", "unknown" if x.dtype == np.float32 else x.dtype.name)
    without_grid = recorded in ("none", "unknown") and precision is None and definition in _WITHOUT_LATTICE
    grid = "float32" if without_grid else checks.grid_name(x, precision)
    steps, n_tokens = ds["step"].values, ds.sizes["token"]
    shapes: dict[str, Any] = {name: ((), (), "f8" if name in ("mean_run", "median_run") else "i8") for name in ATTRS}
    shapes |= dict.fromkeys(_PER_STEP, (("step",), (len(steps) - 1,), "i8"))
    shapes |= {
        "last_motion": (("token",), (n_tokens,), "i8"),
        "frozen_fraction": (("step",), (len(steps) - 1,), "f8"),
        "global_freeze": (("step",), (len(steps) - 1,), "?"),
    }

    def finish(results: ReductionResults) -> xr.Dataset:
        blocks = results.per_block("transitions", _count_block, definition=definition, threshold=threshold)
        values = compute_together({"blocks": blocks}, _describe, shapes, ATTRS, steps=steps)
        options = {"definition": definition, **({} if threshold is None else {"threshold": threshold})}
        attrs = checks.result_attrs(ds, variable=variable, precision=recorded if without_grid else grid, **options)
        return xr.Dataset({**values, **extra}, coordinates.of_transitions(ds), attrs)

    return transitions.specify(x, grid, finish)


def _check(definition: str, threshold: float | None) -> None:
    if definition not in (*EXACT, *BELOW):
        raise InputError(f"definition={definition!r}: choose one of {', '.join((*EXACT, *BELOW))}")
    if definition in BELOW and not (threshold is not None and threshold > 0):
        raise InputError(
            f"freezing: definition={definition!r} needs a threshold, which is {threshold}: say threshold= with a "
            "positive number"
        )
    if definition in EXACT and threshold is not None:
        raise InputError(f"freezing: definition={definition!r} takes no threshold: leave it out")


def _count_block(block: BlockResult, *, definition: str, threshold: float | None) -> dict[str, Longs]:
    """Count frozen and valid tokens at each transition of a block, and find each token's last motion in it."""
    moved_dims = block["moved_dims"]
    valid = moved_dims >= 0
    if definition in BELOW:
        frozen = block[definition].astype(np.float64) < threshold  # False for NaN
    else:
        frozen = valid & ~(block["changed"] if definition == "bits" else moved_dims > 0)
    moving = valid & ~frozen
    last = len(moving) - 1 - moving[::-1].argmax(axis=0) if len(moving) else np.zeros(moving.shape[1], np.int64)
    return {
        "n_frozen": frozen.sum(axis=1),
        "n_valid": valid.sum(axis=1),
        "last": np.where(moving.any(axis=0), last, -1),
    }


def _describe(inputs: dict[str, list[Any]], *, steps: Longs) -> Arrays:
    blocks = inputs["blocks"]
    n_frozen, n_valid = (np.concatenate([block[name] for block in blocks]) for name in ("n_frozen", "n_valid"))
    last, start = np.full(len(blocks[0]["last"]), -1), 0
    for block in blocks:
        last = np.where(block["last"] >= 0, block["last"] + start, last)
        start += len(block["n_frozen"])
    global_freeze = n_frozen == len(last)
    run = runs(global_freeze)
    lengths, final = run[run > 0], last.max()
    return {
        "n_frozen": n_frozen,
        "n_invalid": len(last) - n_valid,
        "frozen_fraction": np.divide(n_frozen, n_valid, out=np.full(len(n_valid), np.nan), where=n_valid > 0),
        "global_freeze": global_freeze,
        "freeze_run": run,
        "last_motion": np.where(last >= 0, steps[last + 1], -1),
        "n_runs": len(lengths),
        "n_global": lengths.sum(),
        "longest_run": lengths.max(initial=0),
        "mean_run": lengths.mean() if len(lengths) else np.nan,
        "median_run": np.median(lengths) if len(lengths) else np.nan,
        "final_motion": steps[final + 1] if final >= 0 else -1,
        "permanent_freeze": lengths[-1] if len(lengths) and global_freeze[-1] else 0,
    }


def runs(mask: NDArray[np.bool_]) -> Longs:
    """Return the length of each run of True at its first element, 0 elsewhere."""
    change = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]])))
    out = np.zeros(len(mask), np.int64)
    out[change[::2]] = change[1::2] - change[::2]
    return out


@freezing.summarize
def _summary(ds: xr.Dataset) -> Iterator[str]:
    n, total, longest, end = (int(ds[k]) for k in ("n_runs", "n_global", "longest_run", "permanent_freeze"))
    below = f" below {ds.attrs['threshold']:g}" if "threshold" in ds.attrs else " unchanged"
    yield (
        f"Global freezes ({ds.attrs.get('definition', 'value')}{below}): {total} of {ds.sizes['step']} steps, in {n} "
        f"runs of up to {longest}; permanent for the last {end}"
    )


@freezing.find
def _findings(ds: xr.Dataset) -> Iterator[Finding]:
    total, longest, end = (int(ds[k]) for k in ("n_global", "longest_run", "permanent_freeze"))
    steps = ds.sizes["step"]
    if total:
        rest = f"; the last {end} steps are all still" if end > 1 else ""
        yield Finding(0.6, f"No token moves in {total} of {steps} steps, at most {longest} of them in a row{rest}.")
    elif not ds["n_invalid"].values.any():
        most = summary_text.percent(float(ds["frozen_fraction"].max()))
        who = "Every token moves" if most == "0%" else "At least one token moves"
        rest = "" if most == "0%" else f"; at most {most} of the tokens stand still"
        yield Finding(0.2, f"{who} in every one of the {steps} steps{rest}.")


@freezing.measure
def _key_figure(ds: xr.Dataset) -> KeyFigure:
    first, last = (summary_text.percent(ds["frozen_fraction"].values[i]) for i in (0, -1))
    return KeyFigure("tokens that do not move", first, last)


freezing.invalid = "which are not frozen"
freezing.across_gaps = True
freezing.over_runs = "frozen_fraction"
freezing.pictures = (
    Picture(
        "freezing",
        "freezing.freezing",
        "Frozen tokens",
        "The line is the share of tokens that did not move at each step. Bars on top mark the steps at which no token "
        "moved.",
        lambda ds: not (ds["frozen_fraction"].values > 0).any(),
    ),
)
