"""Kernels in torch, for GPUs: the same names and meaning as numba's; blocks are tensors on a device.

They fill NumPy arrays. Topology has one threshold for all pairs and does not name components; the census labels the
rows of each step, and numba does the rest (`kernels.numba.coincidence_history`). They compute in float64 and use only
powers of two that are normal numbers, because devices may flush subnormals to zero. The tests compare them with numba's
on the CPU.
"""

from deadtok_xr.kernels.torch.census import census
from deadtok_xr.kernels.torch.changes import changed_rows
from deadtok_xr.kernels.torch.kinematics import centroid, kinematics
from deadtok_xr.kernels.torch.mechanism import mechanism, same, stalled
from deadtok_xr.kernels.torch.motion import motion
from deadtok_xr.kernels.torch.parts import pinned_copy, to_device
from deadtok_xr.kernels.torch.topology import topology

__all__ = [
    "census", "centroid", "changed_rows", "kinematics", "mechanism", "motion", "pinned_copy", "same", "stalled",
    "to_device", "topology",
]  # fmt: skip
