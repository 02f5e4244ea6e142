"""Short series that every block of a pass needs, without an edge from one task to all blocks.

Dask orders a graph by its dependencies. If all tasks depend on one, it reads far ahead and keeps the values: a store
twenty times larger than the memory limit was completely loaded. A `Series` is therefore computed within each task that
needs a part of it, and that part is small.
"""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray


class Series:
    """A lazy array of (step) or (step, ...) that is sent with tasks. No dataclass, because Dask would traverse it."""

    def __init__(self, data: da.Array) -> None:
        self._data = data

    def __dask_tokenize__(self) -> str:
        return str(self._data.name)

    def values(self, steps: slice = slice(None)) -> NDArray[Any]:
        """Compute the values at some steps."""
        return np.asarray(self._data[steps].compute(scheduler="synchronous"))
