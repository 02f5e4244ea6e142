"""Which tokens lie in the very same place: black holes, what becomes of them, and who has been together since when."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deadtok_xr.analyses.common import checks, summary_text
from deadtok_xr.analyses.registry import Picture, built_in
from deadtok_xr.engine import (
    AnalysisSpec,
    Batch,
    Output,
    ReductionResults,
    SingleVariable,
    StepBlock,
    allocate_outputs,
)
from deadtok_xr.engine.block_pass import with_start
from deadtok_xr.engine.small_results import Arrays, compute_together
from deadtok_xr.errors import InputError
from deadtok_xr.store.stored_array import stored_dtype

SIGNED_ZERO = ("equal", "distinct")
_HOLE = "a black hole is a place that two or more tokens share"
ATTRS: dict[str, dict[str, Any]] = {
    "n_unique": {
        "long_name": "distinct rows", "units": "1",
        "formula": "n_black_holes + (N - n_invalid) - population", "comment": "of the valid tokens",
    },
    "n_black_holes": {"long_name": "rows that two or more tokens share", "units": "1"},
    "population": {"long_name": "tokens in black holes", "units": "1", "comment": _HOLE},
    "largest": {
        "long_name": "tokens in the largest black hole", "units": "1", "comment": "0 without black holes",
    },
    "n_singletons": {"long_name": "tokens that share their place with no other", "units": "1"},
    "n_invalid": {"long_name": "tokens with NaN or infinity at t, which are left out", "units": "1"},
    "herfindahl": {
        "long_name": "concentration of the black holes (Herfindahl)", "units": "1",
        "formula": "Σ_k (n_k / population)², n_k tokens in black hole k", "comment": "NaN without black holes",
    },
    "gini": {
        "long_name": "inequality of the black holes (Gini)", "units": "1",
        "formula": "Σ_k (2k - K - 1)·n_k / (K·population), n_k ascending, K black holes",
        "comment": "NaN without black holes",
    },
    "top_two_share": {
        "long_name": "share of the two largest black holes", "units": "1", "formula": "(n_1 + n_2) / population",
        "comment": "NaN without black holes",
    },
    "fissions": {
        "long_name": "black holes that broke up", "units": "1",
        "formula": "black holes of the step before whose tokens are not all in one place now",
    },
    "fusions": {
        "long_name": "black holes that came of several places", "units": "1",
        "formula": "black holes whose tokens were not all in one place at the step before",
    },
    "evaporated": {
        "long_name": "tokens that left a black hole and are alone", "units": "1",
        "comment": "the last token of a black hole that the others left is one of them",
    },
    "accreted": {"long_name": "tokens that were alone and are in a black hole", "units": "1"},
    "black_hole": {
        "long_name": "black hole in which the token is, by its size", "units": "1",
        "comment": "1 the largest (of equal ones, that of the first token); 0 none; -1 NaN or infinity",
    },
    "together_with": {
        "long_name": "id of the first token in the same place", "units": "1", "comment": "-1 alone, or invalid",
    },
    "together_since": {
        "long_name": "since which step it has been with that token", "units": "step",
        "formula": "first recorded step from which on the two were in one place at every recorded step",
        "comment": "of the first token itself, since when it has had company; -1 alone, or invalid",
    },
}  # fmt: skip
_COUNTS = ("n_unique", "n_black_holes", "population", "largest", "n_singletons", "n_invalid")
_SHARES = ("herfindahl", "gini", "top_two_share")
EVENTS = ("fissions", "fusions", "evaporated", "accreted")
_PER_TOKEN = ("black_hole", "together_with", "together_since")
OUTPUTS = {
    **{name: Output("step", dtype="i8") for name in _COUNTS},
    **{name: Output("step") for name in _SHARES},
    **{name: Output("step", dtype="i8", at="transitions") for name in EVENTS},
    "places": Output(at="block"),
}
_BEFORE = "; the step before is the one recorded before; -1 at the first step"


@built_in
def census(
    ds: xr.Dataset, *, at: Sequence[int] | None = None, signed_zero: str = "equal", variable: str = "W"
) -> AnalysisSpec:
    """Count the tokens that lie in the very same place, at every step, and follow who is with whom.

    Parameters
    ----------
    ds
        A recording, (step, token, dim), of any floating-point format; gaps in the steps do not matter, and one step
        is enough.
    at
        Labels of the steps at which to list who is in which black hole; by default the first and the last one.
    signed_zero
        ``"equal"``: -0 and +0 are one place, as in every analysis. ``"distinct"``: rows are the same if all their
        bits are, as ``unique`` over bit patterns finds (over values, it finds them equal).
    variable
        The weights to look at.

    Returns
    -------
    xarray.Dataset
        Lazy dataset over all steps. Per step, int64: `n_unique`, `n_black_holes`, `population`, `largest`,
        `n_singletons`, `n_invalid`, with n_unique = n_black_holes + (N - n_invalid) - population; events since the
        recorded step before, `fissions`, `fusions`, `evaporated`, `accreted`, -1 at the first step; float64, over black
        holes: `herfindahl`, `gini`, `top_two_share`, NaN without any. Per (census_step, token), int64: `black_hole`, 0
        none, 1 the largest; `together_with` and `together_since`.

        Tokens with NaN or infinity are left out: they are in no place, and in no event.

    Raises
    ------
    InputError
        For a recording without absolute positions, steps that do not ascend, or an unknown option.

    Notes
    -----
    Black holes are those of notebooks 06.1h to 15.2c and 1.9a, `top_two_share` that of 12.3b. Rows are found by
    hashing and compared bit by bit, so that the counts are exact. Of three tokens in one place, the step since which
    two have been together is the later of those since which each has been with the third, if these differ.
    ``analyze(device="cuda")`` finds the places there; what becomes of them is found on the CPU. The numbers are
    identical.
    """
    if signed_zero not in SIGNED_ZERO:
        raise InputError(f"signed_zero={signed_zero!r}: choose one of {', '.join(SIGNED_ZERO)}")
    x = checks.require(ds, variable, "census")
    if ds.sizes["step"] > 1:
        checks.check_steps(ds, "census", allow_gaps=True)
    data = checks.as_dask(x.data)
    _words_of(stored_dtype(data), signed_zero)  # now, not when it is computed
    positions = _positions(ds["step"].values, at)

    def finish(found: ReductionResults) -> xr.Dataset:
        coords = {str(n): c.variable for n, c in ds.coords.items() if set(c.dims) <= {"step", "token"}}
        values = {**_with_start(found), **_of_tokens(found, ds, positions)}
        attrs = checks.result_attrs(ds, variable=variable, signed_zero=signed_zero)
        chosen = xr.Variable("census_step", ds["step"].values[list(positions)], ds["step"].attrs)
        return xr.Dataset(values, {**coords, "census_step": chosen}, attrs)

    return AnalysisSpec({variable: data}, {"census": Places(variable, positions, signed_zero)}, finish)


def _positions(steps: NDArray[np.int64], at: Sequence[int] | None) -> tuple[int, ...]:
    if at is None:
        return tuple(sorted({0, len(steps) - 1}))
    wanted = np.unique(np.asarray(at).reshape(-1))
    missing = [x for x in wanted.tolist() if x not in steps]
    if missing:
        raise InputError(
            f"census: at={missing[0]} is no step of this dataset, which has {len(steps)} from {steps[0]} to {steps[-1]}"
        )
    return tuple(np.searchsorted(steps, wanted).tolist())


def _words_of(dtype: np.dtype[Any], signed_zero: str) -> tuple[Any, Any]:
    """As words of a format: what is 0 like +0, and infinity, which is the mask of its exponent."""
    if dtype.kind not in "fV":
        raise InputError(f"census: the values have the dtype {dtype}; needed: bfloat16, float16, float32 or float64")
    zero, infinity = np.array([-0.0, np.inf]).astype(dtype).view(f"u{dtype.itemsize}")
    return (zero if signed_zero == "equal" else type(zero)(0)), infinity


@dataclass(frozen=True)
class Places(SingleVariable):
    """The reduction of tokens in the same place; `OUTPUTS` says what it finds.

    Attributes
    ----------
    at
        Positions of the steps at which each token's place is kept.
    """

    at: tuple[int, ...]
    signed_zero: str

    def outputs(self) -> dict[str, Output]:
        """See `OUTPUTS`."""
        return OUTPUTS

    def start(self, block: StepBlock) -> _Accumulator:
        """Start with a block."""
        return _Accumulator(self, block)


class _Accumulator:
    def __init__(self, reduction: Places, block: StepBlock) -> None:
        self.reduction, self.block, self.out = reduction, block, allocate_outputs(OUTPUTS, block)
        self.hashed: Any = None
        self.state: Any = None
        self.at = [p for p in reduction.at if block.states.start <= p < block.states.stop]
        names = ("label", "order", "since")
        self.snapshots = {name: np.empty((len(self.at), block.n_tokens), np.int64) for name in names}

    def update(self, batch: Batch) -> None:
        from deadtok_xr.kernels.numba.coincidence_history import coincidence_history

        # no recording is as wide as float64: what is derived stays on the CPU
        wide = batch.values[self.reduction.variable].dtype.itemsize > 4
        labels = self._hash(batch) if wide or not self.block.device.runs("census") else self._hash_on_device(batch)
        first = self.block.first + batch.start
        own = range(first, first + batch.n_states)  # the step after them belongs to another piece
        wanted = np.full(len(labels), -1)
        for i, position in enumerate(self.at):
            if position in own:
                wanted[position - first] = i
        changed, out = batch.changed(self.reduction.variable), batch.slices(self.out, OUTPUTS)
        self.state = coincidence_history(labels, changed, self.state, first, wanted, out, self.snapshots)

    def _hash(self, batch: Batch) -> NDArray[np.int64]:
        """The place of each token at the steps of a piece, (t, n)."""
        from deadtok_xr import kernels

        kernel = kernels.engine("census", False)
        values = batch.values[self.reduction.variable]
        limits = _words_of(values.dtype, self.reduction.signed_zero)
        words = np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")
        changed, keys = batch.changed(self.reduction.variable), kernel.keys(self.block.n_dims)
        labels: NDArray[np.int64]
        labels, self.hashed = kernel.census(words, changed, self.hashed, limits, keys)
        return labels

    def _hash_on_device(self, batch: Batch) -> NDArray[np.int64]:
        from deadtok_xr import kernels

        steps = batch.tensor(self.reduction.variable)  # before what changed, which is found where the values are
        known = self.state.label if self.state is not None else None
        labels: NDArray[np.int64] = kernels.engine("census", True).census(
            steps, batch.changed(self.reduction.variable), known, signed_zero=self.reduction.signed_zero == "distinct"
        )
        return labels

    def result(self) -> dict[str, Any]:
        kept = {p: {name: x[i] for name, x in self.snapshots.items()} for i, p in enumerate(self.at)}
        last = (self.state.order, self.state.since)
        return {**self.out, "places": {"first": self.block.first, "last": last, "at": kept}}


def _join(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """What two rows know of places, the second of which begins where the first one ends."""
    from deadtok_xr.kernels.numba.coincidence_history import extend_back

    kept = dict(a["at"])
    for position, places in b["at"].items():
        order, since = extend_back(a["last"], (places["order"], places["since"]), b["first"])
        kept[position] = {"label": places["label"], "order": order, "since": since}
    return {"first": a["first"], "last": extend_back(a["last"], b["last"], b["first"]), "at": kept}


def _with_start(found: ReductionResults) -> dict[str, xr.Variable]:
    """Figures and events over all steps; at the first one there are no events."""
    variables = found.variables("census", ATTRS)
    for name in EVENTS:
        data = with_start(variables[name].data, -1, found.n_states)
        attrs = {**ATTRS[name], "comment": ATTRS[name].get("comment", "of tokens valid at both steps") + _BEFORE}
        variables[name] = xr.Variable("step", data, attrs)
    return variables


def _of_tokens(found: ReductionResults, ds: xr.Dataset, positions: tuple[int, ...]) -> dict[str, xr.Variable]:
    shape = (len(positions), ds.sizes["token"])
    shapes: dict[str, Any] = dict.fromkeys(_PER_TOKEN, (("census_step", "token"), shape, "i8"))
    inputs = {"places": found.merged("census", "places", _join)}
    return compute_together(
        inputs, _list, shapes, ATTRS, positions=positions, steps=ds["step"].values, tokens=ds["token"].values
    )


def _list(inputs: dict[str, list[Any]], *, positions: Any, steps: Any, tokens: Any) -> Arrays:
    from deadtok_xr.kernels.numba.coincidence_history import together_since

    (places,) = inputs["places"]
    out: dict[str, list[Any]] = {name: [] for name in _PER_TOKEN}
    for position in positions:
        label, order, since = (places["at"][position][name] for name in ("label", "order", "since"))
        rank = ranks(label)
        together = together_since(order, since, label)
        out["black_hole"].append(rank)
        out["together_with"].append(np.where(rank > 0, tokens[label], -1))
        out["together_since"].append(np.where(rank > 0, steps[together], -1))
    return {name: np.stack(rows) for name, rows in out.items()}


def ranks(label: NDArray[np.int64]) -> NDArray[np.int64]:
    """The black hole of each token, 1 the largest: 0 none, -1 where ``label``, its place's first token, is -1."""
    holes, sizes = np.unique(label[label >= 0], return_counts=True)
    holes, sizes = holes[sizes > 1], sizes[sizes > 1]
    rank = np.zeros(len(label), np.int64)
    rank[holes[np.lexsort((holes, -sizes))]] = np.arange(1, len(holes) + 1)
    return np.where(label >= 0, rank[label], -1)


@census.summarize
def _summary(ds: xr.Dataset) -> Iterator[str]:
    holes, population, largest = (ds[key].values for key in ("n_black_holes", "population", "largest"))
    events = ", ".join(f"{ds[k].values[1:].sum()} {k}" for k in ("fissions", "fusions"))
    yield (
        f"Census: {holes[0]} black holes of {population[0]} tokens first (the largest {largest[0]}), {holes[-1]} of "
        f"{population[-1]} last (the largest {largest[-1]}), at most {holes.max()} of {population.max()}; {events}"
    )
    yield from summary_text.invalid_steps(ds, "which are in no place")


census.pictures = (
    Picture(
        "census",
        "census.census",
        "Tokens in the very same place",
        "Black holes are places that two or more tokens share to the bit. Shown are how many there are, how many "
        "tokens they hold, and how many the largest one holds.",
    ),
)
