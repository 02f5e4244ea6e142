"""Steps on their way to the disk: host buffers that are filled by the loop and emptied by the writer."""

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
    """A value per step, or a vector per step, and what stands where none was given."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: Any
    before: float | bool = float("nan")


def before(kind: str) -> float:
    """What a matrix holds where there is none: moments start at 0; a gradient that there is not is NaN."""
    return 0.0 if kind not in ("W", "grad") else float("nan")


class Block:
    """Some steps in memory: a host tensor per matrix, (steps, rows, dims), and the values of each step."""

    def __init__(self, capacity: int, copier: Copier) -> None:
        self.capacity, self.copier = capacity, copier
        self.matrices: dict[str, torch.Tensor] = {}
        self.fill: dict[str, float] = {}
        self.steps: list[int] = []
        self.values: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def full(self) -> bool:
        return len(self.steps) == self.capacity

    def put(self, name: str, tensor: torch.Tensor | None, fill: float) -> None:
        """A matrix of the step that is being recorded."""
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
                f"{name} is {tensor.dtype}; it was {target.dtype} before: a recording keeps one dtype, so begin "
                "another one"
            )
        self.copier.copy(name, tensor, target)

    def commit(self, step: int, values: dict[str, Any]) -> None:
        """The step that was being recorded is whole."""
        self.copier.send()
        self.steps.append(step)
        self.values.append(values)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The matrices as NumPy arrays, once what is under way has arrived."""
        self.copier.wait()
        return {name: to_numpy(tensor[: len(self)]) for name, tensor in self.matrices.items()}

    def column(self, name: str, column: Column) -> NDArray[Any]:
        """The values of one name, one per step."""
        out = np.full((len(self), *column.shape), column.before, column.dtype)
        for row, values in enumerate(self.values):
            if name in values:
                value = values[name]
                out[row] = to_numpy(value) if hasattr(value, "detach") else value
        return out

    def clear(self) -> None:
        """Make room; the buffers stay."""
        self.steps, self.values = [], []


class Copier:
    """Copies rows of tensors to the host, at once."""

    def __init__(self, device: torch.device, rows: NDArray[np.int64] | None) -> None:
        import torch

        self.device, self._on_host = device, rows
        self._on_device = None if rows is None else torch.from_numpy(rows).to(device)

    def buffer(self, capacity: int, like: torch.Tensor) -> torch.Tensor:
        """A host buffer for so many steps of a tensor; pinned, so that a GPU writes to it by itself."""
        import torch

        n = len(like) if self._on_host is None else len(self._on_host)
        return torch.empty((capacity, n, like.shape[1]), dtype=like.dtype, pin_memory=self.device.type == "cuda")

    def copy(self, name: str, tensor: torch.Tensor, target: torch.Tensor) -> None:
        """Copy a tensor's rows to the host, or begin to."""
        tensor = tensor.detach()
        if tensor.device.type != "cpu":
            target.copy_(tensor if self._on_device is None else tensor[self._on_device])
            return
        # NumPy copies on one thread: torch would have its team of threads meet twice for 0.2 ms of work, which
        # takes 9 ms where other processes hold the cores
        source, dest = words(tensor), words(target)
        if self._on_host is None:
            np.copyto(dest, source)
        else:
            np.take(source, self._on_host, axis=0, out=dest, mode="clip")  # "raise" would buffer the result

    def send(self) -> None:
        """All tensors of this step were given to `copy`."""

    def wait(self) -> None:
        """Wait, in the writer's thread, until all that was sent has arrived."""


class StagedCopier(Copier):
    """Copies from a GPU beside the training.

    The training's stream makes a snapshot on the device, which takes microseconds; a stream of its own brings that to
    pinned memory. The training may then overwrite everything, and waits for nothing but, on the device, that the last
    step's snapshots have left.

    Streams and events are those of the device's own module; on a CPU, `torch.cpu` has the same names, which do nothing,
    and all of this runs there in the same order.
    """

    def __init__(self, device: torch.device, rows: NDArray[np.int64] | None) -> None:
        import torch

        super().__init__(device, rows)
        self._api: Any = torch.get_device_module(device)
        with self._api.device(device) if device.type == "cuda" else nullcontext():
            self._stream, self._arrived = self._api.Stream(), self._api.Event()
        self._snapshots: dict[str, torch.Tensor] = {}
        self._under_way: list[tuple[torch.Tensor, torch.Tensor]] = []

    def copy(self, name: str, tensor: torch.Tensor, target: torch.Tensor) -> None:
        """Take a snapshot of a tensor's rows, which `send` will send."""
        import torch

        if tensor.device.type != self.device.type:  # moments that are offloaded lie on the host
            super().copy(name, tensor, target)
            return
        if not self._under_way:  # the first of this step: the snapshots of the last one must have left
            self._api.current_stream(self.device).wait_event(self._arrived)
        if name not in self._snapshots:
            self._snapshots[name] = torch.empty(target.shape, dtype=target.dtype, device=self.device)
        snapshot = self._snapshots[name]
        if self._on_device is None:
            snapshot.copy_(tensor.detach())
        else:
            torch.index_select(tensor.detach(), 0, self._on_device, out=snapshot)
        self._under_way.append((snapshot, target))

    def send(self) -> None:
        """Let the snapshots of this step leave for the host."""
        self._stream.wait_stream(self._api.current_stream(self.device))
        with self._api.stream(self._stream):
            for snapshot, target in self._under_way:
                target.copy_(snapshot, non_blocking=True)
            self._arrived.record(self._stream)
        self._under_way = []

    def wait(self) -> None:
        """Wait for the last copy that was sent, and with it for all before it."""
        self._arrived.synchronize()


STAGED = ("cuda",)
"""Devices from which copies go beside the training; from others they are made at once."""


def copier_for(device: torch.device, rows: NDArray[np.int64] | None) -> Copier:
    """What copies rows, or all for None, from a device."""
    return (StagedCopier if device.type in STAGED else Copier)(device, rows)


def words(tensor: torch.Tensor) -> NDArray[Any]:
    """A view of a host tensor that NumPy can copy: bfloat16 as its bits."""
    import torch

    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def to_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    """A tensor's values on the host; bfloat16 as ml_dtypes.bfloat16, bit for bit."""
    import torch

    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
