"""Create the arrays of a store, and read the properties of existing ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from deadtok_xr import schema
from deadtok_xr.bfloat16 import BFLOAT16
from deadtok_xr.errors import InputError
from deadtok_xr.store.chunk_reader import read_values
from deadtok_xr.store.location import address_of

ZSTD_LEVEL = 1
# a chunk that is left out because it equals the fill value cannot be distinguished from a lost one
_WRITE_ALL_CHUNKS: Any = {"write_empty_chunks": True}


def create_array(
    group: zarr.Group, name: str, shape: Sequence[int], dims: Sequence[str], dtype: Any, chunks: Any = "auto",
    shards: tuple[int, ...] | None = None, attrs: Mapping[str, Any] = {},
) -> zarr.Array[Any]:  # fmt: skip
    """Create an array as all our stores have them: zstd with a checksum, every chunk written, fill value NaN."""
    floating = dtype != "string" and (np.dtype(dtype).kind == "f" or np.dtype(dtype) == BFLOAT16)
    return group.create_array(
        name,
        shape=tuple(shape),
        chunks=chunks,
        shards=shards,
        dtype=dtype,
        dimension_names=tuple(dims),
        attributes=dict(attrs),  # set here, because setting them later takes one more request
        compressors=ZstdCodec(level=ZSTD_LEVEL, checksum=True),  # without the checksum a flipped bit is read as data
        fill_value=math.nan if floating else None,
        config=_WRITE_ALL_CHUNKS,
    )


class NewArray(NamedTuple):
    """What `create_arrays` needs to know of an array."""

    shape: Sequence[int]
    dims: Sequence[str]
    dtype: str
    """A dtype of numpy, or "string"."""
    chunks: Sequence[int]
    attrs: Mapping[str, Any]


def create_arrays(
    root: zarr.Group, groups: Mapping[str, Mapping[str, Any]], arrays: Mapping[str, NewArray]
) -> dict[str, zarr.Array[Any]]:
    """Create groups, given by their attributes, and arrays as `create_array` does, all at once.

    Each on its own takes six times as long: Zarr then looks whether each parent exists, one request after another.
    """
    nodes = {path: type(root.metadata)(attributes=dict(attrs)) for path, attrs in groups.items()}
    created = zarr.create_hierarchy(store=root.store, nodes=nodes | {path: _metadata(a) for path, a in arrays.items()})
    return {path: writable(node) for path, node in created if isinstance(node, zarr.Array)}


def _metadata(array: NewArray) -> Any:
    like = _metadata_of_an_array(array.dtype)
    changed = {
        "shape": list(array.shape),
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(array.chunks)}},
        "attributes": dict(array.attrs),
        "dimension_names": list(array.dims),
    }
    return type(like).from_dict({**like.to_dict(), **changed})


@cache
def _metadata_of_an_array(dtype: str) -> Any:
    """Return the metadata of an array that `create_array` creates in memory."""
    return create_array(zarr.create_group({}), "x", (1,), ("x",), dtype, (1,)).metadata


def writable(array: zarr.Array[Any]) -> zarr.Array[Any]:
    """Return an array that was opened again with the setting that every chunk is written, which Zarr does not store."""
    return array.with_config(_WRITE_ALL_CHUNKS)


def create_coordinate(
    group: zarr.Group, name: str, values: NDArray[Any], dims: Sequence[str], *, chunks: Any = None, dtype: Any = None
) -> zarr.Array[Any]:
    """Create a coordinate of the schema and write its values: in one chunk, so that one rename replaces its file."""
    one_chunk = tuple(max(1, n) for n in values.shape)
    attrs = {"long_name": schema.COORDINATES[name]}
    array = create_array(group, name, values.shape, dims, dtype or values.dtype, chunks or one_chunk, attrs=attrs)
    if values.size:
        array[...] = values
    return array


def declare_array(
    group: zarr.Group, name: str, dims: Sequence[str], shape: Sequence[int], dtype: Any, chunks: Sequence[int],
    attrs: Mapping[str, Any] = {}, *, coordinates: Sequence[str] = (), shards: tuple[int, ...] | None = None,
) -> zarr.Array[Any]:  # fmt: skip
    """Create a variable with its attributes; ``coordinates`` names the token coordinates that the store has."""
    dtype = np.dtype(dtype)
    schema.check_variable(name, dims, dtype.name, where=address_of(group))
    attrs = {
        **schema.attributes(name),
        # float32 values come from training in float32 or under autocast; they lie on no 16-bit grid
        "precision": "none" if dtype == np.float32 else dtype.name,
        **attrs,
        **({"coordinates": " ".join(coordinates)} if coordinates and "token" in dims else {}),
    }
    return create_array(group, name, shape, dims, dtype, tuple(chunks), shards, attrs)


def dimensions(array: zarr.Array[Any]) -> tuple[str, ...]:
    """Return the names of an array's dimensions."""
    return tuple(d or "" for d in array.metadata.dimension_names or ())  # type: ignore[union-attr]


def file_shape(array: zarr.Array[Any]) -> tuple[int, ...]:
    """Return the shape of what one file or object of an array holds: a shard, or a chunk if there are no shards."""
    return array.shards or array.chunks


def read_coordinate(group: zarr.Group, name: str) -> NDArray[Any]:
    """Read all values of a coordinate, or of another small array of a store."""
    array = group[name]
    if not isinstance(array, zarr.Array):
        raise InputError(f"{address_of(group)}: {name!r} is a group; expected an array")
    return read_values(array)
