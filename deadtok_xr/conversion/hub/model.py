"""A revision of a model on the Hub as a source, of which only the headers of its safetensors files are read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.conversion.hub.client import File, Hub
from deadtok_xr.conversion.readers.safetensors import entry_of
from deadtok_xr.conversion.readers.source import Source, explaining_damage
from deadtok_xr.errors import InputError

_MODEL, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_MAX_HEADER = 100_000_000
_FIRST_BYTES = 2**17
"""Bytes of the first request for a header, which most headers fit in."""
_MAX_TEXT = 256 * 2**20


@dataclass(frozen=True)
class Revision:
    """A revision: its name, its commit, and the step in its name."""

    name: str
    commit: str
    step: int


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies.

    Attributes
    ----------
    fields
        dtype and shape, as in the header.
    file
        The file that holds it.
    begin, end
        Its bytes in the file.
    """

    fields: Mapping[str, Any]
    file: File
    begin: int
    end: int


class RemoteModel(Source):
    """The tensors of a revision.

    Parameters
    ----------
    hub, revision
        What to open.
    needed
        Names of tensors; the headers of shards without any of them are not read. None for all.

    Raises
    ------
    InputError
        If the revision has no safetensors files, or one of them is damaged.
    """

    format = "safetensors"

    def __init__(self, hub: Hub, revision: Revision, needed: Iterable[str] | None = None) -> None:
        self.hub, self.revision = hub, revision
        self.path = cast(Path, hub.at(revision.name))  # messages show it, and nothing opens it
        self.listed = hub.files(revision.name, revision.commit)
        self.tensors: dict[str, Tensor] = {}
        for name in self._shards(needed):
            if name not in self.listed:
                raise InputError(f"{self.path} has no file {name!r}, which {_INDEX} names; it is incomplete on the Hub")
            self.tensors |= self._header(self.listed[name])
        self.entries = {name: entry_of(dict(tensor.fields)) for name, tensor in self.tensors.items()}
        self.attributes: Mapping[str, Any] = {}

    def _shards(self, needed: Iterable[str] | None) -> list[str]:
        if _MODEL in self.listed:
            return [_MODEL]
        if _INDEX not in self.listed:
            raise InputError(f"{self.path} holds no {_MODEL}; there is {', '.join([*self.listed][:12]) or 'nothing'}")
        found = self.json(_INDEX).get("weight_map")
        if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
            raise InputError(f"{self.path}: {_INDEX} has no weight_map from names to files")
        wanted = None if needed is None else {*needed}
        return sorted({file for name, file in found.items() if wanted is None or name in wanted})

    def _header(self, file: File) -> dict[str, Tensor]:
        head = self.bytes(file, 0, min(_FIRST_BYTES, file.size))
        length = int.from_bytes(head[:8], "little")
        if length > min(_MAX_HEADER, file.size - 8):
            raise InputError(
                f"{self.path}: {file.name} has {file.size} bytes, of which {length} would be its header; it is "
                "damaged, or no safetensors file"
            )
        if len(head) < 8 + length:
            head += self.bytes(file, len(head), 8 + length)
        with explaining_damage(self.path, f"the header of {file.name}", self.format):
            fields = json.loads(head[8 : 8 + length])
            fields.pop("__metadata__", None)
            return {name: self._tensor(name, of, file, 8 + length) for name, of in fields.items()}

    def _tensor(self, name: str, fields: dict[str, Any], file: File, data: int) -> Tensor:
        begin, end = (int(n) for n in fields["data_offsets"])
        entry = entry_of(fields)
        if not 0 <= begin <= end <= file.size - data or (entry.dtype is not None and end - begin != entry.nbytes):
            raise ValueError(f"{name!r} is {entry}, but its bytes are {begin} to {end}")
        return Tensor({"dtype": fields["dtype"], "shape": list(entry.shape)}, file, data + begin, data + end)

    def bytes(self, file: File, begin: int, end: int) -> bytes:
        """Return a part of a file."""
        return b"".join(self.hub.read(self.revision.name, self.revision.commit, file, begin, end))

    def json(self, name: str) -> dict[str, Any]:
        """Return the content of a JSON file."""
        file = self.listed[name]
        if file.size > _MAX_TEXT:
            raise InputError(f"{self.path}: {name} has {file.size} bytes; expected: at most {_MAX_TEXT}")
        content = self.bytes(file, 0, file.size)
        with explaining_damage(self.path, name, "JSON"):
            found = json.loads(content)
            if not isinstance(found, dict):
                raise ValueError("expected: names and values")
            return found

    def read(self, name: str, *where: slice) -> NDArray[Any]:
        tensor, entry = self.tensors[name], self.entries[name]
        assert entry.dtype is not None
        rows = where[0] if where else slice(0, entry.shape[0] if entry.shape else 1)
        width = math.prod(entry.shape[1:]) * entry.dtype.itemsize
        data = self.bytes(tensor.file, tensor.begin + rows.start * width, tensor.begin + rows.stop * width)
        values = np.frombuffer(data, entry.dtype).reshape(-1, *entry.shape[1:])
        return values[(slice(None), *where[1:])] if entry.shape else values.reshape(())

    def files(self) -> list[Path]:
        return []

    def unwritten(self, name: str) -> list[range]:
        return []

    def close(self) -> None:
        pass


def pickled_bytes(files: Mapping[str, File]) -> int:
    """Return the bytes of a revision whose weights are there as pickles alone; 0 if they are not."""
    if not _pickles_alone(files):
        return 0
    return sum(file.size for file in files.values() if file.name.endswith(".bin"))


def _pickles_alone(files: Mapping[str, File]) -> bool:
    return not {_MODEL, _INDEX} & {*files} and bool({*_PICKLED} & {*files})
