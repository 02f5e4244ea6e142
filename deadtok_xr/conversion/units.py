"""A plan in units of work: a run of chunks of one variable, filled from the source in pieces."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.bfloat16 import BFLOAT16
from deadtok_xr.conversion.plan import Plan, PlannedVariable
from deadtok_xr.conversion.readers.source import Source
from deadtok_xr.errors import InputError

PIECE_BYTES = 3 * 2**20
"""How much is read at a time: what stays in the cache until it is put in its place."""
_EXPONENTS = {"bfloat16": 0x7F80, "float16": 0x7C00, "float32": 0x7F800000, "float64": 0x7FF << 52}
Words = NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class Finds:
    """What is noticed in values while they pass: how many are NaN or infinite, and the first (step, token)."""

    n_bad: int = 0
    first: tuple[int, int | None] | None = None

    def __add__(self, other: Finds) -> Finds:
        firsts = [f for f in (self.first, other.first) if f is not None]
        return Finds(self.n_bad + other.n_bad, min(firsts, key=lambda f: (f[0], f[1] or 0), default=None))


@dataclass(frozen=True)
class Unit:
    """Some neighbouring chunks along `token`, in one chunk of steps of one run of one variable.

    Every value of them is written by this unit alone, so a unit that was broken off is simply done again.
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
        """The positions along `step`."""
        height = self.variable.size("step", chunk=True)
        start = self.step_chunk * height
        return range(start, min(start + height, self.variable.size("step")))

    def positions(self) -> list[tuple[int, ...]]:
        """The grid positions of its chunks."""
        rest = len(self.variable.dims) - len({"run", "step", "token"} & {*self.variable.dims})
        found = []
        for k in self.token_chunks:
            at = {"run": self.run, "step": self.step_chunk, "token": k}
            known = [at[d] for d in self.variable.dims if d in at]
            found.append((*known, *[0] * rest))
        return found

    def files(self) -> list[list[int]]:
        """Which of its chunks lie in a file together."""
        k = self.variable.per_file
        found: dict[int, list[int]] = {}
        for i, chunk in enumerate(self.token_chunks):
            found.setdefault(chunk // k, []).append(i)
        return list(found.values())

    def layout(self) -> tuple[int, int, int, int]:
        """The shape of its chunks in memory: (chunk, step, row, value)."""
        v = self.variable
        return len(self.token_chunks), v.size("step", chunk=True), v.size("token", chunk=True), v.width


def divide(plan: Plan, room: int) -> Iterator[Unit]:
    """All units of a plan, in the order in which the source is read best.

    Parameters
    ----------
    plan
        The plan.
    room
        Bytes that a unit may take.
    """
    for v in plan.variables:
        n_chunks = math.ceil(v.size("token") / v.size("token", chunk=True))
        whole_files = room // max(1, v.chunk_bytes) // v.per_file * v.per_file
        group = max(v.per_file, min(n_chunks, whole_files))
        # a source that is read in order is read through once per group
        groups = [range(k, min(k + group, n_chunks)) for k in range(0, n_chunks, group)]
        rows = range(math.ceil(v.size("step") / v.size("step", chunk=True)))
        for run in range(v.size("run")):
            if v.entry.in_order:
                yield from (Unit(v, run, row, chunks) for chunks in groups for row in rows)
            else:
                yield from (Unit(v, run, row, chunks) for row in rows for chunks in groups)


def word_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The unsigned integers that hold values of a dtype."""
    return np.dtype(f"u{dtype.itemsize}")


def fill(unit: Unit, plan: Plan, source: Source, out: Words, fill_value: Any) -> list[Finds]:
    """Read a unit from the source and put its chunks together, as they will lie on disk.

    Parameters
    ----------
    unit, plan, source
        What to read.
    out
        Words of the shape `Unit.layout`; overwritten whole.
    fill_value
        What the store has where a chunk reaches beyond the array.

    Returns
    -------
    What was noticed in each chunk.
    """
    from deadtok_xr.kernels.numba.rows import place_rows

    v = unit.variable
    word = word_type(v.dtype).type
    exponent = word(_EXPONENTS.get(v.dtype.name, 0))
    found = [Finds()] * len(unit.token_chunks)
    _pad(unit, out, np.asarray(fill_value, v.dtype).view(word))
    places = _places(unit, plan)
    for steps, rows in _pieces(unit):
        words = as_words(v, plan, _read(unit, source, steps, rows))
        counted_from = int(np.searchsorted(plan.steps[steps.start : steps.stop], v.valid_from))
        bad = np.zeros((len(found), 3), np.int64)
        destination = places[rows.start : rows.stop]
        place_rows(words, destination, out, steps.start - unit.steps.start, exponent, counted_from, bad)
        for k in np.flatnonzero(bad[:, 0]):
            found[k] += _finds(plan, unit, rows, *bad[k])
    return found


def _finds(plan: Plan, unit: Unit, rows: range, n_bad: int, t: int, n: int) -> Finds:
    step = int(plan.steps[unit.steps.start + t]) if "step" in unit.variable.dims else int(plan.steps[0])
    token = int(plan.rows.tokens[rows.start + n]) if "token" in unit.variable.dims else None
    return Finds(int(n_bad), (step, token))


def _pad(unit: Unit, out: Words, padding: Words) -> None:
    """The fill value where nothing will be copied: beyond the array, and before the source's first row."""
    v = unit.variable
    out[:, len(unit.steps) :] = padding
    rows_left = v.size("token") - unit.token_chunks.start * out.shape[2]
    if rows_left < out.shape[0] * out.shape[2]:
        out[-1, :, rows_left - (out.shape[0] - 1) * out.shape[2] :] = padding
    for t in unit.steps:
        if t < v.first:
            out[:, t - unit.steps.start] = np.asarray(np.nan, v.dtype).view(word_type(v.dtype))


def _pieces(unit: Unit) -> Iterator[tuple[range, range]]:
    """The unit in pieces of bounded size: positions along `step` and rows of the source."""
    v = unit.variable
    assert v.entry.dtype is not None
    row_bytes = max(1, v.width * v.entry.dtype.itemsize)
    n_rows = v.size("token")
    rows_at_once = max(1, min(n_rows, PIECE_BYTES // row_bytes))
    steps_at_once = max(1, PIECE_BYTES // (n_rows * row_bytes)) if rows_at_once == n_rows else 1
    start, stop = max(unit.steps.start, v.first), unit.steps.stop
    for t in range(start, stop, steps_at_once):
        for n in range(0, n_rows, rows_at_once):
            yield range(t, min(t + steps_at_once, stop)), range(n, min(n + rows_at_once, n_rows))


def _read(unit: Unit, source: Source, steps: range, rows: range) -> NDArray[Any]:
    """A piece as (step, row, value)."""
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


def as_words(v: PlannedVariable, plan: Plan, values: NDArray[Any]) -> Words:
    """Values of the source as the words that will be stored."""
    words = values.view(word_type(values.dtype))
    if values.dtype.itemsize == v.dtype.itemsize:
        return words
    if v.dtype != BFLOAT16 or values.dtype != np.float32:
        raise AssertionError(f"{v.key!r}: no exact way from {values.dtype} to {v.dtype}")
    if (words & np.uint32(0xFFFF)).any():
        raise InputError(
            f"{plan.path}: variable {v.key!r} lay on the bfloat16 grid when it was looked through, and does not any "
            "more: the file changes; convert it when nothing writes to it"
        )
    return (words >> np.uint32(16)).astype(np.uint16)


def _places(unit: Unit, plan: Plan) -> NDArray[np.int64]:
    """For each row of the source its place among the unit's rows; negative where it belongs elsewhere."""
    if "token" not in unit.variable.dims:
        return np.zeros(1, np.int64)
    height, chunks = unit.variable.size("token", chunk=True), unit.token_chunks
    places = plan.place_on_disk - chunks.start * height
    places[places >= len(chunks) * height] = -1
    return places
