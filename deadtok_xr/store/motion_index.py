"""The first and last motion of each token in each chunk, kept with the weights so that resting chunks are not decoded.

For the weights of a store there is an array ``motion/W`` (row_of_chunks, chunk_of_tokens, value), with one small chunk
for each chunk of the weights: the checksum of that chunk, then the position within the chunk of each token's first
motion, then of its last, 0 for none. A zstd chunk ends with the checksum of its content, so an entry that was made for
other content is recognised and ignored: entries can be missing or out of date, but never wrong. Motion from one chunk
to the next is not included; the first step of each chunk is always decoded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numcodecs.zstd import Zstd
from numpy.typing import NDArray
from zarr.storage import LocalStore

from deadtok_xr import schema
from deadtok_xr.store import chunk_bytes

GROUP = "motion"
_CHECKSUM = 2  # words of 16 bits


def create(group: zarr.Group, array: zarr.Array[Any]) -> zarr.Array[Any] | None:
    """Create the index array of a variable at the variable's current length; None for a variable without an index."""
    if array.basename not in schema.MOTION_INDEXED:
        return None
    shape = bounds_shape(array)
    within = group.require_group(GROUP)
    bounds = within.create_array(
        array.basename, shape=shape, chunks=(*(1,) * (len(shape) - 1), shape[-1]), dtype="uint16",
        dimension_names=[*(["run"] if array.ndim == 4 else []), "row_of_chunks", "chunk_of_tokens", "value"],
        compressors=zarr.codecs.ZstdCodec(level=1, checksum=True), fill_value=0,
    )  # fmt: skip
    bounds.attrs["long_name"] = (
        "checksum of the chunk (2 words), position in it of each token's first motion, and of its last; 0 for none"
    )
    return bounds


def bounds_shape(array: zarr.Array[Any]) -> tuple[int, ...]:
    """Return the shape of the index array of a variable."""
    grid = array.cdata_shape[:-1]
    return (*grid, _CHECKSUM + 2 * array.chunks[-2])


def bounds_key(array: zarr.Array[Any], position: tuple[int, ...]) -> str:
    """Return the key, within the store's group, of the index entry of a chunk."""
    return f"{GROUP}/{array.basename}/c/{'/'.join(map(str, position[:-1]))}/0"


def encode(steps: NDArray[Any], chunk: bytes) -> bytes:
    """Return the file that holds the index entry of a chunk.

    Parameters
    ----------
    steps
        The valid steps of the chunk, (t, n, d).
    chunk
        The compressed chunk, with its checksum.
    """
    bounds = np.concatenate([np.frombuffer(chunk[-4:], "<u2"), first_and_last_motion(steps).reshape(-1)])
    return bytes(Zstd(level=1, checksum=True).encode(bounds.astype("<u2")))


def first_and_last_motion(steps: NDArray[Any]) -> NDArray[np.uint16]:
    """Compute the first and last motion of each token, (2, n), from steps (t, n, d)."""
    from deadtok_xr.kernels.numba import motion_bounds

    bounds = np.empty((2, steps.shape[1]), np.uint16)
    motion_bounds(np.ascontiguousarray(steps).view(np.dtype(f"u{steps.dtype.itemsize}")), bounds)
    return bounds


def decode(data: bytes, end_of_chunk: bytes) -> NDArray[np.uint16] | None:
    """Decode an index entry into first and last motion, (2, n); None if it belongs to other content or is damaged."""
    try:
        bounds = np.frombuffer(chunk_bytes.decompress(data), "<u2")
    except (RuntimeError, ValueError):
        return None  # the index only saves time, so a damaged entry is no error
    if len(bounds) < _CHECKSUM or len(bounds) % 2 or bounds[:_CHECKSUM].tobytes() != end_of_chunk:
        return None
    return bounds[_CHECKSUM:].reshape(2, -1)


def read(array: zarr.Array[Any], position: tuple[int, ...]) -> NDArray[np.uint16] | None:
    """Read the first and last motion in a chunk, (2, n); None if there is no valid entry or the store is not local.

    Parameters
    ----------
    array
        The variable, in the root group of a store.
    position
        The grid position of the chunk.
    """
    if array.basename not in schema.MOTION_INDEXED or not isinstance(array.store, LocalStore):
        return None
    root = (array.store.root / array.path).parent
    try:
        data = (root / bounds_key(array, position)).read_bytes()
        with (root / array.basename / array.metadata.encode_chunk_key(position)).open("rb", buffering=0) as file:
            file.seek(-4, 2)
            bounds = decode(data, file.read(4))
    except OSError:
        return None
    n_tokens = min(array.chunks[-2], array.shape[-2] - position[-2] * array.chunks[-2])
    fits = bounds is not None and bounds.shape[1] >= n_tokens and bounds.max(initial=0) < array.chunks[-3]
    return bounds if fits else None


def matches(array: zarr.Array[Any], position: tuple[int, ...], chunk: NDArray[Any]) -> bool:
    """Return whether the entry of a chunk, if there is one, agrees with the chunk's valid values, (t, n, d)."""
    bounds = read(array, position)
    if bounds is None:
        return True
    steps = chunk[0] if chunk.ndim == 4 else chunk
    return np.array_equal(bounds[:, : steps.shape[1]], first_and_last_motion(steps))


def write(root: Path, array: zarr.Array[Any], position: tuple[int, ...], steps: NDArray[Any], chunk: bytes) -> None:
    """Write the entry of a chunk of an indexed variable; the order of the two files does not matter."""
    if array.basename in schema.MOTION_INDEXED:
        path = root / bounds_key(array, position)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(steps, chunk))
