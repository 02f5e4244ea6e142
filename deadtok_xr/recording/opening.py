"""Open a recording as a lazy labelled dataset: (step, token, dim), ascending by token id."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import dask.array as da
import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray

from deadtok_xr import schema, store
from deadtok_xr.attributes import portable
from deadtok_xr.dask_arrays import traced
from deadtok_xr.errors import InputError
from deadtok_xr.recording import samples
from deadtok_xr.recording.recorded_variable import RecordedVariable
from deadtok_xr.store import manifest, reading
from deadtok_xr.store.chunk_reader import read_values
from deadtok_xr.store.stored_array import StoredArray

Kind = Literal["all", "dead", "live"]
Tokens = Kind | Sequence[int] | Sequence[str] | NDArray[np.integer[Any]]
"""Which tokens to open: a kind, or vocabulary ids, or texts of tokens."""


def open_recording(
    path: str | Path,
    *,
    tokens: Tokens = "all",
    raw: bool = False,
    partial: bool = False,
    run: int | str | None = None,
    chunks: Any = None,
) -> xr.Dataset:
    """Open a recording store as a lazy dataset.

    Coordinates are read now; no chunk of a data variable is read before something is computed.

    Parameters
    ----------
    path
        The store.
    tokens
        ``"all"``, or only the ``"dead"`` or ``"live"`` ones; or a list of vocabulary ids, ``[1, 2, 131]``, or of the
        texts of tokens, ``[" the", " a"]``, in any order. If the dead tokens were known when the store was
        written, they are contiguous on disk, and no other tokens are read. If they were named later (`label`),
        they lie among the live ones, and every chunk that holds one is read: in the worst case all chunks.
    raw
        False: 16-bit values are decoded, lazily and exactly, to float32, which xarray computes with
        correctly. True: they stay bfloat16 (ml_dtypes) or float16, for their bits: xarray's comparisons,
        `isnull` and means do not work with bfloat16.
    partial
        True opens a store that is still being written, or was left unfinished or damaged: the steps
        before the first missing chunk.
    run
        The label of one run, of a store that holds several; None opens all, with a leading dimension `run`.
    chunks
        Dask chunks, as `xarray.Dataset.chunk` takes them; None for the store's own.

    Returns
    -------
    xarray.Dataset
        Dataset with the dimensions step, token (vocabulary ids, ascending) and dim, and the coordinates `dead` and
        `token_text` where they are known. Each variable has the attributes `precision`, the number format whose grid
        its values lie on, and `valid_from`, the first step at which its values have a meaning. Of a recording that
        `Recorder` made with ``sample=``, an `xarray.DataTree` with one such dataset per parameter, which has the
        dimensions step and element (the flat index), and the coordinates `index_0`, `index_1`, ... of the axes.

    Raises
    ------
    MissingFileError, InputError, IncompleteStoreError, DamagedStoreError
        See `deadtok_xr.store.open_arrays`; InputError also for ``tokens="dead"`` if it is not known
        which tokens are dead, and for tokens or a run that the store does not have.
    """
    if samples.is_sample(path):
        options = {"raw": raw, "partial": partial, "chunks": chunks}
        return cast(Any, samples.open_sample(path, lambda part: open_recording(part, **options)))
    group, arrays, n_steps = store.open_arrays(path, partial=partial)
    ds = _dataset(group, arrays, n_steps)
    ds = _select(ds if run is None else _one_run(ds, run, path), tokens, path)
    if not raw:
        ds = ds.map(_decoded, keep_attrs=True)
    ds.attrs.update(source=str(path), tokens=tokens if isinstance(tokens, str) else "selected")
    return ds if chunks is None else ds.chunk(chunks)


def _dataset(group: zarr.Group, arrays: dict[str, zarr.Array[Any]], n_steps: int) -> xr.Dataset:
    """Return all variables in the order of the schema, cut to ``n_steps``; coordinates are read, the others lazy."""
    names = [n for n in schema.VARIABLES if n in arrays] + sorted({*arrays} - {*schema.VARIABLES, *schema.COORDINATES})
    identity = (str(group.store), group.attrs.asdict())
    coords = {n: _variable(arrays[n], _values(arrays[n], n_steps), n_steps) for n in schema.COORDINATES if n in arrays}
    data = {n: _variable(arrays[n], _lazy(arrays[n], identity), n_steps) for n in names}
    attrs = {k: v for k, v in group.attrs.asdict().items() if k not in (manifest.FLAG, "fingerprint")}
    return xr.Dataset(data, coords, portable(attrs))


def _values(array: zarr.Array[Any], n_steps: int) -> NDArray[Any]:
    return read_values(array, n_steps if store.dimensions(array)[:1] == ("step",) else None)


def _lazy(array: zarr.Array[Any], identity: object) -> da.Array:
    x = reading.lazy(array, identity)
    is_matrix = schema.without_run(store.dimensions(array)) == schema.MATRIX
    all_dims = array.chunks[-1] == array.shape[-1]
    return traced(x, StoredArray.whole(array) if is_matrix and all_dims and x.size else None)


def _variable(array: zarr.Array[Any], data: Any, n_steps: int) -> xr.Variable:
    attrs = portable({k: v for k, v in array.attrs.items() if k != "coordinates"})
    if data.dtype.kind == "T":
        data = data.astype(object)  # NetCDF and other libraries do not take numpy's new dtype for text
    kind = xr.Variable if array.basename in schema.COORDINATES else RecordedVariable
    variable = kind(array.metadata.dimension_names, data, attrs)  # type: ignore[union-attr]
    if variable.sizes.get("step", n_steps) == n_steps:
        return variable
    return variable.isel(step=slice(0, n_steps))  # each variable by itself: in a growing store, lengths may differ


def _decoded(v: xr.DataArray) -> xr.DataArray:
    return v.copy(data=reading.decoded(v.data)) if v.dtype.name in ("bfloat16", "float16") else v


def _one_run(ds: xr.Dataset, run: int | str, path: str | Path) -> xr.Dataset:
    if "run" not in ds.coords:
        raise InputError(f"{path} holds one run alone: open it without run= (--run)")
    labels = ds["run"].values.tolist()
    there = [str(label) for label in labels]  # the command line has only text
    if str(run) not in there:
        raise InputError(f"{path} has no run {run!r}; its runs are {', '.join(there)}: choose one of them")
    k = there.index(str(run))
    return ds.isel(run=k)


def _select(ds: xr.Dataset, tokens: Tokens, path: str | Path) -> xr.Dataset:
    """Select the requested tokens, in ascending order of their ids."""
    if "token" not in ds.dims:
        return ds
    rows = np.flatnonzero(_wanted(ds, tokens, path))
    if not rows.size:
        raise InputError(f"{path} has no {tokens} tokens: open it with tokens='all'")
    rows = rows[np.argsort(ds["token"].values[rows])]
    together = bool(np.all(np.diff(rows) == 1))  # a slice reads no chunk in between, and leaves chunks as they are
    return ds.isel(token=slice(int(rows[0]), int(rows[-1]) + 1) if together else rows)


def _wanted(ds: xr.Dataset, tokens: Tokens, path: str | Path) -> NDArray[np.bool_]:
    if not isinstance(tokens, str):
        return _listed(ds, np.asarray(list(tokens)), path)
    if tokens == "all":
        return np.ones(ds.sizes["token"], bool)
    if tokens not in ("dead", "live"):
        raise InputError(
            f"tokens={tokens!r}: choose 'all', 'dead' or 'live', or give a list of ids, or of texts: [{tokens!r}]"
        )
    if "dead" not in ds.coords:
        raise InputError(
            f"{path} does not say which tokens are dead: open it with tokens='all', or name the dead tokens with "
            "`deadtok label --dead-ids FILE`"
        )
    dead: NDArray[np.bool_] = ds["dead"].values
    return dead if tokens == "dead" else ~dead


def _listed(ds: xr.Dataset, wanted: NDArray[Any], path: str | Path) -> NDArray[np.bool_]:
    """Return which tokens are in a list of ids or texts, all of which must exist."""
    if wanted.ndim != 1 or not wanted.size or wanted.dtype.kind not in "iuUT":
        raise InputError(
            f"tokens= is a list of {wanted.dtype}, of the shape {wanted.shape}; expected 'all', 'dead' or 'live', or a "
            "list of one or more vocabulary ids, or of texts; of a mask, numpy.flatnonzero(mask)"
        )
    by_text = wanted.dtype.kind in "UT"
    if by_text and "token_text" not in ds.coords:
        raise InputError(
            f"{path} does not know the texts of its tokens: give their ids, or add the texts with "
            "`deadtok label --token-text FILE`"
        )
    have = ds["token_text" if by_text else "token"].values
    values = wanted.astype(object) if by_text else wanted
    missing = values[~np.isin(values, have)].tolist()
    if missing:
        others = f", and {len(missing) - 3} more" if len(missing) > 3 else ""
        there = "" if by_text else f"; it has {len(have)} tokens, {have.min()} to {have.max()}"
        raise InputError(f"{path} has no token {', '.join(map(repr, missing[:3]))}{others}{there}")
    return np.isin(have, values)
