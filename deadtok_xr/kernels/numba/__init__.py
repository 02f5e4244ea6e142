"""Kernels for the CPU, compiled by numba: they release the GIL and run on one core, within one thread of Dask."""

from deadtok_xr.kernels.numba.bounds import motion_bounds
from deadtok_xr.kernels.numba.changes import changed_rows, last_motion
from deadtok_xr.kernels.numba.kinematics import kinematics
from deadtok_xr.kernels.numba.motion import motion

__all__ = ["changed_rows", "kinematics", "last_motion", "motion", "motion_bounds"]
