"""Short series that every block of a pass needs, without an edge from one task to all blocks.

Dask orders a graph by what waits for what. A task that all others wait for makes it read far ahead, and keep what it
read: a store twenty times larger than memory allows was held whole. A `Series` is computed inside the task that needs a
part of it, and that part is small.
"""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray


class Series:
    """A lazy array of (step) or (step, ...) that travels with tasks. No dataclass: Dask would look inside."""

    def __init__(self, data: da.Array) -> None:
        self._data = data

    def __dask_tokenize__(self) -> str:
        return str(self._data.name)

    def values(self, steps: slice = slice(None)) -> NDArray[Any]:
        """Compute the values at some steps."""
        return np.asarray(self._data[steps].compute(scheduler="synchronous"))
