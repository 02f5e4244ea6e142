"""Zarr arrays and groups of versions 2 and 3 as a source, and folders of arrays, as T5X writes them.

bfloat16 has several names in Zarr, and some are unknown to the library: void of two bytes, or "bfloat16" in version 2.
Such arrays are opened as uint16, whose words are the bits of bfloat16.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from deadtok_xr.bfloat16 import BFLOAT16
from deadtok_xr.conversion.readers.source import (
    PACKED,
    Entry,
    Source,
    describe_part,
    dtype_of,
    explaining_damage,
    unreadable_type,
)
from deadtok_xr.errors import InputError
from deadtok_xr.schema import MONITOR, RECORDING, RESULTS

_METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs")
_MAX_METADATA = 64 * 2**20
_MAX_ARRAYS = 100_000
_BFLOAT16 = ("bfloat16", "<V2", "|V2", "V2", "void16", "r16")


@dataclass(frozen=True)
class _Array:
    """Metadata of an array, with the type under which zarr opens it."""

    folder: Path
    metadata: dict[str, Any]
    attributes: dict[str, Any]
    version: int

    @property
    def type_name(self) -> str:
        found = self.metadata.get("dtype") if self.version == 2 else self.metadata.get("data_type")
        if isinstance(found, dict):
            bits = (found.get("configuration") or {}).get("length_bytes")
            return f"V{bits}" if found.get("name") == "raw_bytes" else str(found.get("name"))
        return str(found)

    @property
    def is_bfloat16(self) -> bool:
        return self.type_name in _BFLOAT16

    @property
    def chunks(self) -> tuple[int, ...]:
        """The part of the array that one file holds: a chunk, or a shard of several."""
        grid = self.metadata.get("chunk_grid") or {}
        found = self.metadata["chunks"] if self.version == 2 else grid["configuration"]["chunk_shape"]
        return tuple(max(1, int(n)) for n in found)

    @property
    def dims(self) -> tuple[str, ...]:
        found = self.metadata.get("dimension_names") or self.attributes.get("_ARRAY_DIMENSIONS") or ()
        return tuple("" if name is None else str(name) for name in found)


class ZarrSource(Source):
    """The arrays below a folder by their paths, and the attributes of the group."""

    format = "Zarr"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: tuple[str, zarr.Array[Any]] | None = None
        with explaining_damage(path, "its metadata", self.format):
            self.attributes: Mapping[str, Any] = _attributes(path)
            if RECORDING in self.attributes:
                raise InputError(
                    f"{path} is a recording store already: open it with deadtok_xr.open_recording, or look at it with "
                    "`deadtok info`"
                )
            for mark, what in ((RESULTS, "the results of analyses"), (MONITOR, "what a Monitor counted")):
                if mark in self.attributes:
                    opener = mark.replace("deadtok_", "open_")
                    raise InputError(f"{path} holds {what}, and no weights: open it with deadtok_xr.{opener}")
            self._arrays = dict(_found(path))
            self.entries = {name: self._entry(name) for name in self._arrays}
            self.dims = {name: a.dims for name, a in self._arrays.items() if a.dims}
        if not self.entries:
            raise InputError(f"{path} is a Zarr group without arrays; expected: an array with the weights")

    def _entry(self, name: str) -> Entry:
        array = self._arrays[name]
        shape = tuple(int(n) for n in array.metadata["shape"])
        if any(n < 0 for n in shape):
            raise ValueError(f"an array of the shape {shape}")
        if PACKED & {*array.attributes}:
            return Entry(shape, None, f"{array.type_name}, packed with a scale or an offset")
        if array.is_bfloat16:
            return Entry(shape, BFLOAT16, _bfloat16_name(array.type_name), self._buffer(array, 2))
        try:
            dtype = self._dataset(name).dtype
        except (ValueError, KeyError, TypeError, NotImplementedError):
            return Entry(shape, None, unreadable_type(array.type_name))
        if dtype.kind not in "biuf" and dtype != BFLOAT16:
            return Entry(shape, None, unreadable_type(dtype.name))
        return Entry(shape, dtype.newbyteorder("="), dtype.name, self._buffer(array, dtype.itemsize))

    def _buffer(self, array: _Array, itemsize: int) -> int:
        """Return the size of a row of chunks, which are decompressed as a whole."""
        across = [math.ceil(n / c) for n, c in zip(array.metadata["shape"][1:], array.chunks[1:], strict=True)]
        return math.prod([*across, *array.chunks, itemsize])

    def _dataset(self, name: str) -> zarr.Array[Any]:
        if self._open is None or self._open[0] != name:
            self._open = name, _opened(self._arrays[name])
        return self._open[1]

    def read(self, name: str, *where: slice) -> NDArray[Any]:
        dtype = dtype_of(self, name)
        with explaining_damage(self.path, describe_part(name, where), self.format):
            values = np.asarray(self._dataset(name)[where or ...])
        if values.dtype == dtype:
            return values
        return values.view(dtype) if values.dtype == np.uint16 and dtype == BFLOAT16 else values.astype(dtype)

    def unwritten(self, name: str) -> list[range]:
        """Return parts of the first axis of which no chunk is there: they read as the fill value.

        A fill value of NaN shows in the values themselves.
        """
        array = self._arrays[name]
        fill = array.metadata.get("fill_value")
        if not self.entries[name].shape or fill in ("NaN", "nan"):
            return []
        with explaining_damage(self.path, f"variable {name!r}", self.format):
            dataset = self._dataset(name)
            height, n = array.chunks[0], dataset.shape[0]
            rows = range(math.ceil(n / height))
            return [range(i * height, min((i + 1) * height, n)) for i in rows if not _row_exists(array, dataset, i)]

    def files(self) -> list[Path]:
        """Return every file of the metadata and the chunks of the arrays."""
        return self._files

    @cached_property
    def _files(self) -> list[Path]:
        found = [self.path / name for name in _METADATA if (self.path / name).is_file()]
        for array in self._arrays.values():
            for folder, _, names in os.walk(array.folder):
                place = Path(folder)
                found += [place / name for name in sorted(names)]
        return list(dict.fromkeys(found))

    def close(self) -> None:
        self._open = None


def holds_arrays(folder: Path) -> bool:
    """Return whether a folder holds Zarr arrays without being a group, as T5X writes checkpoints."""
    return any((item / ".zarray").is_file() for item in folder.iterdir() if item.is_dir())


def _bfloat16_name(name: str) -> str:
    return "bfloat16" if name == "bfloat16" else "void of two bytes"


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    if path.stat().st_size > _MAX_METADATA:
        raise ValueError(f"{path.name} has more than {_MAX_METADATA} bytes")
    found = json.loads(path.read_text("utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} holds no names and values")
    return found


def _attributes(folder: Path) -> dict[str, Any]:
    return {**_json(folder / ".zattrs"), **(_json(folder / "zarr.json").get("attributes") or {})}


def _found(path: Path) -> Iterator[tuple[str, _Array]]:
    """Yield the arrays at and below a folder; links that lead out of it are not followed."""
    n = 0
    for folder, below, _ in os.walk(path):
        below.sort()
        place = Path(folder)
        version = 2 if (place / ".zarray").is_file() else 3
        metadata = _json(place / (".zarray" if version == 2 else "zarr.json"))
        if version == 3 and metadata.get("node_type") != "array":
            continue
        below.clear()
        n += 1
        if n > _MAX_ARRAYS:
            raise ValueError(f"more than {_MAX_ARRAYS} arrays")
        name = place.relative_to(path).as_posix() if place != path else path.name
        yield name, _Array(place, metadata, _attributes(place), version)


def _opened(array: _Array) -> zarr.Array[Any]:
    """Open an array of a folder; words that are bfloat16 as uint16."""
    from zarr.core.metadata import ArrayV2Metadata, ArrayV3Metadata
    from zarr.storage import LocalStore, StorePath

    found = dict(array.metadata)
    if array.is_bfloat16:
        found |= {
            "fill_value": 0,
            "dtype" if array.version == 2 else "data_type": "<u2" if array.version == 2 else "uint16",
        }
    metadata: Any
    if array.version == 2:
        metadata = ArrayV2Metadata.from_dict({**found, "attributes": {}})
    else:
        metadata = ArrayV3Metadata.from_dict({**found, "attributes": {}})
    store = StorePath(LocalStore(array.folder, read_only=True))
    return zarr.Array(zarr.AsyncArray(metadata=metadata, store_path=store))


def _row_exists(array: _Array, dataset: zarr.Array[Any], i: int) -> bool:
    """Return whether any chunk of a row of chunks is there."""
    across = [range(math.ceil(n / c)) for n, c in zip(dataset.shape[1:], array.chunks[1:], strict=True)]
    positions = ((i, *rest) for rest in np.ndindex(*map(len, across)))
    return any((array.folder / dataset.metadata.encode_chunk_key(position)).is_file() for position in positions)
