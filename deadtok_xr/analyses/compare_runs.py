"""Are two recordings the same to the bit; since when not, in which tokens, and how far apart are they?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deadtok_xr.analyses.common import checks
from deadtok_xr.analyses.common.cells import step_coords
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
        "long_name": "distance of the matrices", "units": "1",
        "formula": "‖W_a[t] - W_b[t]‖_F = √Σ_i ‖W_a[t,i] - W_b[t,i]‖₂²",
    },
    "difference_max": {
        "long_name": "largest difference of an element", "units": "1", "formula": "max |W_a[t] - W_b[t]|",
    },
    "n_invalid": {"long_name": "tokens with NaN or infinity in either, left out of distances", "units": "1"},
    "distance": {
        "long_name": "distance of a token in one run from itself in the other", "units": "1",
        "formula": "‖W_a[t,i] - W_b[t,i]‖₂",
    },
    "token_first_difference": {
        "long_name": "first step at which the token differs in a bit; -1 never", "units": "step",
    },
    "first_difference": {"long_name": "first step at which the runs differ in a bit; -1 never", "units": "step"},
    "n_common_prefix": {"long_name": "steps before it, which are the same to the bit", "units": "1"},
    "n_equal": {"long_name": "elements that are the same to the bit, over all steps", "units": "1"},
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
        What to compare.
    join
        ``"exact"``: both have the same steps and tokens. ``"inner"``: the steps and tokens that both have, as for a
        run that goes on where another ends.

    Returns
    -------
    xarray.Dataset
        Lazy dataset over the steps. int64: `n_different` elements whose bits differ, `n_unequal` whose values do,
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

    def finish(found: ReductionResults) -> xr.Dataset:
        inputs = {"first": found.merged("pairs", "first", _earlier), "n_different": found.array("pairs", "n_different")}
        made = compute_together(inputs, _measure, shapes, ATTRS, steps=labels, n_elements=one.size)
        values = {**found.variables("pairs", ATTRS), **made}
        coords = {str(n): c.variable for n, c in one.coords.items() if set(c.dims) <= {"step", "token"} and n != "run"}
        attrs = {"variable": variable, "n_tokens": one.sizes["token"]}
        attrs |= {name: ds.attrs["source"] for name, ds in (("a", a), ("b", b)) if "source" in ds.attrs}
        return xr.Dataset(values, {**coords, **step_coords(one.to_dataset(name=variable))}, attrs)

    return AnalysisSpec({"a": checks.as_dask(one.data), "b": checks.as_dask(two.data)}, {"pairs": Pairs()}, finish)


def _aligned(a: xr.DataArray, b: xr.DataArray, join: str) -> tuple[xr.DataArray, xr.DataArray]:
    if join not in _JOINS:
        raise InputError(f"join={join!r}: choose one of {', '.join(_JOINS)}")
    if a.sizes["dim"] != b.sizes["dim"]:
        raise InputError(
            f"compare_runs: {a.sizes['dim']} dims in one and {b.sizes['dim']} in the other; needed: the same"
        )
    for dim in ("step", "token"):
        one, two = a[dim].values, b[dim].values
        if np.array_equal(one, two):
            continue
        if join == "exact":
            alone = np.setxor1d(one, two)
            said = f"{dim} {alone[0]} is in one alone" if alone.size else f"the {dim}s are in another order"
            raise InputError(
                f"compare_runs: the recordings have different {dim}s ({len(one)} and {len(two)}; {said}): say "
                "join='inner' to compare what both have"
            )
        common = np.intersect1d(one, two)
        if not common.size:
            raise InputError(f"compare_runs: the recordings have no {dim} in common; compare others")
        a, b = (x.isel({dim: _places(x[dim].values, common)}) for x in (a, b))
    return a, b


def _places(labels: NDArray[Any], common: NDArray[Any]) -> Any:
    """Where the common labels are; a slice where it can be, which leaves chunks as they are."""
    order = np.argsort(labels, kind="stable")
    at = order[np.searchsorted(labels, common, sorter=order)]
    return slice(int(at[0]), int(at[-1]) + 1) if (np.diff(at) == 1).all() else at


@dataclass(frozen=True)
class Pairs:
    """The reduction of two matrices, "a" and "b"."""

    @property
    def matrices(self) -> tuple[str, ...]:
        """Both."""
        return ("a", "b")

    def outputs(self) -> dict[str, Output]:
        """Per step, per step and token, and `first`: by token, the position of the first difference, -1 for none."""
        kinds = {"different_fraction": "f8", "frobenius": "f8", "difference_max": "f8", "distance": "f4"}
        return {
            **{
                n: Output(("step", "token") if n == "distance" else "step", dtype=kinds.get(n, "i8")) for n in _PER_STEP
            },
            "first": Output(at="block"),
        }

    def start(self, block: StepBlock) -> _Accumulator:
        """Start with a block."""
        return _Accumulator(self, block)


class _Accumulator:
    def __init__(self, reduction: Pairs, block: StepBlock) -> None:
        self.block, self.fields = block, reduction.outputs()
        self.out = allocate_outputs(self.fields, block)
        self.held = np.zeros((5, block.n_tokens))
        self.first = np.full(block.n_tokens, -1)
        self.coming = np.ones((1, block.n_tokens), bool)  # which tokens to look at in the next step

    def update(self, batch: Batch) -> None:
        from deadtok_xr.kernels.numba.differences import differences

        n = batch.n_states
        a, b = batch.floats("a")[:n], batch.floats("b")[:n]
        look = np.concatenate([self.coming, batch.changed("a") | batch.changed("b")])
        self.coming = look[n : n + 1]
        out = batch.slices(self.out, self.fields)
        one, two = _words(batch.values["a"][:n], batch.values["b"][:n], a, b)
        at = self.block.first + batch.start
        differences(one, two, a, b, look, self.held, self.first, at, *(out[name] for name in _FILLED))

    def result(self) -> dict[str, Any]:
        self.out["frobenius"][:] = np.sqrt(self.out["frobenius"])
        self.out["different_fraction"][:] = self.out["n_different_tokens"] / self.block.n_tokens
        return {**self.out, "first": self.first}


_FILLED = ("n_different", "n_unequal", "n_different_tokens", "frobenius", "difference_max", "n_invalid", "distance")


def _words(one: NDArray[Any], two: NDArray[Any], a: NDArray[Any], b: NDArray[Any]) -> list[NDArray[Any]]:
    """Both as unsigned integers: as recorded, or as float32 where the formats differ."""
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
