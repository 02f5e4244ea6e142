"""Select steps and tokens, for measures that would take too long for every step and token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deadtok_xr.engine import Batch, Cost, Output, SingleVariable, Sizes, StepBlock
from deadtok_xr.errors import InputError

Positions = tuple[int, ...]


def affordable(at_most: int, at_least: int, work: float, limit: float) -> int:
    """Return how many steps to select by default: fewer than usual if their work would exceed a limit.

    Parameters
    ----------
    at_most, at_least
        The usual number, and the smallest.
    work, limit
        Operations for one step, and for all of them.
    """
    return int(min(at_most, max(at_least, limit // max(work, 1))))


def select_steps(labels: NDArray[np.int64], steps: Sequence[int] | None, purpose: str, at_most: int) -> Positions:
    """Return the positions of steps, ascending.

    Parameters
    ----------
    labels
        The labels of all steps.
    steps
        The labels to select. None: up to ``at_most`` at equal distances, the first and the last among them.
    purpose
        The analysis, named in errors.
    at_most
        The number of steps that are selected by default.

    Raises
    ------
    InputError
        If a step does not exist, or none is named.
    """
    if steps is None:
        return _spread(len(labels), at_most)
    wanted = np.unique(np.asarray(steps))
    if not wanted.size:
        raise InputError(f"{purpose}: no step is named; {_choices(labels)}")
    missing = wanted[~np.isin(wanted, labels)]
    if missing.size:
        raise missing_step(purpose, missing[0], labels)
    return tuple(np.flatnonzero(np.isin(labels, wanted)).tolist())


def select_one_step(x: xr.DataArray, step: int | None, purpose: str) -> xr.DataArray:
    """Return a variable at one step; of a single step the label may be omitted.

    Raises
    ------
    InputError
        If the step does not exist, or one of several must be named.
    """
    labels = x["step"].values if "step" in x.coords else np.arange(x.sizes["step"])
    if step is None and len(labels) > 1:
        raise InputError(f"{purpose} takes one step; this dataset has {len(labels)}: say step= ({_choices(labels)})")
    x = x.assign_coords(step=labels)
    if step is None:
        return x
    if step not in labels:
        raise missing_step(purpose, step, labels)
    at = int(np.flatnonzero(labels == step)[0])
    return x.isel(step=slice(at, at + 1))


def missing_step(purpose: str, step: Any, labels: NDArray[np.int64]) -> InputError:
    """Return the error for a step that does not exist."""
    return InputError(f"{purpose}: step {step} is not in this dataset; {_choices(labels)}")


def _choices(labels: NDArray[np.int64]) -> str:
    if not len(labels):
        return "it has no steps to choose from"
    return f"choose from its {len(labels)} steps, {labels[0]} to {labels[-1]}"


def sample_tokens(n_tokens: int, max_tokens: int, purpose: str) -> Positions:
    """Return the positions of at most ``max_tokens`` tokens, evenly spread; the same ones at every call.

    Raises
    ------
    InputError
        If these are too few to have a distance.
    """
    if max_tokens < 2:
        raise InputError(f"{purpose}: max_tokens={max_tokens}; expected at least 2")
    return _spread(n_tokens, max_tokens)


def _spread(n: int, at_most: int) -> Positions:
    """Return at most so many of n positions, at equal distances, the first and the last among them."""
    return tuple(np.unique(np.linspace(0, n - 1, min(n, at_most)).round().astype(np.int64)).tolist())


@dataclass(frozen=True)
class SelectedSteps(SingleVariable):
    """The reduction that applies a function to some tokens at selected steps, or at the transitions that lead to them.

    Attributes
    ----------
    variable
        The weights.
    at
        Positions of the steps.
    tokens
        Positions of the tokens.
    measure
        A function of a module, which takes the tokens (n, d) in float64; with ``pairs`` first those at the step before.
    options
        Further arguments of the function.
    pairs
        Whether the function compares two steps.
    """

    label: ClassVar[str] = "selected steps"

    at: Positions
    tokens: Positions
    measure: Callable[..., Any]
    options: tuple[Any, ...] = ()
    pairs: bool = False

    def outputs(self) -> dict[str, Output]:
        """Return `measured`, one dict per block: what the function returned, by position."""
        return {"measured": Output(at="block")}

    def start(self, block: StepBlock) -> _Accumulator:
        """Return an accumulator for a block."""
        return _Accumulator(self)

    def cost(self, sizes: Sizes) -> Cost:
        """Return what it costs."""
        n = len(self.tokens)
        seconds = 1e-9 * n**2 * sizes.dims * len(self.at)
        held = 2 * 8 * n * sizes.dims + 3 * 8 * n**2
        return Cost(seconds, temporary=held, kept=16 * n * len(self.at), floats=self.matrices)


class _Accumulator:
    def __init__(self, reduction: SelectedSteps) -> None:
        self.reduction, self.at, self.measured = reduction, set(reduction.at), dict[int, Any]()

    def update(self, batch: Batch) -> None:
        first = batch.block.first + batch.start
        steps = batch.floats(self.reduction.variable)
        n = batch.n_transitions if self.reduction.pairs else batch.n_states
        for t in range(n):
            position = first + t + self.reduction.pairs
            if position in self.at:
                states = (self._tokens(steps, t + i) for i in range(1 + self.reduction.pairs))
                self.measured[position] = self.reduction.measure(*states, *self.reduction.options)

    def _tokens(self, steps: NDArray[Any], t: int) -> NDArray[np.float64]:
        return np.asarray(steps[t, list(self.reduction.tokens)], np.float64)

    def result(self) -> dict[str, Any]:
        return {"measured": self.measured}


def merge_measured(a: dict[int, Any], b: dict[int, Any]) -> dict[int, Any]:
    """Return the results of two blocks as one dict."""
    return {**a, **b}
