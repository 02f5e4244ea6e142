"""What Dask's arrays of expressions lack, and arrays in layers cannot do for them: made of blockwise operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np

from deadtok_xr.dask_arrays.meta import empty_meta


def along_one_axis(func: Callable[..., Any], x: da.Array, axis: int | None = None) -> da.Array:
    """Return `argmax` and the like; each task computes with the whole axis."""
    if axis is None:
        x, axis = x.reshape(-1), 0
    axis %= x.ndim
    return x.rechunk({axis: -1}).map_blocks(
        func, axis=axis, drop_axis=axis, dtype=np.intp, meta=empty_meta(x.ndim - 1, np.intp)
    )


def isin(x: da.Array, values: Any, **kwargs: Any) -> da.Array:
    """Return what `numpy.isin` does, with values in memory."""
    return x.map_blocks(np.isin, np.asarray(values), **kwargs, dtype=bool, meta=empty_meta(x.ndim, bool))


def einsum(inputs: str, output: str, arrays: tuple[da.Array, ...], dtype: Any = None) -> da.Array:
    """Return what `numpy.einsum` does; each task multiplies one block of each array."""
    dtype, of_each = dtype or np.result_type(*(x.dtype for x in arrays)), inputs.split(",")
    summed = "".join(sorted(set("".join(of_each)) - set(output)))
    products = da.blockwise(
        _einsum_of_blocks,
        output + summed,
        *(part for pair in zip(arrays, of_each, strict=True) for part in pair),
        subscripts=f"{inputs}->{output}",
        n_summed=len(summed),
        adjust_chunks=dict.fromkeys(summed, 1),
        dtype=dtype,
        meta=empty_meta(len(output + summed), dtype),
    )
    return products.sum(axis=tuple(range(len(output), len(output + summed))), dtype=dtype)


def _einsum_of_blocks(*blocks: Any, subscripts: str, n_summed: int) -> Any:
    product = np.einsum(subscripts, *blocks)
    return product.reshape(product.shape + (1,) * n_summed)
