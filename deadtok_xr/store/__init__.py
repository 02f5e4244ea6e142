"""The on-disk format, all of it: what a recording store looks like, how one is created, written, opened and labelled.

In: arrays, labels and a place (a folder or the address of an object store). Out: Zarr groups, and arrays that
know where they lie. Everything above may import it; it imports `schema`, `errors`, `bfloat16` and `kernels` alone.
"""

from deadtok_xr.store.group import (
    ZSTD_LEVEL,
    Rows,
    StoreWriter,
    create,
    create_array,
    create_coordinate,
    declare_array,
    dimensions,
    missing_chunks,
    of_files,
    open_group,
    read_small,
    software,
    whole,
)  # fmt: skip

__all__ = [
    "ZSTD_LEVEL", "Rows", "StoreWriter", "create", "create_array", "create_coordinate", "declare_array", "dimensions",
    "missing_chunks", "of_files", "open_group", "read_small", "software", "whole",
]  # fmt: skip
