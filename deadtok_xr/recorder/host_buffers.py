"""Host buffers for recorded steps, filled by the training loop and emptied by the writer thread."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from deadtok_xr.errors import InputError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Column:
    """A scalar or vector per step: dimensions, shape, dtype, and the default value of steps without one."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: Any
    fill: float | bool = float("nan")


def default_value(kind: str) -> float:
    """Return the value of a matrix at steps where it does not exist: 0 for moments, which start at 0, else NaN."""
    return 0.0 if kind not in ("W", "grad") else float("nan")


class HostBuffer:
    """Several steps in host memory: a tensor per matrix, (steps, rows, dims), and the scalars of each step."""

    def __init__(self, capacity: int, copier: Copier) -> None:
        self.capacity, self.copier = capacity, copier
        self.matrices: dict[str, torch.Tensor] = {}
        self.fill: dict[str, float] = {}
        self.steps: list[int] = []
        self.values: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def is_full(self) -> bool:
        return len(self.steps) == self.capacity

    def put(self, name: str, tensor: torch.Tensor | None, fill: float) -> None:
        """Copy a matrix of the current step; None means that it does not exist, and ``fill`` is stored."""
        row = len(self.steps)
        self.fill[name] = fill
        if name not in self.matrices:
            if tensor is None:
                return  # its dtype is not known yet
            self.matrices[name] = self.copier.buffer(self.capacity, tensor)
            self.matrices[name][:row].fill_(fill)
        target = self.matrices[name][row]
        if tensor is None:
            target.fill_(fill)
            return
        if tensor.dtype != target.dtype:
            raise InputError(
                f"{name} is {tensor.dtype}; it was {target.dtype} before: a recording has one dtype, so begin a "
                "new recording"
            )
        self.copier.copy(name, tensor, target)

    def commit(self, step: int, values: dict[str, Any]) -> None:
        """End the current step: start its copies, and keep its label and scalars."""
        self.copier.send()
        self.steps.append(step)
        self.values.append(values)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the matrices as NumPy arrays, after waiting for the copies into them."""
        self.copier.wait()
        return {name: to_numpy(tensor[: len(self)]) for name, tensor in self.matrices.items()}

    def column(self, name: str, column: Column) -> NDArray[Any]:
        """Return the values of one name, one per step."""
        out = np.full((len(self), *column.shape), column.fill, column.dtype)
        for row, values in enumerate(self.values):
            if name in values:
                value = values[name]
                out[row] = to_numpy(value) if hasattr(value, "detach") else value
        return out

    def clear(self) -> None:
        """Remove all steps; the memory is kept for the next ones."""
        self.steps, self.values = [], []


class Copier:
    """Copies rows of tensors to the host immediately."""

    def __init__(self, device: torch.device, rows: NDArray[np.int64] | None) -> None:
        import torch

        self.device, self._on_host = device, rows
        self._on_device = None if rows is None else torch.from_numpy(rows).to(device)

    def buffer(self, capacity: int, like: torch.Tensor) -> torch.Tensor:
        """Allocate host memory for ``capacity`` steps of a tensor; pinned if they are on a GPU."""
        import torch

        n = len(like) if self._on_host is None else len(self._on_host)
        return torch.empty((capacity, n, like.shape[1]), dtype=like.dtype, pin_memory=self.device.type == "cuda")

    def copy(self, name: str, tensor: torch.Tensor, target: torch.Tensor) -> None:
        """Copy a tensor's rows to the host, or prepare the copy for `send`."""
        tensor = tensor.detach()
        if tensor.device.type != "cpu":
            target.copy_(tensor if self._on_device is None else tensor[self._on_device])
            return
        # NumPy copies on one thread; torch would synchronise all its threads twice for 0.2 ms of work, which takes
        # 9 ms when other processes use the cores
        source, dest = _copyable(tensor), _copyable(target)
        if self._on_host is None:
            np.copyto(dest, source)
        else:
            np.take(source, self._on_host, axis=0, out=dest, mode="clip")  # mode "raise" would buffer the result

    def send(self) -> None:
        """Start the copies of this step, after `copy` was called for all its tensors."""

    def wait(self) -> None:
        """Wait, in the writer thread, until all copies that were sent have arrived."""


class StagedCopier(Copier):
    """Copies from a GPU while the training continues.

    The training's stream takes a snapshot on the device, which takes microseconds; a second stream copies the snapshot
    to pinned memory. The training may then overwrite its tensors. It only waits, on the device, until the snapshots of
    the previous step have been copied.

    Streams and events are those of the device's own module. `torch.cpu` has the same names, which do nothing, so the
    same code runs in the same order on a CPU.
    """

    def __init__(self, device: torch.device, rows: NDArray[np.int64] | None) -> None:
        import torch

        super().__init__(device, rows)
        self._api: Any = torch.get_device_module(device)
        with self._api.device(device) if device.type == "cuda" else nullcontext():
            self._stream, self._arrived = self._api.Stream(), self._api.Event()
        self._snapshots: dict[str, torch.Tensor] = {}
        self._pending: list[tuple[torch.Tensor, torch.Tensor]] = []

    def copy(self, name: str, tensor: torch.Tensor, target: torch.Tensor) -> None:
        """Take a snapshot of a tensor's rows, which `send` copies to the host."""
        import torch

        if tensor.device.type != self.device.type:  # offloaded moments are on the host
            super().copy(name, tensor, target)
            return
        if not self._pending:  # the first of this step: the previous snapshots must have been copied
            self._api.current_stream(self.device).wait_event(self._arrived)
        if name not in self._snapshots:
            self._snapshots[name] = torch.empty(target.shape, dtype=target.dtype, device=self.device)
        snapshot = self._snapshots[name]
        if self._on_device is None:
            snapshot.copy_(tensor.detach())
        else:
            torch.index_select(tensor.detach(), 0, self._on_device, out=snapshot)
        self._pending.append((snapshot, target))

    def send(self) -> None:
        """Start copying the snapshots of this step to the host."""
        self._stream.wait_stream(self._api.current_stream(self.device))
        with self._api.stream(self._stream):
            for snapshot, target in self._pending:
                target.copy_(snapshot, non_blocking=True)
            self._arrived.record(self._stream)
        self._pending = []

    def wait(self) -> None:
        """Wait for the last copy that was sent, and thereby for all earlier ones."""
        self._arrived.synchronize()


STAGED = ("cuda",)
"""Device types from which copies run while the training continues; from others they are made immediately."""


def copier_for(device: torch.device, rows: NDArray[np.int64] | None) -> Copier:
    """Return the copier of rows (None for all) from a device."""
    return (StagedCopier if device.type in STAGED else Copier)(device, rows)


def _copyable(tensor: torch.Tensor) -> NDArray[Any]:
    """Return a NumPy view of a host tensor; bfloat16, which NumPy lacks, as int16."""
    import torch

    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def to_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    """Convert a tensor to a NumPy array; bfloat16 to ml_dtypes.bfloat16, bit for bit."""
    import torch

    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
