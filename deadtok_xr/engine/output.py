"""One output of a reduction or of an analysis: its dimensions, its dtype and what it means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import DTypeLike


@dataclass(frozen=True)
class Output:
    """One output of a reduction or of an analysis.

    Attributes
    ----------
    dims
        Its dimensions, ``step`` first where it has one value or more per step.
    dtype
        The dtype of an element; it has a shape for dims other than step, token and dim.
    at
        Which steps it belongs to: ``"states"``, all of them; or ``"transitions"``, the updates that lead to all steps
        but the first, with their labels. ``"block"``: one object of any kind per block, which
        `ReductionResults.merged` puts together; it has no dims.
    long_name, units, formula, comment
        Attributes of the variable.
    sizes
        Lengths of dims other than step, token and dim.
    combine
        How the values of two batches become one, for an output of `deadtok_xr.analysis` without the dimension step:
        "max", "min", "sum", "first", "last", or a function of both.
    """

    dims: str | tuple[str, ...] = ()
    long_name: str = ""
    units: str = "1"
    formula: str = ""
    dtype: DTypeLike = "f8"
    at: str = "states"
    comment: str = ""
    sizes: Mapping[str, int] = field(default_factory=dict)
    combine: Any = None

    @property
    def all_dims(self) -> tuple[str, ...]:
        """The dims as a tuple."""
        return (self.dims,) if isinstance(self.dims, str) else tuple(self.dims)

    @property
    def inner(self) -> tuple[str, ...]:
        """The dims except step."""
        return tuple(dim for dim in self.all_dims if dim != "step")

    @property
    def base(self) -> np.dtype[Any]:
        """The dtype of a number."""
        return np.dtype(self.dtype).base

    def inner_shape(self, n_tokens: int, n_dims: int) -> tuple[int, ...]:
        """Return the lengths of the dims except step."""
        sizes = {"token": n_tokens, "dim": n_dims, **self.sizes}
        return (*(sizes[dim] for dim in self.inner if dim in sizes), *np.dtype(self.dtype).shape)
