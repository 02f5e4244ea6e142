"""The task of a block: what it reads, computes, writes and returns."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import zarr

from deadtok_xr.engine import progress
from deadtok_xr.engine.batches import Batch, HeldSteps, StepBlock, Steps, batches
from deadtok_xr.engine.compiling import one_process_compiles
from deadtok_xr.engine.journal import ResumeJournal
from deadtok_xr.engine.prefetch import prefetch
from deadtok_xr.engine.reduction import Accumulator, BlockResult, Reduction
from deadtok_xr.kernels import device as devices
from deadtok_xr.kernels.device import BATCH_BYTES, Device
from deadtok_xr.store import writing
from deadtok_xr.store.chunk_entries import Entry
from deadtok_xr.store.stored_array import StepReader, StoredArray

PASSED_ON = "passed on"
"""The key of what a task that writes its outputs itself returns for other tasks, by `Pick.key`."""


@dataclass(frozen=True)
class BlockLayout:
    """How the steps of a pass are divided into blocks.

    Attributes
    ----------
    n_states
        The number of steps of each block.
    shape
        The numbers of steps, tokens and dims.
    """

    n_states: tuple[int, ...]
    shape: tuple[int, int, int]

    @property
    def n_transitions(self) -> tuple[int, ...]:
        """The number of transitions that begin in each block."""
        return (*self.n_states[:-1], self.n_states[-1] - 1)

    @cached_property
    def starts(self) -> list[int]:
        """The position of the first step of each block."""
        return np.cumsum([0, *self.n_states]).tolist()[:-1]

    def block(self, i: int, device: Device, stored: Mapping[str, StoredArray]) -> StepBlock:
        """Return a block."""
        return StepBlock(self.starts[i], self.n_states[i], self.n_transitions[i], *self.shape[1:], device, stored)


@dataclass(frozen=True)
class Pick:
    """A part of the result of a block: an output of a reduction, or a function of all its outputs.

    It is called with the result of a block. Objects are returned in a list, the only element of a block of objects.
    """

    reduction: str
    output: str = ""
    make: Callable[..., Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    is_object: bool = False
    token: str = ""

    @property
    def key(self) -> str:
        """A key that identifies it among the picks of a pass."""
        return f"{self.reduction}/{self.output}{self.token}"

    def __call__(self, result: dict[str, BlockResult]) -> Any:
        if PASSED_ON in result:
            return result[PASSED_ON][self.key]
        found = result[self.reduction]
        value = found[self.output] if self.make is None else self.make(found, **self.options)
        return [value] if self.is_object else value


@dataclass(frozen=True)
class WriteTarget:
    """An output that the tasks of a pass write themselves.

    Attributes
    ----------
    reduction, output
        The output.
    array
        The array that they write.
    leading
        The position of the run, if the array holds several.
    """

    reduction: str
    output: str
    array: zarr.Array[Any]
    leading: tuple[int, ...] = ()

    def write(self, start: int, values: Any) -> list[tuple[tuple[int, ...], Entry]]:
        """Write a block of values from position ``start`` along the steps; return the chunks as `write_block` does."""
        if not len(values):
            return []
        new_axes = (None,) * len(self.leading)
        return writing.write_block(self.array, (*self.leading, start), values[new_axes])


@dataclass(frozen=True)
class BlockTask:
    """The work of the tasks of a pass: process a block once for all reductions, write outputs, return the rest.

    Attributes
    ----------
    stored
        The variables that are read from a store.
    reductions
        The reductions, by names that differ if their options do.
    layout
        The blocks.
    held
        The variables that are read through Dask's graph.
    device
        The name of a device, see `deadtok_xr.kernels.device`.
    targets
        The outputs that are written.
    picks
        The parts that are returned if outputs are written; None: all outputs of all reductions.
    journal
        Keeps the returned values for a later call that resumes; None to keep nothing.
    """

    stored: Mapping[str, StoredArray]
    reductions: Mapping[str, Reduction]
    layout: BlockLayout
    held: tuple[str, ...]
    device: str = "auto"
    targets: tuple[WriteTarget, ...] = ()
    picks: tuple[Pick, ...] | None = None
    journal: ResumeJournal | None = None

    def __call__(self, i: int, blocks: list[Any]) -> dict[str, BlockResult]:
        with one_process_compiles():
            result = self._reduce(i, blocks)
        written = []
        for target in self.targets:
            entries = target.write(self.layout.starts[i], result[target.reduction][target.output])
            written += [(target.array.path, *pair) for pair in entries]
        if self.picks is None:
            return result
        passed_on = {pick.key: pick(result) for pick in self.picks}
        if self.journal is not None:  # last, because this marks the block as finished
            self.journal.note(i, passed_on, written)
        return {PASSED_ON: passed_on}

    def resumed(self, i: int) -> dict[str, BlockResult]:
        """Return what the task of a finished block returned in an earlier call."""
        assert self.journal is not None
        passed_on = self.journal.passed_on(i)
        if passed_on is None:
            raise OSError(
                f"{self.journal.place}: the journal entry of block {i} is missing; keep the folder while work resumes"
            )
        return {PASSED_ON: passed_on}

    def _reduce(self, i: int, blocks: list[Any]) -> dict[str, BlockResult]:
        start, n = self.layout.starts[i], self.layout.n_states[i]
        sources: dict[str, Steps] = {
            name: StepReader(x, start, start + n, self.n_after(name)) for name, x in self.stored.items()
        }
        sources |= {name: HeldSteps(*pair) for name, pair in zip(self.held, blocks, strict=True)}
        try:
            block = self.layout.block(i, devices.resolve(self._wanted_device(), self._bytes(i, sources)), self.stored)
            accumulators = {name: reduction.start(block) for name, reduction in self.reductions.items()}
            more = start + n + 1 < self.layout.shape[0]
            ahead = [name for name in sources if more and self.n_after(name) > 1]
            with closing(_in_batches(block, sources, ahead)) as parts:
                for batch in parts:
                    self._update(batch, accumulators)
        finally:
            for source in sources.values():
                source.close()
        return {name: accumulator.result() for name, accumulator in accumulators.items()}

    def n_after(self, name: str) -> int:
        """Return how many steps of a variable after a block are read with it."""
        return 2 if any(_looks_ahead(x) and name in x.matrices for x in self.reductions.values()) else 1

    def _wanted_device(self) -> str:
        """Return the device to look for: "auto" means the CPU, unless a reduction is known to be faster on a GPU."""
        faster = any(getattr(reduction, "faster_on_gpu", False) for reduction in self.reductions.values())
        return "cpu" if self.device == "auto" and not faster else self.device

    def _update(self, batch: Batch, accumulators: Mapping[str, Accumulator]) -> None:
        note, n = progress.listener(), len(accumulators)
        for k, (name, accumulator) in enumerate(accumulators.items()):
            if batch.looks_ahead and not _looks_ahead(self.reductions[name]):
                continue
            if note:
                done = (batch.start + batch.n_states * k / n) / batch.block.n_states
                note(done, progress.label(self.reductions[name]))
            accumulator.update(batch)
        if note and batch.start + batch.n_states >= batch.block.n_states:
            note(0.0, "")  # the block is counted when its task is finished

    def _bytes(self, i: int, sources: Mapping[str, Steps]) -> int:
        """Return the bytes of the largest variable in a block."""
        _, n, d = self.layout.shape
        return self.layout.n_states[i] * n * d * max(source.dtype.itemsize for source in sources.values())


def _looks_ahead(reduction: Reduction) -> bool:
    return bool(getattr(reduction, "looks_ahead", False))


def _in_batches(block: StepBlock, sources: Mapping[str, Steps], ahead: list[str]) -> Generator[Batch, None, None]:
    """Yield small batches that stay in a core's cache, or large ones for a device, each decoded in advance."""
    step = block.n_tokens * block.n_dims * sum(source.dtype.itemsize for source in sources.values())
    size = devices.DEVICE_BATCH_BYTES if block.device.kernels else BATCH_BYTES
    parts = batches(block, sources, max(1, size // max(1, step)), ahead)
    return prefetch(parts) if block.device.kernels else parts
