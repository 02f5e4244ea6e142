"""Which of Dask's two implementations of arrays is at work, and the `meta` of our arrays.

Dask chooses the class of a result by the class of its `meta`, so that what is computed from our arrays of expressions
has their class too (`internals.ExpressionArray`).
"""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np

EXPRESSIONS: bool = hasattr(da.Array, "expr")
"""Whether `dask.array` works with expressions in this process."""

Index = slice | int | np.ndarray
Tasks = dict[Any, Any]


class Meta(np.ndarray):
    """The `meta` of our arrays under expressions. What numpy makes of it is one too, unless it holds values."""

    __array_priority__ = 1.0

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        result = super().__array_function__(func, types, args, kwargs)
        return result.view(np.ndarray if result.size else Meta) if isinstance(result, np.ndarray) else result


def marked(meta: Any) -> np.ndarray:
    """Return a `meta` as one of our arrays."""
    return np.asarray(meta).view(Meta) if EXPRESSIONS else meta


def empty_meta(ndim: int, dtype: Any) -> np.ndarray:
    """Return the `meta` of an array."""
    return marked(np.empty((0,) * ndim, dtype))


def chunk_sizes(x: da.Array) -> tuple[int, ...]:
    """Return the largest chunk along each axis."""
    return tuple(map(max, x.chunks))
