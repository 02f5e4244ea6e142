"""What an analysis found, on one screen."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import xarray as xr


def summary(tree: xr.DataTree) -> str:
    """The main findings of a tree of results, as text for one screen.

    Parameters
    ----------
    tree
        From `open_results`, `save_results` or `analyze` (which is computed here, as far as needed).
    """
    lines = [_heading(tree)]
    for name, describe in _SECTIONS.items():
        if name in tree.children:
            lines += describe(tree[name].to_dataset())
    left_out = tree.attrs.get("left_out", {})
    for reason in dict.fromkeys(left_out.values()):
        names = ", ".join(name for name in left_out if left_out[name] == reason)
        lines.append(f"{names}: left out. {reason}")
    return "\n".join(lines)


def _heading(tree: xr.DataTree) -> str:
    kind = tree.attrs.get("tokens", "all")
    n = tree.attrs.get("n_tokens", "?")
    return f"{tree.attrs.get('source', 'recording')}: {n} {'' if kind == 'all' else kind + ' '}tokens"


def _motion(ds: xr.Dataset) -> Iterator[str]:
    mean, std = ds["displacement_ulp_mean"].values, ds["displacement_ulp_std"].values
    moved = (ds["moved_dims"] > 0).sum("token").values
    steps = ds["step"].values
    yield "Motion, |ΔW| in norm ULP (1.31b)"
    yield f"  mean over tokens  {_span(mean)}, first {mean[0]:.4g}, last {mean[-1]:.4g}"
    yield f"  std over tokens   {_span(std)}"
    n_invalid = ds["n_invalid"].values
    still = steps[(moved == 0) & (n_invalid < ds.sizes["token"])]  # what is unknown has not stood still
    last = steps[moved > 0]
    yield (
        f"  moving tokens     {moved[0]} at step {steps[0]}, {moved[-1]} at step {steps[-1]}; nothing moved in "
        f"{len(still)} of {len(steps)} steps; last motion at step {last[-1] if len(last) else 'none'}"
    )
    yield from _invalid(ds, "which are left out of the means")


def _phases(ds: xr.Dataset) -> Iterator[str]:
    names = ds["phase"].values
    final = ds["fraction"].isel(step=-1).values
    begins = ds["transition_step"].values
    yield f"Phases, scheme {ds.attrs.get('scheme', 'lattice')}"
    yield "  final state       " + ", ".join(f"{n} {100 * f:.1f}%" for n, f in zip(names, final, strict=True))
    yield "  majority reached  " + ", ".join(
        f"{n} or colder {'never' if t < 0 else f'at {t}'}" for n, t in zip(names[:-1], begins[:-1], strict=True)
    )


def _kinematics(ds: xr.Dataset) -> Iterator[str]:
    norm = np.linalg.norm(ds["centroid"].values, axis=1)
    steps, bulk, heat = ds["step"].values, ds["bulk_speed"].values, ds["thermal_rms"].values
    radius = ds["radius"].values
    yield f"Kinematics, centre-of-mass frame ({ds.attrs.get('origin', 'absolute')} positions)"
    yield f"  centroid norm     {norm[0]:.6f} first, {norm[-1]:.6f} last, {_largest(norm, steps)}"
    yield f"  cloud radius      {radius[0]:.6f} first, {radius[-1]:.6f} last"
    if len(steps) > 1:
        ratio = bulk[1] / heat[1] if heat[1] else np.inf
        yield f"  at step {steps[1]}         bulk {bulk[1]:.4g}, thermal {heat[1]:.4g}, ratio {ratio:.4g}"
        yield f"  check             thermal velocities sum to {_most(ds['thermal_residual'].values):.2g} at most"
    yield from _invalid(ds, "which have no centroid")


def _topology(ds: xr.Dataset) -> Iterator[str]:
    rule = ds["density"].attrs.get("adjacent", "max_d |a - b| <= k·mean_d ULP(C)")
    yield f"Topology, {rule}, k = {ds.attrs.get('k', 1.0):g}, coincident tokens {ds.attrs.get('coincident')}"
    for key, label in (
        ("mean_ulp", "mean ULP"),
        ("density", "density"),
        ("largest_component", "largest component"),
        ("n_singletons", "singletons"),
        ("n_components", "components"),
    ):
        v = np.where(ds["n_invalid"].values > 0, np.nan, ds[key].values)
        yield f"  {label:17s} {v[0]:.4g} first, {v[-1]:.4g} last, {_span(v)}"
    if "verdict" in ds:
        words = ds["verdict"].attrs["flag_meanings"].split()[int(ds["verdict"])].replace("_", " ")
        gas, crystal = int(ds["evaporation_step"]), int(ds["crystallization_step"])
        when = [f"{name} from step {step}" for name, step in (("gas", gas), ("crystal", crystal)) if step >= 0]
        yield f"  verdict           {words}{': ' if when else ''}{', '.join(when)}"
    yield from _invalid(ds, "which have no graph")


def _connectivity(ds: xr.Dataset) -> Iterator[str]:
    yield "Connectivity, smallest L∞ threshold that connects all tokens"
    said = zip(ds["step"].values, ds["connectivity_threshold"].values, ds["connectivity_k"].values, strict=True)
    shown = [f"step {step}: {x:.4g} ({k:.4g} mean ULP)" for step, x, k in said]
    for i in range(0, len(shown), 3):
        yield f"  {'' if i else 'threshold':17s} {', '.join(shown[i : i + 3])}"
    yield from _invalid(ds, "which have no graph")


def _coherence(ds: xr.Dataset) -> Iterator[str]:
    yield "Coherence, cosines over all pairs of tokens"
    for name, words in (("displacement", "displacements"), ("update", "intended updates"), ("gradient", "gradients")):
        if f"{name}_cosine_mean" in ds:
            mean, std = ds[f"{name}_cosine_mean"].values, ds[f"{name}_cosine_std"].values
            yield f"  {words:17s} mean {mean[0]:.6f} first, {_span(mean)}; std {std[0]:.3g} first, {_span(std)}"
    for name, words in (("h_alignment", "ΔC to -h"), ("gradient_p_h_alignment", "gradient to Σp·h")):
        if name in ds:
            values = ds[name].values
            yield f"  {words:17s} cosine {values[0]:.6f} first, {values[-1]:.6f} last, {_span(values)}"
    if "gradient_p_h_deviation" in ds:
        yield f"  check             ∂L/∂W = Σp·h holds to {_most(ds['gradient_p_h_deviation'].values):.2g} at most"
    yield from _invalid(ds, "which are left out")


def _h_persistence(ds: xr.Dataset) -> Iterator[str]:
    half = int(ds["half_lag"])
    yield "Persistence of the mean hidden state's direction"
    yield f"  mean direction    unit vectors average to length {float(ds['resultant_length']):.4f} (1: one direction)"
    yield (
        f"  swing             {_span(ds['swing'].values)} degrees a step; net angle over their sum "
        f"{float(ds['straightness']):.3g}; fluctuation halves {'never' if half < 0 else f'at a lag of {half}'}"
    )


def _centroid_origin(ds: xr.Dataset) -> Iterator[str]:
    share, rest = float(ds["drift_projection"][-1]), float(ds["initial_projection"])
    yield "Origin of the final centroid"
    yield f"  of its length     {100 * share:.2f}% is drift, {100 * rest:.2f}% the first centroid"
    if "drift_h_cosine" in ds:
        yield f"  drift             cosine to accumulated -h {float(ds['drift_h_cosine'][-1]):.4f}"


def _freeze_predictors(ds: xr.Dataset) -> Iterator[str]:
    yield (
        f"Freezing: {int(ds['n_frozen'])} tokens froze, {int(ds['n_censored'])} still moved at the last step, "
        f"{int(ds['n_never_moved'])} never moved"
    )
    low, high = ds["rank_correlation_low"].values, ds["rank_correlation_high"].values
    names = [str(name) for name in ds["predictor"].values]
    rows = sorted(zip(names, ds["rank_correlation"].values, low, high, strict=True), key=lambda row: -abs(row[1]))
    for i in range(0, len(rows), 3):
        said = (f"{name} {value:+.3f} [{a:+.3f}, {b:+.3f}]" for name, value, a, b in rows[i : i + 3])
        yield f"  {'' if i else 'rank correlation':17s} {', '.join(said)}"


def _mechanism(ds: xr.Dataset) -> Iterator[str]:
    names = ds["cause"].attrs["flag_meanings"].split()
    n = {name: ds[f"n_{name}"].values for name in names}
    steps, total = ds["step"].values, np.sum(list(n.values()), axis=0)
    compared, missed = ds["n_compared"].values.sum(), ds["n_missed"].values.sum()
    baseline, moved = ds["baseline_agreement"].values, ds["replay_agreement_moved"].values
    yield f"Mechanism, {ds.attrs.get('optimizer')} replayed with the arithmetic {ds.attrs.get('arithmetic')}"
    share = 1 - missed / compared if compared else np.nan
    yield (
        f"  replay            {share:.4%} of {compared} elements to the bit, {missed} missed (nothing moved: "
        f"{_mean(baseline):.2%}); of those that moved, per step {_span(moved)}"
    )
    for label, i in (("first", 0), ("last", -1)):
        parts = ", ".join(f"{name.replace('_', ' ')} {n[name][i] / total[i]:.1%}" for name in names if n[name][i])
        yield f"  elements          {label} (step {steps[i]}): {parts}"
    kinds = np.bincount(ds["freeze_cause"].values.astype(np.int64), minlength=len(names))
    frozen = ", ".join(f"{k} {name.replace('_', ' ')}" for k, name in zip(kinds, names, strict=True) if k)
    yield f"  why tokens froze  {frozen.replace('moved', 'still moving')}"
    stalled, powers = ds["stalled_fraction"].values, ds["at_power_of_two"].values
    yield f"  exp_avg_sq stalls {_span(stalled)} of the elements, last {stalled[-1]:.3g}"
    yield f"  at a power of two {_span(powers)} of the elements, last {powers[-1]:.3g}"
    yield from _contradiction(ds)


def _contradiction(ds: xr.Dataset) -> Iterator[str]:
    """Whether the motion is that of other learning rates."""
    given, shown, moved = (ds[n].values for n in ("lr", "lr_estimate", "replay_agreement_moved"))
    wrong = (moved < 0.9) & (np.abs(shown - given) > 0.05 * given)
    if wrong.any():
        i = int(np.flatnonzero(wrong)[len(np.flatnonzero(wrong)) // 2])
        yield (
            f"  warning: the motion contradicts the learning rate ({ds.attrs.get('lr_from')}): at step "
            f"{ds['step'].values[i]} it is that of {shown[i]:.3g} where {given[i]:.3g} was given; was there a "
            "schedule? Give mechanism the rate of each step (lr=)"
        )
    elif ds["n_missed"].values.sum() > 0.001 * ds["n_compared"].values.sum():
        yield "  warning: the replay does not close; find_arithmetic says which arithmetic comes closest"


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def _invalid(ds: xr.Dataset, consequence: str) -> Iterator[str]:
    n_invalid = ds["n_invalid"].values
    if n_invalid.any():
        yield (
            f"  warning: {(n_invalid > 0).sum()} steps hold NaN or infinity (n_invalid is at most {n_invalid.max()} "
            f"tokens), {consequence}"
        )


def _largest(values: np.ndarray, steps: np.ndarray) -> str:
    if not np.isfinite(values).any():
        return "none finite"
    at = int(np.nanargmax(np.where(np.isfinite(values), values, np.nan)))
    return f"{values[at]:.6f} largest (step {steps[at]})"


def _most(values: np.ndarray) -> float:
    return float(np.nanmax(values)) if not np.isnan(values).all() else float("nan")


def _span(values: np.ndarray) -> str:
    finite = values[np.isfinite(values)]
    return f"[{finite.min():.4g}, {finite.max():.4g}]" if finite.size else "[nan]"


_SECTIONS: dict[str, Callable[[xr.Dataset], Iterator[str]]] = {
    "motion": _motion,
    "phases": _phases,
    "phases_magnitude": _phases,
    "kinematics": _kinematics,
    "topology": _topology,
    "connectivity": _connectivity,
    "coherence": _coherence,
    "h_persistence": _h_persistence,
    "centroid_origin": _centroid_origin,
    "freeze_predictors": _freeze_predictors,
    "mechanism": _mechanism,
}
