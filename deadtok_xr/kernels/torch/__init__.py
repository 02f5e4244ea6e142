"""Kernels in torch, for GPUs; the same names and meaning as numba's, with tensors on a device for blocks.

What they find is put into NumPy arrays. Of topology there is one threshold for all pairs and no names of components,
and of census the places of each step: the rest is numba's (`company`). They compute in float64 and use powers of two
that are normal numbers, since devices may flush subnormals to zero. On CPUs the tests run them beside numba's.
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
