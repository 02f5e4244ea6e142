"""Iterate over a block of steps, a few steps at a time."""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.bfloat16 import BFLOAT16, decode
from deadtok_xr.engine.output import Output
from deadtok_xr.kernels import MOST_COPIED_BYTES
from deadtok_xr.kernels.device import CPU, Device
from deadtok_xr.store.stored_array import StoredArray


class Steps(Protocol):
    """The steps of a block, and those after them, in order."""

    dtype: np.dtype[Any]

    def read(self, out: NDArray[Any]) -> None:
        """Fill ``out`` (t, n, d) with the next steps."""
        ...

    def close(self) -> None:
        """Close the open files."""
        ...


@dataclass(frozen=True)
class StepBlock:
    """Consecutive steps of a recording, which one task processes: usually those of one chunk along `step`.

    Attributes
    ----------
    first
        Position of its first step in the recording.
    n_states
        The number of its steps.
    n_transitions
        The number of transitions that begin in it: the same, or one fewer at the end of the recording.
    n_tokens, n_dims
        The size of a step.
    device
        Where dense kernels run.
    stored
        The variables that are read from a store, for what needs a step of another block.
    """

    first: int
    n_states: int
    n_transitions: int
    n_tokens: int
    n_dims: int
    device: Device = CPU
    stored: Mapping[str, StoredArray] = field(default_factory=dict, repr=False)

    @property
    def is_last(self) -> bool:
        """Whether the recording ends with it."""
        return self.n_transitions < self.n_states

    @property
    def states(self) -> slice:
        """Positions of its steps in the recording."""
        return slice(self.first, self.first + self.n_states)

    @property
    def later(self) -> slice:
        """Positions of the steps at which its transitions end, whose labels they have."""
        return slice(self.first + 1, self.first + 1 + self.n_transitions)


@dataclass(frozen=True)
class Batch:
    """Some steps of a block, and the next step if there is one. The arrays are reused: copy values that you keep.

    Attributes
    ----------
    block
        The block.
    start
        Position of the first step within the block.
    values
        For each variable its values (t, n, d), as recorded.
    n_states
        The number of steps that belong to the batch: all but the last, which begins the next batch, or all at the end.
        None of the batch that looks ahead, which has the two steps after the block.
    """

    block: StepBlock
    start: int
    values: Mapping[str, NDArray[Any]]
    n_states: int
    _decoded: dict[str, NDArray[Any]] = field(default_factory=dict)
    _changed: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    _tensors: dict[str, Any] = field(default_factory=dict)

    @property
    def n_transitions(self) -> int:
        """The number of transitions between its steps."""
        return len(next(iter(self.values.values()))) - 1

    @property
    def looks_ahead(self) -> bool:
        """Whether its transition begins in the next block; see `Reduction`."""
        return self.start == self.block.n_states

    @property
    def has_first(self) -> bool:
        """Whether its first step is that of the recording."""
        return not self.block.first + self.start

    @property
    def has_last(self) -> bool:
        """Whether its last step is that of the recording."""
        return self.block.is_last and self.start + self.n_transitions == self.block.n_transitions

    def slices(self, out: Mapping[str, NDArray[Any]], outputs: Mapping[str, Output]) -> dict[str, NDArray[Any]]:
        """Return the parts of a block's outputs that belong to this batch."""
        lengths = {"states": self.n_states, "transitions": self.n_transitions}
        return {name: x[self.start : self.start + lengths[outputs[name].at]] for name, x in out.items()}

    def floats(self, name: str) -> NDArray[Any]:
        """Return a variable as float32, or as float64 if it is that, contiguous."""
        if name not in self._decoded:
            values = self.values[name]
            self._decoded[name] = np.ascontiguousarray(values if values.dtype == np.float64 else decode(values))
        return self._decoded[name]

    def kept_floats(self, name: str) -> NDArray[Any]:
        """Return `floats` in memory that the next batch does not reuse."""
        values = self.floats(name)
        if np.may_share_memory(values, self.values[name]):
            values = self._decoded[name] = values.copy()
        return values

    def readable(self, name: str) -> NDArray[Any]:
        """Return values as kernels read them: bfloat16 as 16-bit words, which need no copy, others as floats."""
        values = self.values[name]
        return values.view(np.uint16) if values.dtype == BFLOAT16 else self.floats(name)

    def floats_if_small(self, name: str) -> NDArray[Any]:
        """Return `floats`, or what is `readable` if they were large: for kernels of which few types are compiled."""
        return self.floats(name) if self.values[name].nbytes <= MOST_COPIED_BYTES else self.readable(name)

    def tensor(self, name: str) -> Any:
        """Return a variable as recorded, on the block's device; copied there once."""
        from deadtok_xr.kernels.torch import to_device

        if name not in self._tensors:
            self._tensors[name] = to_device(self.values[name], self.block.device.name)
        return self._tensors[name]

    def changed(self, name: str) -> NDArray[np.bool_]:
        """Return which tokens of a variable differ in a bit from the step before, (t - 1, n)."""
        if name not in self._changed:
            self._changed[name] = self._find_changed(name)
        return self._changed[name]

    def _find_changed(self, name: str) -> NDArray[np.bool_]:
        if name in self._tensors:
            from deadtok_xr.kernels import torch

            return torch.changed_rows(self._tensors[name])
        from deadtok_xr.kernels.numba import changed_rows

        values = self.values[name]
        return changed_rows(values.view(np.dtype(f"u{values.dtype.itemsize}")))


def batches(
    block: StepBlock, sources: Mapping[str, Steps], n_steps: int, ahead: Collection[str] = ()
) -> Generator[Batch, None, None]:
    """Yield the steps of a block, ``n_steps`` at a time; each batch begins with the last step of the one before.

    A last batch has the two steps after the block of the variables ``ahead``, if there are any.
    """
    total = block.n_transitions + 1 if block.n_transitions == block.n_states else block.n_states
    shape = (min(n_steps + 1, total), block.n_tokens, block.n_dims)
    buffers = {name: np.empty(shape, source.dtype) for name, source in sources.items()}
    start = have = 0
    while True:
        n = min(shape[0], total - start)
        for name, source in sources.items():
            source.read(buffers[name][have:n])
        done = start + n == total
        own = n if done and block.is_last else n - 1
        yield Batch(block, start, {name: x[:n] for name, x in buffers.items()}, own)
        if done:
            break
        for x in buffers.values():
            x[0] = x[n - 1]
        start, have = start + n - 1, 1
    if ahead:
        for name in ahead:
            buffers[name][0] = buffers[name][n - 1]
            sources[name].read(buffers[name][1:2])
        yield Batch(block, block.n_states, {name: buffers[name][:2] for name in ahead}, 0)


class HeldSteps:
    """Steps of token blocks (t, n, d) that are in memory, and those after them."""

    def __init__(self, blocks: list[NDArray[Any]], after: list[NDArray[Any]]) -> None:
        self.dtype = blocks[0].dtype
        self._blocks, self._after, self._at = blocks, after, 0

    def read(self, out: NDArray[Any]) -> None:
        """Fill ``out`` with the next steps."""
        length = len(self._blocks[0])
        n = max(0, min(length - self._at, len(out)))
        place = 0
        for block, after in zip(self._blocks, self._after, strict=True):
            tokens = slice(place, place + block.shape[1])
            out[:n, tokens] = block[self._at : self._at + n]
            if n < len(out):
                begin = self._at + n - length
                out[n:, tokens] = after[begin : begin + len(out) - n]
            place = tokens.stop
        self._at += len(out)

    def close(self) -> None:
        """Nothing is open."""
