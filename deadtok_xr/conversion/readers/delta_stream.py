"""A stream of sparse updates as a source: full checkpoints, and the values of one parameter that changed after them.

`prime_rl` and `trl_deltas` find the states of a stream, and check that each change follows the state that it changes.
The parameter is kept in memory at one step, and every later step is made from it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.conversion.readers.source import Entry, Source, slabs
from deadtok_xr.errors import InputError

STEP = "step"
_TIED = {"lm_head.weight": "model.embed_tokens.weight"}
"""What a receiver takes for a parameter that a tied checkpoint leaves out."""
_READ_BYTES = 16 * 2**20
Changes = tuple[NDArray[Any], NDArray[Any]]
"""Flat positions in a parameter, and its new values there."""


@dataclass(frozen=True)
class Full:
    """A full checkpoint of a stream.

    Attributes
    ----------
    step
        Its step.
    path
        Its file or folder.
    open
        Opens it.
    """

    step: int
    path: Path
    open: Callable[[], Source]


class Update(Protocol):
    """The changes from one step to another."""

    step: int
    path: Path
    """Its file or folder, for messages."""

    def size(self, parameter: str) -> int:
        """Return how many values of a parameter change."""
        ...

    def shape(self, parameter: str) -> tuple[int, ...] | None:
        """Return the shape of a parameter that the update states; None if it states none."""
        ...

    def read(self, parameter: str) -> Changes | None:
        """Return the changes of a parameter, after checking all that the update states about them."""
        ...

    def files(self) -> list[Path]: ...


@dataclass(frozen=True)
class States:
    """The states of a stream in the order of their steps, the first of them full.

    Attributes
    ----------
    format
        Name of the format.
    dtype
        To which a full checkpoint is cast before it is changed; None to leave it as it is.
    notes
        What a user should know about how the stream was read.
    """

    format: str
    states: Sequence[Full | Update]
    dtype: np.dtype[Any] | None = None
    notes: tuple[str, ...] = ()


@dataclass
class _Now:
    """The parameter at one of the states."""

    at: int
    values: NDArray[Any] = field(repr=False)


class DeltaStream(Source):
    """One parameter of a stream of sparse updates, stacked along a leading axis of steps.

    Parameters
    ----------
    path
        The stream.
    found
        Its states.
    parameter
        The name of the parameter in the checkpoints.

    Raises
    ------
    InputError
        If the parameter is not a matrix of a checkpoint, or has another shape in a later state.
    """

    def __init__(self, path: Path, found: States, parameter: str) -> None:
        self.path, self.format = path, found.format
        self._states, self._parameter = found.states, parameter
        self._now: _Now | None = None
        self._files: list[Path] = []
        entry, cast = self._check_full(found.dtype)
        self.notes = (*found.notes, f"the parameter is {parameter!r}; choose another with --parameter", *cast)
        changes = [(state.path, state.shape(parameter), state.size(parameter)) for state in found.states
                   if not isinstance(state, Full)]  # fmt: skip
        for place, shape, _ in changes:
            if shape is not None and shape != entry.shape:
                raise InputError(
                    f"{place}: {parameter!r} has the shape {shape}, but in the checkpoint that it changes "
                    f"{entry.shape}; expected: the same in the whole stream"
                )
        assert entry.dtype is not None
        most = max((size for _, _, size in changes), default=0)
        buffers = entry.nbytes + 2 * most * (8 + entry.dtype.itemsize)
        shape = (len(self._states), *entry.shape)
        self.entries: Mapping[str, Entry] = {
            parameter: Entry(shape, entry.dtype, entry.dtype.name, buffers, in_order=True),
            STEP: Entry((len(self._states),), np.dtype(np.int64), "int64"),
        }
        self.attributes: Mapping[str, Any] = {}

    def _check_full(self, dtype: np.dtype[Any] | None) -> tuple[Entry, list[str]]:
        """Check the parameter in every full checkpoint; return it as it is kept, and notes."""
        kept: Entry | None = None
        notes: list[str] = []
        for state in self._states:
            if not isinstance(state, Full):
                self._files += state.files()
                continue
            with state.open() as source:
                key = name_in(source, self._parameter)
                entry = source.entries[key]
                self._files += source.files()
            if entry.dtype is None or entry.dtype.kind not in "fV" or len(entry.shape) != 2:
                raise InputError(
                    f"{state.path}: {self._parameter!r} is {entry}; expected: a matrix, as bfloat16, float16 or "
                    "float32; name another parameter with --parameter NAME (parameter=)"
                )
            if dtype is not None and entry.dtype != dtype and not notes:
                notes.append(
                    f"full checkpoints are {entry.type_name}, cast to {dtype.name} as the stream's reader does"
                )
            now = Entry(entry.shape, dtype or entry.dtype, (dtype or entry.dtype).name)
            kept = kept or now
            if (now.shape, now.dtype) != (kept.shape, kept.dtype):
                raise InputError(
                    f"{state.path}: {self._parameter!r} is {now}, but earlier in the stream {kept}; expected: the "
                    "same in the whole stream"
                )
        assert kept is not None
        return kept, notes

    def read(self, name: str, *where: slice) -> NDArray[Any]:
        steps = where[0] if where else slice(0, len(self._states))
        if name == STEP:
            return np.array([state.step for state in self._states[steps]], np.int64)
        entry = self.entries[name]
        inner = (*where[1:], *(slice(0, n) for n in entry.shape[len(where) or 1 :]))
        values = np.empty((steps.stop - steps.start, *(s.stop - s.start for s in inner)), entry.dtype)
        for i, t in enumerate(range(steps.start, steps.stop)):
            values[i] = self._at(t)[inner]
        return values

    def _at(self, t: int) -> NDArray[Any]:
        """Return the parameter at a state, from the nearest one before it that is known."""
        if self._now is None or t < self._now.at:
            full = max(i for i in range(t + 1) if isinstance(self._states[i], Full))
            self._now = _Now(full, self._load(full))
        while self._now.at < t:
            state = self._states[self._now.at + 1]
            if isinstance(state, Full):
                self._now.values = self._load(self._now.at + 1)
            elif (changes := state.read(self._parameter)) is not None:
                _apply(self._now.values, changes, state.path, self._parameter)
            self._now.at += 1
        return self._now.values

    def _load(self, t: int) -> NDArray[Any]:
        state = self._states[t]
        assert isinstance(state, Full)
        entry = self.entries[self._parameter]
        values = np.empty(entry.shape[1:], entry.dtype)
        with state.open() as source:
            key = name_in(source, self._parameter)
            there = source.entries[key]
            if there.shape != values.shape or there.dtype is None:
                raise InputError(f"{state.path} changed while it was read; convert it when nothing writes to it")
            for where in slabs(there.shape, there.dtype.itemsize, _READ_BYTES):
                values[where] = source.read(key, *where).astype(values.dtype, copy=False)
        return values

    def files(self) -> list[Path]:
        return list(dict.fromkeys(self._files))

    def unwritten(self, name: str) -> list[range]:
        return []

    def close(self) -> None:
        self._now = None


def name_in(source: Source, parameter: str) -> str:
    """Return the name of a parameter in a checkpoint, in which a tied output layer may be left out."""
    if parameter in source.entries:
        return parameter
    tied = _TIED.get(parameter)
    if tied is not None and tied in source.entries:
        return tied
    names = [name for name, entry in source.entries.items() if len(entry.shape) == 2]
    some = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    raise InputError(
        f"{source.path} has no parameter {parameter!r}; its matrices are {some or 'none'}; name one with --parameter "
        "NAME (parameter=)"
    )


def _apply(values: NDArray[Any], changes: Changes, path: Path, parameter: str) -> None:
    """Write the new values of a parameter."""
    indices, new = changes
    if not len(indices):
        return
    low, high = int(indices.min()), int(indices.max())
    if low < 0 or high >= values.size:
        raise InputError(
            f"{path}: an index of {parameter!r} is {low if low < 0 else high}, outside its {values.size} values; "
            "the update is damaged, or belongs to another model; copy it again"
        )
    if (np.diff(indices) <= 0).any() and len(np.unique(indices)) < len(indices):
        raise InputError(
            f"{path}: an index of {parameter!r} occurs twice, so that its value is not known; expected: each value "
            "once; copy the update again"
        )
    if new.dtype != values.dtype:
        raise InputError(
            f"{path}: the values of {parameter!r} are {new.dtype.name}, but the parameter is {values.dtype.name}; "
            "expected: the same"
        )
    values.reshape(-1)[indices] = new


def check_chain(states: Sequence[Full | Update], base_of: Callable[[Update], int]) -> None:
    """Check that each update changes the state before it.

    Raises
    ------
    InputError
        If it changes another one. The message names the update, and the steps that are missing.
    """
    for before, state in itertools.pairwise(states):
        if isinstance(state, Full) or base_of(state) == before.step:
            continue
        base = base_of(state)
        if base > before.step:
            why = f"which is not there: the stream has nothing between step {before.step} and step {state.step}"
            raise InputError(f"{state.path} changes step {base}, {why}; missing: {_span(before.step + 1, base)}")
        raise InputError(
            f"{state.path} changes step {base}, but the state before it is step {before.step} ({before.path.name}): "
            "one of them belongs to another run, or to another attempt of this one; move it away"
        )


def _span(first: int, last: int) -> str:
    return f"step {first}" if first == last else f"step {last}, and perhaps others from {first} on"
