"""Sources with arrays that are computed from those of another source: joined tokens, and absolute weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.bfloat16 import BFLOAT16, GRIDS, decode, on_grid
from deadtok_xr.conversion.inspect.keys import KeyMap, single_key, variable_keys
from deadtok_xr.conversion.options import Options
from deadtok_xr.conversion.readers.source import Entry, Source, Wrapped, list_entries, read_all
from deadtok_xr.errors import InputError

ABSOLUTE = "initial + deltas"
"""The key of weights that are computed."""


class Joined(Wrapped):
    """A source that joins arrays with different tokens, such as dead and live ones, along the token axis."""

    def __init__(self, source: Source, pieces: Mapping[str, tuple[str, ...]]) -> None:
        super().__init__(source)
        self._pieces = pieces
        entries = {k: e for k, e in source.entries.items() if all(k not in keys for keys in pieces.values())}
        self.entries = {**entries, **{name: self._joined_entry(keys) for name, keys in pieces.items()}}

    def _joined_entry(self, keys: tuple[str, ...]) -> Entry:
        parts = [self.source.entries[k] for k in keys]
        one = parts[0]
        same = all(p.dtype == one.dtype and p.shape[:1] + p.shape[2:] == one.shape[:1] + one.shape[2:] for p in parts)
        if not same or len(one.shape) != 3:
            found = ", ".join(f"{k!r} {e}" for k, e in zip(keys, parts, strict=True))
            raise InputError(f"{self.path}: {found}; expected: (step, row, dim), equal except for the rows")
        return replace(one, shape=(one.shape[0], sum(p.shape[1] for p in parts), one.shape[2]))

    def read(self, name: str, *where: slice) -> NDArray[Any]:
        if name not in self._pieces:
            return self.source.read(name, *where)
        entry = self.entries[name]
        steps, rows = (*where, *(slice(0, n) for n in entry.shape[len(where) :]))[:2]
        found, begin = [], 0
        for key in self._pieces[name]:
            n = self.source.entries[key].shape[1]
            start, stop = max(rows.start - begin, 0), min(rows.stop - begin, n)
            if start < stop:
                found.append(self.source.read(key, steps, slice(start, stop)))
            begin += n
        return np.concatenate(found, axis=1)[(slice(None), slice(None), *where[2:])]

    def unwritten(self, name: str) -> list[range]:
        return [hole for key in self._pieces.get(name, (name,)) for hole in self.source.unwritten(key)]


def join_rows(source: Source, key_map: KeyMap) -> Source:
    """Return a source with one array per variable; arrays that hold different tokens of a variable are joined."""
    pieces = {
        name: keys for name, keys in key_map.pieces.items()
        if name not in source.entries and all(k in source.entries for k in keys)
    }  # fmt: skip
    return Joined(source, pieces) if pieces else source


class Absolute(Wrapped):
    """A source with weights computed from initial weights and displacements: W[t] = W[t-1] + delta[t].

    The weights are on the same grid as the initial ones. Rounding a displacement to float32 changes it by at most half
    of its last place, so the exact sum is at least that near to a grid point; if it is not, the displacements do not
    belong to these weights, and an error is raised. The values are the grid points, exactly.
    """

    def __init__(
        self, source: Source, delta: str, initial: NDArray[Any], initial_path: Path, *, one_short: bool
    ) -> None:
        super().__init__(source)
        n, *rest = source.entries[delta].shape
        if tuple(rest) != initial.shape:
            raise InputError(
                f"{initial_path}: the initial weights have the shape {initial.shape}; expected: {tuple(rest)}, as in "
                f"{source.path}"
            )
        self._delta, self._first = delta, 1 if one_short else 0
        self._initial, self._initial_path = initial, initial_path
        self._bfloat16 = bool(on_grid(initial, "bfloat16").all())
        dtype = BFLOAT16 if self._bfloat16 else np.dtype(np.float32)
        shape = (n + self._first, *rest)
        self.entries = {**source.entries, ABSOLUTE: Entry(shape, dtype, dtype.name, in_order=True)}
        self._at, self._weights = 0, decode(initial).astype(np.float64)

    def files(self) -> list[Path]:
        return [*self.source.files(), self._initial_path]

    def read(self, name: str, *where: slice) -> NDArray[Any]:
        if name != ABSOLUTE:
            return self.source.read(name, *where)
        steps, rows = (*where, slice(0, self._initial.shape[0]))[:2]
        if steps.start < self._at:
            self._at, self._weights = 0, decode(self._initial).astype(np.float64)
        found = np.empty((steps.stop - steps.start, *self._initial.shape), self.entries[ABSOLUTE].dtype)
        for t in range(self._at, steps.stop):
            if t > self._at:
                self._advance(t)
            if t >= steps.start:
                found[t - steps.start] = self._weights
        return found[:, rows]

    def _advance(self, t: int) -> None:
        row = t - self._first
        delta = self.source.read(self._delta, slice(row, row + 1))[0].astype(np.float64)
        exact = self._weights + delta
        weights = exact.astype(np.float32).astype(BFLOAT16 if self._bfloat16 else np.float32).astype(np.float64)
        off = np.abs(weights - exact) > np.abs(delta) * 2.0**-24
        if off.any():
            n, d = (int(i) for i in np.argwhere(off)[0])
            grid = "bfloat16" if self._bfloat16 else "float32"
            raise InputError(
                f"{self.path}: {self._delta!r} at position {row}, row {n}, dim {d} changes "
                f"{float(self._weights[n, d])} by {float(delta[n, d])}, off the {grid} "
                f"grid of {self._initial_path}: these are not its initial weights, or steps are missing"
            )
        self._at, self._weights = t, weights


def initial_weights(source: Source, keys: tuple[str, ...]) -> NDArray[Any]:
    """Read initial weights (row, dim) from a separate file: its only matrix, or the one with a known key."""
    matrices = [k for k, e in source.entries.items() if e.dtype is not None and len(e.shape) >= 2]
    named = [k for k in keys if k in matrices]
    if len(named or matrices) != 1:
        raise InputError(f"{source.path}: expected: one array of initial weights; there is {list_entries(source)}")
    key = (named or matrices)[0]
    entry = source.entries[key]
    assert entry.dtype is not None
    if len(entry.shape) == 3:  # a recording: its first step
        values = source.read(key, slice(0, 1))[0]
    elif len(entry.shape) == 2:
        values = read_all(source, key)
    else:
        raise InputError(f"{source.path}: {key!r} is {entry}; expected: (row, dim)")
    values = values.view(BFLOAT16) if values.dtype == np.uint16 else values
    if values.dtype.name not in ("bfloat16", *GRIDS) or not math.prod(values.shape):
        raise InputError(f"{source.path}: {key!r} is {entry}; expected: bfloat16, float16, float32 or bits of bfloat16")
    return values


def with_absolute_weights(source: Source, initial: Source, key_map: KeyMap, options: Options) -> Source:
    """Return a source with weights computed from its displacements and a file of initial weights.

    Raises
    ------
    InputError
        If the source has weights, or no displacements, or steps are missing.
    """
    keys = variable_keys(source, key_map, options)
    if "W" in keys or "delta" not in keys:
        held = f"the weights, {keys['W']!r}," if "W" in keys else "no displacements"
        raise InputError(f"{source.path} holds {held} and initial weights are given: leave those out")
    step_key = single_key(source, key_map.steps, "the step labels", options)
    labels = None if step_key is None or options.steps == "position" else read_all(source, step_key)
    if labels is not None and (np.diff(labels.astype(np.int64)) != 1).any():
        raise InputError(
            f"{source.path}: {step_key!r} skips steps, so its displacements cannot be summed: leave the initial "
            "weights out (if the labels drift, say --steps position)"
        )
    first = source.read(keys["delta"], slice(0, 1)).astype(np.float64)
    if labels is not None and labels[0] not in (0, 1):
        raise InputError(f"{source.path}: {step_key!r} begins at {labels[0]}: earlier displacements are missing")
    # a first displacement that is not zero, or is labelled 1, belongs to update 1: the initial state is not in the file
    one_short = bool(np.nan_to_num(first).any()) if labels is None else bool(labels[0] == 1)
    values = initial_weights(initial, ("W", "initial", "W_initial", *key_map.variables["W"]))
    return Absolute(source, keys["delta"], values, initial.path, one_short=one_short)
