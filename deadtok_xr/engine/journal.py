"""What the rows of a sweep pass on, kept in files, so that a row that is done need not be looked at again.

A task writes its row of the results itself; what it returns is small, and others wait for it. Kept beside unfinished
results, it stands for the row when the work goes on. Nothing in such a file is ever run, as a pickle would be: whoever
may write beside somebody's results must not thereby run code as that person. So it holds what rows pass on in plain
parts, dicts, lists, tuples, numbers and arrays: a header of JSON that says how they are put together, then the bytes
of the arrays. All of it is one frame of zstd, whose checksum tells a file that was torn.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from zstandard import ZstdCompressor, ZstdDecompressor, ZstdError

from deadtok_xr.bfloat16 import BFLOAT16
from deadtok_xr.store import location

_PLAIN = "biufcSU"
_LEVEL = 3  # finds the steps that several probes pass on, and those alike: a third of level 1's bytes, in no more time


class NotPlain(TypeError):
    """An object that is not made of plain parts."""


@dataclass(frozen=True)
class ResumeJournal:
    """The rows of a sweep that are done, in a folder that every worker sees: a file each.

    Attributes
    ----------
    place
        The folder or address.
    sweep
        Name of the sweep.
    chunks
        For each row, what tells the chunks that it is made of from any others: a row is done of these alone.
    """

    place: str
    sweep: str
    chunks: tuple[str, ...]

    def note(self, i: int, passed: Any) -> None:
        """Keep what a row passes on, once all else of it is written; a row that passes on other things is done anew."""
        try:
            data = to_bytes((self.chunks[i], passed))
        except NotPlain:
            return
        location.write(self.place, f"{self.sweep}/{i}", data)

    def passed_on(self, i: int) -> Any:
        """What a row passed on; None if it is not done, or was done of other chunks."""
        data = location.read(self.place, f"{self.sweep}/{i}")
        found = None if data is None else from_bytes(data)
        return found[1] if isinstance(found, tuple) and found[0] == self.chunks[i] else None


def to_bytes(found: Any) -> bytes:
    """Nested plain parts as bytes.

    Raises
    ------
    NotPlain
        If there is anything else among them.
    """
    arrays: list[NDArray[Any]] = []
    tree = _described(found, arrays)
    header = json.dumps([tree, [[_dtype_name(x.dtype), x.shape] for x in arrays]]).encode()
    parts = [len(header).to_bytes(8, "little"), header, *(x.tobytes() for x in arrays)]
    return ZstdCompressor(level=_LEVEL, write_checksum=True).compress(b"".join(parts))


def from_bytes(data: bytes) -> Any:
    """What `to_bytes` was given, or None if the bytes are not whole."""
    try:
        body = ZstdDecompressor().decompress(data)
        start = 8 + int.from_bytes(body[:8], "little")
        tree, kinds = json.loads(body[8:start])
        arrays = []
        for name, shape in kinds:
            dtype, n = _dtype(name), math.prod(shape)
            # a copy is aligned and may be written to, as the array was: kernels are compiled for such ones
            arrays.append(np.frombuffer(body, dtype, n, start).reshape(shape).copy() if n else np.empty(shape, dtype))
            start += n * dtype.itemsize
        return _put_together(tree, arrays)
    except (ZstdError, ValueError, TypeError, IndexError, KeyError):
        return None


def _described(x: Any, arrays: list[NDArray[Any]]) -> Any:
    """An object in JSON: a number or a text as itself, anything else as [kind, ...]; arrays are collected."""
    if isinstance(x, (np.ndarray, np.generic)):
        arrays.append(np.asarray(x))
        return ["array" if isinstance(x, np.ndarray) else "number", len(arrays) - 1]
    if x is None or type(x) in (bool, int, float, str):
        return x
    if type(x) is dict:
        return ["dict", [[_described(k, arrays), _described(v, arrays)] for k, v in x.items()]]
    if type(x) in (list, tuple):
        return [type(x).__name__, [_described(part, arrays) for part in x]]
    raise NotPlain(f"a {type(x).__name__}")


def _put_together(tree: Any, arrays: list[NDArray[Any]]) -> Any:
    if not isinstance(tree, list):
        return tree
    kind, parts = tree
    if kind in ("array", "number"):
        return arrays[parts] if kind == "array" else arrays[parts][()]
    if kind == "dict":
        return {_put_together(k, arrays): _put_together(v, arrays) for k, v in parts}
    whole = [_put_together(part, arrays) for part in parts]
    return tuple(whole) if kind == "tuple" else whole


def _dtype_name(dtype: np.dtype[Any]) -> str:
    if dtype == BFLOAT16:
        return "bfloat16"
    if dtype.kind not in _PLAIN:
        raise NotPlain(f"an array of {dtype}")
    return dtype.str


def _dtype(name: str) -> np.dtype[Any]:
    return BFLOAT16 if name == "bfloat16" else np.dtype(name)
