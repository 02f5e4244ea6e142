"""HDF5 files as a source."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from deadtok_xr.bfloat16 import BFLOAT16
from deadtok_xr.conversion.readers.source import (
    PACKED,
    TEXTS,
    Entry,
    Source,
    describe_part,
    explaining_damage,
    read_slab,
    unreadable_type,
)
from deadtok_xr.errors import InputError
from deadtok_xr.store.hdf5_values import check_inside

_DEFAULT_CACHE = 2**20


@dataclass(frozen=True)
class _Blocks:
    """The position in its file of a dataset that is stored as plain bytes: blocks of ``height`` rows, in order."""

    height: int
    offsets: list[int]


class Hdf5Source(Source):
    """The datasets of an HDF5 file, those in groups by their path; its root attributes."""

    format = "HDF5"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._current: tuple[str, h5py.Dataset] | None = None
        self._bytes: _Blocks | None = None
        with explaining_damage(path, "the file", self.format):
            self._file = h5py.File(path, "r")
            self._plain = path.open("rb", buffering=0)
        try:
            with explaining_damage(path, "its table of contents", self.format):
                found: dict[str, Entry] = {}
                dims: dict[str, tuple[str, ...]] = {}
                self._file.visititems(lambda name, item: _note(found, dims, name, item))
                self.entries, self.dims = found, dims
                self.attributes = {**_own_attributes(self._file), **_texts(path, self._file)}
        except BaseException:
            self.close()
            raise

    def read(self, name: str, *where: slice) -> NDArray[Any]:
        entry = self.entries[name]
        with explaining_damage(self.path, describe_part(name, where), self.format):
            dataset = self._dataset(name)
            if self._bytes is not None and entry.shape:
                return self._from_bytes(self._bytes, entry, where)
            values = np.asarray(dataset[where])
        if values.dtype.kind == "V" and entry.dtype == BFLOAT16:
            return values.view(BFLOAT16)
        return values if values.dtype == entry.dtype else values.astype(entry.dtype)  # changes only the byte order

    def _from_bytes(self, blocks: _Blocks, entry: Entry, where: tuple[slice, ...]) -> NDArray[Any]:
        """Read plain bytes from the file itself: HDF5 takes twice as long, as it copies them to its buffers."""
        assert entry.dtype is not None
        rows, *rest = where or (slice(0, entry.shape[0]),)
        parts = []
        for i in range(rows.start // blocks.height, math.ceil(rows.stop / blocks.height)):
            start = i * blocks.height
            part = slice(max(rows.start - start, 0), min(rows.stop - start, blocks.height))
            shape = (blocks.height, *entry.shape[1:])
            parts.append(read_slab(self._plain, blocks.offsets[i], entry.dtype, shape, (part, *rest)))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def files(self) -> list[Path]:
        return [self.path]

    def _dataset(self, name: str) -> h5py.Dataset:
        """Return the dataset, opened with a cache that holds each compressed chunk until all of it is read."""
        if self._current is None or self._current[0] != name:
            self._current = None  # this also releases its cache
            access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
            size = max(_DEFAULT_CACHE, self.entries[name].buffer_bytes)
            access.set_chunk_cache(10007, size, 1.0)
            dataset = h5py.Dataset(h5py.h5d.open(self._file.id, name.encode(), access))
            check_inside(self.path, dataset)
            self._current, self._bytes = (name, dataset), _plain_blocks(self._file, dataset, self.entries[name])
        return self._current[1]

    def unwritten(self, name: str) -> list[range]:
        with explaining_damage(self.path, f"variable {name!r}", self.format):
            dataset = self._dataset(name)
            n = dataset.shape[0]
            if dataset.is_virtual:
                return self._virtual_gaps(name, dataset)
            if dataset.chunks is None:
                plist = dataset.id.get_create_plist()
                plain = plist.get_layout() == h5py.h5d.CONTIGUOUS and plist.get_external_count() == 0
                return [range(n)] if plain and dataset.size and not dataset.id.get_storage_size() else []
            return _gaps(_written_rows(dataset), dataset.chunks[0], n)

    def _virtual_gaps(self, name: str, dataset: h5py.Dataset) -> list[range]:
        """Return the unwritten parts of a virtual dataset: they read as zeros, as do parts whose file is missing."""
        parts = dataset.virtual_sources()
        lost = {p.file_name for p in parts if p.file_name != "." and not (self.path.parent / p.file_name).exists()}
        if lost:
            raise InputError(
                f"{self.path}: variable {name!r} consists of parts in {', '.join(sorted(lost))}, which does not exist: "
                f"put it beside {self.path.name}"
            )
        mapped = sum(p.vspace.get_select_npoints() for p in parts)
        return [range(dataset.shape[0])] if mapped < dataset.size else []

    def close(self) -> None:
        self._current = None
        self._file.close()
        self._plain.close()


def _own_attributes(file: h5py.File) -> dict[str, Any]:
    return {name: value for name, value in file.attrs.items() if name != "_NCProperties"}


def _texts(path: Path, file: h5py.File) -> dict[str, list[str]]:
    """Read the texts of the tokens, if they are a dataset of the file."""
    item = file.get(TEXTS)
    if not isinstance(item, h5py.Dataset) or h5py.check_string_dtype(item.dtype) is None or item.ndim != 1:
        return {}
    check_inside(path, item)
    return {TEXTS: [str(text) for text in item.asstr()[...]]}


def _note(found: dict[str, Entry], dims: dict[str, tuple[str, ...]], name: str, item: Any) -> None:
    if isinstance(name, bytes):  # h5py gives names that are not UTF-8 as bytes
        raise ValueError(f"the name {name!r} is not UTF-8")
    if not isinstance(item, h5py.Dataset) or item.shape is None or (name == TEXTS and item.dtype.kind == "O"):
        return
    if _text(item.attrs.get("NAME")).startswith(_DIMENSION_ALONE):
        return
    names = tuple(_scale(axis) for axis in item.dims)
    if item.is_scale and len(item.shape) == 1:
        names = (name,)  # the coordinate of its own dimension
    if any(names):
        dims[name] = names
    found[name] = Entry(tuple(item.shape), *_types(item), _buffer_bytes(item))


_DIMENSION_ALONE = "This is a netCDF dimension but not a netCDF variable"


def _types(item: h5py.Dataset) -> tuple[np.dtype[Any] | None, str]:
    """Return the dtype of the values that are read, and the name of the type in the file."""
    if PACKED & {*item.attrs}:
        return None, f"{item.dtype.name}, packed with a scale or an offset"
    if item.dtype.kind in "biuf":
        return item.dtype.newbyteorder("="), item.dtype.name
    if item.dtype.kind == "V" and item.dtype.names is None and item.dtype.subdtype is None:
        if item.dtype.itemsize == 2:
            return BFLOAT16, "void of two bytes"
        return None, unreadable_type(_text(item.attrs.get("dtype")) or item.dtype.name)
    return None, item.dtype.name


def _scale(axis: Any) -> str:
    """Return the name of an axis: that of its dimension scale, or its label."""
    return str(axis[0].name).removeprefix("/") if len(axis) else str(axis.label)


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value if value is not None else "")


def _buffer_bytes(dataset: h5py.Dataset) -> int:
    """Return the size of a row of chunks if they are compressed; uncompressed ones are read from disk part by part."""
    if dataset.chunks is None or not dataset.id.get_create_plist().get_nfilters():
        return 0
    across = [math.ceil(n / c) for n, c in zip(dataset.shape[1:], dataset.chunks[1:], strict=True)]
    return math.prod([*across, *dataset.chunks, dataset.dtype.itemsize])


def _plain_blocks(file: h5py.File, dataset: h5py.Dataset, entry: Entry) -> _Blocks | None:
    """Return where the values lie if they can be read as plain bytes; None if they need decoding."""
    plist = dataset.id.get_create_plist()
    # bool is an enumeration in HDF5; after a user block, offsets are relative to its end
    as_read = (
        entry.dtype is not None
        and entry.dtype != BFLOAT16
        and dataset.id.get_type().equal(h5py.h5t.py_create(entry.dtype))
    )
    if file.userblock_size or not as_read or dataset.dtype == bool or not dataset.size:
        return None
    if plist.get_layout() == h5py.h5d.CONTIGUOUS and not plist.get_external_count() and dataset.shape:
        offset = dataset.id.get_offset()
        return None if offset is None else _Blocks(dataset.shape[0], [offset])
    whole_rows = dataset.chunks is not None and dataset.chunks[1:] == dataset.shape[1:]
    if plist.get_layout() != h5py.h5d.CHUNKED or plist.get_nfilters() or not whole_rows:
        return None
    found: dict[int, int] = {}
    dataset.id.chunk_iter(lambda chunk: found.update({chunk.chunk_offset[0]: chunk.byte_offset}))
    starts = range(0, dataset.shape[0], dataset.chunks[0])
    return _Blocks(dataset.chunks[0], [found[s] for s in starts]) if sorted(found) == list(starts) else None


def _written_rows(dataset: h5py.Dataset) -> list[int]:
    """Return where complete rows of chunks begin, in order. The cost depends on the written chunks alone."""
    counts: Counter[int] = Counter()
    dataset.id.chunk_iter(lambda chunk: counts.update((chunk.chunk_offset[0],)))  # asking for each chunk is quadratic
    across = math.prod(math.ceil(n / c) for n, c in zip(dataset.shape[1:], dataset.chunks[1:], strict=True))
    return sorted(start for start, count in counts.items() if count == across)


def _gaps(starts: list[int], height: int, n: int) -> list[range]:
    """Return the gaps between rows of chunks."""
    ends = [0, *(start + height for start in starts)]
    return [range(end, start) for end, start in zip(ends, [*starts, n], strict=True) if end < start]
