"""One recording store on disk: created, written by whole chunks, finished, and opened only when whole.

A store is a Zarr v3 group. Dead tokens lie together on disk (dead first, ascending ids in each group), so
that work on them alone reads a contiguous part; `deadtok_xr.recording.opening` gives users ascending ids again.
The attribute `complete` is set last, and opening checks that every chunk is there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from deadtok_xr import schema
from deadtok_xr.bfloat16 import BFLOAT16
from deadtok_xr.errors import IncompleteStoreError, InputError, MissingFileError
from deadtok_xr.store import location, zarr_dtype
from deadtok_xr.store.chunk_layout import CHUNK_STEPS, chunks_of
from deadtok_xr.store.destination import refuse_existing
from deadtok_xr.store.reading import place

ZSTD_LEVEL = 1
# a chunk that is left out because it equals the fill value cannot be told from a lost one
_EVERY_CHUNK: Any = {"write_empty_chunks": True}
_SOFTWARE = ("deadtok_xr", "zarr", "numpy", "ml_dtypes")


@dataclass(frozen=True)
class Rows:
    """The tokens of a store: vocabulary ids in the caller's row order, and what is known of them.

    Attributes
    ----------
    tokens
        int64 vocabulary ids, one per row, distinct.
    dead
        bool per row, or None when it is not known which tokens are dead.
    text
        The tokens as text, or None.
    are_ids
        Whether a row of the source is numbered by its vocabulary id even where rows were left out, as in a
        recording of chosen rows: the store then has no `source_row`.
    """

    tokens: NDArray[np.int64]
    dead: NDArray[np.bool_] | None = None
    text: Sequence[str] | None = None
    are_ids: bool = False

    def __post_init__(self) -> None:
        n = len(self.tokens)
        if len(np.unique(self.tokens)) != n:
            raise InputError(f"token ids must be distinct: {n} rows have {len(np.unique(self.tokens))} ids")
        for name, values in (("dead mask", self.dead), ("token texts", self.text)):
            if values is not None and len(values) != n:
                raise InputError(f"the {name} has {len(values)} entries; needed: one per row, {n}")

    def disk_order(self) -> NDArray[np.int64]:
        """The caller's row numbers in the order in which they lie on disk."""
        live = np.zeros(len(self.tokens), bool) if self.dead is None else ~self.dead
        return np.lexsort((self.tokens, live)).astype(np.int64)


def create_array(
    group: zarr.Group, name: str, shape: Sequence[int], dims: Sequence[str], dtype: Any, chunks: Any = "auto",
    shards: tuple[int, ...] | None = None, attrs: Mapping[str, Any] = {},
) -> zarr.Array[Any]:  # fmt: skip
    """An array as all our stores have them: zstd with a checksum, every chunk written, NaN where unwritten."""
    floating = dtype != "string" and (np.dtype(dtype).kind == "f" or np.dtype(dtype) == BFLOAT16)
    return group.create_array(
        name,
        shape=tuple(shape),
        chunks=chunks,
        shards=shards,
        dtype=dtype,
        dimension_names=tuple(dims),
        attributes=dict(attrs),  # later, they would be a request of their own
        compressors=ZstdCodec(level=ZSTD_LEVEL, checksum=True),  # without it a flipped bit is returned as data
        fill_value=math.nan if floating else None,
        config=_EVERY_CHUNK,
    )


def whole(array: zarr.Array[Any]) -> zarr.Array[Any]:
    """An array that was opened again, to be written as by the one who made it."""
    return array.with_config(_EVERY_CHUNK)


def create_coordinate(
    group: zarr.Group, name: str, values: NDArray[Any], dims: Sequence[str], *, chunks: Any = None, dtype: Any = None
) -> zarr.Array[Any]:
    """A coordinate of the schema with its values: in one chunk, so that its file can be replaced at a stroke."""
    whole = tuple(max(1, n) for n in values.shape)
    attrs = {"long_name": schema.COORDINATES[name]}
    array = create_array(group, name, values.shape, dims, dtype or values.dtype, chunks or whole, attrs=attrs)
    if values.size:
        array[...] = values
    return array


def declare_array(
    group: zarr.Group, name: str, dims: Sequence[str], shape: Sequence[int], dtype: Any, chunks: Sequence[int],
    attrs: Mapping[str, Any] = {}, *, coordinates: Sequence[str] = (), shards: tuple[int, ...] | None = None,
) -> zarr.Array[Any]:  # fmt: skip
    """A variable with the attributes that every one has; ``coordinates`` are those of tokens that the store has."""
    dtype = np.dtype(dtype)
    schema.check_variable(name, dims, dtype.name, where=place(group))
    attrs = {
        **schema.attributes(name),
        # trained in float32 or under autocast: no lattice, unless somebody knows better
        "precision": "none" if dtype == np.float32 else dtype.name,
        **attrs,
        **({"coordinates": " ".join(coordinates)} if coordinates and "token" in dims else {}),
    }
    return create_array(group, name, shape, dims, dtype, tuple(chunks), shards, attrs)


class StoreWriter:
    """Writes one store: `create`, then `extend` and `write` in any order, then `finish`.

    Rows are given in the caller's order throughout; the writer puts them where they lie on disk.
    """

    def __init__(self, group: zarr.Group, rows: Rows, runs: Sequence[int] | Sequence[str] | None = None) -> None:
        self.group = group
        self.rows = rows
        self.n_steps = 0
        self.n_runs = 0 if runs is None else len(runs)
        self._order = rows.disk_order()
        self._arrays: dict[str, zarr.Array[Any]] = {}
        self.chunk_steps = CHUNK_STEPS
        self._add("step", np.empty(0, np.int64), ("step",), chunks=(65536,))
        self._add("token", rows.tokens[self._order], ("token",))
        if rows.dead is not None:
            self._add("dead", rows.dead[self._order], ("token",))
        if rows.text is not None:
            self._add("token_text", np.asarray(rows.text, dtype=object)[self._order], ("token",), dtype="string")
        if not rows.are_ids and not np.array_equal(rows.tokens, np.arange(len(rows.tokens))):
            self._add("source_row", self._order, ("token",))
        if runs is not None:
            self._add_runs(runs)

    def _add_runs(self, runs: Sequence[int] | Sequence[str]) -> None:
        labels = np.asarray(list(runs))
        if not labels.size or len(set(map(str, runs))) < labels.size:
            raise InputError(f"{place(self.group)}: runs={list(runs)}; needed: one label for each run, all different")
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
        schema.check_variable(name, dims, dtype.name, where=place(self.group))
        of_one = schema.of_one_run(dims)
        if len(of_one) < len(dims) and not self.n_runs:
            raise InputError(f"{place(self.group)}: {name!r} has the dimension run; create the store with runs=...")
        lead = (self.n_runs,) * (len(dims) - len(of_one))
        n_dead = 0 if self.rows.dead is None else int(self.rows.dead.sum())
        chunks = chunks_of(dims, (*lead, 0, *shape), dtype.itemsize, n_dead)
        if of_one == schema.MATRIX:
            self.chunk_steps = chunks[len(lead)]
        self.declare(name, dims, (*lead, self.n_steps, *shape), dtype, chunks, attrs)

    def declare(
        self, name: str, dims: Sequence[str], shape: Sequence[int], dtype: Any, chunks: Sequence[int],
        attrs: Mapping[str, Any] = {}, *, shards: tuple[int, ...] | None = None,
    ) -> zarr.Array[Any]:  # fmt: skip
        """Declare a variable of any dimensions, with its shape, chunks and perhaps shards along all of them."""
        known = [c for c in schema.OF_TOKENS if c in self._arrays]
        array = declare_array(self.group, name, dims, shape, dtype, chunks, attrs, coordinates=known, shards=shards)
        self._arrays[name] = array
        return array

    def extend(self, steps: NDArray[np.int64]) -> None:
        """Make room for more steps; their values must follow before `finish`."""
        first, self.n_steps = self.n_steps, self.n_steps + len(steps)
        for array in self._arrays.values():
            dims = dimensions(array)
            if "step" in dims:
                array.resize(tuple(self.n_steps if d == "step" else n for d, n in zip(dims, array.shape, strict=True)))
        self._arrays["step"][first:] = steps

    def write(self, name: str, start: int, values: NDArray[Any], *, run: int | None = None) -> None:
        """Write the steps ``start, start + 1, ...`` (positions) of one variable, whole chunks at a time.

        ``run`` is the position of the run that they belong to, for variables with that dimension.
        """
        array = self._arrays[name]
        if "token" in dimensions(array):
            values = values[:, self._order]
        part = slice(start, start + len(values))
        array[part if run is None else (run, part)] = values

    def finish(self) -> None:
        """Declare the store whole. Only this makes it open without ``partial=True``."""
        self.group.attrs["complete"] = True


def create(
    path: str | Path,
    rows: Rows,
    attrs: Mapping[str, Any],
    *,
    overwrite: bool = False,
    runs: Sequence[int] | Sequence[str] | None = None,
) -> StoreWriter:
    """Begin a store.

    Parameters
    ----------
    path
        A folder that does not exist, unless ``overwrite``.
    rows
        The tokens, in the row order in which `StoreWriter.write` will be given them.
    attrs
        Root attributes: provenance, hyperparameters and what else is known of the run.
    runs
        Labels of the runs, for a store whose variables have a leading dimension `run`.

    Raises
    ------
    DestinationExistsError
        If something is there already and ``overwrite`` is false.
    """
    zarr_dtype.register()
    refuse_existing(path, overwrite=overwrite)
    if location.exists(path):
        location.remove(path)
    group = zarr.create_group(
        location.opened(path),
        attributes={
            "deadtok_format": schema.FORMAT_VERSION,
            "complete": False,
            "index_convention": schema.INDEX_CONVENTION,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "software": software(),
            **attrs,
        },
    )
    return StoreWriter(group, rows, runs)


def software() -> dict[str, str]:
    """The versions that made a file, for its provenance."""
    return {name: version(name) for name in _SOFTWARE}


def dimensions(array: zarr.Array[Any]) -> tuple[str, ...]:
    """The names of an array's dimensions."""
    return tuple(d or "" for d in array.metadata.dimension_names or ())  # type: ignore[union-attr]


def missing_chunks(
    array: zarr.Array[Any], group: zarr.Group, stored: Container[str] | None = None
) -> list[tuple[int, ...]]:
    """The grid positions of an array's chunks, or of its shards if it has any, that are not in the store, in order.

    ``stored`` are the keys of the store, where they were listed already.
    """
    prefix = f"{array.path}/" if array.path else ""
    if stored is None:
        stored = location.objects(group.store, prefix)
    grid = [math.ceil(n / c) for n, c in zip(array.shape, of_files(array), strict=True)]
    encode = array.metadata.encode_chunk_key
    return [i for i in itertools.product(*map(range, grid)) if prefix + encode(i) not in stored]


def of_files(array: zarr.Array[Any]) -> tuple[int, ...]:
    """The shape of what one file or object of an array holds: a shard, or else a chunk."""
    return array.shards or array.chunks


def read_small(group: zarr.Group, name: str) -> NDArray[Any]:
    """All of a small array of a store, such as a coordinate."""
    array = group[name]
    if not isinstance(array, zarr.Array):
        raise InputError(f"{place(group)}: {name!r} is a group; needed: an array")
    return np.asarray(array[...])


def open_group(path: str | Path, *, partial: bool = False) -> tuple[zarr.Group, int]:
    """Open a store for reading, once it is known to be whole.

    Returns
    -------
    The group, and how many of its steps are whole: all of them unless ``partial``.

    Raises
    ------
    MissingFileError
        If there is nothing at ``path``.
    InputError
        If it is no recording, or one of a newer format.
    IncompleteStoreError
        If writing has not finished or a chunk is missing, unless ``partial``.
    """
    zarr_dtype.register()
    group = _open_zarr_group(path)
    _check_format(path, group)
    arrays = dict(group.arrays())
    n_steps = int(arrays["step"].shape[0]) if "step" in arrays else 0
    keys = location.objects(group.store, f"{group.path}/" if group.path else "")  # at once: a request has a price
    lost = {name: holes for name, array in arrays.items() if (holes := missing_chunks(array, group, keys))}
    if not partial:
        _refuse_incomplete(path, group, arrays, lost)
        return group, n_steps
    lengths = [a.shape[dimensions(a).index("step")] for a in arrays.values() if "step" in dimensions(a)]
    n_steps = min(lengths, default=0)  # one that is being written grows array by array
    for name, holes in lost.items():
        dims = dimensions(arrays[name])
        if "step" not in dims:
            raise IncompleteStoreError(f"{path}: the coordinate {name!r} is missing; the store cannot be read")
        axis = dims.index("step")  # a step is whole when it is whole in every run
        n_steps = min(n_steps, min(hole[axis] for hole in holes) * of_files(arrays[name])[axis])
    if n_steps == 0:
        raise IncompleteStoreError(f"{path}: not one step is whole yet; nothing can be read")
    return group, n_steps


def _open_zarr_group(path: str | Path) -> zarr.Group:
    if not location.exists(path):
        what = "object or bucket" if location.is_address(path) else "file or folder"
        raise MissingFileError(f"{path}: no such {what}")
    try:
        with location.reaching(path):
            return zarr.open_group(location.opened(path), mode="r", zarr_format=3)
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError) as error:
        raise InputError(
            f"{path} is not a Zarr v3 group ({type(error).__name__}); needed: a recording store; "
            "`deadtok convert` makes one from HDF5 or safetensors"
        ) from error


def _check_format(path: str | Path, group: zarr.Group) -> None:
    found = group.attrs.get("deadtok_format")
    if found is None:
        raise InputError(f"{path} is a Zarr group, but not a recording: the attribute 'deadtok_format' is missing")
    if str(found).split(".")[0] != schema.FORMAT_VERSION.split(".")[0]:
        raise InputError(
            f"{path} has the recording format {found}; this version of deadtok_xr reads "
            f"{schema.FORMAT_VERSION.split('.')[0]}.x: update deadtok_xr"
        )


def _refuse_incomplete(
    path: str | Path,
    group: zarr.Group,
    arrays: Mapping[str, zarr.Array[Any]],
    lost: Mapping[str, list[tuple[int, ...]]],
) -> None:
    remedy = "open it with partial=True (--partial) for the steps that are whole"
    if not group.attrs.get("complete"):
        raise IncompleteStoreError(f"{path} was not written to its end: finish writing it, or {remedy}")
    for name, holes in lost.items():
        array, (hole, *_) = arrays[name], holes
        where = ", ".join(
            f"{dim} positions {i * c}..{min((i + 1) * c, n) - 1}"
            for dim, i, c, n in zip(dimensions(array), hole, of_files(array), array.shape, strict=True)
        )
        raise IncompleteStoreError(
            f"{path}: {len(holes)} chunk(s) of variable {name!r} are missing, the first at {where}: "
            f"restore the file from a copy, or {remedy}"
        )
