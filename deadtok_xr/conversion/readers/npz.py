"""NumPy's own files as a source: .npz archives, and single .npy arrays under the name of their file.

NumPy reads the headers, and nothing is unpickled. Uncompressed members of an archive are read from the file part by
part; compressed members are decompressed from their beginning, part by part.
"""

from __future__ import annotations

import json
import math
import re
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from deadtok_xr.bfloat16 import BFLOAT16
from deadtok_xr.conversion.readers.source import (
    TEXTS,
    Entry,
    Source,
    describe_part,
    dtype_of,
    explaining_damage,
    read_slab,
    unreadable_type,
)
from deadtok_xr.errors import InputError

_MAX_FORTRAN = 64 * 2**20
"""The largest array in Fortran order: it must be read as a whole to be transposed."""
_MAX_TEXT = 256 * 2**20
_MAX_RATIO = 1040
"""Deflate compresses at most by a factor of 1032."""


@dataclass
class _Member:
    """One array: its header, and where its numbers are.

    ``info`` is None for an .npy file. ``begin`` counts from the start of the file if the array is not compressed, else
    from the start of the decompressed member. ``crc`` is the checksum of its first ``summed`` bytes.
    """

    info: zipfile.ZipInfo | None
    begin: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool
    crc: int
    summed: int = 0

    @property
    def compressed(self) -> bool:
        return self.info is not None and self.info.compress_type != zipfile.ZIP_STORED

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class NpzSource(Source):
    """The arrays of an .npz archive by their names, or the array of an .npy file by the name of the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.attributes: Mapping[str, Any] = {}
        self._archive: zipfile.ZipFile | None = None
        self._stream: tuple[str, BinaryIO] | None = None
        self._members: dict[str, _Member] = {}
        self._file = path.open("rb", buffering=0)
        try:
            self.format = "npy" if self._file.read(6) == npy.MAGIC_PREFIX else "npz"
            with explaining_damage(path, "its table of contents", self.format):
                self.entries = dict(self._found())
        except BaseException:
            self.close()
            raise

    def _found(self) -> Iterator[tuple[str, Entry]]:
        if self.format == "npy":
            yield self.path.stem, self._entry(self.path.stem, None)
            return
        self._archive = zipfile.ZipFile(self.path)
        names = set()
        for info in self._archive.infolist():
            name = info.filename.removesuffix(".npy")
            if name in names:
                raise InputError(f"{self.path} holds {name!r} twice; expected: one array of each name; save it again")
            names.add(name)
            with explaining_damage(self.path, f"variable {name!r}", self.format):
                is_array = info.filename.endswith(".npy")
                if name in (TEXTS, "metadata") and is_array and self._take_text(name, info):
                    continue
                yield name, self._entry(name, info) if is_array else Entry((), None, "a file that is no array")

    def _take_text(self, name: str, info: zipfile.ZipInfo) -> bool:
        """Make an array of texts an attribute: the texts of tokens, or settings as JSON, as `export` writes them."""
        assert self._archive is not None
        if info.file_size > _MAX_TEXT:
            return False
        with self._archive.open(info) as stream:
            try:
                values = npy.read_array(cast(BinaryIO, stream), allow_pickle=False)
                found = {TEXTS: values.tolist()} if name == TEXTS else dict(json.loads(str(values[()])))
            except (ValueError, TypeError):
                return False
        if values.dtype.kind != "U":
            return False
        self.attributes = {**self.attributes, **found}
        return True

    def _entry(self, name: str, info: zipfile.ZipInfo | None) -> Entry:
        try:
            member = self._member(info)
        except _UnknownTypeError as error:
            return Entry((), None, unreadable_type(str(error)))
        kind = _unreadable(member)
        if not member.dtype.hasobject:
            self._check_size(name, member)
        if kind is not None:
            return Entry(member.shape, None, kind)
        self._members[name] = member
        dtype = BFLOAT16 if _is_bfloat16(member.dtype) else member.dtype.newbyteorder("=")
        type_name = "void of two bytes" if member.dtype.kind == "V" and member.dtype != BFLOAT16 else dtype.name
        return Entry(member.shape, dtype, type_name, member.nbytes if member.fortran else 0, member.compressed)

    def _member(self, info: zipfile.ZipInfo | None) -> _Member:
        if info is None:
            self._file.seek(0)
            return _Member(None, *_header(self._file))
        assert self._archive is not None
        if info.compress_type == zipfile.ZIP_DEFLATED and info.file_size > _MAX_RATIO * info.compress_size + 1000:
            raise ValueError(f"{info.compress_size} bytes cannot hold the {info.file_size} that the header promises")
        with self._archive.open(info) as stream:
            member = _Member(info, *_header(cast(BinaryIO, stream)))
        if not member.compressed:
            member.begin += self._data_offset(info)
        return member

    def _data_offset(self, info: zipfile.ZipInfo) -> int:
        """Return where the bytes of a member begin in the file, according to its local header."""
        self._file.seek(info.header_offset + 26)
        lengths = self._file.read(4)
        return info.header_offset + 30 + sum(int.from_bytes(lengths[i : i + 2], "little") for i in (0, 2))

    def _check_size(self, name: str, member: _Member) -> None:
        """Check that the file holds exactly the numbers that a header promises."""
        end = self._file.seek(0, 2)
        if member.info is None:
            there = end - member.begin
        elif member.compressed:
            there = member.info.file_size - member.begin
        else:
            start = self._data_offset(member.info)
            there = start + min(member.info.file_size, member.info.compress_size, end - start) - member.begin
        if there != member.nbytes:
            raise InputError(
                f"{self.path} is damaged or truncated: {name!r} is {member.dtype} {member.shape}, which needs "
                f"{member.nbytes} bytes, but there are {there}; copy it again from the original"
            )

    def read(self, name: str, *where: slice) -> NDArray[Any]:
        dtype = dtype_of(self, name)
        member = self._members[name]
        with explaining_damage(self.path, describe_part(name, where), self.format):
            file = self._decompressed(name, member) if member.compressed else cast(BinaryIO, self._file)
            if member.fortran:
                transposed = read_slab(file, member.begin, member.dtype, member.shape[::-1], ())
                turned = np.ascontiguousarray(transposed.T[where])
                return turned.view(BFLOAT16) if dtype == BFLOAT16 else turned.astype(dtype)
            values = read_slab(file, member.begin, member.dtype, member.shape, where)
            self._check_sum(member, where, values)
        if dtype == BFLOAT16:
            return values.view(BFLOAT16)
        return values if values.dtype == dtype else values.astype(dtype)  # changes only the byte order

    def _decompressed(self, name: str, member: _Member) -> BinaryIO:
        """Return a compressed member as a file. Seeking backwards starts again from its beginning."""
        if self._stream is None or self._stream[0] != name:
            self._close_stream()
            assert self._archive is not None
            assert member.info is not None
            self._stream = name, cast(BinaryIO, self._archive.open(member.info))
        return self._stream[1]

    def _check_sum(self, member: _Member, where: tuple[slice, ...], values: NDArray[Any]) -> None:
        """Check the checksum of an array that is read in order; zipfile checks compressed members itself."""
        if (
            member.info is None
            or member.compressed
            or any(s != slice(0, n) for s, n in zip(where[1:], member.shape[1:], strict=False))
        ):
            return
        row = member.nbytes // max(1, member.shape[0]) if member.shape else 0
        if (where[0].start * row if where else 0) != member.summed:
            return
        member.crc = zlib.crc32(values.reshape(-1).view(np.uint8).data, member.crc)
        member.summed += values.nbytes
        if member.summed == member.nbytes and member.crc != member.info.CRC:
            raise zipfile.BadZipFile("its checksum does not match")

    def files(self) -> list[Path]:
        return [self.path]

    def unwritten(self, name: str) -> list[range]:
        return []

    def _close_stream(self) -> None:
        if self._stream is not None:
            self._stream[1].close()
            self._stream = None

    def close(self) -> None:
        self._close_stream()
        if self._archive is not None:
            self._archive.close()
        self._file.close()


class _UnknownTypeError(Exception):
    """A type that NumPy does not know, by its name."""


def _is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Return whether a type is bfloat16, or void of two bytes, as which NumPy saves bfloat16 and no other type."""
    return dtype == BFLOAT16 or dtype == np.dtype("V2")


def _header(file: BinaryIO) -> tuple[int, np.dtype[Any], tuple[int, ...], bool, int]:
    """Return where the numbers begin, their dtype, shape and order, and the checksum of the header."""
    counting = _Counting(file)
    version = npy.read_magic(counting)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the format, which only structured types need")
    try:
        shape, fortran, dtype = read(counting)
    except ValueError as error:
        if match := re.search(r"descr is not a valid dtype descriptor: '([<|>]f1)'", str(error)):
            raise _UnknownTypeError(match[1]) from error
        raise
    except (SyntaxError, tokenize.TokenError) as error:  # NumPy parses headers of Python 2 in a second attempt
        raise ValueError("its header does not describe an array") from error
    if any(isinstance(n, bool) or n < 0 for n in shape):
        raise ValueError(f"an array of the shape {shape}")
    return counting.n, dtype, shape, fortran and len(shape) > 1, counting.crc


class _Counting:
    """A file that counts the bytes that are read, and computes their checksum."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.n, self.crc = file, 0, 0

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(size)
        self.n += len(data)
        self.crc = zlib.crc32(data, self.crc)
        return data


def _unreadable(member: _Member) -> str | None:
    """Describe an array that cannot be read; None if it can."""
    if member.dtype.hasobject:
        return (
            "Python objects, pickled, which are not loaded (save one stacked array: numpy.save(FILE, numpy.stack(...)))"
        )
    if member.dtype.kind not in "biuf" and not _is_bfloat16(member.dtype):
        return unreadable_type(member.dtype.name)
    if member.fortran and member.nbytes > _MAX_FORTRAN:
        return f"{member.dtype.name} in Fortran order (save it with numpy.ascontiguousarray)"
    return None
