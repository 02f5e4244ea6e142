"""What costs too much for every step and token: looked at in chosen steps, and in tokens evenly spread over all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.engine import Batch, Output, SingleVariable, StepBlock
from deadtok_xr.errors import InputError


def positions(labels: NDArray[np.int64], steps: Sequence[int] | None, purpose: str, at_most: int) -> tuple[int, ...]:
    """Where the named steps are, ascending; of None up to ``at_most`` at equal distances, first and last among them.

    Raises
    ------
    InputError
        If one is not there, or none is named.
    """
    if steps is None:
        n = len(labels)
        return tuple(np.unique(np.linspace(0, n - 1, min(at_most, n)).round().astype(np.int64)).tolist())
    wanted = np.unique(np.asarray(steps))
    missing = wanted[~np.isin(wanted, labels)]
    if missing.size or not wanted.size:
        said = f"step {missing[0]} is not among these" if missing.size else "steps= names none"
        found = f"{labels[0]} to {labels[-1]}" if len(labels) else "none"
        raise InputError(f"{purpose}: {said} (steps {found}): name steps that it has")
    return tuple(np.flatnonzero(np.isin(labels, wanted)).tolist())


def sample(n_tokens: int, max_tokens: int, purpose: str) -> tuple[int, ...]:
    """Positions of at most ``max_tokens`` tokens, evenly spread: the same ones at every call.

    Raises
    ------
    InputError
        If these are too few to have a distance.
    """
    if max_tokens < 2:
        raise InputError(f"{purpose}: max_tokens={max_tokens}; needed: at least 2")
    return tuple(np.unique(np.linspace(0, n_tokens - 1, min(n_tokens, max_tokens)).round().astype(int)).tolist())


@dataclass(frozen=True)
class AtSteps(SingleVariable):
    """The reduction of what a function makes of some tokens at some steps, or across the transitions to these.

    Attributes
    ----------
    variable
        The weights.
    at
        Positions of the steps.
    tokens
        Positions of the tokens.
    measure
        A function of a module, of the tokens (n, d) in float64; with ``pairs`` of those at the step before, too.
    options
        Its further arguments.
    pairs
        Whether it looks at two steps.
    """

    at: tuple[int, ...]
    tokens: tuple[int, ...]
    measure: Callable[..., Any]
    options: tuple[Any, ...] = ()
    pairs: bool = False

    def outputs(self) -> dict[str, Output]:
        """One `found` per row: by position, what the function made."""
        return {"found": Output(at="block")}

    def start(self, block: StepBlock) -> _Accumulator:
        """Start with a block."""
        return _Accumulator(self)


class _Accumulator:
    def __init__(self, reduction: AtSteps) -> None:
        self.reduction, self.at, self.found = reduction, set(reduction.at), dict[int, Any]()

    def update(self, batch: Batch) -> None:
        first = batch.block.first + batch.start
        steps = batch.floats(self.reduction.variable)
        n = batch.n_transitions if self.reduction.pairs else batch.n_states
        for t in range(n):
            position = first + t + self.reduction.pairs
            if position in self.at:
                states = (self._of(steps, t + i) for i in range(1 + self.reduction.pairs))
                self.found[position] = self.reduction.measure(*states, *self.reduction.options)

    def _of(self, steps: NDArray[Any], t: int) -> NDArray[np.float64]:
        return np.asarray(steps[t, list(self.reduction.tokens)], np.float64)

    def result(self) -> dict[str, Any]:
        return {"found": self.found}


def both(a: dict[int, Any], b: dict[int, Any]) -> dict[int, Any]:
    """What two rows found."""
    return {**a, **b}
