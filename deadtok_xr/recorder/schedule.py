"""The schedule of a recording: which updates are recorded."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np

from deadtok_xr.errors import InputError


class Schedule:
    """The steps to record: all, every k-th update, or a list of updates, each with the step before it.

    An update t can only be replayed from the state before it, so it is recorded as the pair of steps (t - 1, t).
    """

    def __init__(self, every: int | None = None, steps: Iterable[int] | None = None) -> None:
        if every is not None and steps is not None:
            raise InputError("found both every= and steps=; expected at most one of them")
        if every is not None and (not is_integer(every) or every < 1):
            raise InputError(f"every={every!r}; expected a whole number of updates, 1 or more")
        self.every = None if every is None else int(every)
        if steps is not None and not isinstance(steps, Iterable):
            raise InputError(f"steps={steps!r}; expected a list of update numbers; every=k records every k-th")
        self.steps = None if steps is None else _pairs(list(steps))

    def __contains__(self, step: int) -> bool:
        if self.steps is not None:
            return step in self.steps
        return self.every is None or step % self.every in (0, self.every - 1)

    def attributes(self) -> dict[str, object]:
        """Return the attributes of the store that describe the schedule."""
        if self.every is not None:
            return {"recorded_every": self.every}
        return {} if self.steps is None else {"recorded_steps": "chosen, as pairs (t - 1, t)"}


def is_integer(value: object) -> bool:
    """Return whether a value is an integer and not a bool."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _pairs(steps: list[int]) -> frozenset[int]:
    invalid = [step for step in steps if not is_integer(step) or step < 0]
    if invalid:
        raise InputError(f"steps holds {invalid[0]!r}; expected update numbers, 0 or more")
    for before, after in itertools.pairwise(steps):
        if after <= before:
            raise InputError(f"steps must ascend: {after} follows {before}; sort them, and list each once")
    return frozenset(steps) | {step - 1 for step in steps if step}
