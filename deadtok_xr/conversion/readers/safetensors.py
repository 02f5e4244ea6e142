"""Safetensors files as a source.

The header is parsed here, because the safetensors library returns bfloat16 as torch tensors but not as NumPy arrays,
and a mapped file would count as memory in use. Values are read from the file part by part.
"""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np

from deadtok_xr.bfloat16 import BFLOAT16
from deadtok_xr.conversion.readers.source import Entry, PlainFile, unreadable_type
from deadtok_xr.errors import InputError

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(bool),
    "BF16": BFLOAT16,
    **{f"F{8 * n}": np.dtype(f"<f{n}") for n in (2, 4, 8)},
    **{f"I{8 * n}": np.dtype(f"<i{n}") for n in (1, 2, 4, 8)},
    **{f"U{8 * n}": np.dtype(f"<u{n}") for n in (1, 2, 4, 8)},
}


class SafetensorsSource(PlainFile):
    """The tensors of a safetensors file; its metadata as attributes."""

    format = "safetensors"

    def _read_header(self) -> None:
        header, self._data = self._header()
        self.attributes = dict(header.pop("__metadata__", None) or {})
        self.entries = {name: entry_of(fields) for name, fields in header.items()}
        self._begins = {name: self._checked_begin(name, fields) for name, fields in header.items()}

    def _header(self) -> tuple[dict[str, Any], int]:
        size = os.fstat(self._file.fileno()).st_size
        length = int.from_bytes(self._file.read(8), "little")
        if length > size - 8:
            raise InputError(
                f"{self.path} is truncated: its header needs {length} bytes, but the file ends after "
                f"{size - 8}; copy it again from the original"
            )
        return json.loads(self._file.read(length)), 8 + length

    def _checked_begin(self, name: str, fields: dict[str, Any]) -> int:
        """Return where a tensor begins in the file, after checking that the file holds all of it."""
        begin, end = (int(x) for x in fields["data_offsets"])
        entry = self.entries[name]
        if not 0 <= begin <= end or (entry.dtype is not None and end - begin != entry.nbytes):
            raise InputError(
                f"{self.path} is damaged: {name!r} is {entry}, but its bytes are {begin}..{end}; copy it "
                "again from the original"
            )
        self._require_bytes(name, self._data + end, os.fstat(self._file.fileno()).st_size)
        return self._data + begin


def entry_of(fields: dict[str, Any]) -> Entry:
    """Return the entry of a tensor from its fields in a header."""
    shape = tuple(int(n) for n in fields["shape"])
    if any(n < 0 for n in shape):
        raise ValueError(f"a tensor of the shape {shape}")
    dtype = DTYPES.get(fields["dtype"])
    return Entry(shape, dtype, unreadable_type(fields["dtype"]) if dtype is None else dtype.name)
