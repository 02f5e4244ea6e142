"""The on-disk format, all of it: what a recording store looks like, and how one is created, written, opened, labelled.

In: arrays, token labels, and a folder or the address of an object store. Out: Zarr groups, and lazy arrays that know
which chunks they come from. May import: `schema`, `errors`, `bfloat16`, `dask_arrays`, and one kernel (first and last
motion per token). Everything above may import this package.

location        folders and object stores: list, read, write and remove files, with readable errors
destination     checks that a new store overwrites nothing by mistake
zarr_dtype      the Zarr data type `bfloat16`
chunk_layout    chunk shapes
token_table     vocabulary ids, dead mask and texts, and the order of rows on disk
arrays          how each array of a store is declared
create, open    a new store; an existing one, checked
chunk_bytes     the compressed bytes of a chunk, read and written without zarr's event loop
chunk_entries   the size and the checksum of a chunk
manifest        which arrays belong to a store, and which chunk belongs where; manifest_write, manifest_check
members         the arrays of a store, with all their metadata checked when they are opened
chunk_reader    chunks read directly, and the error for a damaged one
reading         chunks as lazy Dask arrays
stored_array    where a lazy array lies in a store, and readers of its chunks, a few steps at a time
writing         blocks of values written as whole chunks
motion_index    the first and last motion of each token in each chunk
sample          the layout of a recording of samples of many parameters
in_progress     the lock and journal of unfinished conversions and analyses, so that they resume
lease           a lock in an object store
writer_lock     the lock of a Recorder or Monitor
labels          `dead`, `token_text` and `count` added to a store afterwards; token_ids and tokenizer read their files
occurrences     how often tokens occur in files of ids or text
reachability    which tokens text can become, by a tokenizer
"""

from deadtok_xr.store.arrays import (
    ZSTD_LEVEL,
    NewArray,
    create_array,
    create_arrays,
    create_coordinate,
    declare_array,
    dimensions,
    file_shape,
    read_coordinate,
    writable,
)
from deadtok_xr.store.create import StoreWriter, create, software_versions
from deadtok_xr.store.members import open_root
from deadtok_xr.store.open import missing_chunks, open_arrays, open_group
from deadtok_xr.store.token_table import TokenTable
from deadtok_xr.store.writing import write_block

__all__ = [
    "ZSTD_LEVEL", "NewArray", "StoreWriter", "TokenTable", "create", "create_array", "create_arrays",
    "create_coordinate", "declare_array", "dimensions", "file_shape", "missing_chunks", "open_arrays", "open_group",
    "open_root", "read_coordinate", "software_versions", "writable", "write_block",
]  # fmt: skip
