"""Record parameters that are sharded over ranks (DTensor, as FSDP2 makes them): one rank writes, all gather.

The whole tensor is gathered on each rank of the parameter's mesh while a step is recorded. The first rank of the mesh
writes the store; the others follow: they take part in each gathering, and otherwise do nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from deadtok_xr.errors import InputError

if TYPE_CHECKING:
    from deadtok_xr.recorder.recorded_parameter import RecordedParameter


def whole(x: Any) -> Any:
    """Return a tensor itself, or a sharded one gathered from all ranks, which must all call this."""
    return x.detach().full_tensor() if hasattr(x, "full_tensor") else x


def mesh_of(recorded: Sequence[RecordedParameter]) -> Any:
    """Return the device mesh of parameters that are sharded; None if they are not.

    Raises
    ------
    InputError
        If they are sharded over different meshes, or only some are.
    """
    meshes = [getattr(r.parameter, "device_mesh", None) for r in recorded]
    if any(mesh != meshes[0] for mesh in meshes):
        raise InputError("the parameters are sharded over different ranks: record each with a Recorder of its own")
    return meshes[0]


def follows(mesh: Any) -> bool:
    """Return whether another rank of the mesh writes."""
    return mesh is not None and any(mesh.get_coordinate() or ())


def agree(mesh: Any, begin: Callable[[], tuple[int, bool]] | None) -> tuple[int, bool]:
    """Begin the store on the rank that writes, and tell the others the step and whether to record it.

    Parameters
    ----------
    mesh
        The device mesh; None if the parameters are not sharded.
    begin
        Creates or opens the store; None on ranks that follow.

    Raises
    ------
    InputError
        On the ranks that follow, if the store cannot be begun; on the rank that writes, its own error.
    """
    if mesh is None and begin is not None:
        return begin()
    import torch.distributed as dist

    outcome: list[Any] = [None]
    failure: BaseException | None = None
    if begin is not None:
        try:
            outcome = [begin()]
        except Exception as error:
            failure, outcome = error, [str(error)]
    for dim in range(mesh.ndim):
        group = mesh.get_group(dim)
        dist.broadcast_object_list(outcome, src=dist.get_global_rank(group, 0), group=group)
    if failure is not None:
        raise failure
    if isinstance(outcome[0], str):
        raise InputError(f"the rank that writes cannot begin: {outcome[0]}")
    step, initial = outcome[0]
    return step, initial


class Follower:
    """In the place of a `Session` on ranks that do not write: it gathers when the session of the writing rank does."""

    report, stopped = "", False

    def __init__(self, recorded: Sequence[RecordedParameter]) -> None:
        self._recorded = recorded
        self.appender = self
        self.columns: dict[str, Any] = {}

    def copy_gradients(self) -> None:
        """Take part in gathering the gradients."""
        for r in self._recorded:
            if "grad" in r.variables.values():
                r.gradient()

    def copy_states(self, *, initial: bool = False) -> None:
        """Take part in gathering parameters and moments."""
        for r in self._recorded:
            for kind in r.variables.values():
                if kind != "grad":
                    r.state(kind, initial=initial)

    def settings(self) -> dict[str, Any]:
        """Return no settings."""
        return {}

    def ignore(self, *args: Any, **options: Any) -> None:
        """Do nothing."""

    fill_gradients = ensure_space = commit = add_value = raise_pending = finish = close = ignore
