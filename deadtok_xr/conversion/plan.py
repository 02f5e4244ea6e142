"""What a conversion will do, said before anything is written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr import schema, store
from deadtok_xr.bfloat16 import BFLOAT16
from deadtok_xr.conversion.sources import Entry

CHUNKS_AT_ONCE = 4
"""How many chunks are compressed at a time: more is no faster, and each is a copy in memory."""
_LIBRARIES = 200 * 2**20


@dataclass(frozen=True)
class PlannedVariable:
    """One variable of the store to be, and where it comes from.

    Attributes
    ----------
    name, dims, shape, dtype
        As they will be stored; ``shape`` with all steps.
    key, entry
        As they are in the source.
    first
        The position of the source's first row along `step`: 1 where the source has no row for the
        initial state, which then becomes NaN.
    attributes
        For the stored variable, beside those of the schema.
    """

    name: str
    key: str
    entry: Entry
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    first: int
    attributes: Mapping[str, Any]

    @property
    def as_bits(self) -> bool:
        """Whether integers of the source are read as the bits of bfloat16."""
        return self.dtype == BFLOAT16 and self.entry.dtype != BFLOAT16

    def block_bytes(self, n_dead: int) -> int:
        """The size of the block of steps that is held at a time: whole chunks."""
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        if self.dims != schema.MATRIX:
            return min(max(store.CHUNK_BYTES, row), row * self.shape[0])
        steps = store.chunk_shape(self.shape[1], self.shape[2], self.dtype.itemsize, n_dead)[0]
        return min(steps, self.shape[0]) * row


@dataclass(frozen=True)
class Plan:
    """A conversion, before it is done. `describe` says it in words."""

    path: Path
    format: str
    variables: tuple[PlannedVariable, ...]
    steps: NDArray[np.int64]
    rows: store.Rows
    rows_reason: str
    hyperparameters: Mapping[str, Any]
    dropped: Mapping[str, str]
    """What of the source is left out, and why."""

    @property
    def nbytes(self) -> int:
        """The size of what will be written, before compression."""
        return sum(math.prod(v.shape) * v.dtype.itemsize for v in self.variables)

    @property
    def memory(self) -> int:
        """An estimate of the peak, in bytes: a block and its copy in the order of the store, chunks being
        compressed, the source's own buffers, and the libraries."""
        n_dead = 0 if self.rows.dead is None else int(self.rows.dead.sum())
        base = _LIBRARIES + 2 * CHUNKS_AT_ONCE * store.CHUNK_BYTES
        return base + max(2 * v.block_bytes(n_dead) + v.entry.buffer_bytes for v in self.variables)

    def describe(self) -> str:
        """The plan as text, one line per variable."""
        lines = [f"{self.path}: {self.format}, {len(self.steps)} steps x {len(self.rows.tokens)} tokens"]
        lines.append(f"  rows: {self.rows_reason}")
        for v in self.variables:
            bits = ", uint16 read as the bits of bfloat16" if v.as_bits else ""
            shift = ", NaN at the first step" if v.first else ""
            lines.append(f"  {v.key} -> {v.name} ({', '.join(v.dims)}) {v.dtype.name}{bits}{shift}")
        lines += [f"  {name} is left out: {why}" for name, why in self.dropped.items()]
        lines.append(f"  {self.nbytes / 1e9:.3g} GB to copy, about {self.memory / 1e6:.0f} MB of memory")
        return "\n".join(lines)
