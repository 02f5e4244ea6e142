"""Measure the centroid of the cloud and the motion relative to it, for `kinematics`, `cloud`, `epochs` and others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.engine import Batch, Cost, Output, OutputAccumulator, SingleVariable, Sizes, StepBlock

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
        return _Accumulator(self, block)

    def cost(self, sizes: Sizes) -> Cost:
        """Return what it costs."""
        return Cost(1.5e-9 * sizes.moved)


class _Accumulator(OutputAccumulator[CentreOfMass]):
    def __init__(self, reduction: CentreOfMass, block: StepBlock) -> None:
        super().__init__(reduction, block)
        self.centre: NDArray[np.float64] | None = None

    def update(self, batch: Batch) -> None:
        from deadtok_xr import kernels

        name, on_device = self.reduction.variable, batch.block.device.runs("kinematics")
        steps = batch.tensor(name) if on_device else batch.readable(name)
        kernel = kernels.engine("kinematics", on_device).kinematics
        self.centre = kernel(steps, batch.changed(name), self.centre, self.slices(batch))
