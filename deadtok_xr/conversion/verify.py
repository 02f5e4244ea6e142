"""Is a store what it was when it was written, and what its source says?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from deadtok_xr import reader, store
from deadtok_xr.conversion.formats import open_source
from deadtok_xr.conversion.plan import Plan, PlannedVariable
from deadtok_xr.conversion.planning import make_plan
from deadtok_xr.conversion.sources import Source
from deadtok_xr.conversion.write import read_block
from deadtok_xr.errors import DamagedStoreError, InputError
from deadtok_xr.reader import place

Progress = Callable[[int, int], None]


@dataclass
class Verification:
    """What `verify` looked at and found.

    Attributes
    ----------
    n_chunks
        Chunks that were read, each against its checksum.
    compared
        Variables that were compared with the source, bit by bit.
    problems
        One sentence for each thing that is wrong; empty for a good store.
    """

    n_chunks: int = 0
    compared: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def verify(path: str | Path, source: str | Path | None = None, *, progress: Progress | None = None) -> Verification:
    """Read every chunk of a store against its checksum, and compare every bit with the source.

    Parameters
    ----------
    path
        A recording store.
    source
        The file that it was converted from; None to look at the store alone.
    progress
        Called with the chunks done and the chunks to do.

    Returns
    -------
    What was read and compared, and every problem found: damaged chunks by variable, steps and tokens, and
    where values differ from the source's.

    Raises
    ------
    InputError, IncompleteStoreError
        If the store or the source cannot be opened at all, or the source is of other steps or tokens.
    """
    group, _ = store.open_group(path)
    found = Verification()
    _check_chunks(group, found, progress or (lambda done, total: None))
    if source is not None and not found.problems:
        with open_source(source) as opened:
            _compare(group, opened, found)
    return found


def _check_chunks(group: zarr.Group, found: Verification, progress: Progress) -> None:
    arrays = [array for _, array in group.arrays()]
    total = sum(math.prod(array.cdata_shape) for array in arrays)
    for array in arrays:
        read = reader.chunk_reader(array)
        for position in np.ndindex(*array.cdata_shape):
            try:
                read(position)
            except DamagedStoreError as error:
                found.problems.append(str(error))
            found.n_chunks += 1
            progress(found.n_chunks, total)


def _compare(group: zarr.Group, source: Source, found: Verification) -> None:
    plan = make_plan(source, dead_ids=_known_dead(group, source))
    order = plan.rows.disk_order()
    for name, ours, theirs in (
        ("steps", store.read_small(group, "step"), plan.steps),
        ("tokens", store.read_small(group, "token"), plan.rows.tokens[order]),
    ):
        if not np.array_equal(ours, theirs):
            raise InputError(
                f"{place(group)} has other {name} than {source.path}: it is not the source of this store, or was "
                "converted with other options"
            )
    for variable in plan.variables:
        found.problems += _differences(group, variable, plan, source, order)
        found.compared.append(variable.name)


def _known_dead(group: zarr.Group, source: Source) -> list[int] | None:
    """The dead tokens that the store was told of when the source does not know them."""
    if "dead" not in group or make_plan(source).rows.dead is not None:
        return None
    return [int(t) for t in store.read_small(group, "token")[store.read_small(group, "dead")]]


def _differences(
    group: zarr.Group, variable: PlannedVariable, plan: Plan, source: Source, order: NDArray[np.int64]
) -> Iterator[str]:
    array = group.get(variable.name)
    if not isinstance(array, zarr.Array) or array.shape != variable.shape:
        yield f"{place(group)}: {variable.name!r} is not there in the shape of {source.path}'s {variable.key!r}"
        return
    n_different, first = 0, None
    for start in range(0, array.shape[0], array.chunks[0]):
        stop = min(start + array.chunks[0], array.shape[0])
        theirs = read_block(variable, source, start, stop)
        theirs = theirs[:, order] if "token" in variable.dims else theirs
        differs = _bits(np.asarray(array[start:stop])) != _bits(theirs)
        n_different += int(differs.sum())
        if first is None and differs.any():
            first = plan.steps[start + int(np.argwhere(differs)[0][0])]
    if n_different:
        yield (
            f"{place(group)}: {n_different} of {math.prod(array.shape)} values of {variable.name!r} differ from "
            f"{source.path}'s {variable.key!r}, the first at step {first}: convert it again"
        )


def _bits(values: NDArray[Any]) -> NDArray[Any]:
    values = np.ascontiguousarray(values)
    return values.view(f"u{values.dtype.itemsize}") if values.dtype.itemsize in (1, 2, 4, 8) else values
