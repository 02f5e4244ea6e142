"""Create a recording store and write it by whole chunks.

A store is a Zarr v3 group. Dead tokens lie together on disk (dead first, ascending ids in each group), so that
reading them alone reads a contiguous part; `deadtok_xr.recording.opening` returns tokens in ascending order of their
ids. The attribute `complete` is set last; without it a store opens only with ``partial=True``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from deadtok_xr import schema
from deadtok_xr.errors import InputError
from deadtok_xr.store import location, manifest_write, zarr_dtype
from deadtok_xr.store.arrays import create_coordinate, declare_array, dimensions
from deadtok_xr.store.chunk_layout import CHUNK_STEPS, chunks_of
from deadtok_xr.store.destination import refuse_existing
from deadtok_xr.store.token_table import TokenTable

_PACKAGES = ("deadtok_xr", "zarr", "numpy", "ml_dtypes")


class StoreWriter:
    """Writes one store: `create`, then `extend` and `write` in any order, then `finish`.

    Values are given in the row order of the token table; the writer rearranges them into the order on disk.
    """

    def __init__(
        self, group: zarr.Group, token_table: TokenTable, runs: Sequence[int] | Sequence[str] | None = None
    ) -> None:
        self.group = group
        self.token_table = token_table
        self.n_steps = 0
        self.n_runs = 0 if runs is None else len(runs)
        self.chunk_steps = CHUNK_STEPS
        self._order = order = token_table.disk_order()
        self._arrays: dict[str, zarr.Array[Any]] = {}
        self._add("step", np.empty(0, np.int64), ("step",), chunks=(65536,))
        self._add("token", token_table.tokens[order], ("token",))
        if token_table.dead is not None:
            self._add("dead", token_table.dead[order], ("token",))
        if token_table.text is not None:
            self._add("token_text", np.asarray(token_table.text, dtype=object)[order], ("token",), dtype="string")
        if not token_table.rows_are_ids and not np.array_equal(token_table.tokens, np.arange(len(token_table.tokens))):
            self._add("source_row", order, ("token",))
        if runs is not None:
            self._add_runs(runs)

    def _add_runs(self, runs: Sequence[int] | Sequence[str]) -> None:
        labels = np.asarray(list(runs))
        if not labels.size or len(set(map(str, runs))) < labels.size:
            raise InputError(
                f"{location.address_of(self.group)}: runs={list(runs)}; expected one label for each run, all different"
            )
        if labels.dtype.kind in "iu":
            self._add("run", labels.astype(np.int64), ("run",))
        else:
            self._add("run", labels.astype(str).astype(object), ("run",), dtype="string")

    def _add(
        self, name: str, values: NDArray[Any], dims: tuple[str, ...], *, chunks: Any = None, dtype: Any = None
    ) -> None:
        self._arrays[name] = create_coordinate(self.group, name, values, dims, chunks=chunks, dtype=dtype)

    def add_variable(
        self, name: str, dims: Sequence[str], shape: Sequence[int], dtype: Any, attrs: Mapping[str, Any] = {}
    ) -> None:
        """Declare a variable; ``shape`` holds the sizes along ``dims`` after `step`.

        `step` is the first of ``dims``, or in a store of several runs the second, after `run`.
        """
        dtype = np.dtype(dtype)
        where = location.address_of(self.group)
        schema.check_variable(name, dims, dtype.name, where=where)
        dims_of_run = schema.without_run(dims)
        if len(dims_of_run) < len(dims) and not self.n_runs:
            raise InputError(f"{where}: {name!r} has the dimension run; create the store with runs=...")
        lead = (self.n_runs,) * (len(dims) - len(dims_of_run))
        chunks = chunks_of(dims, (*lead, 0, *shape), dtype.itemsize, self.token_table.n_dead)
        if dims_of_run == schema.MATRIX:
            self.chunk_steps = chunks[len(lead)]
        self.declare(name, dims, (*lead, self.n_steps, *shape), dtype, chunks, attrs)

    def declare(
        self, name: str, dims: Sequence[str], shape: Sequence[int], dtype: Any, chunks: Sequence[int],
        attrs: Mapping[str, Any] = {}, *, shards: tuple[int, ...] | None = None,
    ) -> zarr.Array[Any]:  # fmt: skip
        """Declare a variable of any dimensions, with its full shape, its chunks and optionally its shards."""
        known = [c for c in schema.TOKEN_COORDINATES if c in self._arrays]
        array = declare_array(self.group, name, dims, shape, dtype, chunks, attrs, coordinates=known, shards=shards)
        self._arrays[name] = array
        return array

    def extend(self, steps: NDArray[np.int64]) -> None:
        """Lengthen all variables by more steps; their values must be written before `finish`."""
        first, self.n_steps = self.n_steps, self.n_steps + len(steps)
        for array in self._arrays.values():
            dims = dimensions(array)
            if "step" in dims:
                array.resize(tuple(self.n_steps if d == "step" else n for d, n in zip(dims, array.shape, strict=True)))
        self._arrays["step"][first:] = steps

    def write(self, name: str, start: int, values: NDArray[Any], *, run: int | None = None) -> None:
        """Write the steps at positions ``start, start + 1, ...`` of one variable, whole chunks at a time.

        ``run`` is the position of the run that they belong to, for variables with that dimension.
        """
        array = self._arrays[name]
        if "token" in dimensions(array):
            values = values[:, self._order]
        part = slice(start, start + len(values))
        array[part if run is None else (run, part)] = values

    def finish(self) -> None:
        """Write the manifest and mark the store as complete, so that it opens without ``partial=True``."""
        manifest_write.complete(self.group, self._arrays, self.group.attrs.asdict(), sync=False)


def create(
    path: str | Path,
    token_table: TokenTable,
    attrs: Mapping[str, Any],
    *,
    overwrite: bool = False,
    runs: Sequence[int] | Sequence[str] | None = None,
) -> StoreWriter:
    """Create a store that has its coordinates and no variables yet.

    Parameters
    ----------
    path
        A folder that does not exist, unless ``overwrite``.
    token_table
        The tokens, in the row order of the values that `StoreWriter.write` will be given.
    attrs
        Root attributes: provenance, hyperparameters and other facts about the run.
    overwrite
        Replace a recording that exists.
    runs
        Labels of the runs, for a store whose variables have a leading dimension `run`.

    Returns
    -------
    StoreWriter

    Raises
    ------
    DestinationExistsError
        If something exists at ``path`` and ``overwrite`` is false.
    """
    zarr_dtype.register()
    refuse_existing(path, overwrite=overwrite)
    attributes = {
        "deadtok_format": schema.FORMAT_VERSION,
        "complete": False,
        "index_convention": schema.INDEX_CONVENTION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "software": software_versions(),
        **attrs,
    }
    return StoreWriter(create_root(path, attributes), token_table, runs)


def create_root(path: str | Path, attributes: Mapping[str, Any]) -> zarr.Group:
    """Create the root group of a store, in place of what is at the path."""
    if location.is_address(path):
        if location.exists(path):
            location.remove(path)
        return zarr.create_group(location.zarr_store(path), attributes=dict(attributes))
    with location.placed_at_once(Path(path).absolute()) as folder:
        zarr.create_group(str(folder), attributes=dict(attributes))
    return zarr.open_group(location.zarr_store(path), mode="r+", zarr_format=3)


def software_versions() -> dict[str, str]:
    """Return the versions of the packages that write a file, for its provenance."""
    return {name: version(name) for name in _PACKAGES}
