"""Find when each token first froze, thawed, moved for the last time, and left each phase of motion for good."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deadtok_xr.analyses.common import checks, coordinates, summary_text, transitions
from deadtok_xr.analyses.common.phase_paths import Longs, begin, follow, hottest_to_come
from deadtok_xr.analyses.common.token_names import token_names
from deadtok_xr.analyses.phases import DEFINITION, SCHEMES
from deadtok_xr.analyses.registry import Finding, KeyFigure, Picture, built_in
from deadtok_xr.dask_arrays import empty_meta
from deadtok_xr.engine import AnalysisSpec, BlockResult, ReductionResults, fold
from deadtok_xr.engine.small_results import Arrays, compute_together
from deadtok_xr.errors import InputError

ORDER = ("earliest", "median", "latest")
_MOVED = "moved: a value changed, W[t] ≠ W[t-1]; -0 and +0 are equal"
_IN_STEPS = {"units": "step"}
_COUNT = {"units": "1"}
_UNKNOWN = "-1 if the token holds NaN or infinity at any step"
_CENSORED = "a token that has not reached this by the last step counts as later than all others; NaN if that decides"
TOKEN: dict[str, dict[str, Any]] = {
    "first_freeze": {
        "long_name": "first step without motion after the token's first motion", **_IN_STEPS, "formula": _MOVED,
        "comment": "-1 if it never moved, or never stopped",
    },
    "last_motion": {"long_name": "last step at which the token moved; -1 never", **_IN_STEPS, "formula": _MOVED},
    "thaw_count": {
        "long_name": "number of times that the token moved again after a step without motion", **_COUNT,
        "formula": "steps t > first_freeze with moved[t] and not moved[t-1]",
        "comment": "a step after one with NaN or infinity is not counted",
    },
    "censored": {
        "long_name": "whether the token still moved at the last step", **_COUNT,
        "flag_values": [-1, 0, 1], "flag_meanings": "unknown frozen moving",
        "comment": "unknown: NaN or infinity at the last step or the one before",
    },
    "moved_steps": {"long_name": "steps at which the token moved", **_COUNT},
    "invalid_steps": {"long_name": "steps with NaN or infinity at t - 1 or t", **_COUNT},
    "reheats": {"long_name": "steps to a hotter phase", **_COUNT},
    "cools": {"long_name": "steps to a colder phase", **_COUNT},
    "first_stumble": {
        "long_name": "first step with motion of at most 1 ULP in all dims together, or none; -1 never", **_IN_STEPS,
        "formula": "first t with L1(ΔW'[t]) <= 1",
    },
    "last_thrust": {
        "long_name": "last step with motion of more than 1 ULP in all dims together; -1 never", **_IN_STEPS,
        "formula": "last t with L1(ΔW'[t]) > 1",
    },
    "thrust_period": {
        "long_name": "updates from the last motion of more than 1 ULP in all dims together to the last one", **_COUNT,
        "formula": "last_motion - last_thrust", "comment": "-1 if there is no last_thrust",
    },
}  # fmt: skip
TOKEN_PHASE: dict[str, dict[str, Any]] = {
    "last_step": {"long_name": "last step at which the token was in the phase; -1 never", **_IN_STEPS},
    "last_step_or_hotter": {
        "long_name": "last step at which the token was in the phase or a hotter one; -1 never", **_IN_STEPS,
        "comment": "after this step, the token was never as hot again",
    },
    "duration": {
        "long_name": "updates that the token spent in the phase in retrospect", **_COUNT, "comment": _UNKNOWN,
        "formula": "last_step_or_hotter[phase] - last_step_or_hotter[next hotter phase], from the first step on",
    },
}  # fmt: skip
STEP: dict[str, dict[str, Any]] = {
    "frozen_fraction": {
        "long_name": "share of the valid tokens that did not move", **_COUNT, "comment": "NaN without valid tokens",
    },
    "global_freeze": {"long_name": "whether no token moved, and none is invalid", **_COUNT},
    "n_moving": {"long_name": "tokens that moved", **_COUNT},
    "n_invalid": {"long_name": "tokens with NaN or infinity at t - 1 or t", **_COUNT},
    "n_reheats": {"long_name": "tokens in a hotter phase than at the step before", **_COUNT},
    "n_cools": {"long_name": "tokens in a colder phase than at the step before", **_COUNT},
    "stumble_cohort": {"long_name": "tokens that first stumbled here", "formula": "first_stumble = t", **_COUNT},
    "freeze_cohort": {
        "long_name": "tokens that moved for the last time at this step, and then stopped", **_COUNT,
        "formula": "last_motion = t and not censored",
    },
}  # fmt: skip
OTHER: dict[str, dict[str, Any]] = {
    "passages": {
        "long_name": "number of passages of a token from one phase to another at the next step", **_COUNT,
        "formula": "pairs of steps t-1, t, counted by from_phase at t-1 and phase at t",
    },
    "duration_mean": {"long_name": "mean duration over tokens without NaN or infinity", **_COUNT},
    "duration_median": {"long_name": "median duration over tokens without NaN or infinity", **_COUNT},
    "first_freeze_range": {"long_name": "earliest, median, latest first freeze", **_IN_STEPS, "comment": _CENSORED},
    "last_motion_range": {"long_name": "earliest, median, latest last motion", **_IN_STEPS, "comment": _CENSORED},
    "last_step_range": {
        "long_name": "earliest, median, latest last step in the phase or a hotter one", **_IN_STEPS,
        "comment": _CENSORED,
    },
    "n_never_moved": {"long_name": "tokens that never moved, and so never froze", **_COUNT},
    "n_censored": {"long_name": "tokens that still moved at the last step", **_COUNT},
    "n_frozen": {"long_name": "tokens that moved, but not at the last step", **_COUNT},
}  # fmt: skip
ATTRS = {**TOKEN, **TOKEN_PHASE, **STEP, **OTHER}
_OF_PHASES = (
    *TOKEN_PHASE, "reheats", "cools", "first_stumble", "last_thrust", "thrust_period", "n_reheats", "n_cools",
    "stumble_cohort", "passages", "duration_mean", "duration_median", "last_step_range",
)  # fmt: skip
"""What weights without a lattice do not have."""
STRATIGRAPHY = {
    "long_name": "phase in retrospect: the hottest that the token was in at this step or later",
    "comment": "-1 where unknown, because the token holds NaN or infinity at this step or later",
    **_COUNT,
}


@built_in
def lifecycle(
    ds: xr.Dataset,
    *,
    scheme: str = "lattice",
    variable: str = "W",
    precision: str | None = None,
    allow_gaps: bool = False,
) -> AnalysisSpec:
    """Follow every token through the phases of motion until it freezes.

    Parameters
    ----------
    ds
        A recording, (step, token, dim).
    scheme
        The phases: ``"lattice"``, ``"magnitude"`` or ``"cells"``, as for `phases`. It does not affect freezing and
        motion: a token moved if a value changed.
    variable, precision, allow_gaps
        As for `motion`.

    Returns
    -------
    xarray.Dataset
        Lazy dataset over t = 1..T; steps are given by their labels, -1 means never. Per token, int64: `first_freeze`,
        `last_motion`, `thaw_count`, `moved_steps`, `invalid_steps`, `reheats`, `cools`, `first_stumble`, `last_thrust`,
        `thrust_period`; `censored` int8. Per (token, phase), int64: `last_step`, `last_step_or_hotter`, `duration`. Per
        step: `frozen_fraction` float64, `global_freeze` bool, counts int64. Per (step, token): `stratigraphy` int8, the
        phase in retrospect, which never gets hotter. Per phase: `duration_mean`, `duration_median`, `last_step_range`;
        (from_phase, phase): `passages`; along `order` (earliest, median, latest): `first_freeze_range`,
        `last_motion_range`.

        A transition with NaN or infinity counts neither as motion nor as rest. A token that never moved has no freeze,
        and one that still moves at the last step is `censored`. Weights with unknown precision have no lattice, and
        so no phases: variables of phases and cells are left out.

    Raises
    ------
    InputError, OffGridError
        As for `motion`.

    Notes
    -----
    Crucible 1 and 2 (last motion), token_lifecycles and Nutcracker 03 (stratigraphy, reheats, cools),
    in_search_of_the_phase_transition (`first_stumble`, `stumble_cohort`) and thrust_period. The notebooks count steps
    from 0, so that their step 396 is 397 here.
    """
    if scheme not in SCHEMES:
        raise InputError(f"scheme={scheme!r}: choose one of {', '.join(SCHEMES)}")
    x = checks.require(ds, variable, "lifecycle")
    extra = checks.check_steps(ds, "lifecycle", allow_gaps=allow_gaps)
    grid = checks.grid_or_none(x, precision)
    phases, steps = SCHEMES[scheme], ds["step"].values
    shapes = _shapes(len(steps) - 1, ds.sizes["token"], len(phases))
    if grid == "none":
        shapes = {name: shape for name, shape in shapes.items() if name not in _OF_PHASES}

    def finish(results: ReductionResults) -> xr.Dataset:
        blocks = results.per_block("transitions", _classify, scheme=scheme, n_dims=ds.sizes["dim"])
        paths = fold(blocks, follow, begin)
        values = compute_together({"paths": paths}, _describe, shapes, ATTRS, steps=steps)
        labels: dict[str, Any] = {"order": list(ORDER)}
        attrs = checks.result_attrs(ds, variable=variable, precision=grid)
        if grid != "none":
            values["stratigraphy"] = _stratigraphy(paths, results.array("transitions", "displacement"), phases)
            labels |= {"phase": list(phases), "from_phase": list(phases)}
            attrs |= {"scheme": scheme, "definition": DEFINITION[scheme]}
        return xr.Dataset({**values, **extra}, {**coordinates.of_transitions(ds), **labels}, attrs)

    return transitions.specify(x, grid, finish)


def _shapes(n_steps: int, n_tokens: int, n_phases: int) -> dict[str, Any]:
    sizes = {"step": n_steps, "token": n_tokens, "phase": n_phases, "from_phase": n_phases, "order": len(ORDER)}
    dims = {
        **dict.fromkeys(TOKEN, ("token",)), **dict.fromkeys(TOKEN_PHASE, ("token", "phase")),
        **dict.fromkeys(STEP, ("step",)), **dict.fromkeys(OTHER, ()), "passages": ("from_phase", "phase"),
        "duration_mean": ("phase",), "duration_median": ("phase",), "first_freeze_range": ("order",),
        "last_motion_range": ("order",), "last_step_range": ("order", "phase"),
    }  # fmt: skip
    floats = ("frozen_fraction", "duration_mean", "duration_median", *(n for n in ATTRS if n.endswith("_range")))
    dtypes = {"censored": "i1", "global_freeze": "?", **dict.fromkeys(floats, "f8")}
    return {name: (d, tuple(sizes[x] for x in d), dtypes.get(name, "i8")) for name, d in dims.items()}


def _classify(block: BlockResult, *, scheme: str, n_dims: int) -> dict[str, Any]:
    """Return the phase of each transition of a block and whether the token moved, a byte each."""
    from deadtok_xr.kernels.numba import lifecycle as kernel

    schemes = {
        "lattice": (kernel.LATTICE, ()),
        "magnitude": (kernel.MAGNITUDE, transitions.MAGNITUDES),
        "cells": (kernel.CELLS, transitions.CELLS),
    }
    number, limits = schemes[scheme]
    phase, motion = np.empty((2, *block["moved_dims"].shape), np.int8)
    kernel.phases_of(
        block["lattice_l1"], block["lattice_l2"], block["lattice_linf"], block["displacement_ulp"], block["moved_dims"],
        number, np.sqrt(n_dims), np.array(limits, np.float64), phase, motion,
    )  # fmt: skip
    return {"phase": phase, "motion": motion, "n_phases": len(SCHEMES[scheme])}


def _describe(inputs: dict[str, list[Any]], *, steps: Longs) -> Arrays:
    from deadtok_xr.kernels.numba.lifecycle import PATH, PER_STEP

    (paths,) = inputs["paths"]
    path = dict(zip(PATH, paths.path, strict=True))
    per_step = dict(zip(PER_STEP, np.concatenate(paths.steps, axis=1), strict=True))
    known, censored = path["invalid_steps"] == 0, paths.before[1].copy()
    censored[censored > 0] = 1
    moved = path["last_motion"] >= 0
    hotter = np.maximum.accumulate(paths.last[:, ::-1], axis=1)[:, ::-1]
    thrust = path["last_thrust"] >= 0
    names = ("first_freeze", "last_motion", "first_stumble", "last_thrust")
    labels = {name: _labels(path[name], steps) for name in names}
    return {
        **path,
        **labels,
        "censored": censored,
        "thrust_period": np.where(thrust, labels["last_motion"] - labels["last_thrust"], -1),
        "last_step": _labels(paths.last, steps),
        "last_step_or_hotter": _labels(hotter, steps),
        "passages": paths.passages,
        **_durations(_labels(hotter, steps), known, steps),
        **_step_outputs(per_step, path, known, censored, len(known)),
        "first_freeze_range": _range(path["first_freeze"], known & moved, path["first_freeze"] < 0, steps),
        "last_motion_range": _range(path["last_motion"], known & moved, censored == 1, steps),
        "last_step_range": np.stack(
            [_range(last, known & (last >= 0), last == paths.n - 1, steps) for last in hotter.T], axis=1
        ),
        "n_never_moved": (~moved & known).sum(),
        "n_censored": (censored == 1).sum(),
        "n_frozen": (moved & (censored == 0)).sum(),
    }


def _labels(position: Longs, steps: Longs) -> Longs:
    """Return the labels of transitions, -1 for never."""
    return np.where(position >= 0, steps[position + 1], -1)


def _durations(left: Longs, known: NDArray[np.bool_], steps: Longs) -> Arrays:
    """Return durations, given the last step in the phase or a hotter one, ``left`` (token, phase)."""
    until = np.where(left >= 0, left, steps[0])
    duration = until - np.concatenate([until[:, 1:], np.full((len(left), 1), steps[0])], axis=1)
    some = duration[known] if known.any() else np.full((1, left.shape[1]), np.nan)
    mean, median = some.mean(axis=0), np.median(some, axis=0)
    return {"duration": np.where(known[:, None], duration, -1), "duration_mean": mean, "duration_median": median}


def _step_outputs(n: dict[str, Longs], path: dict[str, Longs], known: Any, censored: Any, n_tokens: int) -> Arrays:
    valid = n_tokens - n["n_invalid"]
    still = valid - n["n_moving"]
    stopped = known & (censored == 0)
    return {
        **n,
        "frozen_fraction": np.divide(still, valid, out=np.full(len(still), np.nan), where=valid > 0),
        "global_freeze": still == n_tokens,
        "stumble_cohort": _cohorts(path["first_stumble"], len(still)),
        "freeze_cohort": _cohorts(path["last_motion"][stopped], len(still)),
    }


def _cohorts(position: Longs, n_steps: int) -> Longs:
    return np.bincount(position[position >= 0], minlength=n_steps)


def _range(position: Longs, used: Any, later: Any, steps: Longs) -> NDArray[np.float64]:
    """Return earliest, median and latest label over the tokens used; ``later`` than the last step counts as latest."""
    values = np.where(later, np.inf, _labels(position, steps))[used]
    if not len(values):
        return np.full(3, np.nan)
    with np.errstate(invalid="ignore"):
        ends = np.array([values.min(), np.median(values), values.max()])
    return np.where(np.isfinite(ends), ends, np.nan)


def _stratigraphy(paths: da.Array, like: da.Array, phases: tuple[str, ...]) -> xr.Variable:
    """Return the phase in retrospect, (step, token), with the chunks along step of another result."""
    position = da.arange(like.shape[0], chunks=(like.chunks[0],))
    data = da.blockwise(
        hottest_to_come, "tn", paths, "z", position, "t", new_axes={"n": like.shape[1]}, concatenate=None,
        dtype=np.int8, meta=empty_meta(2, np.int8),
    )  # fmt: skip
    flags = {"flag_values": list(range(-1, len(phases))), "flag_meanings": " ".join(("unknown", *phases))}
    return xr.Variable(("step", "token"), data, {**STRATIGRAPHY, **flags})


@lifecycle.summarize
def _summary(ds: xr.Dataset) -> Iterator[str]:
    frozen, moving, never = (int(ds[name]) for name in ("n_frozen", "n_censored", "n_never_moved"))
    first, last = (summary_text.range_text(ds[name].values) for name in ("first_freeze_range", "last_motion_range"))
    thaws = ds["thaw_count"].values
    yield (
        f"Life cycles: {frozen} tokens stand still at the end, {moving} still move, {never} never moved; first freeze "
        f"{first}; last motion {last}; {thaws.sum()} thaws, at most {thaws.max()} per token"
    )


@lifecycle.find
def _findings(ds: xr.Dataset) -> Iterator[Finding]:
    frozen, moving, never = (int(ds[name]) for name in ("n_frozen", "n_censored", "n_never_moved"))
    counts = (
        (frozen, f"stand still at the end{_last_motion(ds)}"), (moving, "still move at the last step"),
        (never, "never moved"),
    )  # fmt: skip
    parts = [(n, text) for n, text in counts if n]
    if parts:
        (n, text), *others = parts
        sentence = f"{summary_text.some(n, ds.sizes['token'], ds)} {text}"
        sentence += "".join(f"; {n:,} {text}" for n, text in others)
        yield Finding(0.93 if frozen or moving else 0.2, summary_text.sentence(sentence))
    thaws = ds["thaw_count"].values
    if thaws.any():
        total, most = ("once" if n == 1 else f"{n:,} times" for n in (int(thaws.sum()), int(thaws.max())))
        yield Finding(0.7, f"Tokens that stood still moved again {total}, at most {most} each.")
    yield from _who(ds)


def _who(ds: xr.Dataset) -> Iterator[Finding]:
    """Name the tokens that stopped first and last."""
    last, stopped = ds["last_motion"].values, (ds["last_motion"].values >= 0) & (ds["censored"].values == 0)
    ends = last[stopped].min(initial=np.iinfo(last.dtype).max), last[stopped].max(initial=-1)
    if ends[0] >= ends[1]:
        return  # none, or all at once
    names = [token_names(ds, ds["token"].values[stopped & (last == step)]) for step in ends]
    yield Finding(
        0.66, f"Of the tokens that stand still at the end, {names[0]} stopped first (last motion at step {ends[0]}), "
        f"{names[1]} last (step {ends[1]})."
    )  # fmt: skip


def _last_motion(ds: xr.Dataset) -> str:
    """Return when the tokens that stand still moved for the last time."""
    ends = ds["last_motion_range"].values
    if ends[0] == ends[-1]:
        return f" (last motion at step {ends[0]:g})"
    words = zip(("the first at step", "half by", "the last at"), ends, strict=True)
    return f" (last motion: {', '.join(f'{word} {step:g}' for word, step in words if step >= 0)})"


@lifecycle.measure
def _key_figure(ds: xr.Dataset) -> KeyFigure:
    return KeyFigure("tokens that stand still at the end", last=int(ds["n_frozen"]) + int(ds["n_never_moved"]))


lifecycle.invalid = "which count neither as motion nor as rest"
lifecycle.over_runs = "n_moving"
lifecycle.pictures = (
    Picture(
        "lifecycle",
        "lifecycle.lifecycle",
        "Life cycles",
        "Every row is a token, every column a step; the colour is the hottest phase that the token is in at this step "
        "or later. Tokens are sorted by their last motion, the earliest at the bottom.",
    ),
)
