"""Open the output layer and the input embedding of a saved model as a lazy dataset, without converting it."""

from __future__ import annotations

import threading
import weakref
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from numpy.typing import NDArray

from deadtok_xr.conversion.hub import is_hub_address
from deadtok_xr.conversion.inspect.context import Context
from deadtok_xr.conversion.inspect.keys import KNOWN_KEYS, weights_entry
from deadtok_xr.conversion.inspect.matrices import stored_dtype
from deadtok_xr.conversion.inspect.tokens import find_row_tokens
from deadtok_xr.conversion.opening import open_with_options
from deadtok_xr.conversion.options import DEFAULT_OPTIONS, Options
from deadtok_xr.conversion.planning import inspect_source
from deadtok_xr.conversion.readers.source import Source
from deadtok_xr.dask_arrays import Tasks, empty_meta, from_tasks
from deadtok_xr.errors import InputError
from deadtok_xr.recording.opening import open_recording
from deadtok_xr.recording.xarray_backend import RecordingBackend
from deadtok_xr.store import location

BLOCK_BYTES = 8 * 2**20
"""Bytes of a block of tokens."""


def open_weights(path: str | Path, options: Options = DEFAULT_OPTIONS) -> xr.Dataset:
    """Open the weights of a saved model, or a recording, as a lazy dataset (step, token, dim).

    Which matrix is `W`, which is `E`, which tokens are dead and which steps there are is found as in a conversion.

    Parameters
    ----------
    path
        Any source that `deadtok convert` takes, or a store.
    options
        What the source does not say.

    Raises
    ------
    InputError
        If it cannot be read, or it is not clear which matrix is the output layer.
    """
    is_store = location.is_address(path) and not is_hub_address(path)
    if is_store or RecordingBackend().guess_can_open(path):
        return open_recording(path)
    opened = _OpenSource(path, options)
    context = opened.context
    keys = {name: context.keys[name] for name in ("W", "E") if name in context.keys}
    if "W" not in keys:
        raise InputError(
            f"{path} holds displacements without initial weights; expected: weights: convert it with --initial FILE"
        )
    if context.axes.n_runs is not None:
        raise InputError(f"{path} holds several runs; expected: one: convert it, and open one run of the store")
    rows = find_row_tokens(opened.source, KNOWN_KEYS, context.axes.n_rows, keys["W"], context.options).rows
    data = {name: (("step", "token", "dim"), opened.matrix(name, key)) for name, key in keys.items()}
    coords: dict[str, Any] = {"step": context.steps.labels, "token": rows.tokens}
    coords |= {} if rows.dead is None else {"dead": ("token", rows.dead)}
    coords |= {} if rows.text is None else {"token_text": ("token", np.array(rows.text, object))}
    ds = xr.Dataset(data, coords, {"source": str(path)})
    for name, key in keys.items():
        ds[name].attrs = {"source_key": key, "source_dtype": opened.source.entries[key].type_name}
    return ds


class _OpenSource:
    """A source that stays open while an array made of it is in use; its reads take turns."""

    def __init__(self, path: str | Path, options: Options) -> None:
        self.path, self._given = path, options
        self._lock = threading.Lock()
        self.context, self.source = self._open()

    def _open(self) -> tuple[Context, Source]:
        stack = ExitStack()
        try:
            source, options = stack.enter_context(open_with_options(self.path, self._given))
            context = inspect_source(source, options, KNOWN_KEYS)
        except BaseException:
            stack.close()
            raise
        weakref.finalize(self, stack.close)
        return context, source

    def __getstate__(self) -> tuple[str | Path, Options]:
        return self.path, self._given

    def __setstate__(self, state: tuple[str | Path, Options]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def matrix(self, name: str, key: str) -> da.Array:
        """Return a matrix as a lazy array, (step, token, dim), in blocks of tokens."""
        entry, axes, weights = weights_entry(self.source, key), self.context.axes, self.context.keys["W"]
        shape = (axes.n_steps, axes.n_rows, axes.n_dims)
        first = 0 if axes.static else self.context.steps.skip
        expected = shape[1:] if axes.static else (shape[0] + first, *shape[1:])
        if entry.shape != expected:
            raise InputError(
                f"{self.path}: {name} is {key!r} {entry}; expected: the shape {expected} of W, {weights!r}; to leave "
                f"it out, name the weights alone, --key W={weights} (keys={{'W': {weights!r}}})"
            )
        dtype = stored_dtype(entry, self.context.options)
        height = max(1, BLOCK_BYTES // max(1, shape[2] * dtype.itemsize))
        ends = [*range(height, shape[1], height), shape[1]]
        bounds = list(zip([0, *ends[:-1]], ends, strict=True))
        chunks = ((1,) * shape[0], tuple(b - a for a, b in bounds), (shape[2],))
        files = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in self.source.files()]
        array = f"weights-{tokenize(key, dtype.name, shape, files, self._given)}"

        def tasks(names: list[str]) -> Tasks:
            return {
                (array, t, i, 0): (_read, self, key, None if axes.static else first + t, begin, end, dtype)
                for t in range(shape[0])
                for i, (begin, end) in enumerate(bounds)
            }

        return from_tasks(array, tasks, chunks, empty_meta(3, dtype))

    def read(self, key: str, where: tuple[slice, ...]) -> NDArray[Any]:
        """Read a part of an array; one thread at a time, since the file has one position."""
        with self._lock:
            return self.source.read(key, *where)


def _read(source: _OpenSource, key: str, step: int | None, begin: int, end: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    tokens = slice(begin, end)
    where = (tokens,) if step is None else (slice(step, step + 1), tokens)
    values = source.read(key, where)
    values = values if values.dtype == dtype else np.ascontiguousarray(values).view(dtype)
    return values[None] if step is None else values
