"""Estimate the CPU time and the memory of analyses before they run, from sizes and measured rates.

Each reduction states its own cost. Rates are those of tokens that move at every step, measured by `python -m
benchmarks.analyses` on one machine. Tokens at rest cost hardly anything: the motion index of a store says at most how
many move.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from deadtok_xr.kernels import MOST_COPIED_BYTES
from deadtok_xr.kernels.device import BATCH_BYTES

if TYPE_CHECKING:
    from deadtok_xr.engine.reduction import Reduction

LIBRARIES = 370 * 10**6
"""Bytes of Python with xarray, Dask, zarr and the compiled kernels loaded."""
TORCH = 250 * 10**6
"""Bytes of torch, which replays updates."""
_THREAD = 30 * 10**6
"""Bytes of a thread at work for what does not grow with the recording: buffers, and freed memory that is not reused."""
_STREAM = 10**6
"""Bytes of a decompressor with its window, and its read buffer."""
_TASKS = 25_000
"""Bytes of the tasks of a block and what they return, for each analysis."""
_START = 0.15
"""Seconds of each analysis for its graph, its arrays in the store and its summary."""
_READING, _WRITING = 1.0, 1.5
"""Nanoseconds per byte: decompression of recorded values, compression of results."""
_REST = 0.05
"""What a token at rest costs, compared with one that moves."""
_DECODING = 1.0
"""Nanoseconds per element that is made float32."""


@dataclass(frozen=True)
class Sizes:
    """The size of a recording, as a pass reads it.

    Attributes
    ----------
    steps, tokens, dims
        Of the recording.
    block
        The number of steps of a block.
    itemsize
        The largest size of an element, in bytes.
    moving
        At most which share of the tokens moves at a step.
    changing
        About which share of the elements changes at a step.
    stored
        Whether it is read from a store.
    """

    steps: int
    tokens: int
    dims: int
    block: int
    itemsize: int
    moving: float = 1.0
    changing: float = 1.0
    stored: bool = True

    @property
    def step(self) -> int:
        """The number of elements of a step."""
        return self.tokens * self.dims

    @property
    def is_small(self) -> bool:
        """Whether batches are decoded also for kernels that read bfloat16 (`Batch.floats_if_small`)."""
        return self.batch_steps * self.step * self.itemsize <= MOST_COPIED_BYTES

    @property
    def batch_steps(self) -> int:
        """The number of steps of a batch of one variable, with the one after them."""
        return 1 + max(1, BATCH_BYTES // max(1, self.step * self.itemsize))

    @property
    def elements(self) -> int:
        """The number of elements of a variable."""
        return self.steps * self.step

    @property
    def moved(self) -> float:
        """The number of elements of tokens that move, at all steps."""
        return self.elements * max(self.moving, _REST)

    @property
    def changed(self) -> float:
        """The number of elements that change, at all steps."""
        return self.elements * self.changing


@dataclass(frozen=True)
class Cost:
    """The cost of a part of a pass.

    Attributes
    ----------
    seconds
        CPU time for all steps.
    held
        Bytes while a block is processed, besides its outputs.
    temporary
        Bytes during the work on a batch.
    kept
        Bytes until the end, for all blocks together.
    floats
        The variables whose batches are decoded to float32.
    """

    seconds: float = 0.0
    held: float = 0.0
    temporary: float = 0.0
    kept: float = 0.0
    floats: Collection[str] = ()


@dataclass(frozen=True)
class PassCost:
    """The cost of several analyses in one pass.

    Attributes
    ----------
    sizes
        The size of the recording.
    reductions
        The reductions by their names in the pass.
    used
        The names of the reductions of each analysis.
    rest
        The cost of each analysis besides its reductions.
    itemsizes, chunk_tokens
        Bytes of an element, and tokens of a chunk, of each variable.
    """

    sizes: Sizes
    reductions: Mapping[str, Reduction]
    used: Mapping[str, Collection[str]]
    rest: Mapping[str, Cost]
    itemsizes: Mapping[str, int]
    chunk_tokens: Mapping[str, int]

    @cached_property
    def costs(self) -> dict[str, Cost]:
        """The cost of each reduction."""
        return {name: reduction.cost(self.sizes) for name, reduction in self.reductions.items()}

    def of(self, analyses: Collection[str]) -> PassCost:
        """Return the cost of some of the analyses."""
        used = {name: self.used[name] for name in analyses}
        names = {key for keys in used.values() for key in keys}
        return PassCost(
            self.sizes, {key: x for key, x in self.reductions.items() if key in names}, used,
            {name: self.rest[name] for name in analyses}, self.itemsizes, self.chunk_tokens,
        )  # fmt: skip

    @property
    def matrices(self) -> set[str]:
        """The variables that are read."""
        return {name for reduction in self.reductions.values() for name in reduction.matrices}

    @property
    def seconds(self) -> float:
        """CPU time on one core: reading, all reductions, and writing their outputs."""
        work = sum(cost.seconds for cost in (*self.costs.values(), *self.rest.values()))
        written = self._outputs() * self.sizes.steps / max(1, self.sizes.block)
        floats = {name for cost in self.costs.values() for name in cost.floats}
        decoded = len(floats) * self.sizes.elements
        return work + self.reading + (decoded * _DECODING + written * _WRITING) / 1e9 + _START * len(self.used)

    @property
    def reading(self) -> float:
        """CPU time of reading the variables, on one core."""
        return sum(self.itemsizes[name] for name in self.matrices) * self.sizes.elements * _READING / 1e9

    def seconds_of(self, analysis: str) -> float:
        """CPU time of an analysis by itself, without reading and writing."""
        return self.rest[analysis].seconds + sum(self.costs[key].seconds for key in self.used[analysis])

    def memory(self, threads: int) -> int:
        """Return the peak of memory in bytes with so many blocks at work at the same time."""
        blocks = math.ceil(self.sizes.steps / max(1, self.sizes.block))
        costs = (*self.costs.values(), *self.rest.values())
        kept = sum(cost.kept for cost in costs) + blocks * len(self.used) * _TASKS
        return int(LIBRARIES + min(threads, blocks) * (_THREAD + self._block()) + kept)

    def _block(self) -> float:
        """Return the bytes of a block at work."""
        costs = self.costs.values()
        step = sum(self.itemsizes[name] for name in self.matrices) * self.sizes.step
        n = 1 + max(1, BATCH_BYTES // max(1, step))  # steps of a batch, and the one after them
        floats = {name for cost in costs for name in cost.floats}
        streams = sum(math.ceil(self.sizes.tokens / self.chunk_tokens[name]) for name in self.matrices) * _STREAM
        batch = n * (step + 4 * len(floats) * self.sizes.step)
        temporary = max((cost.temporary for cost in costs), default=0.0)
        return self._outputs() + sum(cost.held for cost in costs) + temporary + batch + streams

    def _outputs(self) -> float:
        """Return the bytes of the outputs for a block."""
        return sum(
            self.sizes.block * math.prod(output.inner_shape(self.sizes.tokens, self.sizes.dims)) * output.base.itemsize
            for reduction in self.reductions.values()
            for output in reduction.outputs().values()
            if output.at != "block"
        )
