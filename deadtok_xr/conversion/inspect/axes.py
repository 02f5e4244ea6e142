"""The axes of a source, by the sizes that its weights have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from deadtok_xr import schema


@dataclass(frozen=True)
class Axes:
    """Sizes along (run,) step, token, dim.

    Attributes
    ----------
    n_runs
        None where there is no run axis.
    static
        The source has no step axis.
    """

    n_runs: int | None
    n_steps: int
    n_rows: int
    n_dims: int
    static: bool = False

    def lead(self) -> tuple[int, ...]:
        """The sizes before the step axis."""
        return () if self.n_runs is None else (self.n_runs,)

    def size(self, dim: str) -> int:
        """The size along a dimension by its name."""
        return {"run": self.n_runs or 1, "step": self.n_steps, "token": self.n_rows, "dim": self.n_dims}[dim]


def full_dims(dims: tuple[str, ...], axes: Axes) -> tuple[str, ...]:
    """A variable's dimensions in a recording with these axes."""
    return dims if axes.n_runs is None else ("run", *dims)


def first_row(n: int, n_steps: int, name: str, dtype: np.dtype[Any] | None) -> int | None:
    """Where a source's rows begin: one late if they are one short and the variable begins at step 1.

    None if there are neither as many rows as steps nor one less.
    """
    since_one = schema.attributes(name)["valid_from"] == 1 or name.startswith("exp_avg")  # no state before a step
    begins_at_one = since_one and (dtype is None or dtype.kind in "fV")
    if n == n_steps - 1 and begins_at_one:
        return 1
    return 0 if n == n_steps else None
