"""Join the parts of a checkpoint that several ranks wrote, where the split is proven.

The width of the model is known from its config.json (`hidden_size`) or params.json (`dim`). A matrix whose parts have
that width is split by rows, if the parts differ; one whose parts add up to it is split by columns. What is equal in
all parts is there once. Any other tensor is named, and not read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.conversion.readers.merged import OpenFile
from deadtok_xr.conversion.readers.names import named_rank, stem
from deadtok_xr.conversion.readers.parts import CONFIGS
from deadtok_xr.conversion.readers.source import Entry, Source, dtype_of, explaining_damage, slabs
from deadtok_xr.errors import InputError

_WIDTHS = ("hidden_size", "dim", "d_model", "n_embd", "model_dim", "embed_dim")
_VOCABULARIES = ("vocab_size", "n_vocab", "padded_vocab_size")
_MAX_CONFIG = 16 * 2**20
_PART_BYTES = 8 * 2**20
_MAX_RANKS = 1024
_UNPROVEN = (
    "split over ranks in a way that nothing proves (merge the parts where they were made, with the script of the "
    "program that wrote them)"
)


def rank_files(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """Return the files of the ranks 0, 1, 2, ... of one checkpoint, if the folder holds these and says their width."""
    if not any((folder / name).is_file() for name in CONFIGS):
        return []
    files = [item for item in sorted(folder.iterdir()) if item.suffix.lower() in suffixes and item.is_file()]
    ranks = [(file, named_rank(stem(file))) for file in files]
    if not 1 < len(files) <= _MAX_RANKS or len({file.suffix for file in files}) != 1:
        return []
    found = {
        rank.numbers[0]: file for file, rank in ranks if rank is not None and rank.certain and len(rank.numbers) == 1
    }
    templates = {rank.template for _, rank in ranks if rank is not None}
    complete = len(templates) == 1 and [*range(len(files))] == sorted(found)
    return [found[i] for i in range(len(files))] if complete and _width(_config(folder)) else []


class JoinedRanks(Source):
    """The parts of several ranks as one checkpoint.

    Parameters
    ----------
    folder
        The folder, with the configuration of the model.
    files
        The file of each rank, in their order.
    open_file
        Opens a file.

    Raises
    ------
    InputError
        If the parts do not have the same tensors.
    """

    def __init__(self, folder: Path, files: Sequence[Path], open_file: OpenFile) -> None:
        self.path = folder
        config = _config(folder)
        self._width, self._vocabulary = _width(config), _vocabulary(config)
        with ExitStack() as opened:
            self._parts = [opened.enter_context(open_file(file)) for file in files]
            self.format = f"{self._parts[0].format}, joined from {len(files)} ranks"
            self._check_names()
            self._axes: dict[str, int | None] = {}
            self.entries: Mapping[str, Entry] = dict(self._joined(name) for name in self._parts[0].entries)
            opened.pop_all()
        first = self._parts[0]
        self.aliases, self.ordered = first.aliases, first.ordered
        self.attributes = {**first.attributes, **{f"config.{k}": v for k, v in config.items() if _is_plain(v)}}
        rows, columns = ([n for n, a in self._axes.items() if a == axis] for axis in (0, 1))
        self.notes = tuple(
            f"{len(files)} ranks are joined by {what}: {', '.join(names[:6])}{', ...' * (len(names) > 6)}"
            for what, names in (("rows", rows), ("columns", columns))
            if names
        )

    def _check_names(self) -> None:
        first = self._parts[0]
        for part in self._parts[1:]:
            differ = sorted({*first.entries} ^ {*part.entries})
            if differ:
                raise InputError(
                    f"{part.path} does not hold the same names as {first.path.name}: {differ[0]!r} is in one of them "
                    "alone; expected: ranks of which each has a part of every tensor; merge them where they were made"
                )

    def _joined(self, name: str) -> tuple[str, Entry]:
        """Return the entry of a tensor, and keep along which axis it is joined; None for the first rank's."""
        entries = [part.entries[name] for part in self._parts]
        first = entries[0]
        if first.dtype is None or len(first.shape) != 2:
            same = first.dtype is not None and all(e == first for e in entries) and self._equal(name)
            return name, first if same or first.dtype is None else Entry(first.shape, None, _UNPROVEN)
        axis = self._axis(name, entries)
        if axis == "whole":
            return name, first
        if axis is None:
            return name, Entry(first.shape, None, _UNPROVEN)
        self._axes[name] = axis
        sizes = [*first.shape]
        sizes[axis] = sum(entry.shape[axis] for entry in entries)
        return name, Entry(tuple(sizes), first.dtype, first.type_name, max(e.buffer_bytes for e in entries))

    def _axis(self, name: str, entries: Sequence[Entry]) -> Any:
        """Return the axis along which a matrix is split, "whole" if it is not, None if nothing proves it."""
        if any(entry.dtype != entries[0].dtype or len(entry.shape) != 2 for entry in entries):
            return None
        rows, columns = ([entry.shape[axis] for entry in entries] for axis in (0, 1))
        if all(n == self._width for n in columns):
            if len({*rows}) == 1 and self._equal(name):
                return "whole"
            return 0 if sum(rows) >= self._vocabulary else None
        if sum(columns) == self._width and len({*rows}) == 1:
            return 1 if rows[0] >= self._vocabulary else None
        return None

    def _equal(self, name: str) -> bool:
        """Return whether a tensor is the same in all parts."""
        first, *others = self._parts
        entry = first.entries[name]
        dtype = dtype_of(first, name)
        parts = slabs(entry.shape, dtype.itemsize, _PART_BYTES) if entry.shape else [()]
        return all(
            other.read(name, *where).tobytes() == first.read(name, *where).tobytes()
            for where in parts
            for other in others
        )

    def read(self, name: str, *where: slice) -> NDArray[Any]:
        if name not in self._axes:
            return self._parts[0].read(name, *where)
        axis, shape = self._axes[name], self.entries[name].shape
        assert axis is not None
        full = [*where, *(slice(0, n) for n in shape[len(where) :])]
        found, at = [], 0
        for part in self._parts:
            n = part.entries[name].shape[axis]
            start, stop = max(full[axis].start, at), min(full[axis].stop, at + n)
            if start < stop:
                inner = [*full]
                inner[axis] = slice(start - at, stop - at)
                found.append(part.read(name, *inner))
            at += n
        return np.concatenate(found, axis) if found else self._parts[0].read(name, *(slice(0, 0) for _ in full))

    def files(self) -> list[Path]:
        configs = [self.path / name for name in CONFIGS if (self.path / name).is_file()]
        return [*(file for part in self._parts for file in part.files()), *configs]

    def unwritten(self, name: str) -> list[range]:
        return []

    def close(self) -> None:
        for part in self._parts:
            part.close()


def _config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in (folder / name for name in CONFIGS):
        if path.is_file():
            with explaining_damage(path, "the file", "JSON"):
                if path.stat().st_size > _MAX_CONFIG:
                    raise ValueError(f"more than {_MAX_CONFIG} bytes")
                content = json.loads(path.read_text("utf-8"))
                if not isinstance(content, dict):
                    raise ValueError("expected: names and values")
                found = {**content, **found}
    return found


def _width(config: Mapping[str, Any]) -> int:
    return _size(config, _WIDTHS)


def _vocabulary(config: Mapping[str, Any]) -> int:
    return _size(config, _VOCABULARIES)


def _size(config: Mapping[str, Any], names: Sequence[str]) -> int:
    """Return the first size that is stated; 0 if none is, as LLaMA's vocabulary of -1."""
    sizes = [config[name] for name in names if isinstance(config.get(name), int)]
    return max(0, sizes[0]) if sizes else 0


def _is_plain(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str)) and not re.search(r"\n", str(value))
