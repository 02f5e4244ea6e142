"""The questions of the field, one file each, dataset in and dataset out; and all of them at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import xarray as xr

from deadtok_xr import blocks
from deadtok_xr.analyses.centroid_origin import centroid_origin
from deadtok_xr.analyses.coherence import coherence
from deadtok_xr.analyses.connectivity import connectivity
from deadtok_xr.analyses.freeze_predictors import freeze_predictors
from deadtok_xr.analyses.h_persistence import h_persistence
from deadtok_xr.analyses.kinematics import kinematics
from deadtok_xr.analyses.mechanism import mechanism
from deadtok_xr.analyses.motion import motion
from deadtok_xr.analyses.phases import phases
from deadtok_xr.analyses.topology import topology
from deadtok_xr.errors import InputError
from deadtok_xr.sweep import Plan, run

ANALYSES: dict[str, Callable[..., Plan]] = {
    "motion": motion.plan,
    "phases": phases.plan,
    "phases_magnitude": partial(phases.plan, scheme="magnitude"),
    "kinematics": kinematics.plan,
    "topology": topology.plan,
    "connectivity": connectivity.plan,
    "mechanism": mechanism.plan,
    "coherence": coherence.plan,
    "h_persistence": h_persistence.plan,
    "centroid_origin": centroid_origin.plan,
    "freeze_predictors": freeze_predictors.plan,
}
_ON_THE_LATTICE = ("motion", "phases", "phases_magnitude", "topology", "connectivity", "mechanism", "freeze_predictors")
_ACROSS_STEPS = tuple(name for name in ANALYSES if name not in ("topology", "connectivity"))


def analyze(
    recording: xr.Dataset | str | Path,
    *,
    analyses: Sequence[str] | None = None,
    allow_gaps: bool = False,
    precision: str | None = None,
    **opening: Any,
) -> xr.DataTree:
    """Run several analyses as one lazy tree, which reads every chunk once when it is computed.

    Parameters
    ----------
    recording
        A dataset from `open_recording`, or a path, opened with the keywords that remain; of a path the
        dead tokens are taken where the store knows them.
    analyses
        Names from `ANALYSES`. None: all that the recording allows; the others, and the reason, are in
        the tree's attribute `left_out`. An analysis that is named must be possible.
    allow_gaps
        Measure transitions that span several updates.
    precision
        The number format that the weights were trained in, where the recording does not say or is wrong.

    Returns
    -------
    DataTree with a group per analysis; its root has attributes and no coordinates.

    Raises
    ------
    InputError
        If a named analysis is unknown or impossible, or none is possible.
    """
    ds = _dataset(recording, opening)
    analyses = [analyses] if isinstance(analyses, str) else analyses
    unknown = [name for name in analyses or () if name not in ANALYSES]
    if unknown:
        raise InputError(f"unknown analysis {unknown[0]!r}: choose from {', '.join(ANALYSES)}")
    plans, left_out = {}, {}
    for name in analyses or ANALYSES:
        options: dict[str, Any] = {"allow_gaps": allow_gaps} if name in _ACROSS_STEPS else {}
        options |= {"precision": precision} if name in _ON_THE_LATTICE else {}
        try:
            plans[name] = ANALYSES[name](ds, **options)
        except InputError as error:
            if analyses:
                raise
            left_out[name] = str(error)
    if not plans:
        raise InputError(f"no analysis is possible: {next(iter(left_out.values()))}")
    attrs = {
        **blocks.result_attrs(ds, left_out=left_out),
        "recording": {k: v for k, v in ds.attrs.items() if k not in ("source", "tokens")},
    }
    results = dict(zip(plans, run(list(plans.values())), strict=True))
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=attrs), **results})


def _dataset(recording: xr.Dataset | str | Path, opening: dict[str, Any]) -> xr.Dataset:
    if not isinstance(recording, xr.Dataset):
        if not isinstance(recording, (str, Path)):
            raise InputError(
                f"analyze takes a recording's dataset or path, not a {type(recording).__name__}: give it what "
                "open_recording returned"
            )
        return open_for_analysis(recording, **opening)
    if opening:
        raise InputError(
            f"analyze does not know {', '.join(f'{k}=' for k in opening)} for a dataset that is open: it takes "
            "analyses=, allow_gaps= and precision=; the rest belongs to open_recording"
        )
    return recording


def open_for_analysis(path: str | Path, *, tokens: str | None = None, **opening: Any) -> xr.Dataset:
    """Open a store for analysis: its dead tokens where it knows them, unless the caller says which."""
    from deadtok_xr import store
    from deadtok_xr.recording import open_recording

    if tokens is None:
        group, _ = store.open_group(path, partial=opening.get("partial", False))
        tokens = "dead" if "dead" in group and store.read_small(group, "dead").any() else "all"
    return open_recording(path, tokens=tokens, **opening)  # type: ignore[arg-type]
