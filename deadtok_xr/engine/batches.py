"""A row of chunks, a few steps at a time."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from deadtok_xr.bfloat16 import BFLOAT16, decode
from deadtok_xr.kernels.device import CPU, Device
from deadtok_xr.store.stored_array import RowReader, Stored

PIECE_BYTES = 2**22
"""Bytes of a piece: enough that decompressors, which take turns, are seldom pushed out of a core's cache by each other,
few enough to stay in the shared one."""


@dataclass(frozen=True)
class Field:
    """One result of a probe.

    Attributes
    ----------
    over
        ``"states"``, the steps of a row; ``"transitions"``, the updates that begin in it; or ``"row"``, one value of
        any kind per row, to be put together by `Findings.merged`.
    inner
        The other dimensions: token, dim, or others whose sizes the dtype's shape gives.
    dtype
        Of an element; with a shape of its own for inner dimensions other than token and dim.
    """

    over: str
    inner: tuple[str, ...] = ()
    dtype: DTypeLike = "f8"

    def shape(self, n_tokens: int, n_dims: int) -> tuple[int, ...]:
        """Of the other dimensions."""
        sizes = {"token": n_tokens, "dim": n_dims}
        return (*(sizes[dim] for dim in self.inner if dim in sizes), *np.dtype(self.dtype).shape)


def room(fields: Mapping[str, Field], row: Row) -> dict[str, NDArray[Any]]:
    """Arrays of zeros for the states and transitions of a row; memory is taken where something is written."""
    lengths = {"states": row.n_states, "transitions": row.n_transitions}
    return {
        name: np.zeros((lengths[f.over], *f.shape(row.n_tokens, row.n_dims)), np.dtype(f.dtype).base)
        for name, f in fields.items()
        if f.over in lengths
    }


class Steps(Protocol):
    """The steps of a row, and the one after them, in order."""

    dtype: np.dtype[Any]

    def read(self, out: NDArray[Any]) -> None:
        """Fill ``out`` (t, n, d) with the next steps."""
        ...

    def close(self) -> None:
        """Let go of what is open."""
        ...


@dataclass(frozen=True)
class Row:
    """The steps of one row of chunks.

    Attributes
    ----------
    first
        Position of the first one in the recording.
    n_states
        How many there are.
    n_transitions
        How many transitions begin in it: as many, or one less at the end of the recording.
    n_tokens, n_dims
        The size of a step.
    device
        Where dense kernels run.
    """

    first: int
    n_states: int
    n_transitions: int
    n_tokens: int
    n_dims: int
    device: Device = CPU

    @property
    def states(self) -> slice:
        """Positions of its steps in the recording."""
        return slice(self.first, self.first + self.n_states)

    @property
    def later(self) -> slice:
        """Positions of the later steps of its transitions, which have their labels."""
        return slice(self.first + 1, self.first + 1 + self.n_transitions)


@dataclass(frozen=True)
class Piece:
    """Some steps of a row, and the one after them where there is one. The arrays are used again: copy what stays.

    Attributes
    ----------
    row
        The row.
    start
        Position of the first step within the row.
    values
        Per variable (t, n, d), as recorded.
    n_states
        How many of the steps belong to the piece: all but the last, which begins the next piece, or all at the end.
    """

    row: Row
    start: int
    values: Mapping[str, NDArray[Any]]
    n_states: int
    _decoded: dict[str, NDArray[Any]] = field(default_factory=dict)
    _changed: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    _tensors: dict[str, Any] = field(default_factory=dict)

    @property
    def n_transitions(self) -> int:
        """Transitions between its steps."""
        return len(next(iter(self.values.values()))) - 1

    def room(self, out: Mapping[str, NDArray[Any]], fields: Mapping[str, Field]) -> dict[str, NDArray[Any]]:
        """The part of a row's results that this piece is about."""
        lengths = {"states": self.n_states, "transitions": self.n_transitions}
        return {name: x[self.start : self.start + lengths[fields[name].over]] for name, x in out.items()}

    def floats(self, name: str) -> NDArray[Any]:
        """A variable as float32, or as float64 if it is that, contiguous."""
        if name not in self._decoded:
            values = self.values[name]
            self._decoded[name] = np.ascontiguousarray(values if values.dtype == np.float64 else decode(values))
        return self._decoded[name]

    def readable(self, name: str) -> NDArray[Any]:
        """What kernels read as floats: bfloat16 as its words of 16 bits, which need no copy, others as floats."""
        values = self.values[name]
        return values.view(np.uint16) if values.dtype == BFLOAT16 else self.floats(name)

    def tensor(self, name: str) -> Any:
        """A variable as recorded, on the row's device; copied there once."""
        from deadtok_xr.kernels.torch import to_device

        if name not in self._tensors:
            self._tensors[name] = to_device(self.values[name], self.row.device.name)
        return self._tensors[name]

    def changed(self, name: str) -> NDArray[np.bool_]:
        """Which rows of a variable differ in a bit from the step before, (t - 1, n)."""
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


def pieces(row: Row, sources: Mapping[str, Steps], at_once: int) -> Generator[Piece, None, None]:
    """The steps of a row, ``at_once`` at a time, each piece beginning with the last step of the one before."""
    total = row.n_transitions + 1 if row.n_transitions == row.n_states else row.n_states
    shape = (min(at_once + 1, total), row.n_tokens, row.n_dims)
    room = {name: np.empty(shape, source.dtype) for name, source in sources.items()}
    start = have = 0
    while True:
        n = min(shape[0], total - start)
        for name, source in sources.items():
            source.read(room[name][have:n])
        done = start + n == total
        own = n if done and row.n_transitions < row.n_states else n - 1
        yield Piece(row, start, {name: x[:n] for name, x in room.items()}, own)
        if done:
            return
        for x in room.values():
            x[0] = x[n - 1]
        start, have = start + n - 1, 1


class StoredSteps:
    """Steps from a store: the chunks of a row, and of the next row its first step alone."""

    def __init__(self, place: Stored, first: int) -> None:
        self.dtype = place.array.dtype
        self._place, self._left = place, min(place.chunk_steps, place.n_steps - first)
        self._reader, self._after = RowReader(place, first), first + place.chunk_steps

    def read(self, out: NDArray[Any]) -> None:
        """Fill ``out`` with the next steps."""
        n = min(self._left, len(out))
        if n:
            self._reader.read(out[:n])
            self._left -= n
        if n < len(out):
            self._reader.close()
            self._reader = RowReader(self._place, self._after)
            self._reader.read(out[n:])

    def close(self) -> None:
        """Let go of the files."""
        self._reader.close()


class HeldSteps:
    """Steps of token blocks (t, n, d) that are in memory, and the step after them."""

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
                out[n:, tokens] = after
            place = tokens.stop
        self._at += len(out)

    def close(self) -> None:
        """Nothing is open."""
