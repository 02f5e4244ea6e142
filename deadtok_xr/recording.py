"""A recording as a lazy labelled dataset: (step, token, dim), ascending by token id."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr

from deadtok_xr import schema, store
from deadtok_xr.bfloat16 import GRIDS, decode
from deadtok_xr.errors import InputError

Tokens = Literal["all", "dead", "live"]


def open_recording(
    path: str | Path,
    *,
    tokens: Tokens = "all",
    raw: bool = False,
    partial: bool = False,
    chunks: Any = None,
) -> xr.Dataset:
    """Open a recording store as a lazy dataset.

    Coordinates are read now; no chunk of a data variable is read before something is computed.

    Parameters
    ----------
    path
        The store.
    tokens
        ``"all"``, or only the ``"dead"`` or ``"live"`` ones: a contiguous part of the file, so the
        others cost nothing.
    raw
        False: 16-bit values are decoded, lazily and exactly, to float32, which xarray computes with
        correctly. True: they stay bfloat16 (ml_dtypes) or float16.
    partial
        True opens a store that is still being written, or was left unfinished or damaged: the steps
        before the first missing chunk.
    chunks
        Dask chunks, as `xarray.Dataset.chunk` takes them; None for the store's own.

    Returns
    -------
    Dataset with the dimensions step, token (vocabulary ids, ascending) and dim, and the coordinates
    `dead` and `token_text` where they are known. Each variable has the attributes `precision`, the grid
    that its values live on, and `valid_from`, the first step at which it means anything.

    Raises
    ------
    MissingFileError, InputError, IncompleteStoreError
        See `deadtok_xr.store.open_group`; InputError also for ``tokens="dead"`` where it is not known
        which tokens are dead.
    """
    group, n_steps = store.open_group(path, partial=partial)
    ds = xr.open_zarr(group.store, consolidated=False, chunks={}, mask_and_scale=False, decode_times=False)
    small = {
        name: c.copy(data=store.read_small(group, str(name))) for name, c in ds.coords.items() if c.chunks is not None
    }
    ds = ds.assign_coords(small).isel(step=slice(0, n_steps))
    ds = _ascending(_select(ds, tokens, path))
    if not raw:
        ds = _decoded(ds)
    for variable in ds.variables.values():
        variable.encoding = {}  # else a derived array would be rounded back to the stored dtype by to_zarr
    ds = ds[[name for name in schema.VARIABLES if name in ds] + [n for n in ds if n not in schema.VARIABLES]]
    ds.attrs.update(source=str(path), tokens=tokens)
    return ds if chunks is None else ds.chunk(chunks)


def _select(ds: xr.Dataset, tokens: str, path: str | Path) -> xr.Dataset:
    if tokens == "all":
        return ds
    if tokens not in ("dead", "live"):
        raise InputError(f"tokens={tokens!r}: choose 'all', 'dead' or 'live'")
    if "dead" not in ds.coords:
        raise InputError(
            f"{path} does not say which tokens are dead: open it with tokens='all', or name the dead "
            "tokens when it is converted"
        )
    n_dead = int(ds["dead"].values.sum())  # they come first on disk
    part = slice(0, n_dead) if tokens == "dead" else slice(n_dead, None)
    ds = ds.isel(token=part)
    if ds.sizes["token"] == 0:
        raise InputError(f"{path} has no {tokens} tokens: open it with tokens='all'")
    return ds


def _ascending(ds: xr.Dataset) -> xr.Dataset:
    if "token" not in ds.coords:
        return ds
    ids = ds["token"].values
    return ds if np.all(ids[1:] > ids[:-1]) else ds.isel(token=np.argsort(ids))


def _decoded(ds: xr.Dataset) -> xr.Dataset:
    return ds.map(
        lambda v: (
            v.copy(data=v.data.map_blocks(decode, dtype=np.float32))
            if v.dtype.name in GRIDS and v.dtype != np.float32 and v.chunks is not None
            else v
        ),
        keep_attrs=True,
    )
