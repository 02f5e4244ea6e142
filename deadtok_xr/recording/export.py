"""A store as one plain file: safetensors, HDF5 or NumPy's npz, bit for bit, a block of steps at a time.

The file grows under another name beside its own, and gets its name when it is whole.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from deadtok_xr import schema, store
from deadtok_xr._version import __version__
from deadtok_xr.bfloat16 import BFLOAT16
from deadtok_xr.errors import DamagedStoreError, DestinationExistsError, InputError
from deadtok_xr.recording.opening import Tokens, open_recording
from deadtok_xr.recording.plain_files import WRITERS, Member
from deadtok_xr.store import destination, location, reading

Progress = Callable[[int, int], None]


def export(
    path: str | Path,
    out: str | Path,
    *,
    variables: Sequence[str] | None = None,
    tokens: Tokens = "all",
    run: int | str | None = None,
    uint16: bool | None = None,
    source_dtype: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write a recording as a plain file that other tools read, and `convert` too.

    Beside the variables, (step, token, dim) with ascending ids, it holds `step`, `token_ids`, where known
    `dead_ids`, `token_text` (safetensors: in the metadata), and `dead_mask`, a bool per row, where the rows
    are the ids 0, 1, ... without a gap: a mask is read by vocabulary id. Metadata (attributes of an HDF5
    file, the entry `metadata` of an npz) hold the hyperparameters and all attributes as JSON. Memory stays
    near one block of steps of the variable that is being written.

    Parameters
    ----------
    path
        A complete store.
    out
        The file to write; its suffix, .safetensors, .h5, .hdf5 or .npz, says the format.
    variables
        Names; None for all.
    tokens
        ``"all"``, ``"dead"`` or ``"live"``.
    run
        The label of one run, of a store that holds several.
    uint16
        True: bfloat16 as its bits in uint16. False: as bfloat16, which safetensors alone has. None: as
        bfloat16 where the format has it.
    source_dtype
        Give a variable the dtype that it had in the file that it was converted from (its attribute
        `source_dtype`), which must hold every value exactly.
    overwrite
        Replace a file that exists.
    progress
        Called with the bytes done and the bytes to do.

    Returns
    -------
    Path
        ``out``.

    Raises
    ------
    InputError
        As `open_recording`; for an unknown suffix or variable, or a dtype that cannot hold the values.
    DestinationExistsError
        If ``out`` exists, unless ``overwrite``.
    OSError
        If it cannot be written; then nothing is left of it, and what was there before stays.
    """
    out = Path(out)
    writer = _writer(out, uint16)
    _check_destination(out, Path(path), overwrite=overwrite)
    ds = open_recording(path, tokens=tokens, run=run, raw=True)
    if "run" in ds.dims:
        labels = ", ".join(map(str, ds["run"].values.tolist()))
        raise InputError(f"{path} holds several runs ({labels}), and a file takes one: name it with run= (--run)")
    group, _ = store.open_group(path)
    bits = out.suffix != ".safetensors" if uint16 is None else uint16
    picked = _Picked(group, ds["token"].values, None if run is None else _position(group, run))
    names = _names(path, [str(n) for n, v in ds.data_vars.items() if v.dims[:1] == ("step",)], variables)
    members = [picked.member(name, as_bits=bits, source_dtype=source_dtype) for name in names]
    members += [Member(name, v.dtype, v.shape, [v]) for name, v in _labels(ds).items()]
    texts = ds["token_text"].values.tolist() if "token_text" in ds.coords else None
    with _whole_or_nothing(out, members, progress) as (unfinished, tick):
        writer(unfinished, members, _metadata(ds.attrs, members), texts, tick)
    return out


def _writer(out: Path, uint16: bool | None) -> Any:
    if out.suffix not in WRITERS:
        raise InputError(f"{out} has the suffix {out.suffix!r}; expected one of {', '.join(WRITERS)}")
    if uint16 is False and out.suffix != ".safetensors":
        raise InputError(f"{out}: uint16=False, but {out.suffix} has no bfloat16: leave it out, or use .safetensors")
    return WRITERS[out.suffix]


def _check_destination(out: Path, path: Path, *, overwrite: bool) -> None:
    destination.refuse_inside_store(out)
    if out.is_dir():
        raise DestinationExistsError(f"{out} is a folder, so it is not replaced: name a file")
    if (out.exists() or out.is_symlink()) and not overwrite:
        raise DestinationExistsError(
            f"{out} exists already and is left as it is: choose another name, or say --overwrite (overwrite=True)"
        )
    if not out.parent.is_dir():
        raise InputError(f"{out} cannot be made: {out.parent} is not a folder; make it, or choose another")


def _names(path: str | Path, there: list[str], wanted: Sequence[str] | None) -> list[str]:
    wanted = [wanted] if isinstance(wanted, str) else wanted
    unknown = [name for name in wanted or () if name not in there]
    if unknown:
        raise InputError(f"{path} has no variable {unknown[0]!r}: choose from {', '.join(there)}")
    if wanted is not None and not wanted:
        raise InputError(f"{path}: variables= names none: choose from {', '.join(there)}, or leave it out")
    return there if wanted is None else list(dict.fromkeys(wanted))


def _position(group: zarr.Group, run: int | str) -> int:
    return [str(label) for label in store.read_coordinate(group, "run").tolist()].index(str(run))


@dataclass(frozen=True)
class _Picked:
    """The rows, ascending by id, and the run of a store that are exported."""

    group: zarr.Group
    ids: NDArray[np.int64]
    run: int | None

    def member(self, name: str, *, as_bits: bool, source_dtype: bool) -> Member:
        array = self.group[name]
        assert isinstance(array, zarr.Array)
        dims = store.dimensions(array)
        lead = (self.run,) if schema.without_run(dims) != dims and self.run is not None else ()
        if array.dtype.kind not in "biufV":
            raise InputError(
                f"{location.address_of(array)} holds {array.dtype}, no numbers: choose others with variables="
            )
        dims, shape = dims[len(lead) :], list(array.shape[len(lead) :])
        rows = None
        if "token" in dims:
            on_disk = store.read_coordinate(self.group, "token")
            order = np.argsort(on_disk)
            rows = order[np.searchsorted(on_disk, self.ids, sorter=order)]
            shape[dims.index("token")] = len(rows)
        source = array.attrs.get("source_dtype") if source_dtype else None
        dtype = _dtype(array, name, None if source is None else str(source), as_bits=as_bits)
        axis = dims.index("token") if "token" in dims else None
        blocks = (_cast(block, dtype, name) for block in _blocks(array, lead, axis, rows))
        notes = {**array.attrs.asdict(), "dims": list(dims), "dtype": array.dtype.name}
        return Member(name, dtype, tuple(shape), blocks, notes)


def _dtype(array: zarr.Array[Any], name: str, source: str | None, *, as_bits: bool) -> np.dtype[Any]:
    if source == "bfloat16" or source is None:
        bits = as_bits and array.dtype == BFLOAT16
        return np.dtype(np.uint16) if bits else array.dtype.newbyteorder("=")
    try:
        return np.dtype(source)
    except TypeError:
        raise InputError(
            f"{location.address_of(array)}: the source of {name!r} had the type {source!r}, which NumPy does not have: "
            "leave source_dtype=True (--source-dtype) out"
        ) from None


def _cast(block: NDArray[Any], dtype: np.dtype[Any], name: str) -> NDArray[Any]:
    """A block in another dtype, with the same values to the bit; 16 bits of bfloat16 as uint16."""
    if block.dtype == dtype:
        return block
    if block.dtype == BFLOAT16 and dtype == np.uint16:
        return block.view(np.uint16)
    with np.errstate(all="ignore"):
        cast = _widened(block, dtype) if block.dtype == BFLOAT16 else block.astype(dtype)
        same = (cast.astype(block.dtype) == block) | (block != block)
    if not same.all():
        raise InputError(
            f"{name!r} is stored in {block.dtype.name}, and {int((~same).sum())} of its values are not exact in "
            f"{dtype.name}, the dtype of its source: leave source_dtype=True (--source-dtype) out"
        )
    return cast


def _widened(block: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    wide = (block.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)  # NaNs keep their payload
    return wide.astype(dtype, copy=False)


def _blocks(
    array: zarr.Array[Any], lead: tuple[int, ...], axis: int | None, rows: NDArray[np.int64] | None
) -> Iterator[NDArray[Any]]:
    """An array, or one run of it, a chunk of steps at a time; along ``axis`` the rows in the order given."""
    read = reading.chunk_reader(array)
    shape, chunks = array.shape[len(lead) :], array.chunks[len(lead) :]
    grid = array.cdata_shape[len(lead) :]
    at = tuple(run // size for run, size in zip(lead, array.chunks, strict=False))
    inside = tuple(run % size for run, size in zip(lead, array.chunks, strict=False))
    for first in range(grid[0]):
        n_steps = min(chunks[0], shape[0] - first * chunks[0])
        sizes = [len(rows) if i == axis and rows is not None else n for i, n in enumerate(shape)]
        block = np.empty((n_steps, *sizes[1:]), array.dtype)
        for rest in np.ndindex(*grid[1:]):
            into: list[Any] = [slice(i * c, (i + 1) * c) for i, c in zip(rest, chunks[1:], strict=True)]
            part: list[Any] = [slice(None) for _ in rest]
            if rows is not None and axis:
                low = rest[axis - 1] * chunks[axis]
                into[axis - 1] = np.flatnonzero((rows >= low) & (rows < low + chunks[axis]))
                part[axis - 1] = rows[into[axis - 1]] - low
                if not part[axis - 1].size:
                    continue  # no row of this chunk is wanted
            block[(slice(None), *into)] = read((*at, first, *rest))[inside][(slice(None), *part)]
        yield block


def _labels(ds: Any) -> dict[str, NDArray[Any]]:
    ids: NDArray[np.int64] = ds["token"].values.astype(np.int64)
    labels = {"step": ds["step"].values.astype(np.int64), "token_ids": ids}
    if "dead" in ds.coords:
        labels["dead_ids"] = ids[ds["dead"].values]
        if np.array_equal(ids, np.arange(len(ids))):
            labels["dead_mask"] = ds["dead"].values
    return labels


def _metadata(attrs: dict[str, Any], members: list[Member]) -> dict[str, str]:
    notes = {m.name: m.attrs for m in members if m.attrs}
    return {
        "deadtok_xr": __version__,
        "hyperparameters": json.dumps(attrs.get("hyperparameters", {})),
        "attributes": json.dumps({k: v for k, v in attrs.items() if k != "hyperparameters"}, default=str),
        "variables": json.dumps(notes, default=str),
    }


@contextmanager
def _whole_or_nothing(
    out: Path, members: list[Member], progress: Progress | None
) -> Iterator[tuple[Path, Callable[[int], None]]]:
    """A name to write under, which becomes ``out`` at the end, and a function that counts bytes."""
    unfinished, done, total = out.with_name(f".{out.name}.unfinished"), 0, sum(m.nbytes for m in members)

    def tick(n: int) -> None:
        nonlocal done
        done += n
        if progress is not None:
            progress(done, total)

    try:
        yield unfinished, tick
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(out)
    except (InputError, DamagedStoreError):
        raise
    except (OSError, RuntimeError) as error:  # h5py has the latter for a file that it cannot close
        number = _errno(error)
        reason = os.strerror(number) if number else " ".join(str(error).split())
        raise OSError(
            number,
            f"{out} cannot be written: {reason}, after {done} of {total} bytes; nothing is left of it; make room and "
            "export again",
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)


def _errno(error: OSError | RuntimeError) -> int | None:
    """The system's number of an error, which h5py keeps in its text."""
    known: int | None = getattr(error, "errno", None)
    said = re.search(r"errno = (\d+)", str(error))
    return known or (int(said[1]) if said else None)
