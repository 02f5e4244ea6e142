"""The measurement of every transition that `motion`, `phases` and others share."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from deadtok_xr.analyses.common import checks
from deadtok_xr.engine import (
    AnalysisSpec,
    Batch,
    Output,
    ReductionResults,
    SingleVariable,
    StepBlock,
    allocate_outputs,
)
from deadtok_xr.errors import InputError, OffGridError

MAGNITUDES = (0.1, 10.0, 100.0)
"""The limits of notebook 1.31b's regimes, in norm ULP."""
CELLS = (1.0, 1000.0)
"""The limits of the scheme `cells`: L1 within one cell, L2 of a leap."""
_PER_TOKEN = {"displacement": "f4", "displacement_ulp": "f4", "lattice_l1": "f8", "lattice_l2": "f8",
              "lattice_linf": "f8", "moved_dims": "i8"}  # fmt: skip
_OF_FOUR = np.dtype(("i8", (4,)))
OUTPUTS = {
    **{name: Output(("step", "token"), dtype=dtype, at="transitions") for name, dtype in _PER_TOKEN.items()},
    "displacement_ulp_mean": Output("step", at="transitions"),
    "displacement_ulp_std": Output("step", at="transitions"),
    "n_invalid": Output("step", dtype="i8", at="transitions"),
    "lattice": Output(("step", "phase"), dtype=_OF_FOUR, at="transitions"),
    "magnitude": Output(("step", "phase"), dtype=_OF_FOUR, at="transitions"),
    "cells": Output(("step", "phase"), dtype=np.dtype(("i8", (5,))), at="transitions"),
    "changed": Output(("step", "token"), dtype="?", at="transitions"),
}
"""What the probe finds: `lattice`, `magnitude` and `cells` are the tokens in each phase of each scheme, from coldest to
hottest, and `changed` is whether a bit did."""


@dataclass(frozen=True)
class Transitions(SingleVariable):
    """The reduction of every transition of a variable on a grid."""

    grid: str

    def outputs(self) -> dict[str, Output]:
        """See `OUTPUTS`."""
        return OUTPUTS

    def start(self, block: StepBlock) -> _Accumulator:
        """Start with a block."""
        return _Accumulator(self, block)


class _Accumulator:
    def __init__(self, reduction: Transitions, block: StepBlock) -> None:
        from deadtok_xr import kernels

        self.reduction, self.lattice = reduction, kernels.lattice(reduction.grid)
        self.out = allocate_outputs(OUTPUTS, block)
        self.state: Any = None

    def update(self, batch: Batch) -> None:
        from deadtok_xr import kernels
        from deadtok_xr.kernels.numba.lifecycle import cells

        name, grid = self.reduction.variable, self.reduction.grid
        on_device = batch.block.device.runs("motion")
        steps = batch.tensor(name) if on_device else kernels.bit_words(batch.values[name])
        motion = kernels.engine("motion", on_device).motion
        changed, out = batch.changed(name), batch.slices(self.out, OUTPUTS)
        out["changed"][:] = changed
        try:
            self.state = motion(steps, changed, self.state, self.lattice, MAGNITUDES, out)
        except OffGridError as error:
            raise OffGridError(
                f"{name}: {error} of {grid}; measure the recorded values, not derived ones, or say precision="
            ) from None
        root = np.sqrt(batch.block.n_dims)
        cells(out["lattice_l1"], out["lattice_l2"], out["moved_dims"], root, CELLS, out["cells"])

    def result(self) -> dict[str, Any]:
        return self.out


def plan(x: xr.DataArray, grid: str, finish: Callable[[ReductionResults], xr.Dataset]) -> AnalysisSpec:
    """A plan with the probe of a variable's transitions alone, under the name "transitions"."""
    name = str(x.name)
    return AnalysisSpec({name: checks.as_dask(x.data)}, {"transitions": Transitions(name, grid)}, finish)


def grid_name(x: xr.DataArray, precision: str | None) -> str:
    """The name of the grid that a variable lives on.

    Raises
    ------
    InputError
        If it lives on none.
    """
    said = x.attrs.get("precision")
    if precision and said not in (None, "none", precision):
        warnings.warn(
            f"{x.name} is recorded as living on the {said} grid; it is measured on the {precision} grid, as asked",
            UserWarning,
            stacklevel=2,
        )
    held = "bfloat16" if x.dtype == np.float32 else x.dtype.name  # the kernels check every value
    name = precision or x.attrs.get("precision", held)
    if name == "none":
        raise InputError(
            f"{x.name} lives on no grid that is known (its precision is 'none': float32 training, or autocast), so it "
            "has no lattice: say precision='float32' (--precision float32) for float32's own grid, or name the format "
            "it was trained in"
        )
    return str(name)


def left_out(ds: xr.Dataset, variable: str) -> xr.Variable | None:
    """Which updates left a variable out, (step - 1,) bool: it had no gradient, and its standing still tells nothing."""
    name = "skipped" if variable == "W" else f"skipped_{variable}"
    if name not in ds or ds[name].dims != ("step",):
        return None
    return ds[name].variable[1:]


def step_and_token_coords(ds: xr.Dataset) -> dict[str, xr.Variable]:
    """The coordinates of results that begin at the second step."""
    later = ds.isel(step=slice(1, None))
    return {str(n): c.variable for n, c in later.coords.items() if set(c.dims) <= {"step", "token"}}
