"""A recording store that grows at its end, and can be read meanwhile.

Chunk files are put in place whole, by a rename, and only then do the arrays become longer: whoever opens the store
(``partial=True``) sees steps that are there. What breaks in between leaves files beyond the arrays' ends, which
nobody reads and the next attempt replaces.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
from numpy.typing import NDArray

from deadtok_xr import schema, store
from deadtok_xr.errors import InputError
from deadtok_xr.record.host_buffers import Column
from deadtok_xr.store import (
    chunk_bytes,
    location,
    motion_index,
    writing,
)
from deadtok_xr.store.chunk_layout import chunk_shape, chunks_of


class Appender:
    """Writes steps at the end of one store: `begin` or `resume`, then `append`, then `finish`."""

    def __init__(self, group: zarr.Group, rows: store.TokenTable, block_steps: int, n_steps: int = 0) -> None:
        self.group, self.rows, self.block_steps, self.n_steps = group, rows, block_steps, n_steps
        self.root = Path(str(group.store_path).removeprefix("file://"))
        self._order = rows.disk_order()
        self._arrays = dict(group.arrays())
        self._bounds = dict(cast(zarr.Group, group["motion"]).arrays()) if "motion" in group else {}

    def append(
        self,
        steps: NDArray[np.int64],
        matrices: Mapping[str, tuple[NDArray[Any], float]],
        columns: Mapping[str, tuple[NDArray[Any], Column]],
    ) -> None:
        """Write more steps; a variable that is new begins with what stands where there is nothing."""
        for name, (values, fill) in matrices.items():
            if name not in self._arrays:
                self._declare(name, schema.MATRIX, values.shape[1:], values.dtype, self._chunks(values), fill)
            self._put(self._arrays[name], self.n_steps, values)
        for name, (values, column) in columns.items():
            if name not in self._arrays:
                chunks = chunks_of(column.dims, (0, *column.shape), np.dtype(column.dtype).itemsize)
                self._declare(name, column.dims, column.shape, column.dtype, chunks, column.before)
            self._put(self._arrays[name], self.n_steps, values)
        for name, array in self._arrays.items():  # logged earlier, and not since
            if name not in matrices and name not in columns and name != "step" and _grows(array):
                self._put_constant(array, self.n_steps, self.n_steps + len(steps), array.fill_value)
        self._put(self._arrays["step"], self.n_steps, steps)
        self._set_length(self.n_steps + len(steps))

    def last(self, name: str, position: int) -> NDArray[Any]:
        """A matrix of one step, in the order of the rows that are recorded."""
        values = np.empty(self._arrays[name].shape[1:], self._arrays[name].dtype)
        values[self._order] = cast("NDArray[Any]", self._arrays[name][position])
        return values

    def steps(self) -> NDArray[np.int64]:
        """The labels of the steps that are whole."""
        return cast("NDArray[np.int64]", np.asarray(self._arrays["step"][...]))[: self.n_steps]

    def steps_whole(self) -> str:
        """Which steps can be read, in words."""
        if not self.n_steps:
            return "no step is whole"
        return f"its {self.n_steps} steps up to {self.steps()[-1]} are whole and open with partial=True"

    def array(self, name: str) -> zarr.Array[Any] | None:
        """One of the arrays that are there."""
        return self._arrays.get(name)

    def cut(self, n_steps: int) -> None:
        """Begin to append behind so many steps: what follows is recorded again."""
        self.group.attrs["complete"] = False
        self._set_length(n_steps)

    def note(self, attrs: Mapping[str, Any]) -> None:
        """Set attributes of the store."""
        self.group.attrs.update(dict(attrs))

    def finish(self) -> None:
        """Declare the store whole."""
        self.group.attrs["complete"] = True

    def _set_length(self, n_steps: int) -> None:
        for array in self._arrays.values():
            if _grows(array):
                array.resize((n_steps, *array.shape[1:]))
        for name, bounds in self._bounds.items():
            bounds.resize(motion_index.bounds_shape(self._arrays[name]))
        self.n_steps = n_steps

    def _chunks(self, values: NDArray[Any]) -> tuple[int, ...]:
        n_dead = 0 if self.rows.dead is None else int(self.rows.dead.sum())
        return chunk_shape(values.shape[1], values.shape[2], values.dtype.itemsize, n_dead, self.block_steps)

    def _declare(
        self, name: str, dims: tuple[str, ...], shape: tuple[int, ...], dtype: Any, chunks: Any, fill: Any
    ) -> None:
        """Add a variable, with the steps that the others have already: made beside the store, and moved in whole."""
        known = [c for c in schema.TOKEN_COORDINATES if c in self._arrays]
        attrs = {**schema.attributes(name), **_of_another(name)}
        if not self.n_steps:
            array = store.declare_array(self.group, name, dims, (0, *shape), dtype, chunks, attrs, coordinates=known)
            self._arrays[name] = array
            if bounds := motion_index.create(self.group, array):
                self._bounds[name] = bounds
            return
        beside = self.root.parent / f".{self.root.name}.{name}"
        shutil.rmtree(beside, ignore_errors=True)
        try:
            group = zarr.create_group(str(beside))
            array = store.declare_array(group, name, dims, (0, *shape), dtype, chunks, attrs, coordinates=known)
            self._put_constant(array, 0, self.n_steps, fill)
            array.resize((self.n_steps, *shape))
            (beside / name).rename(self.root / name)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        self._arrays[name] = cast("zarr.Array[Any]", self.group[name])

    def _put_constant(self, array: zarr.Array[Any], start: int, stop: int, value: Any) -> None:
        for first in range(start, stop, array.chunks[0]):
            n = min(array.chunks[0], stop - first)
            self._put(array, first, np.full((n, *array.shape[1:]), value, array.dtype))

    def _put(self, array: zarr.Array[Any], start: int, values: NDArray[Any]) -> None:
        """Write steps, chunk by chunk; of a chunk that is begun already, what is in it stays."""
        size, stop = array.chunks[0], start + len(values)
        for i in range(start // size, -(-stop // size)):
            low, high = max(start, i * size), min(stop, (i + 1) * size)
            for j, rows in self._row_chunks(array):
                chunk = np.full(array.chunks, array.fill_value, array.dtype)
                inside = chunk if rows is None else chunk[:, : len(rows)]
                part = values[low - start : high - start]
                inside[low - i * size : high - i * size] = part if rows is None else part[:, rows]
                if low > i * size:
                    first = j * chunk.shape[1] if rows is not None else 0
                    old = slice(i * size, low)
                    inside[: low - i * size] = array[old] if rows is None else array[old, first : first + len(rows)]
                key = (i, *((j,) if array.ndim > 1 else ()), *(0,) * (array.ndim - 2))
                data = writing.encode_chunk(array, chunk)
                motion_index.write(self.root, array, key, chunk[: high - i * size], data)
                chunk_bytes.write_chunk(array, key, data)

    def _row_chunks(self, array: zarr.Array[Any]) -> Iterator[tuple[int, NDArray[np.int64] | None]]:
        """The chunks along `token`, each with the recorder's rows that it holds."""
        if "token" not in store.dimensions(array):
            yield 0, None
            return
        width = array.chunks[1]
        for j in range(-(-array.shape[1] // width)):
            yield j, self._order[j * width : (j + 1) * width]


def _grows(array: zarr.Array[Any]) -> bool:
    return "step" in store.dimensions(array)


def _of_another(name: str) -> dict[str, Any]:
    """The attributes of a variable of a second parameter that the schema does not name: those of its like."""
    kind = name.rpartition("_")[0]
    if name in schema.VARIABLES or kind not in schema.VARIABLES:
        return {}
    spec = schema.VARIABLES[kind].attributes()
    return {**spec, "long_name": f"{spec['long_name']}, of {name.rpartition('_')[2]}"}


def begin(
    path: str | Path, rows: store.TokenTable, attrs: Mapping[str, Any], block_steps: int, *, overwrite: bool
) -> Appender:
    """Create a store that grows."""
    return Appender(store.create(path, rows, attrs, overwrite=overwrite).group, rows, block_steps)


def resume(path: str | Path, rows: store.TokenTable, block_steps: int) -> Appender:
    """Open a store to append to it, whole or not; nothing is changed before `Appender.cut`.

    Raises
    ------
    InputError
        If the store was not recorded, or has other tokens.
    """
    _, n_steps = store.open_group(path, partial=True)
    group = zarr.open_group(location.zarr_store(path), mode="r+", zarr_format=3)
    if group.attrs.get("made_by") != "Recorder":
        raise InputError(f"{path} was not made by a Recorder, and cannot be resumed: name another store")
    appender = Appender(group, rows, block_steps, n_steps)
    order = rows.disk_order()
    tokens = store.read_coordinate(group, "token")
    dead = store.read_coordinate(group, "dead") if "dead" in group else None
    same_dead = (dead is None) == (rows.dead is None) and (
        dead is None or rows.dead is None or np.array_equal(dead, rows.dead[order])
    )
    if not np.array_equal(tokens, rows.tokens[order]) or not same_dead:
        raise InputError(
            f"{path} holds {len(tokens)} tokens that are not the {len(rows.tokens)} to be recorded, or other dead "
            "ones: resume with the rows= and dead= of the recording, or name another store"
        )
    return appender
