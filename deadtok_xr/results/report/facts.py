"""The texts of a report: the recording, the findings, warnings, definitions and the origin of the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from deadtok_xr.analyses.registry import ANALYSES
from deadtok_xr.results.summary import lines_of, summary


def title(tree: xr.DataTree) -> str:
    """Return the name of the recording."""
    return Path(str(tree.attrs.get("source", "recording"))).name


def recorded(tree: xr.DataTree) -> list[tuple[str, str]]:
    """Return properties of the recording, as names and values."""
    attrs = tree.attrs.get("recording", {})
    kind = tree.attrs.get("tokens", "all")
    rows = [("tokens analysed", f"{tree.attrs.get('n_tokens', '?')}" + ("" if kind == "all" else f", the {kind} ones"))]
    labels = [node.coords["step"].values for node in tree.children.values() if "step" in node.coords]
    if steps := max(map(list, labels), key=len, default=[]):
        rows.append(("steps", f"{steps[0]} to {steps[-1]}"))
    for key in ("optimizer", "device", "created", "seed"):
        if attrs.get(key) not in (None, ""):
            rows.append((key, str(attrs[key])))
    rows += [(str(key), _short(value)) for key, value in dict(attrs.get("hyperparameters", {})).items()]
    return rows


def findings(tree: xr.DataTree) -> list[str]:
    """Return the main findings, as sentences."""
    sentences = [
        sentence
        for name, describe in _SENTENCES.items()
        if name in tree.children
        for sentence in describe(tree[name].to_dataset())
    ]
    users = [name for name in tree.children if name not in ANALYSES or not ANALYSES[name].is_built_in]
    for name in users:
        lines = [line.strip() for line in lines_of(name, tree[name].to_dataset())]
        sentences += [f"{name}: {line}." for line in lines if line != name]
    return sentences


def warnings(tree: xr.DataTree) -> list[str]:
    """Return the warnings of the summary, and what was left out."""
    lines = [line.strip() for line in summary(tree).splitlines()]
    return [line for line in lines if line.startswith("warning:") or ": left out. " in line]


def definitions(groups: dict[str, xr.Dataset]) -> list[dict[str, Any]]:
    """Return the variables of each group: name, meaning, unit, formula and dims."""
    return [
        {
            "group": group,
            "variables": [
                {
                    "name": str(name),
                    "meaning": str(x.attrs.get("long_name", "")),
                    "units": str(x.attrs.get("units", "")),
                    "formula": str(x.attrs.get("formula", "")),
                    "dims": ", ".join(map(str, x.dims)),
                }
                for name, x in ds.data_vars.items()
            ],
        }
        for group, ds in groups.items()
    ]


def provenance(tree: xr.DataTree) -> list[tuple[str, str]]:
    """Return the origin of the data: recording, software and source files."""
    attrs = tree.attrs
    rows: list[tuple[str, str]] = [(key, str(attrs[key])) for key in ("source", "analysed") if key in attrs]
    rows += [(f"analysed with {k}", str(v)) for k, v in dict(attrs.get("analysed_with", {})).items()]
    recording = attrs.get("recording", {})
    rows += [(key, str(recording[key])) for key in ("made_by", "created") if key in recording]
    for source in recording.get("sources", ()):
        rows.append(
            ("converted from", f"{source.get('name')}, {source.get('bytes')} bytes, BLAKE3 {source.get('blake3')}")
        )
    return rows


def _motion(ds: xr.Dataset) -> Iterator[str]:
    if "displacement_ulp_mean" not in ds:
        return  # weights with unknown precision have no ULP
    mean, moved = ds["displacement_ulp_mean"].values, (ds["moved_dims"] > 0).sum("token").values
    steps, n = ds["step"].values, ds.sizes["token"]
    yield (
        f"At step {steps[0]}, {moved[0]} of {n} tokens moved, by {mean[0]:.3g} norm ULP on average; at step "
        f"{steps[-1]}, {moved[-1]}, by {mean[-1]:.3g}."
    )
    last = steps[moved > 0]
    if not last.size:
        yield "No token moved at any step."
    elif last[-1] < steps[-1]:
        rest = steps[-1] - last[-1]
        yield f"The last motion is at step {last[-1]}; no token moved in the {rest} steps after it."
    else:
        yield "Tokens still moved at the last step."


def _phases(ds: xr.Dataset) -> Iterator[str]:
    names, starts = [str(p) for p in ds["phase"].values], ds["transition_step"].values
    states = [names[0], *(f"{name} or colder" for name in names[1:-1])]
    reached = [f"{state} first at step {t}" for state, t in zip(states, starts[:-1], strict=True) if t >= 0]
    final = ", ".join(
        f"{100 * f:.1f}% {name}" for name, f in zip(names, ds["fraction"].values[-1], strict=True) if f > 0
    )
    yield f"The majority of the tokens is {', '.join(reversed(reached)) or 'in the hottest phase at every step'}."
    yield f"At the last step the tokens are {final}."


def _kinematics(ds: xr.Dataset) -> Iterator[str]:
    C, radius = ds["centroid"].values, ds["radius"].values
    drift = float(np.linalg.norm(C[-1] - C[0]))
    yield (
        f"The centroid drifted by {drift:.4g}; the mean distance of a token from it changed from {radius[0]:.4g} to "
        f"{radius[-1]:.4g}."
    )


def _topology(ds: xr.Dataset) -> Iterator[str]:
    largest, singletons = ds["largest_component"].values, ds["n_singletons"].values
    yield (
        f"At the spacing of the grid, the largest component of neighbours has {largest[0]} tokens at the first step "
        f"and {largest[-1]} at the last; {singletons[0]} and {singletons[-1]} tokens have no neighbour."
    )


def _coherence(ds: xr.Dataset) -> Iterator[str]:
    mean = ds["displacement_cosine_mean"].values
    known = np.flatnonzero(np.isfinite(mean))
    if known.size:
        yield (
            f"The mean cosine between the displacements of two tokens is {mean[known[0]]:.4f} at step "
            f"{ds['step'].values[known[0]]} and {mean[known[-1]]:.4f} at step {ds['step'].values[known[-1]]}, the last "
            "at which at least two tokens moved."
        )


def _mechanism(ds: xr.Dataset) -> Iterator[str]:
    compared, missed = int(ds["n_compared"].sum()), int(ds["n_missed"].sum())
    if compared:
        yield (
            f"Replaying the optimizer ({ds.attrs.get('optimizer')}, {ds.attrs.get('arithmetic')}) gives "
            f"{compared - missed} of {compared} recorded elements to the bit."
        )
    names = ds["cause"].attrs["flag_meanings"].split()
    kinds = np.bincount(ds["freeze_cause"].values.astype(np.int64), minlength=len(names))
    causes = [f"{k} ({name.replace('_', ' ')})" for k, name in zip(kinds, names, strict=True) if k and name != "moved"]
    if causes:
        yield f"Tokens stopped, by the cause at the update after their last motion: {', '.join(causes)}."


def _centroid_origin(ds: xr.Dataset) -> Iterator[str]:
    yield f"{100 * float(ds['drift_projection'][-1]):.1f}% of the length of the final centroid is drift."


_SENTENCES: dict[str, Callable[[xr.Dataset], Iterator[str]]] = {
    "motion": _motion,
    "phases": _phases,
    "kinematics": _kinematics,
    "topology": _topology,
    "coherence": _coherence,
    "mechanism": _mechanism,
    "centroid_origin": _centroid_origin,
}


def _short(value: Any) -> str:
    return f"{value:.9g}" if isinstance(value, float) else str(value)
