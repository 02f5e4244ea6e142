"""Keep what the task of each finished block returned, so that a resumed analysis need not process the block again.

A task writes its block of the results itself and returns small values, which other tasks need. A file beside the
results in progress keeps these values. Loading it never runs code, as a pickle would: anyone who may write beside the
results could otherwise run code as the user. The file therefore holds only dicts, lists, tuples, numbers, text and
arrays: a JSON header that describes their structure, then the bytes of the arrays, compressed into one zstd frame,
whose checksum detects an incomplete file.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from zstandard import ZstdCompressor

from deadtok_xr.bfloat16 import BFLOAT16
from deadtok_xr.store import location
from deadtok_xr.store.chunk_bytes import decompress

_PLAIN = "biufcSU"
_LEVEL = 3  # finds steps that several reductions return: a third of the bytes of level 1, in the same time


class NotPlain(TypeError):
    """An object that cannot be written to a journal."""


@dataclass(frozen=True)
class ResumeJournal:
    """The finished blocks of a pass, a file each in a folder that every worker can access.

    Attributes
    ----------
    place
        The folder or address.
    pass_name
        The name of the pass.
    chunks
        For each block, a fingerprint of the chunks that it reads: a block is finished only for these.
    """

    place: str
    pass_name: str
    chunks: tuple[str, ...]

    def note(self, i: int, returned: Any, written: Any) -> None:
        """Mark a block as finished, after its results are written; one that returns other objects is repeated.

        ``written`` lists the chunks of its results: (path of the array, grid position, entry).
        """
        try:
            data = to_bytes((self.chunks[i], returned, written))
        except NotPlain:
            return
        location.write(self.place, f"{self.pass_name}/{i}", data)

    def passed_on(self, i: int) -> Any:
        """Return what the task of a block returned; None if it is not finished, or was finished for other chunks."""
        entry = self._entry(i)
        return None if entry is None else entry[1]

    def written(self, i: int) -> Any:
        """Return the chunks of a block's results, as `note` was given them; None if the block is not finished."""
        entry = self._entry(i)
        return None if entry is None else entry[2]

    def _entry(self, i: int) -> Any:
        data = location.read(self.place, f"{self.pass_name}/{i}")
        entry = None if data is None else from_bytes(data)
        return entry if isinstance(entry, tuple) and len(entry) == 3 and entry[0] == self.chunks[i] else None


def to_bytes(value: Any) -> bytes:
    """Serialize nested dicts, lists, tuples, numbers, text and arrays.

    Raises
    ------
    NotPlain
        If the value holds anything else.
    """
    arrays: list[NDArray[Any]] = []
    tree = _encode(value, arrays)
    header = json.dumps([tree, [[_dtype_name(x.dtype), x.shape] for x in arrays]]).encode()
    parts = [len(header).to_bytes(8, "little"), header, *(x.tobytes() for x in arrays)]
    return ZstdCompressor(level=_LEVEL, write_checksum=True).compress(b"".join(parts))


def from_bytes(data: bytes) -> Any:
    """Return what `to_bytes` serialized, or None if the bytes are damaged."""
    try:
        body = decompress(data)
        start = 8 + int.from_bytes(body[:8], "little")
        tree, kinds = json.loads(body[8:start])
        arrays = []
        for name, shape in kinds:
            dtype, n = _dtype(name), math.prod(shape)
            # a copy is aligned and writable, like the original: kernels are compiled for such arrays
            arrays.append(np.frombuffer(body, dtype, n, start).reshape(shape).copy() if n else np.empty(shape, dtype))
            start += n * dtype.itemsize
        return _decode(tree, arrays)
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, OverflowError):
        return None


def _encode(x: Any, arrays: list[NDArray[Any]]) -> Any:
    """Return an object as JSON: a number or text as itself, anything else as [kind, ...]; collects the arrays."""
    if isinstance(x, (np.ndarray, np.generic)):
        arrays.append(np.asarray(x))
        return ["array" if isinstance(x, np.ndarray) else "number", len(arrays) - 1]
    if x is None or type(x) in (bool, int, float, str):
        return x
    if type(x) is dict:
        return ["dict", [[_encode(k, arrays), _encode(v, arrays)] for k, v in x.items()]]
    if type(x) in (list, tuple):
        return [type(x).__name__, [_encode(part, arrays) for part in x]]
    raise NotPlain(f"a {type(x).__name__}")


def _decode(tree: Any, arrays: list[NDArray[Any]]) -> Any:
    if not isinstance(tree, list):
        return tree
    kind, parts = tree
    if kind in ("array", "number"):
        return arrays[parts] if kind == "array" else arrays[parts][()]
    if kind == "dict":
        return {_decode(k, arrays): _decode(v, arrays) for k, v in parts}
    items = [_decode(part, arrays) for part in parts]
    return tuple(items) if kind == "tuple" else items


def _dtype_name(dtype: np.dtype[Any]) -> str:
    if dtype == BFLOAT16:
        return "bfloat16"
    if dtype.kind not in _PLAIN:
        raise NotPlain(f"an array of {dtype}")
    return dtype.str


def _dtype(name: str) -> np.dtype[Any]:
    return BFLOAT16 if name == "bfloat16" else np.dtype(name)
