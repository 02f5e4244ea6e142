"""Steps on their way to the disk: host buffers that are filled by the loop and emptied by the writer."""

from __future__ import annotations

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
    """Copies rows of tensors to the host; from a GPU through pinned memory, beside the training.

    On a GPU the training's stream makes a snapshot on the device, which takes microseconds; a stream of its own
    brings that to the host. The training may then overwrite everything, and waits for nothing but, on the device,
    the snapshot before the last.
    """

    def __init__(self, device: torch.device, rows: NDArray[np.int64] | None) -> None:
        import torch

        self.device = device
        self.rows = None if rows is None else torch.from_numpy(rows).to(device)
        self._on_host = rows
        self.on_gpu = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self.on_gpu else None
        self._arrived = torch.cuda.Event() if self.on_gpu else None
        self._snapshots: dict[str, torch.Tensor] = {}
        self._under_way: list[tuple[torch.Tensor, torch.Tensor]] = []

    def buffer(self, capacity: int, like: torch.Tensor) -> torch.Tensor:
        """A host buffer for so many steps of a tensor."""
        import torch

        n = len(like) if self.rows is None else len(self.rows)
        return torch.empty((capacity, n, like.shape[1]), dtype=like.dtype, pin_memory=self.on_gpu)

    def copy(self, name: str, tensor: torch.Tensor, target: torch.Tensor) -> None:
        """Begin to copy a tensor's rows to the host."""
        if not self.on_gpu:
            self._select(tensor, target)
            return
        import torch

        if name not in self._snapshots:
            self._snapshots[name] = torch.empty(target.shape, dtype=target.dtype, device=self.device)
        assert self._arrived is not None
        if not self._under_way:  # the first of this step: the snapshots of the last one must have left
            torch.cuda.current_stream(self.device).wait_event(self._arrived)
        self._select(tensor, self._snapshots[name])
        self._under_way.append((self._snapshots[name], target))

    def _select(self, tensor: torch.Tensor, target: torch.Tensor) -> None:
        import torch

        tensor = tensor.detach()
        if tensor.device.type == "cpu":
            # NumPy copies on one thread: torch would have its team of threads meet twice for 0.2 ms of work, which
            # takes 9 ms where other processes hold the cores
            source, dest = words(tensor), words(target)
            if self._on_host is None:
                np.copyto(dest, source)
            else:
                np.take(source, self._on_host, axis=0, out=dest, mode="clip")  # "raise" would buffer the result
        elif self.rows is None or tensor.device != target.device:
            target.copy_(tensor if self.rows is None else tensor[self.rows])
        else:
            torch.index_select(tensor, 0, self.rows, out=target)

    def send(self) -> None:
        """Let the snapshots of this step leave for the host."""
        if not self.on_gpu:
            return
        import torch

        assert self._stream is not None
        assert self._arrived is not None
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            for snapshot, target in self._under_way:
                target.copy_(snapshot, non_blocking=True)
            self._arrived.record(self._stream)
        self._under_way = []

    def wait(self) -> None:
        """Wait, in the writer's thread, until all that was sent has arrived."""
        if self._stream is not None:
            self._stream.synchronize()


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
