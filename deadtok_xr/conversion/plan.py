"""The plan of a conversion: what will be written, from what, and in how much memory."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from dask.system import CPU_COUNT
from dask.utils import format_bytes
from numpy.typing import NDArray

from deadtok_xr import schema, store
from deadtok_xr._version import __version__
from deadtok_xr.conversion.readers.source import Entry
from deadtok_xr.errors import InputError
from deadtok_xr.store.in_progress import VERSION
from deadtok_xr.text import table

PART_BYTES = 8 * 2**20
"""How many bytes of an array are checked at a time."""
DEFAULT_MEMORY = 10**9
DROPPED_ON_REQUEST = "on request"
"""The reason given for an array that the caller asked to leave out."""
Progress = Callable[[int, int], None]
"""Called with the bytes done, and the bytes to do."""
UNITS_IN_FLIGHT = 2
"""Units in memory at a time: one is read while another is compressed."""
_LIBRARIES = 270 * 10**6  # Python with NumPy, Zarr, h5py and numba loaded
_TORCH = 250 * 10**6


@dataclass(frozen=True)
class PlannedVariable:
    """One variable of the new store, and the array of the source that it comes from.

    Attributes
    ----------
    name, dims, shape, dtype, chunks
        As they will be stored.
    key, entry
        The array in the source.
    first
        The position along `step` of the first state in the source: 1 if the source lacks the initial state, which is
        then stored as NaN.
    skip
        How many states at the beginning of the source are left out.
    static
        Whether the source has no step axis; the store then has one step.
    attributes
        Attributes of the stored variable, in addition to those of the schema.
    per_file
        How many chunks, adjacent along `token`, one file or object holds: a shard if more than one.
    """

    name: str
    key: str
    entry: Entry
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...]
    first: int = 0
    skip: int = 0
    static: bool = False
    attributes: Mapping[str, Any] = field(default_factory=dict)
    per_file: int = 1

    @property
    def shards(self) -> tuple[int, ...] | None:
        """The shape of a shard; None if a file holds a single chunk."""
        if self.per_file == 1:
            return None
        return tuple(c * (self.per_file if d == "token" else 1) for d, c in zip(self.dims, self.chunks, strict=True))

    def size(self, dim: str, *, chunk: bool = False) -> int:
        """Return the size along a dimension, of the variable or of its chunks; 1 if it does not have the dimension."""
        sizes = self.chunks if chunk else self.shape
        return dict(zip(self.dims, sizes, strict=True)).get(dim, 1)

    @property
    def width(self) -> int:
        """The number of values for each (run, step, token)."""
        known = math.prod(self.size(d) for d in ("run", "step", "token"))
        return math.prod(self.shape) // known if known else 0

    @property
    def chunk_bytes(self) -> int:
        return math.prod(self.chunks) * self.dtype.itemsize

    @property
    def valid_from(self) -> int:
        """The first step at which its values mean something."""
        return int({**schema.attributes(self.name), **self.attributes}["valid_from"])

    @property
    def type_change(self) -> str:
        """How values of the source are converted to the stored dtype, in words; empty if the dtype is the same."""
        if self.entry.dtype == self.dtype:
            return ""
        if self.entry.dtype is not None and self.entry.dtype.kind in "iu":
            return f"{self.entry.type_name} read as the bits of {self.dtype.name}"
        return (
            f"{self.entry.type_name}, every value on the {self.dtype.name} grid: stored as {self.dtype.name}, exactly"
        )

    def facts(self) -> dict[str, Any]:
        """Return everything that must be equal for two plans to write the same variable."""
        return {
            "name": self.name, "key": self.key, "dims": self.dims, "shape": self.shape, "dtype": self.dtype.name,
            "chunks": self.chunks, "per_file": self.per_file, "first": self.first, "skip": self.skip,
            "static": self.static, "attributes": dict(self.attributes),
        }  # fmt: skip


@dataclass(frozen=True)
class ConversionPlan:
    """What a conversion will write. `describe` gives it as text.

    Attributes
    ----------
    path, format, files
        The source: its path, its format, and every file that is read.
    variables, steps, rows, runs
        What will be written. ``runs`` are the labels of a leading run axis, None without one.
    rows_reason
        How the tokens of the rows are known.
    notes, warnings
        What a user should know before anything is written; warnings are repeated at the end.
    hyperparameters, attributes
        Settings of the run, and further root attributes.
    dropped
        Array of the source that is left out -> why.
    """

    path: Path
    format: str
    files: tuple[Path, ...]
    variables: tuple[PlannedVariable, ...]
    steps: NDArray[np.int64]
    rows: store.TokenTable
    rows_reason: str
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    dropped: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    runs: NDArray[Any] | None = None

    @cached_property
    def disk_positions(self) -> NDArray[np.int64]:
        """The position on disk of each row of the source."""
        order = self.rows.disk_order()
        positions = np.empty_like(order)
        positions[order] = np.arange(len(order))
        return positions

    @property
    def nbytes(self) -> int:
        """The size of the store before compression."""
        return sum(math.prod(v.shape) * v.dtype.itemsize for v in self.variables)

    @property
    def _fixed_bytes(self) -> int:
        """The memory that is needed besides the units in flight."""
        torch = _TORCH if "torch" in self.format else 0
        buffers = max(v.entry.buffer_bytes for v in self.variables)
        largest = max(v.chunk_bytes * v.per_file for v in self.variables)
        compressed = 2 * CPU_COUNT * largest
        return _LIBRARIES + torch + buffers + 3 * PART_BYTES + compressed + 40 * len(self.rows.tokens)

    def unit_bytes(self, memory: int = DEFAULT_MEMORY) -> int:
        """Return the largest size of a unit of work for which a conversion stays within ``memory`` bytes.

        Raises
        ------
        InputError
            If not even one file at a time fits.
        """
        available = (memory - self._fixed_bytes) // UNITS_IN_FLIGHT
        smallest = max(v.chunk_bytes * v.per_file for v in self.variables)
        if available < smallest:
            buffers = max(self.variables, key=lambda v: v.entry.buffer_bytes)
            why = (
                f" ({buffers.entry.buffer_bytes / 1e6:.0f} MB of it because {buffers.key!r} is compressed in chunks "
                "that can only be read as a whole)"
                if buffers.entry.buffer_bytes > PART_BYTES
                else ""
            )
            needed = self._fixed_bytes + UNITS_IN_FLIGHT * smallest
            raise InputError(
                f"{self.path}: converting needs {needed / 1e6:.0f} MB of memory{why}, and "
                f"{memory / 1e6:.0f} MB are allowed; allow more with --memory (memory=)"
            )
        return available

    def peak_memory(self, memory: int = DEFAULT_MEMORY) -> int:
        """Return the expected peak in bytes, at most ``memory``."""
        available, v = self.unit_bytes(memory), max(self.variables, key=_layer_bytes)
        n_chunks = math.ceil(v.size("token") / v.size("token", chunk=True))
        per_unit = min(n_chunks, max(1, available // v.chunk_bytes))
        return self._fixed_bytes + UNITS_IN_FLIGHT * per_unit * v.chunk_bytes

    def facts(self) -> dict[str, Any]:
        """Return what must be equal for an unfinished conversion to be resumed, by names for the user."""
        stats = [(path.name, path.stat()) for path in self.files]
        return {
            "the source": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats],
            "the variables": [v.facts() for v in self.variables],
            "the steps": _digest(self.steps),
            "the tokens": [_digest(self.rows.tokens), None if self.rows.dead is None else _digest(self.rows.dead)],
            "the settings": {**self.hyperparameters, **self.attributes},
            f"{VERSION}deadtok_xr": __version__,
        }

    def describe(self, memory: int = DEFAULT_MEMORY) -> str:
        """Return the plan as text for one screen."""
        runs = "" if self.runs is None else f"{len(self.runs)} runs x "
        lines = [f"{self.path}: {self.format}, {runs}{_count(self.steps)} x {len(self.rows.tokens)} tokens"]
        lines.append(f"  steps: {_span(self.steps)}; rows: {self.rows_reason}")
        lines += ["  " + line for line in table([_HEAD, *map(_cells, self.variables)])]
        remarks: dict[str, list[str]] = {}
        for v in self.variables:
            for remark in _remarks(v):
                remarks.setdefault(remark, []).append(v.name)
        lines += [f"  {', '.join(names)}: {remark}" for remark, names in remarks.items()]
        lines += [f"  note: {note}" for note in (*self.notes, *self.warnings)]
        lines += [f"  left out: {name} ({why})" for name, why in self.dropped.items()]
        total, most = format_bytes(self.nbytes), format_bytes(self.peak_memory(memory))
        lines.append(f"  to write: {total} before compression; at most {most} of memory")
        return "\n".join(lines)


_HEAD = ("variable", "from", "dims", "shape", "dtype", "chunk", "size")


def _layer_bytes(v: PlannedVariable) -> int:
    """Return the size of all chunks of the same steps."""
    return v.chunk_bytes * math.ceil(v.size("token") / v.size("token", chunk=True))


def _digest(values: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


def _count(steps: NDArray[np.int64]) -> str:
    return "1 step" if len(steps) == 1 else f"{len(steps)} steps"


def _span(steps: NDArray[np.int64]) -> str:
    if len(steps) == 1:
        return f"one, labelled {steps[0]}"
    gaps = np.unique(np.diff(steps))
    every = "every one" if gaps.tolist() == [1] else f"every {gaps[0]}th" if len(gaps) == 1 else "with gaps"
    return f"{steps[0]} to {steps[-1]}, {every}"


def _cells(v: PlannedVariable) -> tuple[str, ...]:
    shape, chunk = (" x ".join(map(str, sizes)) for sizes in (v.shape, v.chunks))
    size = format_bytes(math.prod(v.shape) * v.dtype.itemsize)
    return v.name, v.key, ", ".join(v.dims), shape, v.dtype.name, chunk, size


def _remarks(v: PlannedVariable) -> list[str]:
    """Say how the values of a variable are converted, and which are missing."""
    return [v.type_change] * bool(v.type_change) + ["NaN at the first step, which the file does not have"] * bool(
        v.first
    )
