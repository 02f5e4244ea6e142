"""Find the tokens that are in the same place, the black holes, and follow how these form and break up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deadtok_xr.analyses.common import checks, coordinates, step_selection
from deadtok_xr.analyses.registry import Finding, KeyFigure, Picture, built_in
from deadtok_xr.engine import (
    AnalysisSpec,
    Batch,
    Cost,
    Output,
    ReductionResults,
    SingleVariable,
    Sizes,
    StepBlock,
    allocate_outputs,
)
from deadtok_xr.engine.block_pass import prepend_first_step
from deadtok_xr.engine.small_results import Arrays, compute_together
from deadtok_xr.errors import InputError
from deadtok_xr.store.stored_array import stored_dtype

SIGNED_ZERO = ("equal", "distinct")
_HOLE = "a black hole is a place shared by two or more tokens"
ATTRS: dict[str, dict[str, Any]] = {
    "n_unique": {
        "long_name": "distinct rows", "units": "1",
        "formula": "n_black_holes + (N - n_invalid) - population", "comment": "of valid tokens",
    },
    "n_black_holes": {"long_name": "places shared by two or more tokens", "units": "1"},
    "population": {"long_name": "tokens in black holes", "units": "1", "comment": _HOLE},
    "largest": {
        "long_name": "tokens in the largest black hole", "units": "1", "comment": "0 without black holes",
    },
    "n_singletons": {"long_name": "tokens that are alone in their place", "units": "1"},
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
        "formula": "black holes of the previous step whose tokens are no longer all in one place",
    },
    "fusions": {
        "long_name": "black holes formed from several places", "units": "1",
        "formula": "black holes whose tokens were not all in one place at the previous step",
    },
    "evaporated": {
        "long_name": "tokens that were in a black hole and are now alone", "units": "1",
        "comment": "includes the last token of a black hole that all others have left",
    },
    "accreted": {"long_name": "tokens that were alone and are now in a black hole", "units": "1"},
    "black_hole": {
        "long_name": "black hole of the token, ranked by size", "units": "1",
        "comment": "1 for the largest (of equal ones, that of the first token); 0 for none; -1 for NaN or infinity",
    },
    "together_with": {
        "long_name": "id of the first token in the same place", "units": "1", "comment": "-1 if alone or invalid",
    },
    "together_since": {
        "long_name": "step since which the token has been with that token", "units": "step",
        "formula": "first recorded step from which the two are in one place at every recorded step",
        "comment": "for the first token itself, since when another token has been with it; -1 if alone or invalid",
    },
}  # fmt: skip
_COUNTS = ("n_unique", "n_black_holes", "population", "largest", "n_singletons", "n_invalid")
_CONCENTRATIONS = ("herfindahl", "gini", "top_two_share")
EVENTS = ("fissions", "fusions", "evaporated", "accreted")
_PER_TOKEN = ("black_hole", "together_with", "together_since")
OUTPUTS = {
    **{name: Output("step", dtype="i8") for name in _COUNTS},
    **{name: Output("step") for name in _CONCENTRATIONS},
    **{name: Output("step", dtype="i8", at="transitions") for name in EVENTS},
    "places": Output(at="block"),
}
_PREVIOUS = "; the previous step is the previous recorded one; -1 at the first step"


@built_in
def census(
    ds: xr.Dataset, *, at: Sequence[int] | None = None, signed_zero: str = "equal", variable: str = "W"
) -> AnalysisSpec:
    """Count the tokens that are in the same place, at every step, and follow which tokens are together.

    Parameters
    ----------
    ds
        A recording, (step, token, dim), of any floating-point format; gaps in the steps do not matter, and one step
        is enough.
    at
        Labels of the steps at which to list the black hole of each token; by default the first and the last one.
    signed_zero
        ``"equal"``: -0 and +0 are the same place, as in every analysis. ``"distinct"``: tokens are in the same place if
        all their bits are equal, as ``unique`` of bit patterns finds them.
    variable
        The weights to analyse.

    Returns
    -------
    xarray.Dataset
        Lazy dataset over all steps. Per step, int64: `n_unique`, `n_black_holes`, `population`, `largest`,
        `n_singletons`, `n_invalid`, with n_unique = n_black_holes + (N - n_invalid) - population; events since the
        previous recorded step, `fissions`, `fusions`, `evaporated`, `accreted`, -1 at the first step; float64, over
        black holes: `herfindahl`, `gini`, `top_two_share`, NaN without any. Per (census_step, token), int64:
        `black_hole`, 0 for none, 1 for the largest; `together_with` and `together_since`.

        Tokens with NaN or infinity are left out: they are in no place, and take part in no event.

    Raises
    ------
    InputError
        For a recording without absolute positions, steps that do not ascend, or an unknown option.

    Notes
    -----
    Black holes are those of notebooks 06.1h to 15.2c and 1.9a, `top_two_share` that of 12.3b. Equal tokens are found
    by hashing and then compared bit by bit, so that the counts are exact. Of three tokens in one place, the step
    since which two have been together is the later of the steps since which each has been with the third, if these
    differ. ``analyze(device="cuda")`` finds the places on the GPU, and the events on the CPU. The numbers are
    identical.
    """
    if signed_zero not in SIGNED_ZERO:
        raise InputError(f"signed_zero={signed_zero!r}: choose one of {', '.join(SIGNED_ZERO)}")
    x = checks.require(ds, variable, "census")
    if ds.sizes["step"] > 1:
        checks.check_steps(ds, "census", allow_gaps=True)
    data = checks.as_dask(x.data)
    _special_words(stored_dtype(data), signed_zero)  # refuse other formats now, not when results are computed
    labels = ds["step"].values
    positions = step_selection.select_steps(labels, at if at is None else np.ravel(at).tolist(), "census", 2)

    def finish(results: ReductionResults) -> xr.Dataset:
        values = {**_step_variables(results), **_token_variables(results, ds, positions)}
        attrs = checks.result_attrs(ds, variable=variable, signed_zero=signed_zero)
        selected = xr.Variable("census_step", labels[list(positions)], ds["step"].attrs)
        return xr.Dataset(values, {**coordinates.within(ds, "step", "token"), "census_step": selected}, attrs)

    return AnalysisSpec({variable: data}, {"census": Coincidence(variable, positions, signed_zero)}, finish)


def _special_words(dtype: np.dtype[Any], signed_zero: str) -> tuple[Any, Any]:
    """Return two words of a format: the one that equals +0, and infinity, the mask of the exponent."""
    if dtype.kind not in "fV":
        raise InputError(f"census: the values have the dtype {dtype}; expected bfloat16, float16, float32 or float64")
    zero, infinity = np.array([-0.0, np.inf]).astype(dtype).view(f"u{dtype.itemsize}")
    return (zero if signed_zero == "equal" else type(zero)(0)), infinity


@dataclass(frozen=True)
class Coincidence(SingleVariable):
    """The reduction that finds tokens in the same place; see `OUTPUTS`.

    Attributes
    ----------
    at
        Positions of the steps at which the place of each token is kept.
    signed_zero
        The option of `census`.
    """

    at: tuple[int, ...]
    signed_zero: str

    def outputs(self) -> dict[str, Output]:
        """Return `OUTPUTS`."""
        return OUTPUTS

    def start(self, block: StepBlock) -> _Accumulator:
        """Return an accumulator for a block."""
        return _Accumulator(self, block)

    def cost(self, sizes: Sizes) -> Cost:
        """Return what it costs."""
        places = 3 * 8 * sizes.tokens  # label, order and since of each token
        return Cost(1e-9 * sizes.moved, held=6 * places, kept=(2 + len(self.at)) * places)


class _Accumulator:
    def __init__(self, reduction: Coincidence, block: StepBlock) -> None:
        self.reduction, self.block, self.out = reduction, block, allocate_outputs(OUTPUTS, block)
        self.hashed: Any = None
        self.state: Any = None
        self.at = [p for p in reduction.at if block.states.start <= p < block.states.stop]
        names = ("label", "order", "since")
        self.snapshots = {name: np.empty((len(self.at), block.n_tokens), np.int64) for name in names}

    def update(self, batch: Batch) -> None:
        from deadtok_xr.kernels.numba.coincidence_history import coincidence_history

        # only derived arrays are float64, and these stay on the CPU
        wide = batch.values[self.reduction.variable].dtype.itemsize > 4
        labels = self._hash(batch) if wide or not self.block.device.runs("census") else self._hash_on_device(batch)
        first = self.block.first + batch.start
        own = range(first, first + batch.n_states)  # the step after them belongs to another batch
        wanted = np.full(len(labels), -1)
        for i, position in enumerate(self.at):
            if position in own:
                wanted[position - first] = i
        changed, out = batch.changed(self.reduction.variable), batch.slices(self.out, OUTPUTS)
        self.state = coincidence_history(labels, changed, self.state, first, wanted, out, self.snapshots)

    def _hash(self, batch: Batch) -> NDArray[np.int64]:
        """Return the place of each token at the steps of a batch, (t, n): the position of the first token in it."""
        from deadtok_xr import kernels

        kernel = kernels.engine("census", False)
        values = batch.values[self.reduction.variable]
        limits = _special_words(values.dtype, self.reduction.signed_zero)
        words = np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")
        changed, keys = batch.changed(self.reduction.variable), kernel.keys(self.block.n_dims)
        labels: NDArray[np.int64]
        labels, self.hashed = kernel.census(words, changed, self.hashed, limits, keys)
        return labels

    def _hash_on_device(self, batch: Batch) -> NDArray[np.int64]:
        """Return the same as `_hash`, found on the device."""
        from deadtok_xr import kernels

        steps = batch.tensor(self.reduction.variable)  # first: batch.changed compares the steps where the values are
        known = self.state.label if self.state is not None else None
        labels: NDArray[np.int64] = kernels.engine("census", True).census(
            steps, batch.changed(self.reduction.variable), known, signed_zero=self.reduction.signed_zero == "distinct"
        )
        return labels

    def result(self) -> dict[str, Any]:
        kept = {p: {name: x[i] for name, x in self.snapshots.items()} for i, p in enumerate(self.at)}
        last = (self.state.order, self.state.since)
        return {**self.out, "places": {"first": self.block.first, "last": last, "at": kept}}


def _merge(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """Merge the places of two consecutive blocks."""
    from deadtok_xr.kernels.numba.coincidence_history import extend_back

    kept = dict(a["at"])
    for position, places in b["at"].items():
        order, since = extend_back(a["last"], (places["order"], places["since"]), b["first"])
        kept[position] = {"label": places["label"], "order": order, "since": since}
    return {"first": a["first"], "last": extend_back(a["last"], b["last"], b["first"]), "at": kept}


def _step_variables(results: ReductionResults) -> dict[str, xr.Variable]:
    """Return the counts and events over all steps; at the first one the events are -1."""
    variables = results.variables("census", ATTRS)
    for name in EVENTS:
        data = prepend_first_step(variables[name].data, -1, results.n_states)
        attrs = {**ATTRS[name], "comment": ATTRS[name].get("comment", "of tokens valid at both steps") + _PREVIOUS}
        variables[name] = xr.Variable("step", data, attrs)
    return variables


def _token_variables(results: ReductionResults, ds: xr.Dataset, positions: tuple[int, ...]) -> dict[str, xr.Variable]:
    """Return the variables per token at the selected steps."""
    shape = (len(positions), ds.sizes["token"])
    shapes: dict[str, Any] = dict.fromkeys(_PER_TOKEN, (("census_step", "token"), shape, "i8"))
    inputs = {"places": results.merged("census", "places", _merge)}
    return compute_together(
        inputs, _list_tokens, shapes, ATTRS, positions=positions, steps=ds["step"].values, tokens=ds["token"].values
    )


def _list_tokens(inputs: dict[str, list[Any]], *, positions: Any, steps: Any, tokens: Any) -> Arrays:
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
    """Return the rank of each token's black hole by size, 1 for the largest: 0 for none, -1 where ``label`` is -1.

    ``label`` is the position of the first token in the same place.
    """
    holes, sizes = np.unique(label[label >= 0], return_counts=True)
    holes, sizes = holes[sizes > 1], sizes[sizes > 1]
    rank = np.zeros(len(label), np.int64)
    rank[holes[np.lexsort((holes, -sizes))]] = np.arange(1, len(holes) + 1)
    return np.where(label >= 0, rank[label], -1)


@census.summarize
def _summary(ds: xr.Dataset) -> Iterator[str]:
    holes, population, largest = (ds[key].values for key in ("n_black_holes", "population", "largest"))
    events = ", ".join(f"{ds[k].values[1:].sum()} {k}" for k in ("fissions", "fusions"))
    if not population.any():
        yield "Census: no two tokens are ever in the same place"
        return
    yield (
        f"Census: {holes[0]} black holes of {population[0]} tokens first (the largest {largest[0]}), {holes[-1]} of "
        f"{population[-1]} last (the largest {largest[-1]}), at most {holes.max()} of {population.max()}; {events}"
    )


@census.find
def _findings(ds: xr.Dataset) -> Iterator[Finding]:
    holes, population, largest = (ds[key].values for key in ("n_black_holes", "population", "largest"))
    steps = ds["step"].values
    if not ds["n_unique"].values.any():
        return
    if not population.any():
        yield Finding(0.2, "No two tokens are ever in the same place.")
        return
    counts = ", ".join(f"{population[i]:,} at step {steps[i]}" for i in (0, -1))
    where = f", in {holes[-1]:,} places, at most {largest[-1]:,} in one" if holes[-1] else ""
    yield Finding(0.68, f"Tokens that share their place with others to the bit: {counts}{where}.")


@census.measure
def _key_figure(ds: xr.Dataset) -> KeyFigure:
    return KeyFigure("tokens that share their place", ds["population"].values[0], ds["population"].values[-1])


census.invalid = "which are in no place"
census.over_runs = "population"
census.pictures = (
    Picture(
        "census",
        "census.census",
        "Tokens in the same place",
        "A black hole is a place that two or more tokens share to the bit. The lines show how many black holes there "
        "are, how many tokens they hold, and how many the largest one holds.",
        lambda ds: not ds["population"].values.any(),
    ),
)
