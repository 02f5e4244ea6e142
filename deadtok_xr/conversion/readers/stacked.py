"""Open checkpoints of one run, one per step, as arrays with a leading axis of steps."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.conversion.readers.names import named_step
from deadtok_xr.conversion.readers.source import Entry, Renamed, Source, dtype_of
from deadtok_xr.conversion.readers.stated_steps import stated_steps
from deadtok_xr.errors import InputError

Steps = Literal["names", "content"]
STEP = "step"
_OPEN = 2
_STEP_KEYS = ("step", "global_step")
_GROUP = re.compile(r"(?:.*[./])?param_groups\.\d+\.(params|param_names\.\d+)")
"""Which parameters an optimizer's states belong to: a checkpoint before the first update may lack them."""


@dataclass(frozen=True)
class _Member:
    path: Path
    number: int
    """The step in its name."""
    stated: Mapping[str, int]
    """The steps in its content, by name; several if they contradict each other."""

    @property
    def content(self) -> int | None:
        """The step in its content: of several, the one that its name confirms."""
        values = set(self.stated.values())
        return self.number if self.number in values else next(iter(values)) if len(values) == 1 else None


class Stacked(Source):
    """Checkpoints of one run, stacked along a leading axis of steps.

    The entries are those of the checkpoints, with that axis; ``step`` holds the labels. A small entry that differs in
    dtype or shape between checkpoints cannot be read, and says why.

    Parameters
    ----------
    path
        The folder.
    members
        The checkpoints, each with the number in its name.
    open_member
        Opens a checkpoint; two are open at a time.
    steps
        Which labels to use if names and contents of the checkpoints contradict each other.
    left_out
        Files of the folder that are not among the checkpoints -> why they are left out.
    notes
        What a user should know about their names.

    Raises
    ------
    InputError
        If two checkpoints have the same step, a matrix differs in dtype or shape, or the steps contradict each other.
    """

    def __init__(
        self,
        path: Path,
        members: Mapping[Path, int],
        open_member: Callable[[Path], Source],
        steps: Steps | None = None,
        left_out: Mapping[str, str] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        if steps not in (None, "names", "content"):
            raise InputError(f"steps={steps!r} is not known; expected: 'names' or 'content'")
        self.path, self.notes = path, tuple(notes)
        self._open_member = open_member
        self._opened: dict[Path, Source] = {}
        self._files: list[Path] = []
        by_number = sorted(members, key=lambda member: (members[member], member.name))
        for one, other in itertools.pairwise(by_number):
            if members[one] == members[other]:
                raise InputError(
                    f"{path}: {one.name} and {other.name} both have the number {members[one]}; expected: one "
                    "checkpoint per step; move one of them away"
                )
        try:
            self._read_headers(by_number, members, left_out or {})
            self._members = _in_order(path, self._found, steps)
        except BaseException:
            self.close()
            raise
        labels = [m.content if steps == "content" else m.number for m in self._members]
        self._labels = np.array(labels, np.int64)

    def _read_headers(self, paths: list[Path], numbers: Mapping[Path, int], left_out: Mapping[str, str]) -> None:
        """Read the header of every checkpoint, and compare them."""
        self._found: list[_Member] = []
        first = self._member(paths[0])
        self.format = f"{first.format}, one per step"
        entries, attributes, aliases = dict(first.entries), dict(first.attributes), dict(first.aliases)
        common, seen = {*attributes}, {*attributes}
        for i, path in enumerate(paths):
            member = self._member(path)
            _compare(entries, member, paths[0], i)
            late = {k: v for k, v in member.attributes.items() if k not in seen and _GROUP.fullmatch(k)}
            attributes = {k: v for k, v in attributes.items() if k in member.attributes and member.attributes[k] == v}
            attributes |= late
            common, seen = common & {*member.attributes}, seen | {*member.attributes}
            aliases = {k: v for k, v in aliases.items() if member.aliases.get(k) == v}
            self._files += member.files()
            self._found.append(_Member(path, numbers[path], stated_steps(member)))
        n = len(paths)
        stacked = {name: _with_steps(entry, n) for name, entry in entries.items() if name not in _STEP_KEYS}
        labels = Entry((n,), np.dtype(np.int64), "int64")
        self.entries = {**stacked, STEP: labels, **{k: _unreadable(why) for k, why in left_out.items()}}
        self.attributes, self.aliases, self.ordered, self.dims = attributes, aliases, first.ordered, first.dims
        self.varying = frozenset(common - {*attributes})

    def _member(self, path: Path) -> Source:
        """Return an open checkpoint; the least recently opened ones are closed."""
        if path not in self._opened:
            while len(self._opened) >= _OPEN:
                self._opened.pop(next(iter(self._opened))).close()
            self._opened[path] = _without_number(self._open_member(path), path)
        return self._opened[path]

    def read(self, name: str, *where: slice) -> NDArray[Any]:
        dtype = dtype_of(self, name)
        steps, inner = (where[0], where[1:]) if where else (slice(0, len(self._members)), ())
        if name == STEP:
            return self._labels[steps].copy()
        shape = self.entries[name].shape[1:]
        inner = (*inner, *(slice(0, n) for n in shape[len(inner) :]))
        values = np.empty((steps.stop - steps.start, *(s.stop - s.start for s in inner)), dtype)
        late = self.entries[name].late
        for i, member in enumerate(self._members[late + steps.start : late + steps.stop]):
            source = self._member(member.path)
            _check_same(source, name, dtype, shape)
            values[i] = source.read(name, *inner)
        return values

    def unwritten(self, name: str) -> list[range]:
        if name == STEP or self.entries[name].dtype is None or not self.entries[name].shape[1:]:
            return []
        members = self._members[self.entries[name].late :]
        holes = (i for i, member in enumerate(members) if self._member(member.path).unwritten(name))
        return [range(i, i + 1) for i in holes]

    def files(self) -> list[Path]:
        return list(self._files)

    def close(self) -> None:
        while self._opened:
            self._opened.popitem()[1].close()


def _without_number(source: Source, path: Path) -> Source:
    """Give the only array of a file that is named after the file a name that is the same in every checkpoint."""
    if [*source.entries] != [path.stem]:
        return source
    step = named_step(path.stem)
    name = "W" if step is None else step.template.replace("*", "").strip("_-. =#") or "W"
    return Renamed(source, {name: path.stem})


def _with_steps(entry: Entry, n: int) -> Entry:
    return replace(entry, shape=(n - entry.late, *entry.shape)) if entry.dtype is not None else entry


def _unreadable(why: str, shape: tuple[int, ...] = ()) -> Entry:
    return Entry(shape, None, why, reason=why)


def _compare(entries: dict[str, Entry], member: Source, first: Path, n_before: int) -> None:
    """Compare a checkpoint with those before: matrices must be equal in dtype and shape, other entries are marked."""
    for name in {**entries, **member.entries}:
        one, other = entries.get(name), member.entries.get(name)
        if one is not None and other is not None:
            if (one.dtype, one.shape) == (other.dtype, other.shape) or one.dtype is None:
                continue
            if len(one.shape) >= 2 or len(other.shape) >= 2:
                raise InputError(
                    f"{member.path}: {name!r} is {other}, but in {first.name} it is {one}; expected: the same in every "
                    "checkpoint of a run; move those of another run away"
                )
            entries[name] = _unreadable(f"{one} in {first.name} and {other} in {member.path.name}", one.shape)
        elif other is None and one is not None and one.dtype is not None:
            entries[name] = _unreadable(f"{one}, which {member.path.name} does not have", one.shape)
        elif one is None and other is not None and other.dtype is not None and _may_be_late(name, other):
            entries[name] = replace(other, late=n_before)  # an optimizer has no state before its first step
        elif one is None and other is not None:
            entries[name] = _unreadable(f"{other}, which {first.name} does not have", other.shape)


def _may_be_late(name: str, entry: Entry) -> bool:
    """Return whether an entry may be missing at the beginning: matrices, and the lists that say whose they are."""
    return len(entry.shape) >= 2 or (len(entry.shape) == 1 and bool(_GROUP.fullmatch(name)))


def _check_same(source: Source, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    entry = source.entries.get(name)
    if entry is None or (entry.dtype, entry.shape) != (dtype, shape):
        raise InputError(f"{source.path} changed while it was read; convert it when nothing writes to it")


def _in_order(path: Path, members: list[_Member], steps: Steps | None) -> list[_Member]:
    """Sort the checkpoints by their steps, after determining which labels to use."""
    silent = next((m for m in members if m.content is None), None)
    if steps == "content":
        if silent is not None:
            raise InputError(
                f"{silent.path} {_why_silent(silent)}; needed with steps='content': a scalar named step or "
                "global_step in every checkpoint; choose --steps names (steps='names')"
            )
        return _ascending(path, members)
    contradiction = next((m for m in members if m.stated and m.content != m.number), None)
    if steps is None and contradiction is not None:
        said = _few([m.content if m.content is not None else "?" for m in members])
        also = "" if silent is not None else " or --steps content (steps='content')"
        raise InputError(
            f"{path}: by the names, the steps are {_few([m.number for m in members])}, but the checkpoints say {said} "
            f"({contradiction.path.name} says {_statement(contradiction)}); choose with --steps names "
            f"(steps='names'){also}"
        )
    return members


def _why_silent(member: _Member) -> str:
    return f"says {_statement(member)}" if member.stated else "does not say its step"


def _statement(member: _Member) -> str:
    return " and ".join(f"{name} {step}" for name, step in list(member.stated.items())[:3])


def _ascending(path: Path, members: list[_Member]) -> list[_Member]:
    members = sorted(members, key=lambda m: (m.content or 0, m.number))
    for one, other in itertools.pairwise(members):
        if one.content == other.content:
            raise InputError(
                f"{path}: {one.path.name} and {other.path.name} both say that they are of step {one.content}; "
                "expected: one checkpoint per step; choose --steps names (steps='names'), or move one of them away"
            )
    return members


def _few(labels: list[Any]) -> str:
    shown = [*labels[:3], "...", labels[-1]] if len(labels) > 5 else labels
    return ", ".join(map(str, shown))
