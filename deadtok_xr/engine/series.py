"""Short series that every block of a graph needs, without an edge from one task to all blocks.

Dask orders a graph by what waits for what. A task that all others wait for makes it read far ahead, and keep
what it read: a store twenty times larger than memory allows was held whole. A `Series` is computed inside the
first task that asks for it, once per process, and is small.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray

_KEPT = 32
_values: OrderedDict[str, NDArray[Any]] = OrderedDict()
_lock = threading.Lock()


class Series:
    """A lazy array of (step) or (step, ...) that travels with tasks. No dataclass: Dask would look inside."""

    def __init__(self, data: da.Array) -> None:
        self._data = data

    def __dask_tokenize__(self) -> str:
        return str(self._data.name)

    def values(self) -> NDArray[Any]:
        """The whole series, computed here unless it has been."""
        with _lock:
            name = str(self._data.name)
            if name not in _values:
                _values[name] = np.asarray(self._data.compute(scheduler="synchronous"))
            _values.move_to_end(name)
            while len(_values) > _KEPT:
                _values.popitem(last=False)
            return _values[name]
