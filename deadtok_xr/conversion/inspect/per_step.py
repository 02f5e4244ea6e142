"""Stack arrays of which a file holds one per step, under names or at positions.

The number behind a word for steps is the step: step_100, embed.step_100, step_100/W. Without such a word, the numbers
are steps if labels beside the arrays say them, or if they are not 0, 1, 2, ...; else they are positions, and the plan
says so.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.conversion.inspect.keys import KNOWN_KEYS, WEIGHTS, is_named_otherwise
from deadtok_xr.conversion.inspect.models import named_input, named_output
from deadtok_xr.conversion.options import Options
from deadtok_xr.conversion.readers.names import ENDS_IN_FRACTION, named_step
from deadtok_xr.conversion.readers.source import Entry, Source, Wrapped
from deadtok_xr.conversion.readers.stated_steps import whole_number
from deadtok_xr.errors import InputError

_NUMBER = re.compile(r"\d{1,18}")
_PLAIN = re.compile(
    r"(?:.*[./])?"
    r"(?:(?:arr|checkpoint|ckpt|snapshot|save|epoch|t|w|w_t|emb\w*|weights?|history)[ ._=/-]?)?",
    re.IGNORECASE,
)
"""What may precede a number that counts saves; layers and ranks are numbered as well."""
_GROUP = re.compile(r"(?:.*[./])?(?:checkpoint|ckpt|snapshot|save|epoch)s?[ ._=-]?", re.IGNORECASE)
"""What may precede the number of a group with the arrays of one step."""
_LABELS = ("step", "global_step", "iteration", "iter", "iter_num", "update", "t")


@dataclass(frozen=True)
class _Series:
    """Arrays of one name: step or position -> key."""

    before: str
    after: str
    members: Mapping[int, str]
    stated: bool

    @property
    def name(self) -> str:
        """The name of the stacked array: what is left of the keys, W if nothing is."""
        left = (
            self.after.strip("./")
            or re.split(r"[./]", re.sub(r"[a-z]*step[ _=.-]*$", "", self.before).strip("./_ ="))[-1]
        )
        name = left.strip("._- =/")
        return "W" if name.lower() in ("", "arr", "emb", "embed", "embedding", "embeddings", "w", "weight", "weights",
                                       "checkpoint", "ckpt", "snapshot", "t", "history") else name  # fmt: skip


class PerStep(Wrapped):
    """A source with arrays of one step each stacked along a leading axis."""

    def __init__(self, source: Source, series: Mapping[str, list[str]], labels: NDArray[np.int64], note: str) -> None:
        super().__init__(source)
        self._series, self._labels = series, labels
        used = {key for keys in series.values() for key in keys}
        n = len(labels)
        stacked = {}
        for name, keys in series.items():
            entry = source.entries[keys[0]]
            stacked[name] = replace(entry, shape=(n, *entry.shape))
        others = {
            k: e for k, e in source.entries.items() if k not in used and not _is_label(k) and k not in KNOWN_KEYS.steps
        }
        self.entries = {**others, **stacked, "step": Entry((n,), np.dtype(np.int64), "int64")}
        self.dims, self.aliases = {}, {}
        self.notes = (*source.notes, note)

    def read(self, name: str, *where: slice) -> NDArray[Any]:
        if name == "step":
            return self._labels[where or ...].copy()
        if name not in self._series:
            return self.source.read(name, *where)
        keys = self._series[name]
        steps, inner = (where[0], where[1:]) if where else (slice(0, len(keys)), ())
        return np.stack([self.source.read(key, *self._inner(key, inner)) for key in keys[steps]])

    def _inner(self, key: str, where: tuple[slice, ...]) -> tuple[slice, ...]:
        return where or (slice(0, self.source.entries[key].shape[0]),)

    def unwritten(self, name: str) -> list[range]:
        if name == "step":
            return []
        keys = self._series.get(name)
        if keys is None:
            return self.source.unwritten(name)
        return [range(i, i + 1) for i, key in enumerate(keys) if self.source.unwritten(key)]


def stacked_per_step(source: Source, options: Options) -> Source:
    """Return a source with one array per step stacked, if it holds its weights in this way.

    Raises
    ------
    InputError
        If arrays of one shape are numbered, and nothing says that the numbers are steps.
    """
    if _holds_weights(source, options):
        return source
    found = [series for series in _series(source) if len(series.members) > 1]
    given = options.keys.get("W")
    if given is not None:
        found = [s for s in found if given in (s.name, *s.members.values())] and found
    if not found:
        return source
    numbers = [*found[0].members]
    same = [series for series in found if [*series.members] == numbers]
    left = [
        k for k, e in source.entries.items() if len(e.shape) >= 2 and not any(k in s.members.values() for s in same)
    ]
    if left or not all(_countable(source, series) for series in same):
        return source
    labels, note = _step_labels(source, same[0])
    names = [series.name for series in same]
    if len({*names}) < len(names) or (len(same) > 1 and "W" not in names):
        one, other = (next(iter(series.members.values())) for series in (same[0], same[-1]))
        raise InputError(
            f"{source.path} holds an array per step, of several kinds, such as {one!r} and {other!r}; stack each of "
            "them first, with numpy.stack, and name the weights W"
        )
    order = np.argsort(labels, kind="stable")
    keys = {series.name: [[*series.members.values()][i] for i in order] for series in same}
    if len(keys) == 1 and given is not None:
        keys = {given: next(iter(keys.values()))}
    elif len(keys) == 1 and not is_named_otherwise(names[0]):
        keys = {"W": next(iter(keys.values()))}
    return PerStep(source, keys, labels[order], note)


def _holds_weights(source: Source, options: Options) -> bool:
    known = {name for w in WEIGHTS for name in (w, *KNOWN_KEYS.variables[w])}
    given = options.keys.get("W")
    return any(
        len(e.shape) >= 2
        and (key in known or named_input(key) or named_output(key) or (key == given and len(e.shape) > 2))
        for key, e in source.entries.items()
        if not _NUMBER.search(key)
    )


def _series(source: Source) -> list[_Series]:
    """Group the matrices by their names without the number that may be the step."""
    groups: dict[tuple[str, str, bool], dict[int, str]] = defaultdict(dict)
    shapes: dict[tuple[str, str, bool], set[Any]] = defaultdict(set)
    for key, entry in source.entries.items():
        split = _split(key)
        if entry.dtype is None or len(entry.shape) != 2 or split is None:
            continue
        before, number, after, stated = split
        groups[before, after, stated][number] = key
        shapes[before, after, stated].add((entry.shape, entry.dtype))
    return [_Series(b, a, dict(sorted(m.items())), s) for (b, a, s), m in groups.items() if len(shapes[b, a, s]) == 1]


def _split(key: str) -> tuple[str, int, str, bool] | None:
    """Return a key before its number, the number, and behind it, and whether a word says that it is a step."""
    step = named_step(key, dotted=True)
    numbers = list(_NUMBER.finditer(key))
    if step is not None and step.stated:
        match = next(m for m in numbers if int(m[0]) == step.number)
        return key[: match.start()], step.number, key[match.end() :], True
    if not numbers or ENDS_IN_FRACTION.search(key):
        return None
    return key[: numbers[-1].start()], int(numbers[-1][0]), key[numbers[-1].end() :], False


def _countable(source: Source, series: _Series) -> bool:
    """Return whether the numbers of a series can be steps or positions; those of layers cannot."""
    if series.stated or (not series.after and _PLAIN.fullmatch(series.before)):
        return True
    if series.after[:1] in ("/", ".") and _GROUP.fullmatch(series.before):
        return True
    return not series.before and _labels_of_records(source, series) is not None


def _is_label(key: str) -> bool:
    """Return whether a key is a step inside of a record, such as 3.step."""
    return bool(re.fullmatch(rf"\d+[./]({'|'.join(_LABELS)})", key))


def _step_labels(source: Source, series: _Series) -> tuple[NDArray[np.int64], str]:
    """Return the step of each array, and a note about how it is known."""
    n, first = len(series.members), next(iter(series.members.values()))
    some = f"one array per step, such as {first!r}, stacked"
    if series.stated:
        return np.array([*series.members]), f"{some}; the steps are those of the names"
    found = _labels_of_records(source, series)
    if found is not None:
        return found, f"{some}; the steps are those beside them"
    for name in KNOWN_KEYS.steps:
        entry = source.entries.get(name)
        if entry is not None and entry.shape == (n,):
            labels = source.read(name, slice(0, n))
            if (np.diff(labels) > 0).all() and (labels == labels.astype(np.int64)).all():
                return labels.astype(np.int64), f"{some}; the steps are those of {name!r}"
    numbers = np.array([*series.members], np.int64)
    if numbers.tolist() == [*range(n)]:
        return numbers, f"{some}; nothing says their steps: 0 to {n - 1} are their positions"
    return numbers, f"{some}; the numbers in their names are taken as the steps"


def _labels_of_records(source: Source, series: _Series) -> NDArray[np.int64] | None:
    """Return the steps beside the arrays of records, such as 3.step beside 3.W; None if there are none."""
    for name in _LABELS:
        keys = [f"{number}{sep}{name}" for number in series.members for sep in "./"]
        there = [key for key in keys if key in source.entries and not source.entries[key].shape]
        values = [whole_number(source.read(key)) for key in there]
        if len(values) == len(series.members) == len({*values}) and None not in values:
            return np.array(values, np.int64)
    return None
