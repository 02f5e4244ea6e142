"""Short series that every block of a pass needs, without an edge from one task to all blocks.

Dask orders a graph by its dependencies. If all tasks depend on one, it reads far ahead and keeps the values: a store
twenty times larger than the memory limit was completely loaded. A `Series` is therefore computed within each task that
needs a part of it, and that part is small. If the whole is small too, it is computed once and kept.
"""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray

_KEPT = 2**20
"""Bytes of a series that is kept after its first use."""


class Series:
    """A lazy array of (step) or (step, ...) that is sent with tasks. No dataclass, because Dask would traverse it."""

    def __init__(self, data: da.Array) -> None:
        self._data = data
        self._kept: NDArray[Any] | None = None

    def __dask_tokenize__(self) -> str:
        return str(self._data.name)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}

    def values(self, steps: slice = slice(None)) -> NDArray[Any]:
        """Compute the values at some steps."""
        if self._data.nbytes > _KEPT:
            return _computed(self._data[steps])
        if self._kept is None:
            self._kept = _computed(self._data)
            self._kept.setflags(write=False)
        return self._kept[steps]


def _computed(data: da.Array) -> NDArray[Any]:
    return np.asarray(data.compute(scheduler="synchronous"))
