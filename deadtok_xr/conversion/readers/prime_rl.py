"""Streams of prime-rl's sparse updates: a folder for each step, with a full checkpoint or with what changed.

The names and the checksum are in `deadtok_xr.sparse_updates`. A folder with a manifest is an update, any other a full
checkpoint; prime-rl itself never writes the first one, which is the model that the training started from.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from deadtok_xr.conversion.readers.delta_stream import Changes, Full, States, Update, check_chain
from deadtok_xr.conversion.readers.safetensors import DTYPES
from deadtok_xr.conversion.readers.source import Source, explaining_damage
from deadtok_xr.errors import InputError
from deadtok_xr.sparse_updates import FORMAT, MANIFEST, VERSION, index_dtype, tensor_hash

_STEP = re.compile(r"step_(\d{1,18})")
_ZSTD = b"\x28\xb5\x2f\xfd"
_MAX_MANIFEST = 256 * 2**20
_MAX_HEADER = 100_000_000
"""The longest header that the safetensors library reads."""
_READ_BYTES = 4 * 2**20
_AGAIN = "copy it again from the original"
_DTYPES = {**DTYPES, "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn), "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2)}
_NAMES = {dtype.name: dtype for dtype in _DTYPES.values()}
OpenFull = Callable[[Path], Source]


def stream_folder(path: Path) -> Path | None:
    """Return the folder of the steps of a stream: the path, or ``broadcasts`` in it; None if it is no stream.

    Raises
    ------
    InputError
        If it is a single update.
    """
    if not path.is_dir():
        return None
    if (path / MANIFEST).is_file():
        raise InputError(
            f"{path} is one update of a stream, the values that changed since an earlier step; convert the folder of "
            f"the stream, {path.parent}"
        )
    for folder in (path, path / "broadcasts"):
        if folder.is_dir() and any((item / MANIFEST).is_file() for item in folder.iterdir()):
            return folder
    return None


@dataclass(frozen=True)
class _Tensor:
    """What a manifest says about one tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any] | None
    dtype_name: str
    keys: tuple[str, str]
    n_changed: int
    checksum: int | None


@dataclass
class SparseUpdate:
    """One update of a stream."""

    path: Path
    step: int
    base_step: int
    compute_dtype: str | None
    patch: Path | None
    tensors: Mapping[str, _Tensor]
    verified: bool = field(default=False, repr=False)

    def size(self, parameter: str) -> int:
        return self.tensors[parameter].n_changed if parameter in self.tensors else 0

    def shape(self, parameter: str) -> tuple[int, ...] | None:
        return self.tensors[parameter].shape if parameter in self.tensors else None

    def files(self) -> list[Path]:
        return [self.path / MANIFEST, *([self.patch] if self.patch is not None else [])]

    def read(self, parameter: str) -> Changes | None:
        """Return the changes of a parameter. At the first reading, the checksum of every tensor is verified."""
        if self.patch is None or (parameter not in self.tensors and self.verified):
            return None
        with explaining_damage(self.patch, "the patch", "safetensors"), _opened(self.patch) as file:
            found = self._found(file, parameter)
        self.verified = True
        return found

    def _found(self, file: BinaryIO, parameter: str) -> Changes | None:
        header = dict(_header(file))
        roles = {key: (tensor, role) for tensor in self.tensors.values() for role, key in enumerate(tensor.keys)}
        if len(roles) < 2 * len(self.tensors):
            raise InputError(f"{self.path}: {MANIFEST} names the same indices or values twice; {_AGAIN}")
        missing = next((key for key in roles if key not in header), None)
        if missing is not None:
            raise InputError(f"{self.patch} does not hold {missing!r}, which {MANIFEST} names; {_AGAIN}")
        hashes: dict[str, int] = dict.fromkeys(self.tensors, 0)
        kept: list[NDArray[Any] | None] = [None, None]
        for key, (dtype_name, shape, nbytes) in header.items():
            if key not in roles or (self.verified and roles[key][0].name != parameter):
                _skip(file, nbytes)
                continue
            tensor, role = roles[key]
            dtype = self._checked_dtype(tensor, role, dtype_name, shape)
            keep = tensor.name == parameter
            values = np.empty(tensor.n_changed, dtype) if keep else None
            at = 0
            for part in _parts(file, dtype, tensor.n_changed):
                hashes[tensor.name] ^= tensor_hash(part)
                if role == 0 and not keep:
                    self._check_range(tensor, part)
                if values is not None:
                    values[at : at + len(part)] = part
                at += len(part)
            if keep:
                kept[role] = values
        for name, tensor in self.tensors.items():
            if (not self.verified or name == parameter) and tensor.checksum not in (None, hashes[name]):
                raise InputError(
                    f"{self.path}: the checksum of {name!r} is {hashes[name]}, but {MANIFEST} says "
                    f"{tensor.checksum}: the update is damaged; {_AGAIN}"
                )
        indices, new = kept
        return None if indices is None or new is None else (indices, new)

    def _checked_dtype(self, tensor: _Tensor, role: int, name: str, shape: tuple[int, ...]) -> np.dtype[Any]:
        """Return the dtype of the indices (role 0) or values (role 1) of a tensor, after checking it and the size."""
        what = ("indices", "values")[role]
        dtype = _DTYPES.get(name)
        fits = dtype in (np.int32, np.int64) if role == 0 else dtype == tensor.dtype
        if dtype is None or not fits:
            needed = index_dtype(math.prod(tensor.shape)).name if role == 0 else tensor.dtype_name
            raise InputError(
                f"{self.path}: the {what} of {tensor.name!r} have the dtype {name}; expected: {needed}; {_AGAIN}"
            )
        if shape != (tensor.n_changed,):
            raise InputError(
                f"{self.path}: the {what} of {tensor.name!r} have the shape {shape}, but {MANIFEST} says that "
                f"{tensor.n_changed} values changed; {_AGAIN}"
            )
        return dtype

    def _check_range(self, tensor: _Tensor, indices: NDArray[Any]) -> None:
        n = math.prod(tensor.shape)
        if len(indices) and (int(indices.min()) < 0 or int(indices.max()) >= n):
            raise InputError(f"{self.path}: an index of {tensor.name!r} is outside its {n} values; {_AGAIN}")


def find_states(folder: Path, initial: Path | None, open_full: OpenFull) -> States:
    """Find the states of a stream, and check that its updates follow each other.

    Parameters
    ----------
    folder
        The folder of the steps.
    initial
        The full checkpoint that the first update changes, if it is not in the folder.
    open_full
        Opens a full checkpoint.

    Raises
    ------
    InputError
        If a folder is neither an update nor a checkpoint, or an update does not follow the state before it.
    """
    found: list[Full | SparseUpdate] = []
    others = []
    for item in sorted(folder.iterdir()):
        match = _STEP.fullmatch(item.name)
        if match is None or not item.is_dir():
            others.append(item.name)
            continue
        step = int(match[1])
        found.append(_update(item, step) if (item / MANIFEST).is_file() else _full(item, step, open_full))
    found.sort(key=lambda state: state.step)
    for one, other in itertools.pairwise(found):
        if one.step == other.step:
            raise InputError(f"{folder}: {one.path.name} and {other.path.name} are both of step {one.step}")
    states = _with_initial(folder, found, initial, open_full)
    check_chain(states, lambda update: cast(SparseUpdate, update).base_step)
    updates = [state for state in states if isinstance(state, SparseUpdate)]
    unsigned = sum(t.checksum is None for update in updates for t in update.tensors.values())
    notes = [f"{unsigned} tensors of the updates have no checksum"] if unsigned else []
    notes += [f"not part of the stream: {', '.join(others[:8])}"] if others else []
    return States("prime-rl's sparse updates", states, _compute_dtype(updates), tuple(notes))


def _with_initial(
    folder: Path, found: Sequence[Full | SparseUpdate], initial: Path | None, open_full: OpenFull
) -> list[Full | Update]:
    first = found[0]
    if isinstance(first, Full):
        if initial is not None:
            raise InputError(
                f"{folder} begins with a full checkpoint, {first.path.name}: leave out --initial (initial=)"
            )
        return [*found]
    if initial is None:
        raise InputError(
            f"{first.path} changes step {first.base_step}, whose full checkpoint is not in {folder}, as the model that "
            "a training begins with is not: name it with --initial MODEL (initial=)"
        )
    return [Full(first.base_step, initial, lambda: open_full(initial)), *found]


def _compute_dtype(updates: Sequence[SparseUpdate]) -> np.dtype[Any] | None:
    """Return the dtype to which the receiver casts full checkpoints; None if it leaves them as they are."""
    first = updates[0]
    other = next((update for update in updates if update.compute_dtype != first.compute_dtype), None)
    if other is not None:
        raise InputError(
            f"{other.path} was computed in {other.compute_dtype}, but {first.path.name} in {first.compute_dtype}; "
            "expected: one stream; move the others away"
        )
    return None if first.compute_dtype is None else _NAMES[first.compute_dtype]


def _full(folder: Path, step: int, open_full: OpenFull) -> Full:
    with open_full(folder):  # raises an InputError that names the folder, if there is no checkpoint in it
        return Full(step, folder, lambda: open_full(folder))


def _update(folder: Path, step: int) -> SparseUpdate:
    path = folder / MANIFEST
    with explaining_damage(path, "the manifest", "JSON"):
        if path.stat().st_size > _MAX_MANIFEST:
            raise ValueError(f"more than {_MAX_MANIFEST} bytes")
        found = json.loads(path.read_text("utf-8"))
        if not isinstance(found, dict):
            raise ValueError("expected: names and values")
    if (found.get("format"), found.get("version")) != (FORMAT, VERSION):
        raise InputError(
            f"{path} has the format {found.get('format')!r} of version {found.get('version')!r}; expected: {FORMAT!r} "
            f"of version {VERSION}, which is read"
        )
    numbers = {name: _number(path, found, name) for name in ("step", "base_step")}
    if numbers["step"] != step:
        raise InputError(
            f"{path} says step {numbers['step']}, but its folder is {folder.name}; expected: the same; name the folder "
            "after the step that it holds"
        )
    compute = found.get("compute_dtype")
    if compute is not None and compute not in _NAMES:
        raise InputError(f"{path} has the compute_dtype {compute!r}; expected: bfloat16, float16 or float32")
    with explaining_damage(path, "the list of tensors", "a manifest"):
        listed = [_tensor(path, fields) for fields in found.get("tensors") or ()]
    names = [tensor.name for tensor in listed]
    if len({*names}) < len(names):
        raise InputError(f"{path} names a tensor twice; expected: each once; {_AGAIN}")
    patch = _patch(folder, found.get("patch_file"))
    if patch is None and listed:
        raise InputError(f"{path} says that {names[0]!r} changed, but names no patch_file; {_AGAIN}")
    return SparseUpdate(folder, step, numbers["base_step"], compute, patch, dict(zip(names, listed, strict=True)))


def _number(path: Path, found: Mapping[str, Any], name: str) -> int:
    value = found.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**53:
        raise InputError(f"{path}: {name} is {value!r}; expected: a step, 0 or more; {_AGAIN}")
    return value


def _tensor(path: Path, fields: Mapping[str, Any]) -> _Tensor:
    name, shape = str(fields["name"]), tuple(int(n) for n in fields["shape"])
    n_changed, numel, checksum = int(fields["changed_numel"]), int(fields["numel"]), fields.get("checksum")
    if any(n < 0 for n in shape) or numel != math.prod(shape) or not 0 <= n_changed <= numel:
        raise InputError(
            f"{path}: {name!r} has the shape {shape}, {numel} values, of which {n_changed} changed; expected: numbers "
            f"that agree; {_AGAIN}"
        )
    keys = (str(fields["indices"]), str(fields["values"]))
    dtype = str(fields["dtype"])
    return _Tensor(name, shape, _NAMES.get(dtype), dtype, keys, n_changed, None if checksum is None else int(checksum))


def _patch(folder: Path, name: Any) -> Path | None:
    if name is None:
        return None
    plain = isinstance(name, str) and re.fullmatch(r"[\w. -]+", name) and name not in (".", "..")
    if not plain or not (folder / name).is_file() or (folder / name).is_symlink():
        raise InputError(
            f"{folder / MANIFEST} names the patch_file {name!r}; expected: a file in the same folder; {_AGAIN}"
        )
    return folder / name


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open a patch, perhaps in a zstd frame, to be read in order."""
    import zstandard

    with path.open("rb") as file:
        compressed = file.read(4) == _ZSTD
        file.seek(0)
        if not compressed:
            yield file
            return
        try:
            with zstandard.ZstdDecompressor().stream_reader(file) as stream:
                yield cast(BinaryIO, stream)
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from error


def _header(file: BinaryIO) -> list[tuple[str, tuple[str, tuple[int, ...], int]]]:
    """Return dtype, shape and size of each tensor of a safetensors file, in the order in which they lie in it."""
    length = int.from_bytes(_read(file, 8), "little")
    if length > _MAX_HEADER:
        raise ValueError(f"a header of {length} bytes")
    fields = json.loads(_read(file, length))
    fields.pop("__metadata__", None)
    found, end = [], 0
    for name, tensor in sorted(fields.items(), key=lambda item: item[1]["data_offsets"]):
        begin, stop = (int(n) for n in tensor["data_offsets"])
        shape = tuple(int(n) for n in tensor["shape"])
        dtype = _DTYPES.get(tensor["dtype"])
        if begin != end or stop < begin or (dtype is not None and stop - begin != math.prod(shape) * dtype.itemsize):
            raise ValueError(f"{name!r} cannot lie at the bytes {begin} to {stop}")
        found.append((name, (str(tensor["dtype"]), shape, stop - begin)))
        end = stop
    return found


def _read(file: BinaryIO, n: int) -> bytes:
    parts = []
    while n and (part := file.read(min(n, _READ_BYTES))):
        parts.append(part)
        n -= len(part)
    if n:
        raise EOFError("it ends too early")
    return b"".join(parts)


def _skip(file: BinaryIO, n: int) -> None:
    while n:
        n -= len(_read(file, min(n, _READ_BYTES)))


def _parts(file: BinaryIO, dtype: np.dtype[Any], n: int) -> Iterator[NDArray[Any]]:
    """Read values in order, in parts of bounded size."""
    at_once = _READ_BYTES // dtype.itemsize
    for start in range(0, n, at_once):
        yield np.frombuffer(_read(file, min(at_once, n - start) * dtype.itemsize), dtype)
