"""Divide a plan into units of work, each some chunks of one variable, and fill a unit from the source part by part."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.bfloat16 import BFLOAT16
from deadtok_xr.conversion.plan import ConversionPlan, PlannedVariable
from deadtok_xr.conversion.readers.source import Source
from deadtok_xr.errors import InputError

READ_BYTES = 3 * 2**20
"""How many bytes are read at a time: few enough to stay in the cache until they are copied into the chunks."""
_EXPONENTS = {"bfloat16": 0x7F80, "float16": 0x7C00, "float32": 0x7F800000, "float64": 0x7FF << 52}
Words = NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class NonFiniteReport:
    """How many values are NaN or infinite, and the step and token of the first."""

    n: int = 0
    first: tuple[int, int | None] | None = None

    def __add__(self, other: NonFiniteReport) -> NonFiniteReport:
        firsts = [f for f in (self.first, other.first) if f is not None]
        return NonFiniteReport(self.n + other.n, min(firsts, key=lambda f: (f[0], f[1] or 0), default=None))


@dataclass(frozen=True)
class Unit:
    """Some adjacent chunks along `token`, within one chunk of steps of one run of one variable.

    No other unit writes these chunks, so an interrupted unit is simply repeated.
    """

    variable: PlannedVariable
    run: int
    step_chunk: int
    token_chunks: range

    @property
    def nbytes(self) -> int:
        return len(self.token_chunks) * self.variable.chunk_bytes

    @property
    def steps(self) -> range:
        """Return the positions along `step`."""
        height = self.variable.size("step", chunk=True)
        start = self.step_chunk * height
        return range(start, min(start + height, self.variable.size("step")))

    def positions(self) -> list[tuple[int, ...]]:
        """Return the positions of its chunks in the chunk grid."""
        n_other = len(self.variable.dims) - len({"run", "step", "token"} & {*self.variable.dims})
        found = []
        for k in self.token_chunks:
            at = {"run": self.run, "step": self.step_chunk, "token": k}
            known = [at[d] for d in self.variable.dims if d in at]
            found.append((*known, *[0] * n_other))
        return found

    def files(self) -> list[list[int]]:
        """Group the numbers of its chunks by the file that they share."""
        k = self.variable.per_file
        found: dict[int, list[int]] = {}
        for i, chunk in enumerate(self.token_chunks):
            found.setdefault(chunk // k, []).append(i)
        return list(found.values())

    def layout(self) -> tuple[int, int, int, int]:
        """Return the shape of its chunks in memory: (chunk, step, row, value)."""
        v = self.variable
        return len(self.token_chunks), v.size("step", chunk=True), v.size("token", chunk=True), v.width


def divide(plan: ConversionPlan, unit_bytes: int) -> Iterator[Unit]:
    """Divide a plan into units, in the order in which the source is read fastest.

    Parameters
    ----------
    plan
        The plan.
    unit_bytes
        The largest size of a unit.
    """
    for v in plan.variables:
        n_chunks = math.ceil(v.size("token") / v.size("token", chunk=True))
        whole_files = unit_bytes // max(1, v.chunk_bytes) // v.per_file * v.per_file
        group = max(v.per_file, min(n_chunks, whole_files))
        # a source that can only be read in order is read once per group
        groups = [range(k, min(k + group, n_chunks)) for k in range(0, n_chunks, group)]
        step_chunks = range(math.ceil(v.size("step") / v.size("step", chunk=True)))
        for run in range(v.size("run")):
            if v.entry.in_order:
                yield from (Unit(v, run, i, chunks) for chunks in groups for i in step_chunks)
            else:
                yield from (Unit(v, run, i, chunks) for i in step_chunks for chunks in groups)


def word_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the unsigned integer type of the same size as a dtype."""
    return np.dtype(f"u{dtype.itemsize}")


def fill(unit: Unit, plan: ConversionPlan, source: Source, out: Words, fill_value: Any) -> list[NonFiniteReport]:
    """Read a unit from the source into chunks as they will be stored.

    Parameters
    ----------
    unit, plan, source
        What to read.
    out
        Words of the shape `Unit.layout`; all of them are overwritten.
    fill_value
        The value of a chunk beyond the edge of the array.

    Returns
    -------
    list[NonFiniteReport]
        The non-finite values of each chunk.
    """
    from deadtok_xr.kernels.numba.rows import place_rows

    v = unit.variable
    word = word_type(v.dtype).type
    exponent = word(_EXPONENTS.get(v.dtype.name, 0))
    reports = [NonFiniteReport()] * len(unit.token_chunks)
    _pad(unit, out, np.asarray(fill_value, v.dtype).view(word))
    positions = _row_positions(unit, plan)
    for steps, rows in _parts(unit, positions):
        words = as_words(v, plan, _read(unit, source, steps, rows))
        counted_from = int(np.searchsorted(plan.steps[steps.start : steps.stop], v.valid_from))
        non_finite = np.zeros((len(reports), 3), np.int64)
        destination = positions[rows.start : rows.stop]
        place_rows(words, destination, out, steps.start - unit.steps.start, exponent, counted_from, non_finite)
        for k in np.flatnonzero(non_finite[:, 0]):
            reports[k] += _report(plan, unit, rows, *non_finite[k])
    return reports


def _report(plan: ConversionPlan, unit: Unit, rows: range, n_values: int, t: int, n: int) -> NonFiniteReport:
    step = int(plan.steps[unit.steps.start + t]) if "step" in unit.variable.dims else int(plan.steps[0])
    token = int(plan.rows.tokens[rows.start + n]) if "token" in unit.variable.dims else None
    return NonFiniteReport(int(n_values), (step, token))


def _pad(unit: Unit, out: Words, padding: Words) -> None:
    """Write the padding beyond the edge of the array, and NaN before the source's first state."""
    v = unit.variable
    out[:, len(unit.steps) :] = padding
    rows_left = v.size("token") - unit.token_chunks.start * out.shape[2]
    if rows_left < out.shape[0] * out.shape[2]:
        out[-1, :, rows_left - (out.shape[0] - 1) * out.shape[2] :] = padding
    for t in unit.steps:
        if t < v.first:
            out[:, t - unit.steps.start] = np.asarray(np.nan, v.dtype).view(word_type(v.dtype))


def _parts(unit: Unit, positions: NDArray[np.int64]) -> Iterator[tuple[range, range]]:
    """Divide a unit into parts of bounded size: positions along `step` and rows of the source.

    Where a step is read in several parts, rows of other units are left out. Else all rows are read, so that checksums
    of whole arrays can be verified.
    """
    v = unit.variable
    assert v.entry.dtype is not None
    row_bytes = max(1, v.width * v.entry.dtype.itemsize)
    n_rows = v.size("token")
    rows_at_once = max(1, min(n_rows, READ_BYTES // row_bytes))
    steps_at_once = max(1, READ_BYTES // (n_rows * row_bytes)) if rows_at_once == n_rows else 1
    start, stop = max(unit.steps.start, v.first), unit.steps.stop
    blocks = [range(n_rows)]
    if rows_at_once < n_rows:
        blocks = [*_needed(positions, rows_at_once)]
    for t in range(start, stop, steps_at_once):
        for rows in blocks:
            yield range(t, min(t + steps_at_once, stop)), rows


def _needed(positions: NDArray[np.int64], n: int) -> Iterator[range]:
    """Yield ranges of at most n rows that hold all rows of a unit: those with a position in it."""
    for start in range(0, len(positions), n):
        rows = np.flatnonzero(positions[start : start + n] >= 0)
        if rows.size:
            yield range(start + int(rows[0]), start + int(rows[-1]) + 1)


def _read(unit: Unit, source: Source, steps: range, rows: range) -> NDArray[Any]:
    """Read a part of a unit as (step, row, value)."""
    v = unit.variable
    where = []
    if "run" in v.dims:
        where.append(slice(unit.run, unit.run + 1))
    if "step" in v.dims and not v.static:
        shift = v.skip - v.first
        where.append(slice(steps.start + shift, steps.stop + shift))
    if "token" in v.dims:
        where.append(slice(rows.start, rows.stop))
    values = source.read(v.key, *where)
    return np.ascontiguousarray(values).reshape(len(steps), len(rows), v.width)


def as_words(v: PlannedVariable, plan: ConversionPlan, values: NDArray[Any]) -> Words:
    """Convert values of the source to the words that will be stored."""
    words = values.view(word_type(values.dtype))
    if values.dtype.itemsize == v.dtype.itemsize:
        return words
    if v.dtype != BFLOAT16 or values.dtype != np.float32:
        raise AssertionError(f"{v.key!r}: {values.dtype} cannot be stored as {v.dtype} exactly")
    if (words & np.uint32(0xFFFF)).any():
        raise InputError(
            f"{plan.path}: variable {v.key!r} was on the bfloat16 grid when it was checked, and is not any more: the "
            "file is being changed; convert it when nothing writes to it"
        )
    return (words >> np.uint32(16)).astype(np.uint16)


def _row_positions(unit: Unit, plan: ConversionPlan) -> NDArray[np.int64]:
    """Return the position of each row of the source within the unit; negative for rows of other units."""
    if "token" not in unit.variable.dims:
        return np.zeros(1, np.int64)
    height, chunks = unit.variable.size("token", chunk=True), unit.token_chunks
    positions = plan.disk_positions - chunks.start * height
    positions[positions >= len(chunks) * height] = -1
    return positions
