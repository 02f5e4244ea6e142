"""Write a store as one plain file: safetensors, HDF5 or NumPy's npz, bit for bit, a block of steps at a time.

The file is written under a temporary name in the same folder and renamed when it is complete.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray

from deadtok_xr import store
from deadtok_xr._version import __version__
from deadtok_xr.attributes import plain
from deadtok_xr.bfloat16 import BFLOAT16
from deadtok_xr.errors import DamagedStoreError, DestinationExistsError, InputError
from deadtok_xr.recording.opening import Tokens, open_recording
from deadtok_xr.recording.plain_files import WRITERS, Member, read_metadata
from deadtok_xr.recording.sparse_stream import write_stream
from deadtok_xr.store import destination, location

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
    format: str | None = None,
    parameter: str | None = None,
    compress: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write a recording as a plain file, or a stream of sparse updates, that other tools and `convert` can read.

    The file has the variables, (step, token, dim) with ascending ids, and `step` and `token_ids`; where they are known,
    also `dead_ids`, `token_text` (safetensors: in the metadata), and `dead_mask`, one bool per token, if the ids are
    0, 1, ... without a gap, because a mask is indexed by vocabulary id. Metadata (attributes of an HDF5
    file, the entry `metadata` of an npz) hold the hyperparameters and all attributes as JSON. Memory use is
    about one block of steps of one variable.

    Parameters
    ----------
    path
        A complete store.
    out
        The file to write; its suffix (.safetensors, .h5, .hdf5 or .npz) is the format, unless ``format`` says it.
    variables
        Names; None for all.
    tokens
        ``"all"``, ``"dead"`` or ``"live"``.
    run
        The label of one run, of a store that holds several.
    uint16
        True: bfloat16 as its bits in uint16. False: as bfloat16, which only safetensors has. None: as
        bfloat16 where the format has it.
    source_dtype
        Give each variable the dtype that it had in the file it was converted from (its attribute `source_dtype`); that
        must represent every value exactly.
    format
        ``"prime-rl"``: write W (or the one of ``variables``) as a stream of sparse updates: the folder ``out`` with a
        full checkpoint of the first step, and for each later step the values that changed. The ids must be 0, 1, ...
        without a gap. None: the format that the suffix of ``out`` says.
    parameter
        Only with ``format``: the name of the parameter in the stream; None for the name in the source of the store.
    compress
        Only with ``format``: compress each patch with zstd.
    overwrite
        Replace a file that exists.
    progress
        Called with the bytes written and the total bytes.

    Returns
    -------
    Path
        ``out``.

    Raises
    ------
    InputError
        As `open_recording`; for an unknown suffix or variable, or a dtype that cannot hold the values.
    DestinationExistsError
        If ``out`` exists, unless ``overwrite`` or the same call wrote it, which then changes nothing.
    OSError
        If the file cannot be written; then no part of it is left, and an existing file is kept.
    """
    out = Path(out)
    if format is not None:
        _check_format(format, uint16=uint16, source_dtype=source_dtype)
        _export_stream(path, out, variables, tokens, run, parameter, compress=compress, overwrite=overwrite,
                       progress=progress)  # fmt: skip
        return out
    if parameter is not None or compress:
        raise InputError(
            "parameter= (--parameter) and compress= (--compress) are for format='prime-rl' (--as prime-rl)"
        )
    writer = _writer(out, uint16)
    may_be_finished = not overwrite and out.is_file() and not out.is_symlink()
    if not may_be_finished:
        _check_destination(out, Path(path), overwrite=overwrite)
    ds = _one_run(path, tokens, run)
    _, arrays, _ = store.open_arrays(path)
    bits = out.suffix != ".safetensors" if uint16 is None else uint16
    names = _names(path, [str(n) for n, v in ds.data_vars.items() if v.dims[:1] == ("step",)], variables)
    members = [_member(ds[name], arrays[name], as_bits=bits, source_dtype=source_dtype) for name in names]
    members += [Member(name, v.dtype, v.shape, [v]) for name, v in _labels(ds).items()]
    texts = ds["token_text"].values.tolist() if "token_text" in ds.coords else None
    metadata = _metadata(ds.attrs, members)
    if may_be_finished:
        if read_metadata(out) == metadata:
            return out
        _check_destination(out, Path(path), overwrite=overwrite)
    with _all_or_nothing(out, members, progress) as (unfinished, tick):
        writer(unfinished, members, metadata, texts, tick)
    return out


def _one_run(path: str | Path, tokens: Tokens, run: int | str | None) -> xr.Dataset:
    ds = open_recording(path, tokens=tokens, run=run, raw=True)
    if "run" in ds.dims:
        labels = ", ".join(map(str, ds["run"].values.tolist()))
        raise InputError(f"{path} holds several runs ({labels}), and a file holds one: choose it with run= (--run)")
    return ds


def _check_format(format: str, *, uint16: bool | None, source_dtype: bool) -> None:
    if format != "prime-rl":
        raise InputError(f"format={format!r} is not known; expected: 'prime-rl' (--as prime-rl), or leave it out")
    if uint16 or source_dtype:
        raise InputError(
            "a stream of sparse updates has the dtype of the store: leave out uint16=True (--uint16) and "
            "source_dtype=True (--source-dtype)"
        )


def _export_stream(
    path: str | Path, out: Path, variables: Sequence[str] | None, tokens: Tokens, run: int | str | None,
    parameter: str | None, *, compress: bool, overwrite: bool, progress: Progress | None,
) -> None:  # fmt: skip
    """Write one matrix of a store as a stream of sparse updates."""
    destination.refuse_inside_store(out)
    if not out.parent.is_dir():
        raise InputError(f"{out} cannot be created: {out.parent} is not a folder; create it, or choose another")
    ds = _one_run(path, tokens, run)
    matrices = [str(n) for n, v in ds.data_vars.items() if v.dims == ("step", "token", "dim")]
    names = _names(path, matrices, variables or [name for name in matrices if name == "W"])
    if len(names) != 1:
        raise InputError(f"{path}: a stream holds one matrix: choose it with variables=, from {', '.join(matrices)}")
    x = ds[names[0]]
    name = parameter or str(x.attrs.get("source_key") or names[0])
    done, total = 0, x.size * x.dtype.itemsize

    def tick(n: int) -> None:
        nonlocal done
        done += n
        if progress is not None:
            progress(done, total)

    write_stream(out, x, name, compress=compress, overwrite=overwrite, tick=tick)


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
        raise InputError(f"{out} cannot be created: {out.parent} is not a folder; create it, or choose another")


def _names(path: str | Path, present: list[str], wanted: Sequence[str] | None) -> list[str]:
    wanted = [wanted] if isinstance(wanted, str) else wanted
    unknown = [name for name in wanted or () if name not in present]
    if unknown:
        raise InputError(f"{path} has no variable {unknown[0]!r}: choose from {', '.join(present)}")
    if wanted is not None and not wanted:
        raise InputError(f"{path}: variables= is empty: choose from {', '.join(present)}, or leave it out")
    return present if wanted is None else list(dict.fromkeys(wanted))


def _member(x: xr.DataArray, array: zarr.Array[Any], *, as_bits: bool, source_dtype: bool) -> Member:
    """Return a lazy variable as a member of the file, a chunk of steps at a time."""
    if array.dtype.kind not in "biufV":
        raise InputError(
            f"{location.address_of(array)} holds {array.dtype}, not numbers: choose other variables with variables="
        )
    source = array.attrs.get("source_dtype") if source_dtype else None
    dtype = _dtype(array, str(x.name), None if source is None else str(source), as_bits=as_bits)
    blocks = (_cast(x[start : start + n].values, dtype, str(x.name)) for start, n in _blocks(x))
    attrs = {**array.attrs.asdict(), "dims": list(x.dims), "dtype": array.dtype.name}
    return Member(str(x.name), dtype, x.shape, blocks, attrs)


def _blocks(x: xr.DataArray) -> Iterator[tuple[int, int]]:
    """Yield the first step and the number of steps of each chunk of steps."""
    sizes = x.chunks[0] if x.chunks else x.shape[:1]
    return zip(itertools.accumulate(sizes, initial=0), sizes, strict=False)


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
    """Convert a block to a dtype that represents its values exactly; bfloat16 in uint16 is its bits."""
    if block.dtype == dtype:
        return block
    if block.dtype == BFLOAT16 and dtype == np.uint16:
        return block.view(np.uint16)
    with np.errstate(all="ignore"):
        cast = _widen(block, dtype) if block.dtype == BFLOAT16 else block.astype(dtype)
        same = (cast.astype(block.dtype) == block) | (block != block)
    if not same.all():
        raise InputError(
            f"{name!r} is stored in {block.dtype.name}, and {int((~same).sum())} of its values are not exact in "
            f"{dtype.name}, the dtype of its source: leave source_dtype=True (--source-dtype) out"
        )
    return cast


def _widen(block: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    wide = (block.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)  # NaNs keep their payload
    return wide.astype(dtype, copy=False)


def _labels(ds: Any) -> dict[str, NDArray[Any]]:
    ids: NDArray[np.int64] = ds["token"].values.astype(np.int64)
    labels = {"step": ds["step"].values.astype(np.int64), "token_ids": ids}
    if "dead" in ds.coords:
        labels["dead_ids"] = ids[ds["dead"].values]
        if np.array_equal(ids, np.arange(len(ids))):
            labels["dead_mask"] = ds["dead"].values
    return labels


def _metadata(attrs: dict[str, Any], members: list[Member]) -> dict[str, str]:
    attrs = plain(attrs)
    notes = {m.name: m.attrs for m in members if m.attrs}
    return {
        "deadtok_xr": __version__,
        "hyperparameters": json.dumps(attrs.get("hyperparameters", {})),
        "attributes": json.dumps({k: v for k, v in attrs.items() if k != "hyperparameters"}, default=str),
        "variables": json.dumps(notes, default=str),
        "arrays": json.dumps([[m.name, m.dtype.name, list(m.shape)] for m in members]),
    }


@contextmanager
def _all_or_nothing(
    out: Path, members: list[Member], progress: Progress | None
) -> Iterator[tuple[Path, Callable[[int], None]]]:
    """Provide a temporary path, renamed to ``out`` at the end, and a function that counts bytes."""
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
    except (OSError, RuntimeError) as error:  # h5py raises RuntimeError for a file that it cannot close
        number = _errno(error)
        reason = os.strerror(number) if number else " ".join(str(error).split())
        raise OSError(
            number,
            f"{out} cannot be written: {reason}, after {done} of {total} bytes; nothing is left of it; free disk space "
            "and export again",
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)


def _errno(error: OSError | RuntimeError) -> int | None:
    """Return the errno of an error; h5py has it only in its text."""
    known: int | None = getattr(error, "errno", None)
    said = re.search(r"errno = (\d+)", str(error))
    return known or (int(said[1]) if said else None)
