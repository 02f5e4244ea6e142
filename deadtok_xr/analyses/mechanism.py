"""Replay every update, and explain why each token moves or not: no gradient, or an update that rounds to zero."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from deadtok_xr.analyses.common import checks, coordinates, replayed_updates, summary_text
from deadtok_xr.analyses.common.read_updates import read_updates
from deadtok_xr.analyses.registry import Finding, KeyFigure, Picture, built_in
from deadtok_xr.engine import AnalysisSpec, ReductionResults
from deadtok_xr.engine.series import Series
from deadtok_xr.engine.small_results import Arrays, compute_together
from deadtok_xr.errors import InputError

CAUSES = ("no_gradient", "rounded_to_zero", "moved", "unknown")
_FLAGS = {"flag_values": list(range(4)), "flag_meanings": " ".join(CAUSES)}
_SHARE = "share of the compared elements"
PER_TOKEN: dict[str, dict[str, Any]] = {
    "cause": {
        "long_name": "why the token moved or did not",
        "units": "1",
        "formula": "moved if any element moved; else rounded_to_zero if any update rounded to zero; else no_gradient",
        **_FLAGS,
    },
    "margin": {
        "long_name": "largest update in units of half the gap",
        "units": "1",
        "formula": "max_d |u| / (half the gap from W[t-1] in the direction of u)",
    },
    "intended": {"long_name": "length of the update before rounding", "units": "1", "formula": "‖u‖₂"},
}
PER_STEP: dict[str, dict[str, Any]] = {
    **{f"n_{c}": {"long_name": f"elements: {c.replace('_', ' ')}", "units": "1"} for c in CAUSES},
    "n_compared": {"long_name": "elements whose update was replayed", "units": "1"},
    "n_missed": {"long_name": "elements where the replay differs from the recording", "units": "1"},
    "replay_agreement": {"long_name": f"{_SHARE} that the replay gives to the bit", "units": "1"},
    "replay_agreement_moved": {
        "long_name": "share of the compared elements that moved, and that the replay gives to the bit",
        "units": "1",
    },
    "baseline_agreement": {"long_name": f"{_SHARE} that did not move", "units": "1"},
    "exp_avg_agreement": {"long_name": "share of exp_avg that the replay gives to the bit", "units": "1"},
    "exp_avg_sq_agreement": {"long_name": "share of exp_avg_sq that the replay gives to the bit", "units": "1"},
    "stalled_fraction": {
        "long_name": "share of elements whose exp_avg_sq is stalled: unchanged, though not equal to g²",
        "units": "1",
        "formula": "exp_avg_sq[t] = exp_avg_sq[t-1] and g² ≠ exp_avg_sq[t-1]",
    },
    "weight_decay_only": {
        "long_name": "share of elements that would not have moved without weight decay",
        "units": "1",
    },
    "at_power_of_two": {"long_name": "share of elements at a power of two at t-1", "units": "1"},
    "lr": {"long_name": "learning rate of the update", "units": "1"},
    "lr_estimate": {
        "long_name": "learning rate estimated from the motion",
        "units": "1",
        "formula": "lr·Σ ΔW·u / Σ u² over elements with |u| above 4 gaps",
    },
    "intended_norm": {
        "long_name": "length of all updates before rounding",
        "units": "1",
        "formula": "√Σ u²",
        "comment": "over the elements with known u; NaN without any",
    },
    "realised_norm": {
        "long_name": "length of all displacements",
        "units": "1",
        "formula": "√Σ ΔW²",
        "comment": "over the finite elements; NaN if none moved and the updates of none are known",
    },
}
OF_MASTERS: dict[str, dict[str, Any]] = {
    "n_visible": {
        "long_name": "elements whose value as bfloat16 changed",
        "units": "1",
        "comment": "what inference in bfloat16 sees of the update; only of weights on the grid of float32",
    },
}
TOTALS: dict[str, dict[str, Any]] = {
    "intended_net": {
        "long_name": "length of the sum of all updates",
        "units": "1",
        "formula": "‖Σ_t u‖₂",
        "comment": "NaN for a token with NaN or infinity at any step, or an unknown update",
    },
    "realised_net": {
        "long_name": "length of the sum of all displacements",
        "units": "1",
        "formula": "‖Σ_t ΔW‖₂",
        "comment": "NaN for a token with NaN or infinity at any step",
    },
    "last_motion": {"long_name": "last step at which the token moved; -1 never", "units": "1"},
    "freeze_cause": {
        "long_name": "why the token did not move at the update after its last motion",
        "units": "1",
        "formula": "`cause` at that update; moved: it still moves at the end. Updates that skipped W do not count",
        **_FLAGS,
    },
    "margin_after": {
        "long_name": "largest margin after the last motion; below 1 the recorded gradients cannot move the token",
        "units": "1",
    },
}


@built_in
def mechanism(
    ds: xr.Dataset,
    *,
    arithmetic: str = "auto",
    hyperparameters: Mapping[str, Any] | None = None,
    lr: float | ArrayLike | None = None,
    variable: str = "W",
    precision: str | None = None,
    updates_before: int = 0,
    allow_gaps: bool = False,
) -> AnalysisSpec:
    """Replay every update with torch's arithmetic, and explain for each element why it moved or not.

    Parameters
    ----------
    ds
        A recording of W and the tensors of its optimizer: grad, exp_avg and exp_avg_sq for Adam and AdamW, grad for
        SGD.
    arithmetic
        ``"auto"``: the one that the recording's flags (foreach, fused, capturable) select. ``"find"``: the result of
        `find_arithmetic`, which reads a few steps immediately. Or a name, see `deadtok_xr.replay`.
    hyperparameters
        By torch's names (`optimizer`, `betas`, `eps`, `weight_decay`, ...), instead of those of the recording.
    lr
        The learning rate, one or one per step; by default the variable `lr`, else the hyperparameter.
    variable, precision
        As for `motion`.
    updates_before
        Updates that the optimizer had made before step 0 of the recording.
    allow_gaps
        Accept gaps in the steps; across a gap, elements are ``moved`` or ``unknown``.

    Returns
    -------
    xarray.Dataset
        Lazy dataset with the label t for the update t-1 → t.

        Per (step, token): `cause`; `margin`, the largest |u| in units of half the gap that it would have to cross;
        `intended` ‖u‖₂, with u the update before W is rounded. Per step: element counts of each cause, the agreement of
        the replay, over all and over moved elements, and that of the baseline "nothing moved", `n_missed`, and
        fractions (see the attributes); of float32 weights also `n_visible`, the elements whose value as bfloat16
        changed. Per token: sums of u and of ΔW, `last_motion`, `freeze_cause`, `margin_after`.

        An element that did not move is no_gradient if g = 0 and u = 0; rounded_to_zero if the replay does not move it
        either; and unknown if an input is missing or NaN, or if the replay moves it. In an update that skipped W for
        lack of a gradient (`skipped`), every element is no_gradient.

    Raises
    ------
    InputError
        For missing tensors, hyperparameters or learning rates, gaps, and optimizers that cannot be replayed.

    Notes
    -----
    The operations are those of torch 2.13: torch/optim/adam.py, adamw.py, sgd.py.
    """
    extra = _checked(ds, variable, allow_gaps)
    u = read_updates(
        ds, "mechanism", variable=variable, hyperparameters=hyperparameters, lr=lr, precision=precision,
        updates_before=updates_before,
    )  # fmt: skip
    notes = dict(u.notes)
    if arithmetic == "find":
        from deadtok_xr.analyses.find_arithmetic import find_arithmetic

        comparison = find_arithmetic(
            ds, hyperparameters=hyperparameters, lr=lr, variable=variable, precision=precision,
            updates_before=updates_before,
        )  # fmt: skip
        arithmetic = comparison.attrs["best"] or u.arithmetic
        notes |= {k: comparison.attrs[k] for k in ("verdict", "candidates", "report")}
    elif arithmetic == "auto":
        arithmetic = u.arithmetic
    u.require(arithmetic, "mechanism")
    notes |= {"missing": [n for n in ("grad",) if n not in u.arrays]}

    is_master = u.grids["W"] == "float32"

    def finish(results: ReductionResults) -> xr.Dataset:
        values = {
            **results.variables("replay", {**PER_TOKEN, **PER_STEP, **(OF_MASTERS if is_master else {})}),
            **_token_totals(results, ds.sizes["token"]),
            **extra,
        }
        attrs = checks.result_attrs(
            ds, variable=variable, precision=u.grids["W"], arithmetic=arithmetic, optimizer=u.settings.optimizer,
            **notes,
        )  # fmt: skip
        return xr.Dataset(values, coordinates.of_transitions(ds), attrs)

    series = {name: Series(u.arrays[name][:, 0, 0]) for name in ("t", "lr", "step")}
    reduction = replayed_updates.Replay(u.settings, arithmetic, u.grids, series)
    return AnalysisSpec({n: u.arrays[n] for n in u.grids}, {"replay": reduction}, finish)


def _checked(ds: xr.Dataset, variable: str, allow_gaps: bool) -> dict[str, xr.Variable]:
    checks.require(ds, variable, "mechanism")
    try:
        return checks.check_steps(ds, "mechanism", allow_gaps=allow_gaps)
    except InputError as error:
        if "allow_gaps" not in str(error):
            raise
        raise InputError(
            str(error).partition("; a transition")[0] + "; an update can only be replayed between consecutive steps: "
            "record every step or pairs of steps, and say allow_gaps=True (--allow-gaps) to skip the other transitions"
        ) from None


def _token_totals(results: ReductionResults, n_tokens: int) -> dict[str, xr.Variable]:
    inputs = {
        "net": results.merged("replay", "net", np.add),
        "freeze": results.merged("replay", "freeze", replayed_updates.merge_freezes),
    }
    dtypes = {"last_motion": "i8", "freeze_cause": "i1"}
    shapes: dict[str, Any] = {name: (("token",), (n_tokens,), dtypes.get(name, "f8")) for name in TOTALS}
    return compute_together(inputs, _describe_tokens, shapes, TOTALS)


def _describe_tokens(inputs: dict[str, list[Any]]) -> Arrays:
    (net,), (freeze,) = inputs["net"], inputs["freeze"]
    lengths = np.linalg.norm(net, axis=2)
    return {
        "intended_net": lengths[:, 0],
        "realised_net": lengths[:, 1],
        "last_motion": freeze["last_motion"],
        "freeze_cause": np.where(freeze["next_step"] >= 0, freeze["next_cause"], CAUSES.index("moved")),
        "margin_after": freeze["margin_after"],
    }


@mechanism.summarize
def _summary(ds: xr.Dataset) -> Iterator[str]:
    names = ds["cause"].attrs["flag_meanings"].split()
    n = {name: ds[f"n_{name}"].values for name in names}
    steps = ds["step"].values
    compared, missed = ds["n_compared"].values.sum(), ds["n_missed"].values.sum()
    baseline, moved = ds["baseline_agreement"].values, ds["replay_agreement_moved"].values
    yield f"Mechanism, why tokens move or not: {ds.attrs.get('optimizer')} replayed ({ds.attrs.get('arithmetic')})"
    if "optimizer_from" in ds.attrs:
        yield f"  optimizer: {ds.attrs['optimizer_from']}"
    if compared:
        yield (
            f"  replay            {1 - missed / compared:.4%} of {compared} elements to the bit, {missed} missed "
            f"(baseline, nothing moves: {summary_text.finite_mean(baseline):.2%}); of those that moved, per step "
            f"{summary_text.span(moved)}"
        )
    tokens = {
        name: (ds["cause"].values == k).sum(axis=ds["cause"].get_axis_num("token")) for k, name in enumerate(names)
    }
    for what, counts in (("elements", n), ("tokens", tokens)):
        ends = (f"step {steps[i]}: {summary_text.shares({k: v[i] for k, v in counts.items()})}" for i in (0, -1))
        yield f"  {what:17s} {'; '.join(ends)}"
    kinds = np.bincount(ds["freeze_cause"].values.astype(np.int64), minlength=len(names))
    frozen = ", ".join(f"{k} {name.replace('_', ' ')}" for k, name in zip(kinds, names, strict=True) if k)
    yield f"  why tokens froze  {frozen.replace('moved', 'still moving')}"
    intended, realised = (summary_text.finite_median(ds[name].values) for name in ("intended_net", "realised_net"))
    yield f"  drift, median     {intended:.4g} intended by all updates, {realised:.4g} realised after rounding"
    stalled, powers = ds["stalled_fraction"].values, ds["at_power_of_two"].values
    yield f"  exp_avg_sq stalls {summary_text.span(stalled)} of the elements, last {stalled[-1]:.3g}"
    yield f"  at a power of two {summary_text.span(powers)} of the elements, last {powers[-1]:.3g}"


@mechanism.warn
def _warnings(ds: xr.Dataset) -> Iterator[str]:
    """Yield a warning if the motion contradicts the learning rates, or the replay misses too many elements."""
    given, estimated, moved = (ds[n].values for n in ("lr", "lr_estimate", "replay_agreement_moved"))
    wrong = (moved < 0.9) & (np.abs(estimated - given) > 0.05 * given)
    if wrong.any():
        i = int(np.flatnonzero(wrong)[len(np.flatnonzero(wrong)) // 2])
        yield (
            f"the motion contradicts the learning rate ({ds.attrs.get('lr_from')}): at step "
            f"{ds['step'].values[i]} it corresponds to {estimated[i]:.3g}, not {given[i]:.3g}; was there a schedule? "
            "give mechanism the rate of each step (lr=, --lr)"
        )
    elif ds["n_missed"].values.sum() > 0.001 * ds["n_compared"].values.sum():
        yield "the replay misses elements; find_arithmetic (--arithmetic find) finds the closest arithmetic"


_STOPPED = {
    "rounded_to_zero": "rounding to the grid removed their updates",
    "no_gradient": "they had no gradient",
    "unknown": "the cause is unknown",
}


@mechanism.find
def _findings(ds: xr.Dataset) -> Iterator[Finding]:
    names = ds["cause"].attrs["flag_meanings"].split()
    stopped = ds["freeze_cause"].values[ds["last_motion"].values >= 0]
    counts = np.bincount(stopped.astype(np.int64), minlength=len(names))
    causes = [f"{_STOPPED[name]} ({k:,})" for name, k in zip(names, counts, strict=True) if k and name in _STOPPED]
    if causes:
        yield Finding(0.92, f"Why tokens stopped: {', '.join(causes)}.")
    intended, realised = (summary_text.finite_median(ds[name].values) for name in ("intended_net", "realised_net"))
    if np.isfinite(intended) and np.isfinite(realised):
        yield Finding(
            0.72, f"All updates together would move a token by {intended:.3g}; after rounding it moved by "
            f"{realised:.3g} (medians)."
        )  # fmt: skip
    compared, missed = (int(ds[name].sum()) for name in ("n_compared", "n_missed"))
    if compared:
        share = f"all {compared:,}" if not missed else f"{compared - missed:,} of {compared:,}"
        yield Finding(0.62, f"Replaying {ds.attrs.get('optimizer')} gives {share} recorded values to the bit.")


@mechanism.measure
def _key_figure(ds: xr.Dataset) -> KeyFigure:
    names = ds["cause"].attrs["flag_meanings"].split()
    counts = np.stack([ds[f"n_{name}"].values for name in names]).astype(np.float64)
    with np.errstate(invalid="ignore"):
        rounded = counts[names.index("rounded_to_zero")] / counts.sum(0)
    first, last = (summary_text.percent(rounded[i]) for i in (0, -1))
    return KeyFigure("weights whose update is rounded to zero", first, last)


mechanism.over_runs = "n_rounded_to_zero"
mechanism.pictures = (
    Picture(
        "mechanism",
        "mechanism.mechanism",
        "Why tokens move or stay",
        "Top: the share of tokens that moved, whose update rounded to zero, and that had no gradient. Bottom: the "
        "largest update in units of half a gap of the grid; below 1 it cannot move a token.",
    ),
)
