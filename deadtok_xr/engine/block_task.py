"""What the task of a row does, and what it is told to write and to pass on."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import zarr

from deadtok_xr.engine.batches import PIECE_BYTES, HeldSteps, Piece, Row, Steps, StoredSteps, pieces
from deadtok_xr.engine.journal import Journal
from deadtok_xr.engine.prefetch import ahead
from deadtok_xr.engine.reduction import Block, Probe
from deadtok_xr.kernels import device as devices
from deadtok_xr.kernels.device import Device
from deadtok_xr.store import writing
from deadtok_xr.store.stored_array import Stored


@dataclass(frozen=True)
class Table:
    """How the rows of a sweep lie in the recording."""

    steps: tuple[int, ...]
    shape: tuple[int, int, int]

    @property
    def transitions(self) -> tuple[int, ...]:
        return (*self.steps[:-1], self.steps[-1] - 1)

    def row(self, i: int, device: Device) -> Row:
        return Row(sum(self.steps[:i]), self.steps[i], self.transitions[i], *self.shape[1:], device)


@dataclass(frozen=True)
class Sink:
    """A field that the tasks of a sweep write themselves, and the array that it goes to."""

    probe: str
    field: str
    target: zarr.Array[Any]


MADE = "made"
"""Where a task that writes its row passes on what was made of its findings, by name of the array."""


@dataclass(frozen=True)
class Made:
    """What a function makes of all that a probe found in a row: the array of these objects, and how."""

    name: str
    sweep: str
    probe: str
    make: Callable[..., Any]
    options: Mapping[str, Any]

    def of(self, found: Mapping[str, Block]) -> Any:
        """Of a row."""
        return self.make(found[self.probe], **self.options)


@dataclass(frozen=True)
class Sweep:
    """What the task of a row does: goes through it once for all probes, writes what it is told, returns the rest.

    ``kept`` are the fields (probe, field) that are returned, None for all; ``makes`` what is made of all that a probe
    found, so that only that need be passed on. What is passed on is noted in the ``journal``, if there is one.
    """

    places: Mapping[str, Stored]
    probes: tuple[tuple[str, Probe], ...]
    table: Table
    held: tuple[str, ...]
    device: str = "auto"
    sinks: tuple[Sink, ...] = ()
    kept: frozenset[tuple[str, str]] | None = None
    makes: tuple[Made, ...] = ()
    journal: Journal | None = None

    def __call__(self, i: int, blocks: list[Any]) -> dict[str, Block]:
        first = sum(self.table.steps[:i])
        found = self._look(i, first, blocks)
        for sink in self.sinks:
            values = found[sink.probe][sink.field]
            if len(values):
                writing.write(sink.target, (first,), values)
        passed = self._passed_on(found)
        if self.journal is not None:  # last: from now on the row is done
            self.journal.note(i, passed)
        return passed

    def _passed_on(self, found: dict[str, Block]) -> dict[str, Block]:
        if self.kept is None:
            return found
        passed = {p: {f: x for f, x in block.items() if (p, f) in self.kept} for p, block in found.items()}
        return passed | {MADE: {made.name: made.of(found) for made in self.makes}}

    def _look(self, i: int, first: int, blocks: list[Any]) -> dict[str, Block]:
        sources: dict[str, Steps] = {name: StoredSteps(place, first) for name, place in self.places.items()}
        sources |= {name: HeldSteps(*pair) for name, pair in zip(self.held, blocks, strict=True)}
        try:
            row = self.table.row(i, devices.resolve(self.device, self._bytes(i, sources)))
            looks = {name: probe.begin(row) for name, probe in self.probes}
            with closing(_cut(row, sources)) as parts:
                for piece in parts:
                    for look in looks.values():
                        look.piece(piece)
        finally:
            for source in sources.values():
                source.close()
        return {name: look.end() for name, look in looks.items()}

    def _bytes(self, i: int, sources: Mapping[str, Steps]) -> int:
        """Of the largest variable in a row."""
        _, n, d = self.table.shape
        return self.table.steps[i] * n * d * max(source.dtype.itemsize for source in sources.values())


def _cut(row: Row, sources: Mapping[str, Steps]) -> Generator[Piece, None, None]:
    """A row in pieces: small ones that stay in a core's cache, or large ones for a device, each decoded ahead."""
    step = row.n_tokens * row.n_dims * sum(source.dtype.itemsize for source in sources.values())
    size = devices.PIECE_BYTES if row.device.kernels else PIECE_BYTES
    parts = pieces(row, sources, max(1, size // max(1, step)))
    return ahead(parts) if row.device.kernels else parts
