"""Recordings for `xarray.open_dataset`, under the name "deadtok"."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import dask
import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray
from xarray.backends import BackendArray, BackendEntrypoint
from xarray.core import indexing

from deadtok_xr.dask_arrays import chunk_sizes, given_array
from deadtok_xr.store import destination


class RecordingBackend(BackendEntrypoint):
    """`xarray.open_dataset(path, engine="deadtok")`, with the keywords of `open_recording`.

    Pass ``chunks={}`` for Dask arrays in the store's chunks. Analyses read the store directly with or without it.
    """

    description = "Recordings of embedding matrices during training (deadtok_xr)"
    open_dataset_parameters: ClassVar[Any] = ("filename_or_obj", "drop_variables", "tokens", "raw", "partial", "run")

    def open_dataset(  # type: ignore[override]
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        tokens: Any = "all",
        raw: bool = False,
        partial: bool = False,
        run: int | str | None = None,
    ) -> xr.Dataset:
        """See `deadtok_xr.open_recording`."""
        from deadtok_xr.recording.opening import open_recording

        ds = open_recording(filename_or_obj, tokens=tokens, raw=raw, partial=partial, run=run)
        names = [drop_variables] if isinstance(drop_variables, str) else list(drop_variables or ())
        ds = ds.drop_vars(names, errors="ignore")
        return xr.Dataset({name: _lazy(x) for name, x in ds.data_vars.items()}, ds.coords, ds.attrs)

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Return whether a path is the folder of a recording store."""
        try:
            path = Path(filename_or_obj)
        except TypeError:
            return False
        return destination.RECORDING in destination.root_attributes(path)


def dask_array_of(variable: xr.Variable) -> da.Array | None:
    """Return the Dask array of a variable that xarray opened lazily, with the selections made since then applied.

    None for values in memory, and for variables that other backends opened.
    """
    data: Any = given_array(variable.data) if variable.chunks is not None else variable._data
    key = None
    while not isinstance(data, _Array):
        if isinstance(data, indexing.LazilyIndexedArray):
            key = data.key.tuple
        data = getattr(data, "array", None)
        if data is None or isinstance(data, np.ndarray):
            return None
    return data.data if key is None else data.data[key]


def _lazy(x: xr.DataArray) -> xr.Variable:
    """Return a variable as xarray expects it from a backend: lazily indexed; xarray chunks it if the user asks."""
    if x.chunks is None:
        return x.variable
    variable = type(x.variable)(x.dims, indexing.LazilyIndexedArray(_Array(x.data)), x.attrs)
    variable.encoding["preferred_chunks"] = dict(zip(x.dims, chunk_sizes(x.data), strict=True))
    return variable


class _Array(BackendArray):
    def __init__(self, data: da.Array) -> None:
        self.data, self.shape, self.dtype = data, data.shape, data.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER_1VECTOR, self._values)

    def _values(self, key: tuple[Any, ...]) -> NDArray[Any]:
        with dask.config.set(scheduler="synchronous"):  # this may run within a task, which must not start threads
            return np.asarray(self.data[key].compute())
