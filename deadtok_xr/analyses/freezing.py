"""Which share of the tokens stands still, by a definition of one's choice, and when all of them do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deadtok_xr.analyses.common import checks, summary_text, transitions
from deadtok_xr.analyses.registry import Picture, built_in
from deadtok_xr.engine import AnalysisSpec, BlockResult, ReductionResults
from deadtok_xr.engine.small_results import Arrays, compute_together
from deadtok_xr.errors import InputError

Longs = NDArray[np.int64]
EXACT = ("value", "bits")
BELOW = ("displacement", "displacement_ulp", "lattice_l1", "lattice_l2", "lattice_linf")
"""Definitions that are a measure of `motion` below a threshold."""
_OFF_THE_LATTICE = (*EXACT, "displacement")
ATTRS: dict[str, dict[str, Any]] = {
    "n_frozen": {"long_name": "tokens that stood still", "units": "1"},
    "n_invalid": {"long_name": "tokens with NaN or infinity at t - 1 or t, which count as neither", "units": "1"},
    "frozen_fraction": {
        "long_name": "share of the valid tokens that stood still", "units": "1", "comment": "NaN without valid tokens",
    },
    "global_freeze": {"long_name": "whether all tokens stood still, and none is invalid", "units": "1"},
    "freeze_run": {
        "long_name": "length of the run of global freezes that begins at this step; 0 where none begins", "units": "1",
        "formula": "transitions from this one on, up to the first that is no global freeze",
    },
    "last_motion": {"long_name": "last step at which the token did not stand still; -1 never", "units": "step"},
    "n_runs": {"long_name": "runs of global freezes", "units": "1"},
    "n_global": {"long_name": "steps of global freeze", "units": "1"},
    "longest_run": {"long_name": "length of the longest run of global freezes", "units": "1"},
    "mean_run": {"long_name": "mean length of the runs; NaN without any", "units": "1"},
    "median_run": {"long_name": "median length of the runs; NaN without any", "units": "1"},
    "final_motion": {"long_name": "last step at which a token did not stand still; -1 never", "units": "step"},
    "permanent_freeze": {
        "long_name": "length of the run of global freezes that lasts to the end; 0 if none does", "units": "1",
    },
}  # fmt: skip
_STEP = tuple(ATTRS)[:5]


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
    """Count the tokens that stand still, and the steps at which all of them do.

    Parameters
    ----------
    ds
        A recording, (step, token, dim).
    definition
        What standing still is. ``"value"``: no value changed, -0 and +0 being equal. ``"bits"``: no bit changed. Or a
        measure of `motion` below ``threshold``: ``"displacement"`` ‖ΔW‖₂ (Goldilocks 05: 1e-4, of differences that
        were rounded to bfloat16, which these are not), ``"displacement_ulp"`` (1.31b: 0.1), ``"lattice_l1"``,
        ``"lattice_l2"`` (Crucible 1 and 2: 0.1), ``"lattice_linf"``, in ULP.
    threshold
        For such a measure; standing still is to be below it.
    variable, precision, allow_gaps
        As for `motion`. Only the measures in ULP need a grid.

    Returns
    -------
    xarray.Dataset
        Lazy dataset over t = 1..T. Per step: `n_frozen`, `n_invalid` int64, `frozen_fraction` float64, `global_freeze`
        bool, `freeze_run` int64, at the first step of each run of global freezes its length. Per token: `last_motion`
        int64. Numbers: `n_runs`, `n_global`, `longest_run`, `final_motion`, `permanent_freeze` int64, `mean_run`,
        `median_run` float64. Lengths count transitions.

    Raises
    ------
    InputError, OffGridError
        As for `motion`, and for an unknown definition or a threshold that is missing or of no use.

    Notes
    -----
    Notebooks 1.29c, 1.30c (runs) and Crucible 1 (last motion, periods of stillness), where the label of a transition
    is that of its earlier step: their run 1143-1145 is 1144-1146 here.
    """
    _check(definition, threshold)
    x = checks.require(ds, variable, "freezing")
    extra = checks.check_steps(ds, "freezing", allow_gaps=allow_gaps)
    said = x.attrs.get("precision", "unknown" if x.dtype == np.float32 else x.dtype.name)
    off = said in ("none", "unknown") and precision is None and definition in _OFF_THE_LATTICE
    grid = "float32" if off else transitions.grid_name(x, precision)
    steps, n_tokens = ds["step"].values, ds.sizes["token"]
    shapes: dict[str, Any] = {name: ((), (), "f8" if name in ("mean_run", "median_run") else "i8") for name in ATTRS}
    shapes |= dict.fromkeys(_STEP, (("step",), (len(steps) - 1,), "i8"))
    shapes |= {
        "last_motion": (("token",), (n_tokens,), "i8"),
        "frozen_fraction": (("step",), (len(steps) - 1,), "f8"),
        "global_freeze": (("step",), (len(steps) - 1,), "?"),
    }

    def finish(found: ReductionResults) -> xr.Dataset:
        rows = found.per_block("transitions", _still, definition=definition, threshold=threshold)
        values = compute_together({"rows": rows}, _describe, shapes, ATTRS, steps=steps)
        options = {"definition": definition, **({} if threshold is None else {"threshold": threshold})}
        attrs = checks.result_attrs(ds, variable=variable, precision=said if off else grid, **options)
        return xr.Dataset({**values, **extra}, transitions.step_and_token_coords(ds), attrs)

    return transitions.plan(x, grid, finish)


def _check(definition: str, threshold: float | None) -> None:
    if definition not in (*EXACT, *BELOW):
        raise InputError(f"definition={definition!r}: choose one of {', '.join((*EXACT, *BELOW))}")
    if definition in BELOW and not (threshold is not None and threshold > 0):
        raise InputError(
            f"freezing: definition={definition!r} is a measure below a threshold, which is {threshold}: give a "
            "positive threshold="
        )
    if definition in EXACT and threshold is not None:
        raise InputError(f"freezing: definition={definition!r} is exact and takes no threshold: leave it out")


def _still(row: BlockResult, *, definition: str, threshold: float | None) -> dict[str, Longs]:
    """How many tokens stand still and are valid at each transition of a row, and each token's last motion in it."""
    moved = row["moved_dims"]
    valid = moved >= 0
    if definition in BELOW:
        still = row[definition].astype(np.float64) < threshold  # NaN is not below it
    else:
        still = valid & ~(row["changed"] if definition == "bits" else moved > 0)
    going = valid & ~still
    last = len(going) - 1 - going[::-1].argmax(axis=0) if len(going) else np.zeros(going.shape[1], np.int64)
    return {
        "n_frozen": still.sum(axis=1),
        "n_valid": valid.sum(axis=1),
        "last": np.where(going.any(axis=0), last, -1),
    }


def _describe(inputs: dict[str, list[Any]], *, steps: Longs) -> Arrays:
    rows = inputs["rows"]
    n_frozen, n_valid = (np.concatenate([row[name] for row in rows]) for name in ("n_frozen", "n_valid"))
    last, start = np.full(len(rows[0]["last"]), -1), 0
    for row in rows:
        last = np.where(row["last"] >= 0, row["last"] + start, last)
        start += len(row["n_frozen"])
    everything = n_frozen == len(last)
    run = runs(everything)
    lengths, final = run[run > 0], last.max()
    return {
        "n_frozen": n_frozen,
        "n_invalid": len(last) - n_valid,
        "frozen_fraction": np.divide(n_frozen, n_valid, out=np.full(len(n_valid), np.nan), where=n_valid > 0),
        "global_freeze": everything,
        "freeze_run": run,
        "last_motion": np.where(last >= 0, steps[last + 1], -1),
        "n_runs": len(lengths),
        "n_global": lengths.sum(),
        "longest_run": lengths.max(initial=0),
        "mean_run": lengths.mean() if len(lengths) else np.nan,
        "median_run": np.median(lengths) if len(lengths) else np.nan,
        "final_motion": steps[final + 1] if final >= 0 else -1,
        "permanent_freeze": lengths[-1] if len(lengths) and everything[-1] else 0,
    }


def runs(mask: NDArray[np.bool_]) -> Longs:
    """At the first element of each run of True its length, elsewhere 0."""
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
    yield from summary_text.invalid_steps(ds, "which are not frozen")


freezing.pictures = (
    Picture(
        "freezing",
        "freezing.freezing",
        "How many stand still",
        "The share of tokens that did not move at each step. Marked are the steps at which none moved, and the one"
        " from which none ever moved again.",
    ),
)
