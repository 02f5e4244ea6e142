"""GGUF files of llama.cpp as a source, as far as their tensors are not quantized.

The `gguf` package, which is optional, reads names, types and places; values are read from the file part by part.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.bfloat16 import BFLOAT16
from deadtok_xr.conversion.readers.source import TEXTS, Entry, Source, describe_part, explaining_damage, read_slab
from deadtok_xr.errors import InputError

_DTYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": BFLOAT16, "F64": np.dtype("<f8")}
_QUANTIZED = "quantized: the weights are no longer exact; convert the safetensors or torch files it was made from"
_TOKENS, _TOKENIZER = "tokenizer.ggml.tokens", "tokenizer.ggml.model"


class GgufSource(Source):
    """The tensors of a GGUF file; its numbers and texts as attributes, with the texts of the tokens."""

    format = "GGUF"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("rb", buffering=0)
        try:
            with explaining_damage(path, "its header", self.format):
                self._read_header()
        except BaseException:
            self.close()
            raise

    def _read_header(self) -> None:
        reader = _reader(self.path)
        if reader.endianess.name != "LITTLE":
            raise InputError(f"{self.path} was written for a machine with another byte order; convert it there")
        self._begins: dict[str, int] = {}
        entries: dict[str, Entry] = {}
        size = len(reader.data)
        for tensor in reader.tensors:
            name, kind, shape = tensor.name, tensor.tensor_type.name, tuple(int(n) for n in reversed(tensor.shape))
            dtype = _DTYPES.get(kind)
            entries[name] = Entry(shape, dtype, kind if dtype is None else dtype.name)
            if dtype is None:
                entries[name] = Entry(shape, None, f"{kind}, {_QUANTIZED}")
            elif (end := int(tensor.data_offset) + entries[name].nbytes) > size:
                raise InputError(
                    f"{self.path} is truncated: {name!r} ends at byte {end}, but the file has {size} bytes; copy it "
                    "again from the original"
                )
            self._begins[name] = int(tensor.data_offset)
        self.entries: Mapping[str, Entry] = entries
        self.attributes = dict(_attributes(reader))

    def read(self, name: str, *where: slice) -> NDArray[Any]:
        entry = self.entries[name]
        with explaining_damage(self.path, describe_part(name, where), self.format):
            assert entry.dtype is not None
            return read_slab(self._file, self._begins[name], entry.dtype, entry.shape, where)

    def files(self) -> list[Path]:
        return [self.path]

    def unwritten(self, name: str) -> list[range]:
        return []

    def close(self) -> None:
        self._file.close()


def _reader(path: Path) -> Any:
    try:
        from gguf import GGUFReader
    except ImportError:
        raise InputError(
            f"{path} is a GGUF file, which needs the package gguf, and that is not installed: pip install "
            '"deadtok_xr[gguf]"'
        ) from None

    class Bounded(GGUFReader):  # type: ignore[misc]
        """A reader that stops at the end of the file, instead of counting on through empty arrays."""

        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
            if int(offset) + np.dtype(dtype).itemsize * int(count) > len(self.data):
                raise ValueError("it ends too early")
            return super()._get(offset, dtype, count, override_order)

    return Bounded(path)


def _attributes(reader: Any) -> dict[str, Any]:
    """Return the numbers and texts of a file, and the texts of its tokens."""
    found: dict[str, Any] = {}
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or not field.types:
            continue
        kinds = [kind.name for kind in field.types]
        if kinds[0] != "ARRAY":
            found[name] = field.contents()
    tokens = reader.fields.get(_TOKENS)
    if tokens is not None and [kind.name for kind in tokens.types] == ["ARRAY", "STRING"]:
        found[TEXTS] = _texts(tokens.contents(), found.get(_TOKENIZER))
    return found


def _texts(tokens: list[str], tokenizer: Any) -> list[str]:
    """Return the texts of tokens; those of byte-level tokenizers are decoded, as in `deadtok label`."""
    if tokenizer != "gpt2":
        return tokens
    from deadtok_xr.store.tokenizer import decode_bytes

    return [decode_bytes(token) for token in tokens]
