"""A recording store that grows at its end, and can be read while it grows.

Each chunk file is written under another name, flushed to the disk and renamed, and only then are the arrays made
longer, so that a reader (``partial=True``) finds every step that the arrays have, also after a power cut. An
interrupted write leaves files beyond the ends of the arrays, which are not read and are replaced by the next attempt.
"""

from __future__ import annotations

import glob
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
from numpy.typing import NDArray

from deadtok_xr import schema, store
from deadtok_xr.errors import InputError
from deadtok_xr.recorder.host_buffers import Column
from deadtok_xr.store import (
    chunk_bytes,
    chunk_entries,
    length,
    location,
    manifest,
    manifest_write,
    motion_index,
    writing,
)
from deadtok_xr.store.chunk_layout import chunk_shape, chunks_of

_PARTIAL = ".partial"


class Appender:
    """Writes steps at the end of one store: `create_appender` or `open_appender`, then `append`, then `finish`."""

    def __init__(self, group: zarr.Group, token_table: store.TokenTable, buffer_steps: int, n_steps: int = 0) -> None:
        self.group, self.token_table, self.buffer_steps, self.n_steps = group, token_table, buffer_steps, n_steps
        self.root = Path(str(group.store_path).removeprefix("file://"))
        self._order = token_table.disk_order()
        self._bounds = self._motion_index()
        self._arrays = dict(group.arrays())
        self._entries: dict[str, dict[tuple[int, ...], chunk_entries.Entry]] = {}

    def _motion_index(self) -> dict[str, zarr.Array[Any]]:
        """Open the motion index; one that a power cut has damaged is begun again: a store is whole without it."""
        arrays = [cast("zarr.Array[Any]", self.group[name]) for name in schema.MOTION_INDEXED if name in self.group]
        try:
            index = cast(zarr.Group, self.group[motion_index.GROUP])
            return {array.basename: cast("zarr.Array[Any]", index[array.basename]) for array in arrays}
        except (KeyError, ValueError, TypeError):
            shutil.rmtree(self.root / motion_index.GROUP, ignore_errors=True)
        created = {array.basename: motion_index.create(self.group, array) for array in arrays}
        return {name: bounds for name, bounds in created.items() if bounds is not None}

    def append(
        self,
        steps: NDArray[np.int64],
        matrices: Mapping[str, tuple[NDArray[Any], float]],
        columns: Mapping[str, tuple[NDArray[Any], Column]],
    ) -> None:
        """Write more steps; a new variable is filled with its default value for earlier steps.

        Parameters
        ----------
        steps
            Their labels.
        matrices
            Values (steps, rows, dims) by name, each with the default value for earlier steps.
        columns
            Values (steps, ...) by name, each with its `Column`.
        """
        for name, (values, fill) in matrices.items():
            if name not in self._arrays:
                self._declare(name, schema.MATRIX, values.shape[1:], values.dtype, self._chunks(values), fill)
            self._write_steps(self._arrays[name], self.n_steps, values)
        for name, (values, column) in columns.items():
            if name not in self._arrays:
                chunks = chunks_of(column.dims, (0, *column.shape), np.dtype(column.dtype).itemsize)
                self._declare(name, column.dims, column.shape, column.dtype, chunks, column.fill)
            self._write_steps(self._arrays[name], self.n_steps, values)
        for name, array in self._arrays.items():  # values that were logged earlier but not for these steps
            if name not in matrices and name not in columns and name != "step" and _has_steps(array):
                self._write_constant(array, self.n_steps, self.n_steps + len(steps), array.fill_value)
        self._write_steps(self._arrays["step"], self.n_steps, steps)
        self._set_length(self.n_steps + len(steps))

    def read_step(self, name: str, position: int) -> NDArray[Any]:
        """Read a matrix of one step, in the row order of the token table."""
        values = np.empty(self._arrays[name].shape[1:], self._arrays[name].dtype)
        values[self._order] = cast("NDArray[Any]", self._arrays[name][position])
        return values

    def steps(self) -> NDArray[np.int64]:
        """Return the labels of the complete steps."""
        return cast("NDArray[np.int64]", np.asarray(self._arrays["step"][...]))[: self.n_steps]

    def describe_complete_steps(self) -> str:
        """Say which steps can be read."""
        if not self.n_steps:
            return "no step is complete"
        return f"its {self.n_steps} steps up to {self.steps()[-1]} are complete and can be opened with partial=True"

    def array(self, name: str) -> zarr.Array[Any] | None:
        """Return an array by name; None if there is none."""
        return self._arrays.get(name)

    def truncate(self, n_steps: int) -> None:
        """Keep the first ``n_steps`` steps and mark the store as incomplete; later steps are recorded again."""
        listed = manifest.load(self.group)
        self._entries = {} if listed is None else listed.entries()  # of the chunks that are kept
        self.set_attributes({"complete": False})
        location.remove_leftovers(self.root)
        _remove_partial_variables(self.root)
        manifest_write.remove(self.group)
        self._set_length(n_steps)

    def set_attributes(self, attrs: Mapping[str, Any]) -> None:
        """Set attributes of the store."""
        manifest_write.put_attributes(self.group, {**self.group.attrs.asdict(), **attrs})

    def finish(self) -> None:
        """Write the manifest and mark the store as complete, after everything has reached the disk."""
        manifest_write.complete(self.group, self._arrays, self.group.attrs.asdict(), self._entries)

    def _set_length(self, n_steps: int) -> None:
        self._arrays = length.set_n_steps(self.group, self._arrays, n_steps)
        for name, bounds in self._bounds.items():
            bounds.resize(motion_index.bounds_shape(self._arrays[name]))
        self.n_steps = n_steps

    def _chunks(self, values: NDArray[Any]) -> tuple[int, ...]:
        _, n_rows, n_dims = values.shape
        return chunk_shape(n_rows, n_dims, values.dtype.itemsize, self.token_table.n_dead, self.buffer_steps)

    def _declare(
        self, name: str, dims: tuple[str, ...], shape: tuple[int, ...], dtype: Any, chunks: Any, fill: Any
    ) -> None:
        """Add a variable with all steps so far: written to a temporary folder, then moved into the store."""
        known = [c for c in schema.TOKEN_COORDINATES if c in self._arrays]
        attrs = {**schema.attributes(name), **_attributes_of_second_parameter(name)}
        if not self.n_steps:
            array = store.declare_array(self.group, name, dims, (0, *shape), dtype, chunks, attrs, coordinates=known)
            self._arrays[name] = array
            if bounds := motion_index.create(self.group, array):
                self._bounds[name] = bounds
            return
        temporary = self.root.parent / f".{self.root.name}.{name}{_PARTIAL}"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            group = zarr.create_group(str(temporary))
            array = store.declare_array(group, name, dims, (0, *shape), dtype, chunks, attrs, coordinates=known)
            self._write_constant(array, 0, self.n_steps, fill)
            array.resize((self.n_steps, *shape))
            location.flush(temporary / name / "zarr.json")
            (temporary / name).rename(self.root / name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._arrays[name] = cast("zarr.Array[Any]", self.group[name])

    def _write_constant(self, array: zarr.Array[Any], start: int, stop: int, value: Any) -> None:
        for first in range(start, stop, array.chunks[0]):
            n = min(array.chunks[0], stop - first)
            self._write_steps(array, first, np.full((n, *array.shape[1:]), value, array.dtype))

    def _write_steps(self, array: zarr.Array[Any], start: int, values: NDArray[Any]) -> None:
        """Write steps, chunk by chunk; earlier steps of a chunk that is partly filled are kept."""
        size, stop = array.chunks[0], start + len(values)
        for i in range(start // size, -(-stop // size)):
            low, high = max(start, i * size), min(stop, (i + 1) * size)
            for j, rows in self._token_chunks(array):
                chunk = np.full(array.chunks, array.fill_value, array.dtype)
                valid = chunk if rows is None else chunk[:, : len(rows)]
                part = values[low - start : high - start]
                valid[low - i * size : high - i * size] = part if rows is None else part[:, rows]
                if low > i * size:
                    first = j * chunk.shape[1] if rows is not None else 0
                    old = slice(i * size, low)
                    valid[: low - i * size] = array[old] if rows is None else array[old, first : first + len(rows)]
                key = (i, *((j,) if array.ndim > 1 else ()), *(0,) * (array.ndim - 2))
                data = writing.encode_chunk(array, chunk)
                motion_index.write(self.root, array, key, chunk[: high - i * size], data)
                chunk_bytes.write_chunk(array, key, data, durable=True)
                self._entries.setdefault(array.path, {})[key] = chunk_entries.entry_of(len(data), data)

    def _token_chunks(self, array: zarr.Array[Any]) -> Iterator[tuple[int, NDArray[np.int64] | None]]:
        """Yield the chunks along `token`, each with the rows of the token table that it holds; None without `token`."""
        if "token" not in store.dimensions(array):
            yield 0, None
            return
        width = array.chunks[1]
        for j in range(-(-array.shape[1] // width)):
            yield j, self._order[j * width : (j + 1) * width]


def _remove_partial_variables(root: Path) -> None:
    """Remove the folders of variables that a killed process was about to move into the store."""
    for path in root.parent.glob(f".{glob.escape(root.name)}.*{_PARTIAL}"):
        shutil.rmtree(path, ignore_errors=True)


def _has_steps(array: zarr.Array[Any]) -> bool:
    return "step" in store.dimensions(array)


def _attributes_of_second_parameter(name: str) -> dict[str, Any]:
    """Return the attributes of a variable such as `grad_V`, which the schema does not list: those of `grad`."""
    kind = name.rpartition("_")[0]
    if name in schema.VARIABLES or kind not in schema.VARIABLES:
        return {}
    spec = schema.VARIABLES[kind].attributes()
    return {**spec, "long_name": f"{spec['long_name']}, of {name.rpartition('_')[2]}"}


def create_appender(
    path: str | Path, token_table: store.TokenTable, attrs: Mapping[str, Any], buffer_steps: int, *, overwrite: bool
) -> Appender:
    """Create a store and return its appender."""
    group = store.create(path, token_table, attrs, overwrite=overwrite).group
    _remove_partial_variables(Path(path))
    location.flush_files(Path(path))
    return Appender(group, token_table, buffer_steps)


def open_appender(path: str | Path, token_table: store.TokenTable, buffer_steps: int) -> Appender:
    """Open a store, complete or not, to append to it; it is not changed before `Appender.truncate`.

    Raises
    ------
    InputError
        If the store was not written by a Recorder, or has other tokens.
    """
    _, n_steps = store.open_group(path, partial=True)
    group = zarr.open_group(location.zarr_store(path), mode="r+", zarr_format=3)
    if group.attrs.get("made_by") != "Recorder":
        raise InputError(f"{path} was not written by a Recorder, so it cannot be resumed: choose another store")
    order = token_table.disk_order()
    tokens = store.read_coordinate(group, "token")
    dead = store.read_coordinate(group, "dead") if "dead" in group else None
    if dead is None or token_table.dead is None:
        same_dead = dead is token_table.dead
    else:
        same_dead = np.array_equal(dead, token_table.dead[order])
    if not np.array_equal(tokens, token_table.tokens[order]) or not same_dead:
        raise InputError(
            f"{path} holds {len(tokens)} tokens that are not the {len(order)} to be recorded, or other dead "
            "ones: resume with the rows= and dead= of the recording, or choose another store"
        )
    return Appender(group, token_table, buffer_steps, n_steps)
