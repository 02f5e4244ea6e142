"""When each token moves within each chunk, kept beside the weights, so that what stands still need not be decoded.

For the weights of a store there is an array ``motion/W`` (row of chunks, chunk of tokens, value), one small chunk for
each of theirs: the checksum of that chunk, then per token the position within the chunk of its first motion, then of
its last, 0 for none. A chunk of zstd ends with the checksum of its content, so that bounds of another content are
known and not used: they can be missing or out of date, and never wrong. The motion from one chunk to the next is in
neither: the first step of each chunk is always decoded.
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

GROUP = "motion"
_CHECKSUM = 2  # words of 16 bits


def declare(group: zarr.Group, array: zarr.Array[Any]) -> zarr.Array[Any] | None:
    """The array of bounds of a variable, as long as that is; None for what is not followed."""
    if array.basename not in schema.FOLLOWED:
        return None
    shape = shape_for(array)
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


def shape_for(array: zarr.Array[Any]) -> tuple[int, ...]:
    """The shape of the bounds of a variable."""
    grid = array.cdata_shape[:-1]
    return (*grid, _CHECKSUM + 2 * array.chunks[-2])


def file_of(array: zarr.Array[Any], position: tuple[int, ...]) -> str:
    """The key of a chunk's bounds within the store's group."""
    return f"{GROUP}/{array.basename}/c/{'/'.join(map(str, position[:-1]))}/0"


def encode(steps: NDArray[Any], chunk: bytes) -> bytes:
    """The bounds of a chunk, as the file that holds them.

    Parameters
    ----------
    steps
        Its valid steps (t, n, d).
    chunk
        The compressed chunk, with its checksum.
    """
    bounds = np.concatenate([np.frombuffer(chunk[-4:], "<u2"), of_steps(steps).reshape(-1)])
    return bytes(Zstd(level=1, checksum=True).encode(bounds.astype("<u2")))


def of_steps(steps: NDArray[Any]) -> NDArray[np.uint16]:
    """First and last motion of each token (2, n) of steps (t, n, d)."""
    from deadtok_xr.kernels.numba import motion_bounds

    bounds = np.empty((2, steps.shape[1]), np.uint16)
    motion_bounds(np.ascontiguousarray(steps).view(np.dtype(f"u{steps.dtype.itemsize}")), bounds)
    return bounds


def decode(data: bytes, end_of_chunk: bytes) -> NDArray[np.uint16] | None:
    """First and last motion of each token (2, n), from a file of bounds; None if it is not of that chunk."""
    try:
        bounds = np.frombuffer(Zstd().decode(data), "<u2")
    except RuntimeError:
        return None  # they are a help alone
    if len(bounds) < _CHECKSUM or bounds[:_CHECKSUM].tobytes() != end_of_chunk:
        return None
    return bounds[_CHECKSUM:].reshape(2, -1)


def read(array: zarr.Array[Any], position: tuple[int, ...]) -> NDArray[np.uint16] | None:
    """The bounds of a chunk of a store in a local folder (2, n), if they are there and of this content.

    Parameters
    ----------
    array
        The variable, in the root group of a store.
    position
        The chunk's place in the grid.
    """
    if array.basename not in schema.FOLLOWED or not isinstance(array.store, LocalStore):
        return None
    root = (array.store.root / array.path).parent
    try:
        data = (root / file_of(array, position)).read_bytes()
        with (root / array.basename / array.metadata.encode_chunk_key(position)).open("rb", buffering=0) as file:
            file.seek(-4, 2)
            return decode(data, file.read(4))
    except OSError:
        return None


def agree(array: zarr.Array[Any], position: tuple[int, ...], chunk: NDArray[Any]) -> bool:
    """Whether the bounds of a chunk, if there are any, are those of its values (t, n, d), cut at the array's edge."""
    bounds = read(array, position)
    if bounds is None:
        return True
    steps = chunk[0] if chunk.ndim == 4 else chunk
    return np.array_equal(bounds[:, : steps.shape[1]], of_steps(steps))


def put(root: Path, array: zarr.Array[Any], position: tuple[int, ...], steps: NDArray[Any], chunk: bytes) -> None:
    """Write the bounds of a chunk, of followed variables; before or after the chunk itself, for they name it."""
    if array.basename in schema.FOLLOWED:
        path = root / file_of(array, position)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(steps, chunk))
