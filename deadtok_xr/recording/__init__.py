"""Open recording stores as labelled lazy datasets, combine runs, and export a store as one plain file.

In: paths of stores. Out: `xarray.Dataset` (step, token, dim), ascending by token id, or a file. May import: `store` and
what lies below it.

opening           open_recording: one store
samples           open_recording of a sample of many parameters: a tree
xarray_backend    the same for `xarray.open_dataset(..., engine="deadtok")`
runs              concat_runs: several stores with a leading dimension `run`
export            one store as safetensors, HDF5 or npz; plain_files writes these formats
sparse_stream     one matrix as a stream of sparse updates
"""

from deadtok_xr.recording.export import export
from deadtok_xr.recording.opening import Tokens, open_recording
from deadtok_xr.recording.runs import concat_runs

__all__ = ["Tokens", "concat_runs", "export", "open_recording"]
