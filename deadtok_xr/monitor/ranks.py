"""Sums over the ranks that hold the parts of a sharded parameter (DTensor, as FSDP2 and tensor parallelism make it)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from deadtok_xr.monitor.selection import local

if TYPE_CHECKING:
    from torch import Tensor


def is_writer() -> bool:
    """Return whether this process writes and logs: rank 0, or a process without others."""
    import torch.distributed as dist

    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def sum_over_ranks(parameters: list[Tensor], tables: list[NDArray[Any]]) -> None:
    """Add up tables with one row per parameter, in place; rows of parameters that are not sharded stay as they are.

    All ranks of a mesh must call this at the same update, with the same parameters.
    """
    import torch
    import torch.distributed as dist

    for (mesh, dims), rows in _sharded(parameters).items():
        for table in tables:
            part = torch.from_numpy(table[rows]).to(local(parameters[rows[0]]).device)
            for dim in dims:
                dist.all_reduce(part, group=mesh.get_group(dim))
            table[rows] = part.cpu().numpy()


def _sharded(parameters: list[Any]) -> dict[tuple[Any, tuple[int, ...]], list[int]]:
    """Return the positions of sharded parameters by mesh, and the mesh dims over which they are sharded."""
    found: dict[tuple[Any, tuple[int, ...]], list[int]] = {}
    for i, parameter in enumerate(parameters):
        if hasattr(parameter, "placements"):
            dims = tuple(d for d, placement in enumerate(parameter.placements) if not placement.is_replicate())
            if dims:
                found.setdefault((parameter.device_mesh, dims), []).append(i)
    return found
