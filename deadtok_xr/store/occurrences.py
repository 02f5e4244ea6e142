"""Count how often each token occurs in training data: files of token ids, or text with its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.errors import InputError, MissingFileError
from deadtok_xr.store import arrow
from deadtok_xr.store.reachability import load_tokenizer

_PART = 4 * 2**20
"""Ids that are counted, or characters that are encoded, at once."""
_LARGEST_ID = 2**27
_LLM_C: dict[int, np.dtype[Any]] = {20240520: np.dtype("<u2"), 20240801: np.dtype("<u4")}
"""The first number of llm.c's files of ids, and the dtype that it stands for."""
_LLM_C_HEADER = 1024
_TEXTS = (".txt", ".md", ".jsonl")
EXPECTED = (
    "expected: token ids in .npy, .npz, .safetensors, .arrow or .bin (raw numbers), or text in .arrow, .txt, .md or "
    ".jsonl with tokenizer=FILE (--tokenizer FILE)"
)


@dataclass
class Occurrences:
    """How often each id occurs, by id up to the largest one."""

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def add(self, ids: NDArray[Any], name: str) -> None:
        """Count some ids.

        Raises
        ------
        InputError
            If they are no ids.
        """
        if ids.dtype.kind not in "iu":
            raise InputError(f"{name} holds {ids.dtype}; expected: integer token ids")
        if not ids.size:
            return
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high > _LARGEST_ID:
            raise InputError(
                f"{name} holds the token id {low if low < 0 else high}; expected: 0 or more"
                + (", without the marks of positions that are not trained" if low < 0 else _of_other_dtype(name))
            )
        found = np.bincount(ids.reshape(-1).astype(np.int64, copy=False), minlength=len(self.counts))
        found[: len(self.counts)] += self.counts
        self.counts = found


def count_occurrences(
    corpus: Sequence[str | Path | NDArray[Any]], *, tokenizer: str | Path | None = None, dtype: str = "uint16"
) -> NDArray[np.int64]:
    """Count the occurrences of each token id, in the memory of a part of a file.

    Parameters
    ----------
    corpus
        Files or arrays of ids. Of ``.npz`` and ``.safetensors``, every array of integers is counted but masks and
        positions, whose names say so. ``.arrow`` files of the library `datasets` hold ids in `input_ids` or `tokens`,
        or text in `text`. ``.bin`` holds raw numbers, or is a file of llm.c. Text is encoded without the special tokens
        that a tokenizer adds; of ``.jsonl`` the field ``text`` of each line, other text in parts that end with a line.
    tokenizer
        The ``tokenizer.json`` that encodes text.
    dtype
        The numbers of ``.bin`` without a header: ``"uint16"``, ``"uint32"`` or ``"int32"``.

    Returns
    -------
    NDArray[np.int64]
        Occurrences by id, up to the largest id that occurs.

    Raises
    ------
    InputError
        If a file is missing, cannot be read, or holds no ids.
    """
    if dtype not in ("uint16", "uint32", "int32"):
        raise InputError(f"corpus_dtype={dtype!r} (--corpus-dtype): choose uint16, uint32 or int32")
    found = Occurrences()
    encode: Callable[..., Any] | None = None
    for item in corpus:
        if isinstance(item, np.ndarray):
            found.add(item, "corpus=")
            continue
        path = Path(item)
        if not path.is_file():
            raise MissingFileError(f"{path}: no such file; {EXPECTED}")
        for part in _parts(path, np.dtype(dtype)):
            if isinstance(part, list):
                encode = encode or _encoder(path, tokenizer)
                part = np.concatenate([np.array(e.ids, np.int64) for e in encode(part, add_special_tokens=False)])
            found.add(part, str(path))
    if not found.counts.sum():
        raise InputError(f"the corpus holds no token; {EXPECTED}")
    return found.counts


def _of_other_dtype(name: str) -> str:
    return "; of raw numbers say which: corpus_dtype= (--corpus-dtype)" if name.endswith(".bin") else ""


def _encoder(path: Path, tokenizer: str | Path | None) -> Callable[..., Any]:
    if tokenizer is None:
        raise InputError(
            f"{path} is text; its tokens need the tokenizer of the model: tokenizer=FILE (--tokenizer FILE)"
        )
    return load_tokenizer(tokenizer).encode_batch_fast  # type: ignore[no-any-return]


def _parts(path: Path, dtype: np.dtype[Any]) -> Iterator[NDArray[Any] | list[str]]:
    """Yield the ids of a file, or its texts in lists that are encoded together, part by part."""
    kind = path.suffix.lower()
    readers: dict[str, Callable[[Path], Iterator[NDArray[Any] | list[str]]]] = {
        ".npy": _from_npy, ".npz": _from_npz, ".safetensors": _from_safetensors, **dict.fromkeys(_TEXTS, _texts),
        ".arrow": partial(arrow.read, at_most=_PART), ".bin": partial(_from_bin, dtype=dtype),
    }  # fmt: skip
    if kind not in readers:
        raise InputError(f"{path} is of no known kind; {EXPECTED}")
    try:
        yield from readers[kind](path)
    except InputError:
        raise
    except Exception as error:  # each format raises other errors
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{path} cannot be read as token ids ({reason}); {EXPECTED}") from error


def _slices(ids: Any) -> Iterator[NDArray[Any]]:
    flat = ids.reshape(-1)
    for begin in range(0, len(flat), _PART):
        yield np.asarray(flat[begin : begin + _PART])


def _from_npy(path: Path) -> Iterator[NDArray[Any]]:
    ids = np.load(path, mmap_mode="r", allow_pickle=False)
    if ids.dtype.kind not in "iu":
        raise InputError(f"{path} holds {ids.dtype} {ids.shape}; expected: integer token ids")
    yield from _slices(ids)


def _from_npz(path: Path) -> Iterator[NDArray[Any]]:
    with np.load(path, allow_pickle=False) as file:
        for name in _of_ids(path, {name: file[name].dtype.kind in "iu" for name in file.files}):
            yield from _slices(file[name])


def _from_safetensors(path: Path) -> Iterator[NDArray[Any]]:
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        kinds = {name: file.get_slice(name).get_dtype().startswith(("I", "U")) for name in file.keys()}  # noqa: SIM118
        for name in _of_ids(path, kinds):
            yield from _slices(file.get_tensor(name))


def _of_ids(path: Path, arrays: dict[str, bool]) -> list[str]:
    """Return the names of the arrays of integers, without masks, positions and labels."""
    other = ("mask", "position", "label", "length", "type_ids", "offset")
    found = [name for name, integers in arrays.items() if integers and not any(word in name for word in other)]
    if not found:
        raise InputError(f"{path} holds {', '.join(arrays) or 'nothing'}, none of it token ids; expected: integers")
    return found


def _from_bin(path: Path, dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    size, offset = path.stat().st_size, 0
    if size >= _LLM_C_HEADER:
        magic = int(np.fromfile(path, "<i4", 1)[0])
        if magic in _LLM_C:
            dtype, offset = _LLM_C[magic], _LLM_C_HEADER
    if (size - offset) % dtype.itemsize:
        raise InputError(
            f"{path} has {size} bytes, no whole number of {dtype.name}; say what it holds with corpus_dtype= "
            "(--corpus-dtype)"
        )
    if size > offset:
        yield from _slices(np.memmap(path, dtype, "r", offset))


def _texts(path: Path) -> Iterator[list[str]]:
    """Yield the texts of a file in lists that are encoded together."""
    with path.open(encoding="utf-8", newline="") as file:
        try:
            if path.suffix.lower() == ".jsonl":
                yield from _documents(path, file)
                return
            while part := file.read(_PART):
                yield [part + file.readline()]
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not UTF-8 text ({error.reason}); {EXPECTED}") from error


def _documents(path: Path, lines: Any) -> Iterator[list[str]]:
    texts: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError):
            text = None
        if not isinstance(text, str):
            raise InputError(f'{path}: line {number} is not {{"text": ...}}; expected: one JSON object in each line')
        texts.append(text)
        if sum(map(len, texts)) >= _PART:
            yield texts
            texts = []
    if texts:
        yield texts
