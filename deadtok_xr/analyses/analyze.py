"""Run several analyses of a recording in one pass, as a tree of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import xarray as xr

from deadtok_xr.analyses.census import census
from deadtok_xr.analyses.centroid_origin import centroid_origin
from deadtok_xr.analyses.cloud import cloud
from deadtok_xr.analyses.coherence import coherence
from deadtok_xr.analyses.common import checks
from deadtok_xr.analyses.common.sampled import as_tokens
from deadtok_xr.analyses.compare_runs import compare_runs
from deadtok_xr.analyses.connectivity import connectivity
from deadtok_xr.analyses.critical_boundary import critical_boundary
from deadtok_xr.analyses.epochs import epochs
from deadtok_xr.analyses.freeze_predictors import freeze_predictors
from deadtok_xr.analyses.freezing import freezing
from deadtok_xr.analyses.h_persistence import h_persistence
from deadtok_xr.analyses.kinematics import kinematics
from deadtok_xr.analyses.lattice import exponents, lattice
from deadtok_xr.analyses.lifecycle import lifecycle
from deadtok_xr.analyses.mechanism import mechanism
from deadtok_xr.analyses.motion import motion
from deadtok_xr.analyses.phases import phases, phases_cells, phases_magnitude
from deadtok_xr.analyses.plan import Plan, check_memory, dask_threads, make_plan
from deadtok_xr.analyses.registry import ANALYSES, load_entry_points, register
from deadtok_xr.analyses.runs import COMPARISON, stack_runs, with_labels
from deadtok_xr.analyses.spectrum import spectrum
from deadtok_xr.analyses.token_indicators import token_indicators
from deadtok_xr.analyses.topology import topology
from deadtok_xr.analyses.trajectory import trajectory
from deadtok_xr.errors import InputError
from deadtok_xr.recording.runs import one_run, run_labels
from deadtok_xr.schema import RUN

for _built_in in (
    trajectory, motion, phases, phases_magnitude, phases_cells, lifecycle, freezing, kinematics, epochs, topology,
    census, lattice, exponents, cloud, spectrum, connectivity, mechanism, critical_boundary, coherence, h_persistence,
    centroid_origin, freeze_predictors, token_indicators,
):  # fmt: skip
    register(_built_in)


def analyze(
    recording: xr.Dataset | str | Path,
    *,
    analyses: Sequence[str] | None = None,
    allow_gaps: bool = False,
    precision: str | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    device: str = "auto",
    budget: float | str | None = None,
    memory: int | str | None = None,
    **opening: Any,
) -> xr.DataTree:
    """Run several analyses as one lazy tree, which reads every chunk once when it is computed.

    Each run of a dataset of several, from `concat_runs`, is analysed by itself, and the groups have the leading
    dimension `run`. A group holds the runs that allow the analysis.

    Parameters
    ----------
    recording
        A dataset from `open_recording` or `concat_runs`, or a path, which is opened with the remaining keywords; from a
        path, only the dead tokens are analysed if the store knows them.
    analyses
        Names of analyses, also of those that `deadtok_xr.analysis` defined. None: all that the recording allows; the
        tree's attribute `left_out` says which are not possible, and why. An analysis that is named must be possible.
        For several runs also ``"compare_runs"``, which is among all: every run against the first, to the bit.
    allow_gaps
        Measure transitions that span several updates. Of checkpoints, where most do, the analyses whose results are of
        use there (`motion`, `freezing`, `freeze_predictors`) do so without being asked; the others are left out.
    precision
        The number format that the weights were trained in, if the recording does not name it or is wrong.
    options
        Further keywords of single analyses, by name: ``{"mechanism": {"lr": 1e-3, "arithmetic": "find"}}``. An
        analysis with options must be possible, like one that is named.
    device
        Where dense kernels run: ``"cpu"``, ``"cuda"``, ``"mps"`` or ``"auto"``. ``"auto"`` uses CUDA only for the
        replay of `mechanism` if the recording was made on a GPU, which is 5 times as fast as a CPU; everything else
        takes as long on both (see the page on GPUs). ``"cuda"`` also runs `motion`, `kinematics`, the graphs of
        `topology` (spacing ``"centroid"``) and the places of `census` there. ``"mps"``, which lacks float64, runs
        only `motion`. ``"torch-cpu"`` runs the kernels for GPUs on the CPU.

        The device is resolved where a task runs. Under dask.distributed, ``"cuda"`` requests workers with the resource
        ``GPU``; `save_results` and the command line preserve that request. If you compute the tree yourself, set
        Dask's ``optimization.fuse.active`` to False, because fused tasks lose it.
    budget
        CPU time that an analysis may take, in seconds or as text such as ``"2h"``. What is expected to take longer is
        in `left_out`; if it is named, it is an error. None: 10 minutes, or ten times reading what it uses if that is
        more, for analyses that are neither named nor have options.
    memory
        Bytes, or text such as ``"4GB"``, that a process may use. If the analyses are expected to need more, with as
        many threads as Dask would use now, it is an error that says what would fit. None: no limit.

    Returns
    -------
    xarray.DataTree
        A group per analysis; the root has attributes and no coordinates.

    Raises
    ------
    InputError
        If a named analysis or an option is unknown, a named analysis is not possible, or none is; or if the analyses
        need more than ``memory``, or a named one more than ``budget``.
    """
    ds = _dataset(recording, opening)
    names = [analyses] if isinstance(analyses, str) else analyses
    keywords: dict[str, Any] = {
        "allow_gaps": allow_gaps, "precision": precision, "options": options, "budget": budget, "memory": memory,
    }  # fmt: skip
    if RUN in ds.dims:
        return tree_of_runs(ds, plan_runs(ds, analyses=names, **keywords), names, device)
    return plan_analyses(ds, analyses=names, **keywords).tree(device)


def plan_analyses(
    recording: xr.Dataset | str | Path,
    *,
    analyses: Sequence[str] | None = None,
    allow_gaps: bool = False,
    precision: str | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    budget: float | str | None = None,
    memory: int | str | None = None,
    **opening: Any,
) -> Plan:
    """Plan what `analyze` does with one run, of several with the first, with the same parameters."""
    ds = _dataset(recording, opening)
    analyses = [analyses] if isinstance(analyses, str) else analyses
    if RUN in ds.dims:
        ds, analyses = one_run(ds, 0), analyses and [name for name in analyses if name != COMPARISON]
    ds = as_tokens(ds) if "element" in ds.dims else ds
    load_entry_points()
    unknown = [name for name in analyses or () if name not in ANALYSES]
    if unknown:
        close = get_close_matches(unknown[0], ANALYSES, 1)
        meant = f" (did you mean {close[0]}?)" if close else ""
        raise InputError(f"unknown analysis {unknown[0]!r}{meant}: choose from {', '.join(ANALYSES)}")
    options = options or {}
    _check_options(options, analyses or list(ANALYSES))
    plan = make_plan(ds, analyses, options, allow_gaps=allow_gaps, precision=precision, budget=budget)
    if memory is not None:
        check_memory(plan, memory, dask_threads())
    return plan


def plan_runs(ds: xr.Dataset, *, analyses: Sequence[str] | None = None, **keywords: Any) -> dict[Any, Plan]:
    """Plan what `analyze` does with each run of a dataset of several, by label; nothing if they are only compared."""
    of_one = None if analyses is None else [name for name in analyses if name != COMPARISON]
    plans = {}
    for i, label in enumerate(run_labels(ds) if of_one is None or of_one else ()):
        try:
            plans[label] = plan_analyses(one_run(ds, i), analyses=of_one, **keywords)
        except InputError as error:
            raise InputError(f"run {label}: {error.advice}") from error
    return plans


def tree_of_runs(ds: xr.Dataset, plans: Mapping[Any, Plan], analyses: Sequence[str] | None, device: str) -> xr.DataTree:
    """Analyse every run as planned, and compare all with the first, if that is named or nothing is."""
    compares = ds.sizes[RUN] > 1 and (analyses is None or COMPARISON in analyses)
    trees = {label: plan.tree(device) for label, plan in plans.items()}
    tree = stack_runs(trees) if trees else xr.DataTree(xr.Dataset(attrs=checks.result_attrs(ds, runs=run_labels(ds))))
    if compares:
        tree[COMPARISON] = xr.DataTree(compare_runs(ds))
    return with_labels(tree, ds)


def _check_options(options: Mapping[str, Mapping[str, Any]], analyses: Sequence[str]) -> None:
    for name, given in options.items():
        if name not in analyses:
            raise InputError(f"there are options for {name!r}, which is not among the analyses {', '.join(analyses)}")
        if not isinstance(given, Mapping):
            raise InputError(f"options[{name!r}] is a {type(given).__name__}; expected a mapping of its keywords")
        known = ANALYSES[name].options
        unknown = [key for key in given if key not in known]
        if unknown:
            raise InputError(f"{name} has no option {unknown[0]!r}: choose from {', '.join(known)}")


def _dataset(recording: xr.Dataset | str | Path, opening: dict[str, Any]) -> xr.Dataset:
    if not isinstance(recording, xr.Dataset):
        if not isinstance(recording, (str, Path)):
            raise InputError(
                f"analyze takes a recording's dataset or path, not a {type(recording).__name__}: pass what "
                "open_recording returned"
            )
        return open_for_analysis(recording, **opening)
    if opening:
        raise InputError(
            f"analyze does not know {', '.join(f'{k}=' for k in opening)} for an open dataset: it takes analyses=, "
            "allow_gaps=, precision=, options=, device=, budget= and memory=; pass the rest to open_recording"
        )
    return recording


def knows_dead_tokens(path: str | Path, *, partial: bool = False) -> bool:
    """Return whether a store says that some of its tokens are dead."""
    from deadtok_xr import store

    group, _ = store.open_group(path, partial=partial)
    return "dead" in group and bool(store.read_coordinate(group, "dead").any())


def open_for_analysis(path: str | Path, *, tokens: str | None = None, **opening: Any) -> xr.Dataset:
    """Open a store for analysis, by default its dead tokens if it knows them."""
    from deadtok_xr.recording.opening import open_recording

    if tokens is None:
        tokens = "dead" if knows_dead_tokens(path, partial=opening.get("partial", False)) else "all"
    return open_recording(path, tokens=tokens, **opening)  # type: ignore[arg-type]
