"""Measure the centroid of the cloud and the motion relative to it, for `kinematics`, `cloud`, `epochs` and others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.engine import Batch, Output, SingleVariable, StepBlock, allocate_outputs

OUTPUTS = {
    "centroid": Output(("step", "dim")),
    "bulk_velocity": Output(("step", "dim"), at="transitions"),
    "bulk_speed": Output("step", at="transitions"),
    "thermal_rms": Output("step", at="transitions"),
    "radius": Output("step"),
    "radius_max": Output("step"),
    "thermal_residual": Output("step", at="transitions"),
    "n_invalid": Output("step", dtype="i8"),
}


@dataclass(frozen=True)
class CentreOfMass(SingleVariable):
    """The reduction that measures centroid, radius and velocities; see `OUTPUTS`."""

    label: ClassVar[str] = "kinematics"

    def outputs(self) -> dict[str, Output]:
        """Return `OUTPUTS`."""
        return OUTPUTS

    def start(self, block: StepBlock) -> _Accumulator:
        """Return an accumulator for a block."""
        return _Accumulator(self.variable, block)


class _Accumulator:
    def __init__(self, variable: str, block: StepBlock) -> None:
        self.variable, self.out = variable, allocate_outputs(OUTPUTS, block)
        self.centre: NDArray[np.float64] | None = None

    def update(self, batch: Batch) -> None:
        from deadtok_xr import kernels

        on_device = batch.block.device.runs("kinematics")
        steps = batch.tensor(self.variable) if on_device else batch.readable(self.variable)
        kernel = kernels.engine("kinematics", on_device).kinematics
        self.centre = kernel(steps, batch.changed(self.variable), self.centre, batch.slices(self.out, OUTPUTS))

    def result(self) -> dict[str, Any]:
        return self.out
