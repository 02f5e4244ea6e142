"""A plan, carried out: streamed into a store that is complete only when everything is there."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
from numpy.typing import NDArray

from deadtok_xr import schema, store
from deadtok_xr.bfloat16 import BFLOAT16, decode, on_grid
from deadtok_xr.conversion.plan import CHUNKS_AT_ONCE, Plan, PlannedVariable
from deadtok_xr.conversion.sources import Source, reading
from deadtok_xr.errors import InputError

MADE_BY = "convert"
_HASH_BLOCK = 4 * 2**20
Progress = Callable[[int, int], None]


def check_destination(src: Path, dest: Path, *, overwrite: bool) -> bool:
    """Whether what is at a destination may be replaced, if anything is there.

    That is so with ``overwrite``, and for what a conversion of the same source left unfinished.

    Raises
    ------
    InputError
        If replacing the destination would destroy the source, or its folder cannot be one.
    DestinationExistsError
        If something else is there.
    """
    inner, outer = src.resolve(), dest.resolve()
    if outer == inner or outer in inner.parents:
        raise InputError(
            f"the source {src} lies in the destination {dest}, which would be replaced; choose another destination"
        )
    blocking = next((p for p in outer.parents if p.exists() and not p.is_dir()), None)
    if blocking is not None:
        raise InputError(f"{dest} cannot be made: {blocking} is a file; choose another destination")
    replace = overwrite or _is_unfinished(src, dest)
    store.refuse_existing(dest, overwrite=replace)
    return replace


def _is_unfinished(src: Path, dest: Path) -> bool:
    """Whether a conversion of this source was broken off here. The hash is not known before the end."""
    try:
        attrs = json.loads((dest / "zarr.json").read_text())["attributes"]
        named = [(s["name"], s["bytes"]) for s in attrs["sources"]]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    ours = attrs.get("made_by") == MADE_BY and attrs.get("complete") is False
    return ours and named == [(src.name, src.stat().st_size)]


def write_plan(
    plan: Plan, source: Source, dest: Path, *, overwrite: bool = False, progress: Progress | None = None
) -> list[str]:
    """Stream a plan into a store, a block of steps at a time.

    Parameters
    ----------
    plan, source
        A plan, and the open source that it was made from.
    dest
        The store to write.
    overwrite
        Replace a store that is there.
    progress
        Called with the bytes done and the bytes to do.

    Returns
    -------
    What a user should know of the values and of what was left out: one sentence each.

    Raises
    ------
    InputError
        If the source turns out to be damaged, or changes meanwhile.
    OSError
        If the store cannot be written. It is left incomplete, as it is by anything else that breaks in.
    """
    state = _state(plan.path)
    counts = _Progress(plan.nbytes, progress)
    # zarr's default of 10 keeps copies of most of a block in memory, and is slower
    at_once = {"async.concurrency": CHUNKS_AT_ONCE}
    with zarr.config.set(at_once), _hashing(plan.path) as digest, _writing(dest, counts):
        writer = store.create(dest, plan.rows, _attributes(plan), overwrite=overwrite)
        writer.extend(plan.steps)
        for v in plan.variables:
            writer.add_variable(v.name, v.dims, v.shape[1:], v.dtype, v.attributes)
        noticed = [s for v in plan.variables for s in _stream(v, plan, source, writer, counts)]
        writer.group.attrs["sources"] = [_facts(plan.path, digest.result())]
        if _state(plan.path) != state:
            raise InputError(f"{plan.path} changed while it was converted; convert it when nothing writes to it")
        writer.finish()
    store.open_group(dest)  # nothing is missing, as seen by a reader
    return noticed + _left_out(plan)


def _attributes(plan: Plan) -> dict[str, Any]:
    dropped = {"dropped": dict(plan.dropped)} if plan.dropped else {}
    return {
        "made_by": MADE_BY,
        "sources": [_facts(plan.path, None)],
        "source_format": plan.format,
        "rows": plan.rows_reason,
        "hyperparameters": dict(plan.hyperparameters),
        **dropped,
    }


def _facts(path: Path, sha256: str | None) -> dict[str, Any]:
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256}


def _state(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


@contextmanager
def _hashing(path: Path) -> Iterator[Future[str]]:
    """The SHA-256 of a file, worked out in the background; given up when the work in front fails."""
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        try:
            yield pool.submit(_sha256, path, stop)
        except BaseException:
            stop.set()
            raise


def _sha256(path: Path, stop: threading.Event) -> str:
    digest, block = hashlib.sha256(), bytearray(_HASH_BLOCK)
    with reading(path, "the file", "bytes"), path.open("rb", buffering=0) as file:
        while (n := file.readinto(block)) and not stop.is_set():
            digest.update(memoryview(block)[:n])
    return digest.hexdigest()


@dataclass
class _Progress:
    total: int
    report: Progress | None
    done: int = 0

    def add(self, n: int) -> None:
        self.done += n
        if self.report is not None:
            self.report(self.done, self.total)


@contextmanager
def _writing(dest: Path, counts: _Progress) -> Iterator[None]:
    """Say where writing stopped. What reading raises is an InputError, so an OSError is the store's."""
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise OSError(
            error.errno,
            f"{dest} cannot be written: {reason}, after {counts.done} of {counts.total} bytes; it is left "
            "incomplete and will not open; make room and convert again, which starts over",
        ) from error


@dataclass
class _Finds:
    """What is noticed in the values of one variable while they pass."""

    plan: Plan
    variable: PlannedVariable
    n_bad: int = 0
    first_bad: tuple[int, int | None] | None = None
    all_on_grid: bool = field(init=False)

    def __post_init__(self) -> None:
        self.all_on_grid = _is_wide_copy(self.variable)

    def look(self, start: int, values: NDArray[Any]) -> None:
        valid_from = {**schema.attributes(self.variable.name), **self.variable.attributes}["valid_from"]
        steps = self.plan.steps[start : start + len(values)]
        for step, row in zip(steps, values, strict=True):  # row by row: the temporaries stay small
            if step >= valid_from:
                self._look_at(int(step), row)

    def _look_at(self, step: int, row: NDArray[Any]) -> None:
        bad = ~np.isfinite(decode(row) if row.dtype == BFLOAT16 else row)
        if bad.any():
            self.n_bad += int(bad.sum())
            self.first_bad = self.first_bad or (step, self._token(bad))
        if self.all_on_grid:
            self.all_on_grid = bool(on_grid(row, "bfloat16").all())

    def _token(self, bad: NDArray[np.bool_]) -> int | None:
        if self.variable.dims[1:2] != ("token",):
            return None
        return int(self.plan.rows.tokens[np.argwhere(bad)[0][0]])

    def sentences(self) -> Iterator[str]:
        """What of it a user should know."""
        known_as = "" if self.variable.key == self.variable.name else f" (there {self.variable.key!r})"
        label = f"{self.plan.path}: variable {self.variable.name!r}{known_as}"
        if self.first_bad is not None:
            step, token = self.first_bad
            where = f"step {step}" + ("" if token is None else f", token {token}")
            yield (f"{label} holds {self.n_bad} values that are NaN or infinite, the first at {where}; they are kept")
        if self.all_on_grid:
            yield (
                f"{label} is {self.variable.dtype}, but every value lies on the bfloat16 grid: it is taken for a copy "
                "of bfloat16 weights, and analysed on that grid"
            )
        elif _is_wide_copy(self.variable) and self.precision() == "none":
            yield (
                f"{label} is float32 and not on the bfloat16 grid: it has no lattice, and what needs one will ask "
                "for a precision"
            )

    def precision(self) -> str:
        """The grid that 16 or 32 bit weights live on, as far as the values tell."""
        if self.all_on_grid:
            return "bfloat16"
        return "float16" if self.variable.dtype == np.float16 else "none"


def _is_wide_copy(variable: PlannedVariable) -> bool:
    """Whether a variable holds weights in a format that may be a copy of bfloat16 ones."""
    return variable.name in ("W", "E") and variable.dtype in (np.float32, np.float16)


def _stream(
    variable: PlannedVariable, plan: Plan, source: Source, writer: store.StoreWriter, counts: _Progress
) -> list[str]:
    """Copy one variable in blocks of whole chunks along `step`; what was noticed, as sentences."""
    array = cast("zarr.Array[Any]", writer.group[variable.name])
    block = array.chunks[0]
    finds = _Finds(plan, variable)
    for start in range(0, variable.shape[0], block):
        values = read_block(variable, source, start, min(start + block, variable.shape[0]))
        if values.dtype.kind == "f" or values.dtype == BFLOAT16:
            finds.look(start, values)
        writer.write(variable.name, start, values)
        counts.add(values.nbytes)
    if _is_wide_copy(variable):
        array.attrs["precision"] = finds.precision()
    return list(finds.sentences())


def read_block(variable: PlannedVariable, source: Source, start: int, stop: int) -> NDArray[Any]:
    """Values for the positions ``start <= i < stop`` of a variable, as they will be stored."""
    first = variable.first
    values = source.read(variable.key, slice(max(0, start - first), stop - first))
    values = values.view(variable.dtype) if variable.as_bits else values
    if start < first:
        missing = np.full((first - start, *variable.shape[1:]), np.nan, variable.dtype)
        values = np.concatenate([missing, values])
    return values


def _left_out(plan: Plan) -> list[str]:
    what = "; ".join(f"{name!r} ({why})" for name, why in plan.dropped.items())
    return [f"{plan.path}: left out of the store: {what}"] if what else []
