"""Compare recordings: whether they are equal to the bit, from which step and in which tokens they differ."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deadtok_xr.analyses.common import checks, coordinates
from deadtok_xr.analyses.common.differences import Differences
from deadtok_xr.analyses.common.summary_text import number, percent
from deadtok_xr.analyses.common.token_names import token_names
from deadtok_xr.analyses.registry import Analysis, Finding, KeyFigure, Picture, register_comparison
from deadtok_xr.analyses.runs import COMPARISON, PER_RUN, REFERENCE, RUNS, stack_datasets, stack_runs
from deadtok_xr.engine import AnalysisSpec, ReductionResults
from deadtok_xr.engine import run as in_one_pass
from deadtok_xr.engine.small_results import Arrays, compute_together
from deadtok_xr.errors import InputError
from deadtok_xr.recording.runs import one_run, run_labels
from deadtok_xr.schema import RUN

ATTRS: dict[str, dict[str, Any]] = {
    "n_different": {
        "long_name": "elements that differ in a bit", "units": "1", "comment": "-0 and +0 differ, equal NaN do not",
    },
    "n_unequal": {
        "long_name": "elements of different value", "units": "1", "comment": "-0 and +0 are equal, NaN equals nothing",
    },
    "n_different_tokens": {"long_name": "tokens that differ in a bit", "units": "1"},
    "different_fraction": {"long_name": "share of the tokens that differ in a bit", "units": "1"},
    "frobenius": {
        "long_name": "distance between the matrices", "units": "1",
        "formula": "‖W_a[t] - W_b[t]‖_F = √Σ_i ‖W_a[t,i] - W_b[t,i]‖₂²",
    },
    "difference_max": {
        "long_name": "largest difference of an element", "units": "1", "formula": "max |W_a[t] - W_b[t]|",
    },
    "n_invalid": {"long_name": "tokens with NaN or infinity in either run, left out of distances", "units": "1"},
    "distance": {
        "long_name": "distance between the token in one run and in the other", "units": "1",
        "formula": "‖W_a[t,i] - W_b[t,i]‖₂",
    },
    "token_first_difference": {
        "long_name": "first step at which the token differs in a bit; -1 never", "units": "step",
    },
    "first_difference": {"long_name": "first step at which the runs differ in a bit; -1 never", "units": "step"},
    "n_common_prefix": {"long_name": "steps before the first difference, which are equal to the bit", "units": "1"},
    "n_equal": {"long_name": "elements that are equal to the bit, over all steps", "units": "1"},
    "n_elements": {"long_name": "elements compared", "units": "1"},
}  # fmt: skip
_JOINS = ("exact", "inner")
_SHOWN = 3  # runs or tokens that a sentence names


def compare_runs(
    a: xr.Dataset | xr.DataTree,
    b: xr.Dataset | xr.DataTree | None = None,
    *more: xr.Dataset | xr.DataTree,
    variable: str = "W",
    join: str = "exact",
    run: Sequence[Any] | None = None,
) -> Any:
    """Compare recordings token by token to the bit, or put the results of several runs side by side.

    Parameters
    ----------
    a, b, more
        Recordings, (step, token, dim), of one run each, or one dataset of several runs from `concat_runs`. All are
        compared with the first, aligned by step and by token id. Or trees of results, from `analyze` or
        `open_results`, of one run each.
    variable
        The variable of recordings to compare.
    join
        ``"exact"``: all have the same steps and tokens. ``"inner"``: compare the steps and tokens that all have, for
        instance if one run continues the other.
    run
        Labels of the runs; by default those of `concat_runs`, or the names of their stores without ``.zarr``.

    Returns
    -------
    xarray.Dataset
        Of recordings: lazy dataset over the steps. int64: `n_different` elements whose bits differ, `n_unequal` whose
        values differ, `n_different_tokens`, `n_invalid`; float64: `different_fraction`, `frobenius`, `difference_max`;
        (step, token) float32 `distance`. int64 (token): `token_first_difference`; numbers: `first_difference`,
        `n_common_prefix`, `n_equal`, `n_elements`. Values stored in different formats are compared as float32, which
        holds each exactly. For more than two recordings, a dataset of several runs, or with ``run=``, every variable
        has the leading dimension `run`: the runs that are compared with the first, whose label is the attribute
        `reference`.
    xarray.DataTree
        Of results: a group per analysis with the leading dimension `run`, as `analyze` returns for a dataset of
        several runs; `summary` and `report` say which findings differ.

    Raises
    ------
    InputError
        If the runs differ in their steps, tokens (unless ``join="inner"``) or dims, or have nothing in common.

    Examples
    --------
        differ = dx.compare_runs(*(dx.open_recording(path) for path in paths)).compute()
        differ.first_difference.to_pandas()  # by run
    """
    if join not in _JOINS:
        raise InputError(f"join={join!r}: choose one of {', '.join(_JOINS)}")
    given: list[Any] = [x for x in (a, b, *more) if x is not None]
    if any(isinstance(x, xr.DataTree) for x in given):
        return _side_by_side(given, join, run)
    several = len(given) == 1 and isinstance(a, xr.Dataset) and RUN in a.dims
    if several and isinstance(a, xr.Dataset):
        given = [one_run(a, i) for i in range(a.sizes[RUN])]
        run = run_labels(a) if run is None else run
    if len(given) < 2:
        raise InputError("compare_runs takes two or more recordings, or a dataset of several runs: give it another one")
    labels = _labels(given, run) if several or len(given) > 2 or run is not None else None
    arrays = _aligned([checks.require(ds, variable, COMPARISON) for ds in given], join)
    sources = [ds.attrs.get("source") for ds in given]
    return in_one_pass([_spec(arrays, sources, labels)])[0]


def comparison_tree(recordings: Sequence[xr.Dataset], *, run: Sequence[Any], **options: Any) -> xr.DataTree:
    """Return the comparison of recordings as a tree of several runs, which can be saved, summarised and reported."""
    own = {str(label): checks.recording_attrs(ds) for label, ds in zip(run, recordings, strict=True)}
    attrs = checks.result_attrs(recordings[0], **{RUNS: list(run), PER_RUN: own})
    root = xr.Dataset(attrs={k: v for k, v in attrs.items() if k != "source"})
    return xr.DataTree.from_dict({"/": root, COMPARISON: compare_runs(*recordings, run=run, **options)})


def _side_by_side(given: Sequence[Any], join: str, run: Sequence[Any] | None) -> xr.DataTree:
    """Put trees of results of one run each together."""
    if not all(isinstance(x, xr.DataTree) for x in given) or len(given) < 2:
        raise InputError("compare_runs takes two or more recordings, or two or more trees of results, and no mixture")
    return stack_runs(dict(zip(_labels(given, run), given, strict=True)), join=join)


def _labels(given: Sequence[xr.Dataset | xr.DataTree], run: Sequence[Any] | None) -> list[Any]:
    """Return the labels of runs: those given, the names of their stores, or numbers if these are not all different."""
    if run is not None:
        if len(run) != len(given) or len(set(run)) < len(run):
            raise InputError(f"run={list(run)!r}: expected {len(given)} labels, one for each run, all different")
        return list(run)
    names = [Path(str(x.attrs.get("source", ""))).name.removesuffix(".zarr") for x in given]
    return names if all(names) and len(set(names)) == len(names) else list(range(len(given)))


def _spec(arrays: Sequence[xr.DataArray], sources: Sequence[Any], labels: Sequence[Any] | None) -> AnalysisSpec:
    """Plan one pass that compares all arrays with the first; without labels, of the only other one."""
    keys = [f"run_{i}" for i in range(len(arrays))] if labels else ["a", "b"]
    reductions = {key: Differences(keys[0], key) for key in keys[1:]}

    def finish(results: ReductionResults) -> xr.Dataset:
        found = []
        for i, key in enumerate(keys[1:], 1):
            attrs = {name: at for name, at in (("a", sources[0]), ("b", sources[i])) if at is not None}
            found.append(_differences(results, key, arrays[0], attrs))
        if labels is None:
            return found[0]
        return stack_datasets(dict(zip(labels[1:], found, strict=True))).assign_attrs({REFERENCE: labels[0]})

    matrices = {key: checks.as_dask(x.data) for key, x in zip(keys, arrays, strict=True)}
    return AnalysisSpec(matrices, reductions, finish)


def _differences(results: ReductionResults, key: str, one: xr.DataArray, sources: Mapping[str, Any]) -> xr.Dataset:
    """Return the dataset of two runs."""
    numbers: dict[str, Any] = dict.fromkeys(tuple(ATTRS)[9:], ((), (), "i8"))
    shapes = {"token_first_difference": (("token",), (one.sizes["token"],), "i8"), **numbers}
    inputs = {"first": results.merged(key, "first", _earlier), "n_different": results.array(key, "n_different")}
    totals = compute_together(inputs, _measure, shapes, ATTRS, steps=one["step"].values, n_elements=one.size)
    values = {**results.variables(key, ATTRS), **totals}
    coords = coordinates.within(one.drop_vars(RUN, errors="ignore").to_dataset(name="x"), "step", "token")
    return xr.Dataset(values, coords, {"variable": one.name, "n_tokens": one.sizes["token"], **sources})


def _aligned(arrays: Sequence[xr.DataArray], join: str) -> list[xr.DataArray]:
    """Return the arrays with the same steps and tokens, in the same order."""
    first, aligned = arrays[0], list(arrays)
    for other in arrays[1:]:
        if first.sizes["dim"] != other.sizes["dim"]:
            raise InputError(
                f"compare_runs: {first.sizes['dim']} dims in one and {other.sizes['dim']} in the other; expected the "
                "same"
            )
    for dim in ("step", "token"):
        labels = [x[dim].values for x in aligned]
        different = [x for x in labels[1:] if not np.array_equal(labels[0], x)]
        if not different:
            continue
        if join == "exact":
            one, two = labels[0], different[0]
            alone = np.setxor1d(one, two)
            reason = f"{dim} {alone[0]} is only in one" if alone.size else f"the {dim}s are in a different order"
            raise InputError(
                f"compare_runs: the recordings have different {dim}s ({len(one)} and {len(two)}; {reason}): say "
                "join='inner' to compare what " + ("both have" if len(arrays) == 2 else "all have")
            )
        common = functools.reduce(np.intersect1d, labels)
        if not common.size:
            raise InputError(f"compare_runs: the recordings have no {dim} in common; choose others")
        aligned = [x.isel({dim: _positions(at, common)}) for x, at in zip(aligned, labels, strict=True)]
    return aligned


def _positions(labels: NDArray[Any], common: NDArray[Any]) -> Any:
    """Return the positions of the common labels, if possible as a slice, which keeps the chunks."""
    order = np.argsort(labels, kind="stable")
    at = order[np.searchsorted(labels, common, sorter=order)]
    return slice(int(at[0]), int(at[-1]) + 1) if (np.diff(at) == 1).all() else at


def _earlier(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.where(a >= 0, a, b)


def _measure(inputs: dict[str, list[Any]], *, steps: NDArray[np.int64], n_elements: int) -> Arrays:
    (first,) = inputs["first"]
    different = np.concatenate(inputs["n_different"])
    begins = np.flatnonzero(different)
    at = int(begins[0]) if begins.size else len(steps)
    return {
        "token_first_difference": np.where(first >= 0, steps[first], -1),
        "first_difference": np.asarray(steps[at] if begins.size else -1),
        "n_common_prefix": np.asarray(at),
        "n_equal": np.asarray(n_elements - different.sum()),
        "n_elements": np.asarray(n_elements),
    }


def _spec_of_runs(ds: xr.Dataset, *, variable: str = "W") -> AnalysisSpec:
    """Plan the comparison of a dataset of several runs."""
    runs = [one_run(ds, i) for i in range(ds.sizes[RUN])]
    arrays = [checks.require(one, variable, COMPARISON) for one in runs]
    return _spec(arrays, [one.attrs.get("source") for one in runs], run_labels(ds))


_ANALYSIS: Analysis[...] = Analysis(_spec_of_runs, COMPARISON)
register_comparison(_ANALYSIS)


@_ANALYSIS.find
def _findings(ds: xr.Dataset) -> Iterator[Finding]:
    """Say when each run parts from the first, and in which tokens."""
    first = dict(zip(ds[RUN].values.tolist(), ds["first_difference"].values.tolist(), strict=True))
    reference = ds.attrs[REFERENCE]
    for step in sorted(set(first.values())):
        runs = [label for label in first if first[label] == step]
        verb = "is" if len(runs) == 1 else "are"
        if step < 0:
            yield Finding(0.99, f"{_named(runs)} {verb} equal to {reference}, to the bit.")
            continue
        differ = "differs" if len(runs) == 1 else "differ"
        tokens = {label: _tokens(ds.sel({RUN: label}), step) for label in runs}
        where = "; ".join(f"{label} {words}" for label, words in tokens.items())
        where = tokens[runs[0]] if len(set(tokens.values())) == 1 else where
        yield Finding(0.98, f"{_named(runs)} {differ} from {reference} from step {step:,} on, {where}.")
    last = ds.isel(step=-1)
    apart = last["frobenius"].values / np.sqrt(np.maximum(ds.attrs["n_tokens"] - last["n_invalid"].values, 1))
    if apart.any() and np.isfinite(apart).all():
        ends = list(dict.fromkeys([number(float(apart.min())), number(float(apart.max()))]))
        what = f"a token lies {' to '.join(ends)} from its place in {reference} (root mean square)"
        yield Finding(0.97, f"At step {int(last['step']):,} {what}.")


def _named(runs: Sequence[Any]) -> str:
    shown = list(map(str, runs if len(runs) <= _SHOWN else [*runs[: _SHOWN - 1], f"{len(runs) - _SHOWN + 1} more"]))
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _tokens(ds: xr.Dataset, step: int) -> str:
    """Say in which tokens a run differs from the first, at the first step and in all."""
    first, total = ds["token_first_difference"].values, ds.sizes["token"]
    at_once, ever = ds["token"].values[first == step], int((first >= 0).sum())
    if len(at_once) == total:
        return f"in all {total:,} tokens"
    later = "" if ever == len(at_once) else f", later in {'all' if ever == total else f'{ever:,} of'} {total:,}"
    return f"first in {token_names(ds, at_once, _SHOWN)}{later}"


@_ANALYSIS.measure
def _key_figure(ds: xr.Dataset) -> KeyFigure:
    share = ds["different_fraction"].mean(RUN).values
    return KeyFigure("tokens that differ from the first run", percent(share[0]), percent(share[-1]))


_ANALYSIS.pictures = (
    Picture(
        COMPARISON,
        "compare_runs.compare_runs",
        "How far the runs are apart",
        "Top: the share of tokens that differ from the first run in at least one bit. Bottom: their mean distance from "
        "their place in the first run. One colour for each run.",
    ),
)
