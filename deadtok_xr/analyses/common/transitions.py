"""Measure every transition of every token, for `motion`, `phases`, `lifecycle` and `freezing`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import xarray as xr

from deadtok_xr.analyses.common import checks
from deadtok_xr.engine import (
    AnalysisSpec,
    Batch,
    Cost,
    Output,
    OutputAccumulator,
    ReductionResults,
    SingleVariable,
    Sizes,
    StepBlock,
)
from deadtok_xr.errors import OffGridError

MAGNITUDES = (0.1, 10.0, 100.0)
"""Limits of the regimes of notebook 1.31b, in norm ULP."""
CELLS = (1.0, 1000.0)
"""Limits of the scheme `cells`, in ULP: of the L1 norm within one cell, and of the L2 norm below a leap."""
_PER_TOKEN = {"displacement": "f4", "displacement_ulp": "f4", "lattice_l1": "f8", "lattice_l2": "f8",
              "lattice_linf": "f8", "moved_dims": "i8"}  # fmt: skip
_FOUR_COUNTS = np.dtype(("i8", (4,)))
OUTPUTS = {
    **{name: Output(("step", "token"), dtype=dtype, at="transitions") for name, dtype in _PER_TOKEN.items()},
    "displacement_ulp_mean": Output("step", at="transitions"),
    "displacement_ulp_std": Output("step", at="transitions"),
    "n_invalid": Output("step", dtype="i8", at="transitions"),
    "lattice": Output(("step", "phase"), dtype=_FOUR_COUNTS, at="transitions"),
    "magnitude": Output(("step", "phase"), dtype=_FOUR_COUNTS, at="transitions"),
    "cells": Output(("step", "phase"), dtype=np.dtype(("i8", (5,))), at="transitions"),
    "changed": Output(("step", "token"), dtype="?", at="transitions"),
}
"""`lattice`, `magnitude` and `cells` count the tokens in each phase of each scheme, from coldest to hottest; `changed`
says whether a bit of the token changed."""


@dataclass(frozen=True)
class Transitions(SingleVariable):
    """The reduction that measures every transition of a variable on a grid."""

    label: ClassVar[str] = "motion"

    grid: str

    def outputs(self) -> dict[str, Output]:
        """Return `OUTPUTS`."""
        return OUTPUTS

    def start(self, block: StepBlock) -> _Accumulator:
        """Return an accumulator for a block."""
        return _Accumulator(self, block)

    def cost(self, sizes: Sizes) -> Cost:
        """Return what it costs."""
        return Cost(1.5e-9 * sizes.moved)


class _Accumulator(OutputAccumulator[Transitions]):
    def __init__(self, reduction: Transitions, block: StepBlock) -> None:
        from deadtok_xr import kernels

        super().__init__(reduction, block)
        self.lattice = kernels.lattice(reduction.grid)
        self.state: Any = None

    def update(self, batch: Batch) -> None:
        from deadtok_xr import kernels
        from deadtok_xr.kernels.numba.lifecycle import cells

        name, grid = self.reduction.variable, self.reduction.grid
        on_device = batch.block.device.runs("motion")
        steps = batch.tensor(name) if on_device else kernels.bit_words(batch.values[name])
        motion = kernels.engine("motion", on_device).motion
        changed, out = batch.changed(name), self.slices(batch)
        out["changed"][:] = changed
        try:
            self.state = motion(steps, changed, self.state, self.lattice, MAGNITUDES, out)
        except OffGridError as error:
            raise OffGridError(
                f"{name}: {error} of {grid}; measure the recorded values, not derived ones, or say precision="
            ) from None
        root = np.sqrt(batch.block.n_dims)
        cells(out["lattice_l1"], out["lattice_l2"], out["moved_dims"], root, CELLS, out["cells"])


def specify(x: xr.DataArray, grid: str, finish: Callable[[ReductionResults], xr.Dataset]) -> AnalysisSpec:
    """Return the spec of an analysis whose only reduction is `Transitions`, named "transitions"."""
    name = str(x.name)
    # without a lattice, float32's takes its place, on which every value lies; finish leaves out what depends on it
    on = "float32" if grid == "none" else grid
    return AnalysisSpec({name: checks.as_dask(x.data)}, {"transitions": Transitions(name, on)}, finish)


def skipped_updates(ds: xr.Dataset, variable: str) -> xr.Variable | None:
    """Return, (step - 1,) bool, the updates that skipped a variable because it had no gradient; None if not recorded.

    That a token did not move in such an update says nothing about freezing.
    """
    name = "skipped" if variable == "W" else f"skipped_{variable}"
    if name not in ds or ds[name].dims != ("step",):
        return None
    return ds[name].variable[1:]
