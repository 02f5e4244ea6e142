"""GGUF files of llama.cpp as a source, as far as their tensors are not quantized.

The `gguf` package, which is optional, reads names, types and places; values are read from the file part by part.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deadtok_xr.bfloat16 import BFLOAT16
from deadtok_xr.conversion.readers.source import TEXTS, Entry, PlainFile
from deadtok_xr.errors import InputError

_DTYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": BFLOAT16, "F64": np.dtype("<f8")}
_QUANTIZED = "quantized: the weights are no longer exact; convert the safetensors or torch files it was made from"
_TOKENS, _TOKENIZER = "tokenizer.ggml.tokens", "tokenizer.ggml.model"


class GgufSource(PlainFile):
    """The tensors of a GGUF file; its numbers and texts as attributes, with the texts of the tokens."""

    format = "GGUF"

    def _read_header(self) -> None:
        reader = _reader(self.path)
        if reader.endianess.name != "LITTLE":
            raise InputError(f"{self.path} was written for a machine with another byte order; convert it there")
        entries: dict[str, Entry] = {}
        size = len(reader.data)
        for tensor in reader.tensors:
            name, kind, shape = tensor.name, tensor.tensor_type.name, tuple(int(n) for n in reversed(tensor.shape))
            dtype = _DTYPES.get(kind)
            entries[name] = Entry(shape, dtype, f"{kind}, {_QUANTIZED}" if dtype is None else dtype.name)
            if dtype is not None:
                self._require_bytes(name, int(tensor.data_offset) + entries[name].nbytes, size)
            self._begins[name] = int(tensor.data_offset)
        self.entries: Mapping[str, Entry] = entries
        self.attributes = dict(_attributes(reader))


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
