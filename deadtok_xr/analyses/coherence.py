"""Compare the directions in which tokens move, with each other and with the hidden state that pushes them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr

from deadtok_xr import attributes
from deadtok_xr.analyses.common import checks, coordinates, summary_text
from deadtok_xr.analyses.common.directions import ATTRS, MATRICES, Directions
from deadtok_xr.analyses.registry import Finding, KeyFigure, Picture, built_in
from deadtok_xr.engine import AnalysisSpec, ReductionResults
from deadtok_xr.engine.series import Series

_ALWAYS = ("displacement_cosine_mean", "displacement_cosine_std", "bulk_alignment", "n_used", "n_invalid")
_NEEDS: dict[str, tuple[str, ...]] = {
    "h_alignment": ("h_mean",),
    "h_norm_ratio": ("h_norm",),
    "p_dead": ("p_dead",),
    **dict.fromkeys(
        ("gradient_cosine_mean", "gradient_cosine_std", "gradient_n_used", "gradient_norm_mean", "mean_gradient_norm",
         "gradient_update_cosine"), ("grad",)),
    "gradient_h_alignment": ("grad", "h_mean"),
    "gradient_p_h_alignment": ("grad", "p_h_dead", "dead tokens"),
    "gradient_p_h_deviation": ("grad", "p_h_dead", "dead tokens"),
    "step1_deviation": ("grad", "the first update of Adam"),
    **dict.fromkeys(("update_cosine_mean", "update_cosine_std", "update_n_used"), ("update",)),
    **dict.fromkeys(
        ("separation", "separation_cosine", "dead_centroid_norm", "live_centroid_norm"),
        ("dead tokens", "live tokens")),
}  # fmt: skip
_SERIES = ("h_mean", "h_norm", "p_h_dead", "p_dead", "lr")


@built_in
def coherence(ds: xr.Dataset, *, variable: str = "W", allow_gaps: bool = False) -> AnalysisSpec:
    """Measure how similar in direction the displacements and gradients of the tokens are, and their alignment.

    Cosines are over all pairs, exact in float64, from moments in O(N·D²): N x N is never formed.

    Parameters
    ----------
    ds
        A recording, (step, token, dim). Besides the weights it uses, if they exist, `grad`, `update` (the update
        before rounding), `h_mean`, `h_norm`, `p_dead` and `p_h_dead`, and the coordinate `dead`.
    variable
        The weights to follow.
    allow_gaps
        Measure transitions that span several updates; adds `step_span`. The gradient is that of the last one.

    Returns
    -------
    xarray.Dataset
        Lazy dataset over t = 1..T, float64 (step): `displacement_cosine_mean`, `displacement_cosine_std` (ddof 0),
        `bulk_alignment`, and int64 `n_used` (tokens that moved), `n_invalid`. If the recording allows,
        `h_alignment`, `h_norm_ratio`, `p_dead`; `gradient_cosine_mean`, `gradient_cosine_std`, `gradient_n_used`,
        `gradient_norm_mean`, `mean_gradient_norm`, `gradient_update_cosine`, `gradient_h_alignment`;
        `gradient_p_h_alignment` and `gradient_p_h_deviation`, the law of dead gradients; `step1_deviation`;
        `update_cosine_mean`, `update_cosine_std`, `update_n_used`; `separation`, `separation_cosine`,
        `dead_centroid_norm`, `live_centroid_norm`. The attribute `left_out` names the others, with the reason.

        Zero vectors have no direction and are left out, like tokens with NaN or infinity; fewer than two vectors give
        NaN.

    Raises
    ------
    InputError
        For fewer than two steps, gaps, or a recording without W.

    Notes
    -----
    With unit vectors x, μ = mean x, s = ‖x - μ‖², q = mean s, a = (q - s)/2 and K = Σ (x - μ)(x - μ)ᵀ: the mean is 1
    - q·N/(N-1), the variance [2NΣa² + ‖K‖²_F - N·q²] / (N(N-1)) - (q/(N-1))². The cosines between the mean and single
    tokens are those of notebook 1.31e; the law ∂L/∂W_i = Σ p_i·h of dead tokens is derived in
    lore/dead-token-dynamics. Adam's first step follows the law |Δθ₁| = lr·|g|/(|g| + eps), since both moments are
    those of the first gradient.
    """
    weights = checks.require(ds, variable, "coherence")
    extra = checks.check_steps(ds, "coherence", allow_gaps=allow_gaps)
    adam = _first_update(ds)
    left_out = _left_out(ds, isinstance(adam, str))
    if isinstance(adam, str) and "grad" in ds:
        left_out["step1_deviation"] = adam
    names = [*_ALWAYS, *(name for name in _NEEDS if name not in left_out)]
    used = {need for name in names for need in _NEEDS.get(name, ())}
    matrices = {"W": weights, **{name: checks.require(ds, name, "coherence") for name in MATRICES if name in used}}
    series = {name: Series(checks.as_series(ds[name])) for name in _SERIES if name in used}
    if "step1_deviation" in names and "lr" in ds:
        series["lr"] = Series(checks.as_series(ds["lr"]))
    dead = ds["dead"].values if "dead" in ds.coords else np.ones(ds.sizes["token"], bool)
    reduction = Directions(
        tuple(names), tuple(matrices), series, ds["step"].values, dead, None if isinstance(adam, str) else adam
    )

    def finish(results: ReductionResults) -> xr.Dataset:
        attrs = checks.result_attrs(ds, variable=variable, left_out=left_out)
        coords = coordinates.along(ds.isel(step=slice(1, None)), "step")
        return xr.Dataset({**results.variables("directions", ATTRS), **extra}, coords, attrs)

    return AnalysisSpec(
        {name: checks.as_dask(x.data) for name, x in matrices.items()}, {"directions": reduction}, finish
    )


def _left_out(ds: xr.Dataset, no_first_update: bool) -> dict[str, str]:
    """Return the variables that the recording does not allow, and why."""
    dead = ds["dead"].values if "dead" in ds.coords else None
    available = {str(name) for name in ds.data_vars}
    if dead is not None:
        available |= {kind for kind, mask in (("dead tokens", dead), ("live tokens", ~dead)) if mask.any()}
    if not no_first_update:
        available.add("the first update of Adam")
    reasons = {}
    for name, needs in _NEEDS.items():
        missing = [need for need in needs if need not in available]
        if missing:
            unknown = dead is None and missing[0].endswith("tokens")
            why = "does not say which tokens are dead" if unknown else f"has no {' and no '.join(missing)}"
            reasons[name] = f"the dataset {why}"
    return reasons


def _first_update(ds: xr.Dataset) -> dict[str, float] | str:
    """Return the settings for the law of the first step, or the reason why it does not apply."""
    optimizer, settings = str(ds.attrs.get("optimizer", "unknown")), attributes.read(ds.attrs, "hyperparameters") or {}
    if ds["step"].values[:2].tolist() != [0, 1]:
        return "the dataset does not begin with the first update (steps 0 and 1)"
    if optimizer not in ("Adam", "AdamW") or "eps" not in settings or not {"lr"} & {*settings, *map(str, ds)}:
        return f"the law of the first step needs Adam or AdamW with its lr and eps (the optimizer is {optimizer})"
    decay = float(settings.get("weight_decay", 0.0))
    if decay and optimizer == "Adam":
        return "the weight decay of Adam is part of its gradient: the law of the first step does not hold"
    return {"lr": float(settings.get("lr", np.nan)), "eps": float(settings["eps"]), "decay": decay}


@coherence.summarize
def _summary(ds: xr.Dataset) -> Iterator[str]:
    yield "Coherence, cosines over all pairs of tokens"
    for name, words in (("displacement", "displacements"), ("update", "intended updates"), ("gradient", "gradients")):
        if f"{name}_cosine_mean" in ds:
            mean, std = ds[f"{name}_cosine_mean"].values, ds[f"{name}_cosine_std"].values
            spans = summary_text.span(mean), summary_text.span(std)
            yield f"  {words:17s} mean {_cosine(mean[0])} first, {spans[0]}; std {_cosine(std[0])} first, {spans[1]}"
    for name, words in (("h_alignment", "ΔC to -h"), ("gradient_p_h_alignment", "gradient to Σp·h")):
        if name in ds:
            values = ds[name].values
            ends = f"{_cosine(values[0])} first, {_cosine(values[-1])} last"
            yield f"  {words:17s} cosine {ends}, {summary_text.span(values)}"
    if "gradient_p_h_deviation" in ds:
        deviation = summary_text.largest_value(ds["gradient_p_h_deviation"].values)
        yield f"  check             ∂L/∂W = Σp·h holds to within {deviation:.2g}"


def _cosine(x: float) -> str:
    return "none" if np.isnan(x) else f"{x:.6f}"


@coherence.find
def _findings(ds: xr.Dataset) -> Iterator[Finding]:
    for name, words, importance in (("displacement", "displacements", 0.67), ("gradient", "gradients", 0.33)):
        if f"{name}_cosine_mean" in ds:
            mean = ds[f"{name}_cosine_mean"].values
            if (at := summary_text.ends(mean)) is not None:
                least = int(np.nanargmin(mean))
                first, lowest, last = (f"{mean[i]:.2f} at step {ds['step'].values[i]}" for i in (at[0], least, at[1]))
                between = f", {lowest} (the least)" if mean[least] < min(mean[i] for i in at) - 0.01 else ""
                yield Finding(
                    importance, f"The mean cosine of two {words} is {first}{between}, {last} (1: one direction)."
                )
    if "h_alignment" in ds:
        aligned = summary_text.finite_mean(ds["h_alignment"].values)
        if np.isfinite(aligned):
            yield Finding(
                0.38, f"The centre moves against the mean hidden state, with a mean cosine of {-aligned:.2f}."
            )


@coherence.measure
def _key_figure(ds: xr.Dataset) -> KeyFigure:
    mean = ds["displacement_cosine_mean"].values
    return KeyFigure("mean cosine of two displacements", mean[0], mean[-1])


coherence.invalid = "which are left out"
coherence.over_runs = "displacement_cosine_mean"
coherence.pictures = (
    Picture(
        "coherence",
        "coherence.coherence",
        "Do the tokens move as one?",
        "A cosine of 1 means that all displacements have the same direction, 0 that they are unrelated. The lower "
        "panels compare the common direction with the gradient and the hidden state, and show how the gradient fades.",
    ),
)
