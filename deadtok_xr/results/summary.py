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
            said = list(describe(tree[name].to_dataset()))
            lines += _joined(said) if name in _IN_ONE_LINE else said
    left_out = tree.attrs.get("left_out", {})
    for reason in dict.fromkeys(left_out.values()):
        names = ", ".join(name for name in left_out if left_out[name] == reason)
        lines.append(f"{names}: left out. {reason}")
    return "\n".join(lines)


_IN_ONE_LINE = ("phases", "phases_magnitude", "phases_cells", "kinematics", "cloud", "h_persistence", "centroid_origin")


def _joined(said: list[str]) -> list[str]:
    """A section as one line, and its warnings: the summary is to stay one screen."""
    facts = [" ".join(line.split()) for line in said if not line.lstrip().startswith("warning:")]
    return ["; ".join(facts), *(line for line in said if line.lstrip().startswith("warning:"))]


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
    left_out = ds["skipped"].values.astype(bool) if "skipped" in ds else np.zeros(len(steps), bool)
    still = steps[(moved == 0) & (n_invalid < ds.sizes["token"]) & ~left_out]  # the rest was not asked to move
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


def _lifecycle(ds: xr.Dataset) -> Iterator[str]:
    frozen, going, never = (int(ds[name]) for name in ("n_frozen", "n_censored", "n_never_moved"))
    first, last = (_range(ds[name].values) for name in ("first_freeze_range", "last_motion_range"))
    thaws = ds["thaw_count"].values
    yield (
        f"Life cycles: {frozen} tokens froze for good, {going} still move, {never} never moved; first freeze {first}; "
        f"last motion {last}; {thaws.sum()} thaws, at most {thaws.max()} of a token"
    )
    yield from _invalid(ds, "which are neither motion nor rest")


def _range(values: np.ndarray) -> str:
    words = ("earliest", "median", "latest")
    said = (f"{w} {'not yet' if np.isnan(x) else f'{x:g}'}" for w, x in zip(words, values, strict=True))
    return "never" if np.isnan(values).all() else ", ".join(said)


def _freezing(ds: xr.Dataset) -> Iterator[str]:
    n, total, longest, end = (int(ds[k]) for k in ("n_runs", "n_global", "longest_run", "permanent_freeze"))
    below = f" below {ds.attrs['threshold']:g}" if "threshold" in ds.attrs else " unchanged"
    yield (
        f"Global freezes ({ds.attrs.get('definition', 'value')}{below}): {total} of {ds.sizes['step']} steps, in {n} "
        f"runs of up to {longest}; permanent for the last {end}"
    )
    yield from _invalid(ds, "which are not frozen")


def _epochs(ds: xr.Dataset) -> Iterator[str]:
    at = {name: int(ds[f"{name}_step"]) for name in ("inhale", "sneeze", "reexpansion", "freeze")}
    when = {name: f"at {step}" if step >= 0 else "never" for name, step in at.items()}
    shrinks = f"shrinks by {100 * float(ds['inhale_depth']):.2f}% until {at['inhale']}, " if at["inhale"] >= 0 else ""
    yield (
        f"Epochs of the radius from the {ds.attrs.get('radius', 'origin')}: {shrinks}grows fastest {when['sneeze']}, "
        f"again {when['reexpansion']}, freeze begins {when['freeze']}"
    )
    yield from _invalid(ds, "which have no radius")


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


def _census(ds: xr.Dataset) -> Iterator[str]:
    holes, population, largest = (ds[key].values for key in ("n_black_holes", "population", "largest"))
    events = ", ".join(f"{ds[k].values[1:].sum()} {k}" for k in ("fissions", "fusions"))
    yield (
        f"Census: {holes[0]} black holes of {population[0]} tokens first (the largest {largest[0]}), {holes[-1]} of "
        f"{population[-1]} last (the largest {largest[-1]}), at most {holes.max()} of {population.max()}; {events}"
    )
    yield from _invalid(ds, "which are in no place")


def _critical_boundary(ds: xr.Dataset) -> Iterator[str]:
    above = ds["above_fraction"].values
    moved, still = _mean(ds["moved_above"].values), _mean(ds["moved_below"].values)
    yield (
        f"Critical boundary: Adam's step is above half the gap for {above[0]:.1%} of the elements first, "
        f"{above[-1]:.1%} last; {moved:.2%} of those above moved, {still:.2%} of the others"
    )


def _lattice(ds: xr.Dataset) -> Iterator[str]:
    moved = int(ds["n_moved"].sum())
    crossed = ds["n_crossings_up"] + ds["n_crossings_down"]
    yield (
        f"Lattice: elements moved {moved} times, {_of(ds['n_half'], moved)} by half cells, {_of(crossed, moved)} "
        f"across an exponent, {_of(ds['n_outward'], moved)} outwards; |ΔW'| up to "
        f"{_most(ds['lattice_max'].values):.4g} ULP"
    )
    yield from _invalid(ds, "which are left out")


def _of(counts: xr.DataArray, total: int) -> str:
    return f"{100 * int(counts.sum()) / total:.2f}%" if total else "none"


def _exponents(ds: xr.Dataset) -> Iterator[str]:
    first, last = ds.isel(step=0), ds.isel(step=-1)
    zeros, powers = ([int(at[name]) for at in (first, last)] for name in ("n_zero", "n_power_of_two"))
    yield (
        f"Elements, first and last: {zeros[0]}, {zeros[1]} exactly zero; {powers[0]}, {powers[1]} at powers of 2; ULP "
        f"{_gaps(first)}, {_gaps(last)}"
    )


def _gaps(ds: xr.Dataset) -> str:
    return f"[{float(ds['ulp_min']):.4g}, {float(ds['ulp_max']):.4g}]"


def _cloud(ds: xr.Dataset) -> Iterator[str]:
    heat = ds["temperature"].values[1:]
    out, lag = (_mean(ds[name].values) for name in ("outward_fraction", "lag1_mean"))
    yield (
        f"Cloud: temperature {heat[0]:.4g} first, {heat[-1]:.4g} last; {100 * out:.1f}% of the movers outwards, "
        f"cosine to the velocity before {lag:.3f}, on average over steps"
    )
    kinds, half = [int((ds["diffusivity_class"] == k).sum()) for k in range(3)], int(ds["half_lag"])
    yield (
        f"  tokens            {kinds[0]} subdiffusive, {kinds[1]} Brownian, {kinds[2]} superdiffusive; path "
        f"efficiency {_mean(ds['path_efficiency'].values):.3f}; centroid "
        f"{float(ds['bias_to_noise']):.4g} times as far as a random "
        f"walk, its velocity halves {'never' if half < 0 else f'at a lag of {half}'}"
    )
    yield from _invalid(ds.isel(step=slice(1, None)), "which are left out, and have no temperature")


def _spectrum(ds: xr.Dataset) -> Iterator[str]:
    axes, ratio = ds["participation_ratio"].values, ds["eccentricity"].values
    yield (
        f"Shape: {axes[0]:.4g} of {ds.sizes['mode']} axes matter first, {axes[-1]:.4g} last; variance ratio of "
        f"the axes {ratio[0]:.4g} first, {ratio[-1]:.4g} last"
    )


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
    steps = ds["step"].values
    compared, missed = ds["n_compared"].values.sum(), ds["n_missed"].values.sum()
    baseline, moved = ds["baseline_agreement"].values, ds["replay_agreement_moved"].values
    yield f"Mechanism, why tokens move or not: {ds.attrs.get('optimizer')} replayed ({ds.attrs.get('arithmetic')})"
    share = 1 - missed / compared if compared else np.nan
    yield (
        f"  replay            {share:.4%} of {compared} elements to the bit, {missed} missed (nothing moved: "
        f"{_mean(baseline):.2%}); of those that moved, per step {_span(moved)}"
    )
    tokens = {
        name: (ds["cause"].values == k).sum(axis=ds["cause"].get_axis_num("token")) for k, name in enumerate(names)
    }
    for what, counts in (("elements", n), ("tokens", tokens)):
        said = (f"step {steps[i]}: {_shares({k: v[i] for k, v in counts.items()})}" for i in (0, -1))
        yield f"  {what:17s} {'; '.join(said)}"
    kinds = np.bincount(ds["freeze_cause"].values.astype(np.int64), minlength=len(names))
    frozen = ", ".join(f"{k} {name.replace('_', ' ')}" for k, name in zip(kinds, names, strict=True) if k)
    yield f"  why tokens froze  {frozen.replace('moved', 'still moving')}"
    intended, realised = (_middle(ds[name].values) for name in ("intended_net", "realised_net"))
    yield f"  drift, median     {intended:.4g} intended by all updates, {realised:.4g} left after rounding"
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
            "schedule? Give mechanism the rate of each step (lr=, --lr)"
        )
    elif ds["n_missed"].values.sum() > 0.001 * ds["n_compared"].values.sum():
        yield "  warning: the replay does not close; find_arithmetic (--arithmetic find) says which comes closest"


def _shares(counts: dict[str, int]) -> str:
    total = sum(counts.values())
    return ", ".join(f"{name.replace('_', ' ')} {n / total:.1%}" for name, n in counts.items() if n)


def _middle(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else float("nan")


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
    "phases_cells": _phases,
    "lifecycle": _lifecycle,
    "freezing": _freezing,
    "kinematics": _kinematics,
    "epochs": _epochs,
    "topology": _topology,
    "census": _census,
    "lattice": _lattice,
    "exponents": _exponents,
    "cloud": _cloud,
    "spectrum": _spectrum,
    "connectivity": _connectivity,
    "coherence": _coherence,
    "h_persistence": _h_persistence,
    "centroid_origin": _centroid_origin,
    "freeze_predictors": _freeze_predictors,
    "mechanism": _mechanism,
    "critical_boundary": _critical_boundary,
}
