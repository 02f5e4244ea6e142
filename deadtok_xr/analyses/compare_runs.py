"""Compare two recordings: whether they are equal to the bit, from which step and in which tokens they differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deadtok_xr.analyses.common import checks, coordinates
from deadtok_xr.analyses.registry import built_in
from deadtok_xr.engine import (
    AnalysisSpec,
    Batch,
    Output,
    ReductionResults,
    StepBlock,
    allocate_outputs,
)
from deadtok_xr.engine.small_results import Arrays, compute_together
from deadtok_xr.errors import InputError

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
_PER_STEP = tuple(ATTRS)[:8]
_JOINS = ("exact", "inner")


@built_in
def compare_runs(a: xr.Dataset, b: xr.Dataset, *, variable: str = "W", join: str = "exact") -> AnalysisSpec:
    """Compare two recordings token by token, aligned by step and by token id.

    Parameters
    ----------
    a, b
        Recordings, (step, token, dim), of one run each.
    variable
        The variable to compare.
    join
        ``"exact"``: both have the same steps and tokens. ``"inner"``: compare the steps and tokens that both have, for
        instance if one run continues the other.

    Returns
    -------
    xarray.Dataset
        Lazy dataset over the steps. int64: `n_different` elements whose bits differ, `n_unequal` whose values differ,
        `n_different_tokens`, `n_invalid`; float64: `different_fraction`, `frobenius`, `difference_max`; (step, token)
        float32 `distance`. int64 (token): `token_first_difference`; numbers: `first_difference`, `n_common_prefix`,
        `n_equal`, `n_elements`. Values stored in different formats are compared as float32, which holds each exactly.

    Raises
    ------
    InputError
        If the recordings differ in their steps, tokens (unless ``join="inner"``) or dims, or have nothing in common.
    """
    one, two = _aligned(checks.require(a, variable, "compare_runs"), checks.require(b, variable, "compare_runs"), join)
    labels = one["step"].values
    numbers: dict[str, Any] = dict.fromkeys(tuple(ATTRS)[9:], ((), (), "i8"))
    shapes = {"token_first_difference": (("token",), (one.sizes["token"],), "i8"), **numbers}

    def finish(results: ReductionResults) -> xr.Dataset:
        inputs = {
            "first": results.merged("pairs", "first", _earlier),
            "n_different": results.array("pairs", "n_different"),
        }
        totals = compute_together(inputs, _measure, shapes, ATTRS, steps=labels, n_elements=one.size)
        values = {**results.variables("pairs", ATTRS), **totals}
        coords = coordinates.within(one.drop_vars("run", errors="ignore").to_dataset(name=variable), "step", "token")
        attrs = {"variable": variable, "n_tokens": one.sizes["token"]}
        attrs |= {name: ds.attrs["source"] for name, ds in (("a", a), ("b", b)) if "source" in ds.attrs}
        return xr.Dataset(values, coords, attrs)

    return AnalysisSpec(
        {"a": checks.as_dask(one.data), "b": checks.as_dask(two.data)}, {"pairs": Differences()}, finish
    )


def _aligned(a: xr.DataArray, b: xr.DataArray, join: str) -> tuple[xr.DataArray, xr.DataArray]:
    if join not in _JOINS:
        raise InputError(f"join={join!r}: choose one of {', '.join(_JOINS)}")
    if a.sizes["dim"] != b.sizes["dim"]:
        raise InputError(
            f"compare_runs: {a.sizes['dim']} dims in one and {b.sizes['dim']} in the other; expected the same"
        )
    for dim in ("step", "token"):
        one, two = a[dim].values, b[dim].values
        if np.array_equal(one, two):
            continue
        if join == "exact":
            alone = np.setxor1d(one, two)
            reason = f"{dim} {alone[0]} is only in one" if alone.size else f"the {dim}s are in a different order"
            raise InputError(
                f"compare_runs: the recordings have different {dim}s ({len(one)} and {len(two)}; {reason}): say "
                "join='inner' to compare what both have"
            )
        common = np.intersect1d(one, two)
        if not common.size:
            raise InputError(f"compare_runs: the recordings have no {dim} in common; choose others")
        a, b = (x.isel({dim: _positions(x[dim].values, common)}) for x in (a, b))
    return a, b


def _positions(labels: NDArray[Any], common: NDArray[Any]) -> Any:
    """Return the positions of the common labels, if possible as a slice, which keeps the chunks."""
    order = np.argsort(labels, kind="stable")
    at = order[np.searchsorted(labels, common, sorter=order)]
    return slice(int(at[0]), int(at[-1]) + 1) if (np.diff(at) == 1).all() else at


@dataclass(frozen=True)
class Differences:
    """The reduction that compares two matrices, "a" and "b"."""

    @property
    def matrices(self) -> tuple[str, ...]:
        """Both matrices."""
        return ("a", "b")

    def outputs(self) -> dict[str, Output]:
        """Return outputs per step and token, and `first`, the position of a token's first difference, -1 for none."""
        kinds = {"different_fraction": "f8", "frobenius": "f8", "difference_max": "f8", "distance": "f4"}
        return {
            **{
                n: Output(("step", "token") if n == "distance" else "step", dtype=kinds.get(n, "i8")) for n in _PER_STEP
            },
            "first": Output(at="block"),
        }

    def start(self, block: StepBlock) -> _Accumulator:
        """Return an accumulator for a block."""
        return _Accumulator(self, block)


class _Accumulator:
    def __init__(self, reduction: Differences, block: StepBlock) -> None:
        self.block, self.outputs = block, reduction.outputs()
        self.out = allocate_outputs(self.outputs, block)
        self.differences = np.zeros((5, block.n_tokens))  # of each token, as of the last step compared
        self.first = np.full(block.n_tokens, -1)
        self.next = np.ones((1, block.n_tokens), bool)  # which tokens to compare at the next step

    def update(self, batch: Batch) -> None:
        from deadtok_xr.kernels.numba.differences import differences

        n = batch.n_states
        a, b = batch.floats("a")[:n], batch.floats("b")[:n]
        compare = np.concatenate([self.next, batch.changed("a") | batch.changed("b")])
        self.next = compare[n : n + 1]
        out = batch.slices(self.out, self.outputs)
        one, two = _words(batch.values["a"][:n], batch.values["b"][:n], a, b)
        at = self.block.first + batch.start
        differences(one, two, a, b, compare, self.differences, self.first, at, *(out[name] for name in _FILLED))

    def result(self) -> dict[str, Any]:
        self.out["frobenius"][:] = np.sqrt(self.out["frobenius"])
        self.out["different_fraction"][:] = self.out["n_different_tokens"] / self.block.n_tokens
        return {**self.out, "first": self.first}


_FILLED = ("n_different", "n_unequal", "n_different_tokens", "frobenius", "difference_max", "n_invalid", "distance")


def _words(one: NDArray[Any], two: NDArray[Any], a: NDArray[Any], b: NDArray[Any]) -> list[NDArray[Any]]:
    """Return both as unsigned integers: as recorded, or as float32 if the formats differ."""
    pair = (one, two) if one.dtype == two.dtype else (a, b)
    if pair[0].dtype != pair[1].dtype:  # float64 beside others
        pair = (a.astype(np.float64), b.astype(np.float64))
    return [np.ascontiguousarray(x).view(f"u{x.dtype.itemsize}") for x in pair]


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
