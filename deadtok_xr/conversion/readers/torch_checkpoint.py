"""Torch checkpoints as a source.

torch opens them with ``weights_only=True``, which runs no code from the file. Files in the zip format are mapped, and
pages that were read count as memory in use: the file is mapped again after every `TOUCHED` bytes. Files from before
torch 1.6 are read as a whole.
"""

from __future__ import annotations

import importlib
import mmap
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from deadtok_xr.bfloat16 import BFLOAT16
from deadtok_xr.conversion.readers.source import (
    Entry,
    Source,
    describe_part,
    dtype_of,
    explaining_damage,
    unreadable_type,
)
from deadtok_xr.errors import InputError

TOUCHED = 64 * 2**20
_PICKLE = 64 * 2**20
_LEGACY = 2 * 2**30
_NAMES = 100_000
_NUMBERS = 10_000_000
_DEPTH = 64
_AGAIN = "copy it again from the original"
_SHARD = (
    "DTensors, each with the part of one device alone; where the file was made, save tensor.full_tensor() of each, "
    "or the full state_dict of torch.distributed.checkpoint.state_dict"
)
DTYPES: dict[torch.dtype, np.dtype[Any]] = {
    torch.bfloat16: BFLOAT16,
    **{
        getattr(torch, name): np.dtype(name)
        for name in ("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64",
                     "float16", "float32", "float64")
    },
}  # fmt: skip


class TorchSource(Source):
    """The tensors and numbers of a torch checkpoint by their dotted names; its texts as attributes."""

    format = "torch"
    ordered = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self._touched = 0
        self._state = _state(path)
        self._mapped = zipfile.is_zipfile(path)
        with explaining_damage(path, "its table of contents", self.format):
            self._there = check_archive(path, path, path.stat().st_size) if self._mapped else _check_legacy(path)
        self._load()
        self.entries = {name: self._entry(value) for name, value in self._values.items()}
        self.aliases = _aliases({n: v for n, v in self._values.items() if isinstance(v, torch.Tensor)}, self.entries)

    def _load(self) -> None:
        if _state(self.path) != self._state:
            raise InputError(f"{self.path} changed while it was read; convert it when nothing writes to it")
        self._values, self.attributes = {}, {}
        self._touched = 0
        try:
            loaded = _loaded(self.path, mapped=self._mapped)
        except Exception as error:  # for a damaged file torch raises nearly any exception
            raise InputError(_refusal(self.path, str(error))) from error
        with explaining_damage(self.path, "its table of contents", self.format):
            values, attributes = _values_and_attributes(_flat(loaded))
            _check_storages((v for v in values.values() if isinstance(v, torch.Tensor)), self._there)
        self._values, self.attributes = values, attributes

    def _entry(self, value: torch.Tensor | NDArray[Any] | _Shard) -> Entry:
        if isinstance(value, _Shard):
            return Entry(value.shape, None, _SHARD)
        if isinstance(value, np.ndarray):
            return Entry(value.shape, value.dtype, value.dtype.name)
        name, shape = str(value.dtype).removeprefix("torch."), () if value.is_nested else tuple(value.shape)
        kind = _unreadable(value)
        if kind is not None:
            return Entry(shape, None, f"{name}, {kind}")
        if value.dtype not in DTYPES:
            return Entry(shape, None, unreadable_type(name))
        return Entry(shape, DTYPES[value.dtype], name, TOUCHED if self._mapped else self._state[0])

    def read(self, name: str, *where: slice) -> NDArray[Any]:
        dtype = dtype_of(self, name)
        with explaining_damage(self.path, describe_part(name, where), self.format):
            value = self._values[name]
            if isinstance(value, np.ndarray):
                return value[where].copy()
            full = (*where, *(slice(0, n) for n in value.shape[len(where) :]))
            values = np.empty([s.stop - s.start for s in full], dtype)
            del value  # it would keep its file mapped
            if values.size:
                self._copy(values, name, full)
        return values

    def _copy(self, out: NDArray[Any], name: str, where: tuple[slice, ...]) -> None:
        """Fill an array, in parts that each read a bounded part of the file."""
        part = self._values[name][where]
        extents = [(n - 1) * abs(stride) for n, stride in zip(part.shape, part.stride(), strict=True)]
        touched = (sum(extents) + 1) * part.element_size()
        if self._mapped and touched > TOUCHED and part.numel() > 1:
            del part
            axis = int(np.argmax(extents))
            middle = out.shape[axis] // 2
            for begin, end in ((0, middle), (middle, out.shape[axis])):
                inner = tuple(slice(begin, end) if i == axis else slice(None) for i in range(out.ndim))
                at = where[axis].start
                outer = tuple(slice(at + begin, at + end) if i == axis else s for i, s in enumerate(where))
                self._copy(out[inner], name, outer)
            return
        out[...] = as_numpy(part)
        del part
        self._touched += touched
        if self._mapped and self._touched >= TOUCHED:
            self._load()

    def files(self) -> list[Path]:
        return [self.path]

    def unwritten(self, name: str) -> list[range]:
        return []

    def close(self) -> None:
        self._values = {}


def _loaded(path: Path, *, mapped: bool) -> Any:
    with warnings.catch_warnings(action="ignore"):  # about future changes in torch
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except pickle.UnpicklingError as error:
            if "torch.distributed.tensor" not in str(error) or not torch.distributed.is_available():
                raise
            importlib.import_module("torch.distributed.tensor")  # registers DTensor as safe to load

            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


@dataclass(frozen=True)
class _Shard:
    """A DTensor of which the file holds the part of one device alone."""

    shape: tuple[int, ...]


def _without_mesh(tensor: torch.Tensor) -> torch.Tensor | _Shard:
    """Return what a file holds of a tensor: of a DTensor, its local part, if that is all of it."""
    if type(tensor).__name__ != "DTensor":
        return tensor
    local = tensor._local_tensor  # type: ignore[attr-defined]
    return local if local.shape == tensor.shape else _Shard(tuple(tensor.shape))


def as_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    """Return a tensor of one of `DTYPES` as an array, without copying it."""
    tensor = tensor.detach().resolve_neg()
    return tensor.view(torch.int16).numpy().view(BFLOAT16) if tensor.dtype == torch.bfloat16 else tensor.numpy()


def _state(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def check_archive(path: Path, file: Path | BinaryIO, size: int) -> int:
    """Check, before torch opens it, that an archive is as torch writes it: not compressed, and no larger than the file.

    Parameters
    ----------
    path
        The file, for messages.
    file, size
        The archive, and its bytes.

    Returns
    -------
    int
        The size of all tensors.
    """
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        pickles = [m for m in members if re.fullmatch(r"[^/]+/data\.pkl", m.filename)]
        if len(pickles) != 1:
            raise InputError(f"{path} holds {len(pickles)} data.pkl; expected: one, as torch.save writes it; {_AGAIN}")
        packed = [m.filename for m in members if m.compress_type != zipfile.ZIP_STORED]
        if packed or sum(m.file_size for m in members) > size:
            what = f"{packed[0]!r} is compressed" if packed else "its parts are larger than the file"
            raise InputError(
                f"{path} is not as torch.save writes it: {what}; load it and save it again with torch.save"
            )
        if pickles[0].file_size > _PICKLE:
            raise InputError(
                f"{path}: its data.pkl has {pickles[0].file_size} bytes; expected: less than {_PICKLE}; save tensors "
                "instead of long lists of numbers"
            )
        _check_pickle(path, archive.read(pickles[0]))
        order = pickles[0].filename.removesuffix("data.pkl") + "byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise InputError(f"{path} was saved on a machine with another byte order; save it again as safetensors")
        return sum(m.file_size for m in members if re.fullmatch(r"[^/]+/data/[^/]+", m.filename))


def _check_legacy(path: Path) -> int:
    size = path.stat().st_size
    if size > _LEGACY:
        raise InputError(
            f"{path} is in torch's format from before 1.6, which must be read whole, and has {size} bytes; expected: "
            f"at most {_LEGACY}; load it and save it again with torch.save"
        )
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        _check_pickle(path, content)
    return size


def _check_pickle(path: Path, content: bytes | mmap.mmap) -> None:
    # weights_only allows this one call that takes as much memory as the file asks for
    if any(content.find(b"c" + module + b"\nbytearray\n") >= 0 for module in (b"builtins", b"__builtin__")):
        raise InputError(f"{path} holds a bytearray; expected: tensors, numbers and texts; save it without")


def _refusal(path: Path, message: str) -> str:
    """Turn a message of torch into one sentence."""
    code = re.search(r"GLOBAL (\S{1,80})", message)
    if "DTensor" in (message if code is None else code[1]):
        return f"{path} holds {_SHARD}"
    if code is not None:
        return (
            f"{path} holds {code[1]}, which could run code and was not loaded; expected: tensors, numbers and texts, "
            "as in a state_dict; where the file was made, save only those"
        )
    reason = " ".join(message.split("WeightsUnpickler error:")[-1].split())[:160]
    return (
        f"{path} cannot be read as torch ({reason}): the file is damaged, truncated, still being written, or not a "
        f"torch checkpoint; {_AGAIN}"
    )


def _flat(value: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested dicts and lists with dotted names. A list of numbers is a leaf."""
    if depth > _DEPTH:
        raise ValueError(f"{name[:40]!r} is nested more than {_DEPTH} deep")
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, (list, tuple)) and _numbers(value) is None:
        items = dict(enumerate(value)).items()
    else:
        yield name or "data", value
        return
    for key, item in items:
        yield from _flat(item, f"{name}.{key}" if name else str(key), depth + 1)


def _values_and_attributes(flat: Iterator[tuple[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Separate tensors and numbers from all other leaves, which become attributes."""
    values: dict[str, Any] = {}
    attributes: dict[str, Any] = {}
    n_numbers = 0  # a small file may refer to one list many times
    for i, (name, value) in enumerate(flat):
        if i >= _NAMES:
            raise ValueError(f"more than {_NAMES} names")
        if name in values or name in attributes:
            raise ValueError(f"two entries have the name {name!r}")
        number = _numbers(value)
        if isinstance(value, torch.Tensor):
            values[name] = _without_mesh(value)
        elif number is not None:
            values[name] = number
            n_numbers += number.size
            if n_numbers > _NUMBERS:
                raise ValueError(f"more than {_NUMBERS} numbers in lists")
        else:
            attributes[name] = _text(value)
    return values, attributes


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    plain = isinstance(value, (int, complex, torch.dtype, torch.device))
    return str(value) if plain else f"a {type(value).__name__}"


def _numbers(value: Any) -> NDArray[Any] | None:
    """Return a Python number, or a list of numbers of one type, as an array; None for anything else."""
    items = value if isinstance(value, (list, tuple)) else [value]
    kinds = {type(item) for item in items}
    if not items or kinds - {bool, int, float} or (bool in kinds and len(kinds) > 1):
        return None
    dtype = bool if kinds == {bool} else np.int64 if kinds == {int} else np.float64
    try:
        return np.array(value, dtype)
    except OverflowError:  # an integer beyond 64 bits is kept as text
        return None


def _is_plain(tensor: torch.Tensor) -> bool:
    return (
        tensor.layout == torch.strided
        and not tensor.is_nested
        and not tensor.is_quantized
        and tensor.device.type == "cpu"
    )


def _unreadable(tensor: torch.Tensor) -> str | None:
    """Say why a tensor cannot be read; None if it can."""
    if not _is_plain(tensor):
        return "sparse, quantized or without values"
    there = tensor.untyped_storage().nbytes()
    if tensor.numel() * tensor.element_size() > there:
        return f"expanded from {there} bytes (save it with .contiguous())"
    return None


def _check_storages(tensors: Iterable[torch.Tensor], there: int) -> None:
    """Check that the file holds the storages of all tensors: it may claim that they are larger."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if _is_plain(t)}
    if sum(storages.values()) > there:
        raise ValueError(f"its tensors need {sum(storages.values())} bytes, but {there} are there")


def _aliases(tensors: Mapping[str, torch.Tensor], entries: Mapping[str, Entry]) -> dict[str, str]:
    first: dict[tuple[Any, ...], str] = {}
    aliases = {}
    for name, tensor in tensors.items():
        if entries[name].dtype is not None and tensor.numel():
            key = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
            if first.setdefault(key, name) != name:
                aliases[name] = first[key]
    return aliases
