"""Checkpoints of torch.distributed.checkpoint (DCP) as a source: a folder of ``.distcp`` files and their ``.metadata``.

The metadata is a pickle. It is read with the few classes of DCP alone, each replaced by one that only keeps its values,
so that no code of the file, or named by it, runs. The parts of a tensor are torch files inside of the ``.distcp``
files; torch opens them with ``weights_only=True``.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from deadtok_xr.conversion.readers.source import (
    Entry,
    Source,
    describe_part,
    dtype_of,
    explaining_damage,
    unreadable_type,
)
from deadtok_xr.conversion.readers.torch_checkpoint import DTYPES, as_numpy, check_archive
from deadtok_xr.errors import InputError

_METADATA = ".metadata"
_MAX_METADATA = 512 * 2**20
_MAX_OBJECT = 2**20
_MAX_OBJECTS = 10_000
_MAX_NUMBERS = 1000
_AGAIN = "copy the folder again from the original"
_ADVICE = (
    "make one file of it where it was made, with "
    "torch.distributed.checkpoint.format_utils.dcp_to_torch_save(FOLDER, FILE)"
)
_NEVER = {"BYTEARRAY8", "NEXT_BUFFER", "READONLY_BUFFER", "PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4"}
"""Operations of a pickle that may take more memory than the file has bytes, or need what is not there."""
_MODULE = re.compile(r"torch\.distributed\.checkpoint\.(metadata|filesystem|_[a-z_]+|planner)")

_PATH_MODULES = ("pathlib", "pathlib._local")
"""Where pickles find the classes of paths; the second since Python 3.13, whatever Python reads them."""


class _CodeError(Exception):
    """An object of which only running code would make something."""


class _Values:
    """What stands in for a class of DCP: it keeps the values that an object was saved with."""

    state: Any = None

    def __init__(self, *values: Any) -> None:
        self.values = values

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)
        else:
            self.state = state


def _joined(*parts: str) -> str:
    return "/".join(str(part) for part in parts)


class _Unpickler(pickle.Unpickler):
    """An unpickler that knows the classes of DCP's metadata alone, and replaces each of them."""

    def find_class(self, module: str, name: str) -> Any:
        plain: dict[tuple[str, str], Callable[..., Any]] = {
            ("torch", "Size"): tuple, ("torch.serialization", "_get_layout"): str, ("collections", "OrderedDict"): dict,
        }  # fmt: skip
        if module in _PATH_MODULES and name in ("PosixPath", "WindowsPath", "PurePosixPath"):
            return _joined
        if (module, name) in plain:
            return plain[module, name]
        if _MODULE.fullmatch(module) and re.fullmatch(r"\w+", name):
            return int if name == "_MEM_FORMAT_ENCODING" else _Values
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return name
        raise pickle.UnpicklingError(f"{module}.{name}")


@dataclass(frozen=True)
class _Part:
    """A part of a tensor: where it begins in the tensor, its shape, and where its bytes are."""

    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    file: Path
    begin: int
    length: int


class DcpSource(Source):
    """The tensors and numbers of a checkpoint by their dotted names; its texts as attributes."""

    format = "torch.distributed.checkpoint"

    def __init__(self, path: Path) -> None:
        self.path = path
        metadata = self._metadata()
        with explaining_damage(path / _METADATA, "its content", "metadata of a checkpoint"):
            stored = dict(self._stored(metadata))
            found = dict(metadata.state_dict_metadata)
            self._parts = {name: self._parts_of(name, item, stored) for name, item in found.items()}
            self.entries: Mapping[str, Entry] = {
                name: _entry(item, self._parts[name]) for name, item in found.items() if hasattr(item, "size")
            }
        self._loaded: tuple[_Part, torch.Tensor] | None = None
        self._numbers: dict[str, NDArray[Any]] = {}
        self.attributes: Mapping[str, Any] = {}
        self.entries = {**self.entries, **dict(self._objects([name for name in found if name not in self.entries]))}

    def _metadata(self) -> Any:
        path = self.path / _METADATA
        size = path.stat().st_size
        if size > _MAX_METADATA:
            raise InputError(f"{path} has {size} bytes; expected: at most {_MAX_METADATA}; {_ADVICE}")
        try:
            content = path.read_bytes()
            if any(opcode.name in _NEVER for opcode, _, _ in pickletools.genops(content)):
                raise ValueError("buffers or persistent objects, which the metadata does not have")
            found = _Unpickler(io.BytesIO(content)).load()
        except pickle.UnpicklingError as error:
            said = " ".join(str(error).split())
            if re.fullmatch(r"[\w.]+\.\w+", said):
                raise InputError(
                    f"{path} holds {said}, which could run code and was not loaded; expected: tensors and numbers; "
                    f"{_ADVICE}"
                ) from error
            raise InputError(f"{path} cannot be read ({said[:160]}): it is damaged; {_AGAIN}") from error
        except Exception as error:  # for a damaged pickle nearly any exception is raised
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise InputError(f"{path} cannot be read ({reason}): it is damaged; {_AGAIN}") from error
        if not isinstance(getattr(found, "state_dict_metadata", None), dict):
            raise InputError(f"{path} holds no names of tensors; expected: the metadata of a checkpoint; {_AGAIN}")
        return found

    def _stored(self, metadata: Any) -> Iterator[tuple[tuple[str, tuple[int, ...] | None], Any]]:
        """Yield where each part lies, by the name and the offsets of the part."""
        for index, info in metadata.storage_data.items():
            if getattr(info, "transform_descriptors", None):
                raise InputError(
                    f"{self.path} is compressed ({', '.join(map(str, info.transform_descriptors))}), which is not "
                    f"read; {_ADVICE}"
                )
            found = getattr(index, "offset", None)
            offset = None if found is None else tuple(int(n) for n in found)
            yield (str(index.fqn), offset), info

    def _parts_of(self, name: str, item: Any, stored: Mapping[Any, Any]) -> list[_Part]:
        if not hasattr(item, "size"):
            info = stored.get((name, None))
            return [] if info is None else [self._part((), (), info)]
        parts = []
        for chunk in item.chunks:
            offsets, sizes = (tuple(int(n) for n in values) for values in (chunk.offsets, chunk.sizes))
            info = stored.get((name, offsets))
            if info is None:
                raise InputError(f"{self.path / _METADATA} does not say where {name!r} at {offsets} lies; {_AGAIN}")
            parts.append(self._part(offsets, sizes, info))
        return parts

    def _part(self, offsets: tuple[int, ...], shape: tuple[int, ...], info: Any) -> _Part:
        file, begin, length = str(info.relative_path), int(info.offset), int(info.length)
        if not re.fullmatch(r"[\w.-]+", file) or file in (".", ".."):
            raise InputError(f"{self.path / _METADATA} names the file {file!r}; expected: files in the same folder")
        path = self.path / file
        if not path.is_file():
            raise InputError(f"{self.path} lacks the file {file!r}, which {_METADATA} names; {_AGAIN}")
        if begin < 0 or length < 0 or begin + length > path.stat().st_size:
            raise InputError(f"{path} is truncated: {_METADATA} names its bytes {begin} to {begin + length}; {_AGAIN}")
        return _Part(offsets, shape, path, begin, length)

    def _objects(self, names: list[str]) -> Iterator[tuple[str, Entry]]:
        """Read numbers and texts, which were saved as objects; yield the entries of numbers and of unread objects."""
        for name in names[:_MAX_OBJECTS]:
            if not self._parts[name] or self._parts[name][0].length > _MAX_OBJECT:
                continue
            try:
                value = self._load(self._parts[name][0])
            except _CodeError as error:
                yield name, Entry((), None, str(error))
                continue
            if isinstance(value, str):
                self.attributes = {**self.attributes, name: value}
            number = _number(value)
            if number is not None:
                self._numbers[name] = number
                yield name, Entry(number.shape, number.dtype, number.dtype.name)

    def _load(self, part: _Part) -> Any:
        """Load a part of a tensor, or an object."""
        with part.file.open("rb") as file:
            file.seek(part.begin)
            content = io.BytesIO(file.read(part.length))
        what = f"{part.file}: the bytes {part.begin} to {part.begin + part.length}"
        with explaining_damage(self.path, what, "torch"):
            check_archive(part.file, content, part.length)
            content.seek(0)
            try:
                return torch.load(content, map_location="cpu", weights_only=True)
            except Exception as error:  # for a damaged file torch raises nearly any exception
                code = re.search(r"GLOBAL (\S{1,80})", str(error))
                if code is not None:
                    raise _CodeError(f"a {code[1]}, which could run code and was not loaded") from error
                raise ValueError(str(error)) from error

    def read(self, name: str, *where: slice) -> NDArray[Any]:
        dtype = dtype_of(self, name)
        if name in self._numbers:
            return self._numbers[name][where or ...].copy()
        shape = self.entries[name].shape
        full = (*where, *(slice(0, n) for n in shape[len(where) :]))
        values = np.empty([s.stop - s.start for s in full], dtype)
        filled = 0
        for part in self._parts[name]:
            spans = [
                (max(s.start, at), min(s.stop, at + n)) for s, at, n in zip(full, part.offsets, part.shape, strict=True)
            ]
            if any(start >= stop for start, stop in spans):
                continue
            inner = tuple(slice(a - at, b - at) for (a, b), at in zip(spans, part.offsets, strict=True))
            outer = tuple(slice(a - s.start, b - s.start) for (a, b), s in zip(spans, full, strict=True))
            values[outer] = self._tensor(name, part, dtype, where)[inner]
            filled += math.prod(b - a for a, b in spans)
        if filled < values.size:
            raise InputError(f"{self.path}: {describe_part(name, where)} is not in any of its files; {_AGAIN}")
        return values

    def _tensor(self, name: str, part: _Part, dtype: np.dtype[Any], where: tuple[slice, ...]) -> NDArray[Any]:
        if self._loaded is None or self._loaded[0] is not part:
            self._loaded = None  # so that only one part is in memory
            tensor = self._load(part)
            if not isinstance(tensor, torch.Tensor) or tuple(tensor.shape) != part.shape:
                raise InputError(f"{part.file}: {describe_part(name, where)} has another shape; {_AGAIN}")
            if DTYPES.get(tensor.dtype) != dtype:
                raise InputError(f"{part.file}: {name!r} is {tensor.dtype}, but {_METADATA} says {dtype}; {_AGAIN}")
            self._loaded = part, tensor
        return as_numpy(self._loaded[1])

    def files(self) -> list[Path]:
        parts = [part.file for parts in self._parts.values() for part in parts]
        return [self.path / _METADATA, *sorted(dict.fromkeys(parts))]

    def unwritten(self, name: str) -> list[range]:
        return []

    def close(self) -> None:
        self._loaded = None


def _entry(item: Any, parts: list[_Part]) -> Entry:
    """Return the entry of a tensor, whose properties were saved as a tuple or by their names."""
    properties = item.properties
    name = str(properties.state[0] if isinstance(properties.state, tuple) else properties.dtype)
    shape = tuple(int(n) for n in item.size)
    if any(n < 0 for n in shape):
        raise ValueError(f"a tensor of the shape {shape}")
    dtype = DTYPES.get(cast(torch.dtype, getattr(torch, name, None)))
    if dtype is None:
        return Entry(shape, None, unreadable_type(name))
    return Entry(shape, dtype, name, 2 * max((part.length for part in parts), default=0))


def _number(value: Any) -> NDArray[Any] | None:
    """Return a number, or a short list of numbers, as an array; None for anything else."""
    if isinstance(value, torch.Tensor):
        return as_numpy(value).copy() if value.dtype in DTYPES and value.numel() <= _MAX_NUMBERS else None
    items = value if isinstance(value, (list, tuple)) else [value]
    if not 0 < len(items) <= _MAX_NUMBERS or not {type(item) for item in items} <= {bool, int, float}:
        return None
    found = np.array(value)
    return found if found.dtype.kind in "bif" else None  # an integer beyond 64 bits is an object
