"""Arrays that know where their values come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import dask.array as da
import numpy as np

from deadtok_xr.dask_arrays.internals import OwnArray, SameAsDask, as_class, with_all_functions
from deadtok_xr.dask_arrays.meta import Index


class Origin(Protocol):
    """Where the values of an array come from."""

    def select(self, index: tuple[Index, ...]) -> Origin | None:
        """Return the origin of a selection, one index per axis; None if it has none."""
        ...

    def transpose(self, axes: tuple[int, ...]) -> Origin | None:
        """Return the origin of the array with its axes in another order; None if it has none."""
        ...


class TracedArray(OwnArray, metaclass=SameAsDask):  # type: ignore[misc]
    """A Dask array with an `origin`, which selections, transposed and copied arrays keep, also through pickle.

    Whatever else is done to it gives a plain Dask array: values that were computed have no origin.
    """

    _origin: Origin
    _traced_name: str

    @property
    def origin(self) -> Origin | None:
        """Where the values come from; None if the array was changed in place since."""
        return self._origin if self.name == self._traced_name else None

    def __getitem__(self, key: Any) -> da.Array:
        index = _normalized(key, self.ndim)
        origin = None if index is None or self.origin is None else self.origin.select(index)
        return traced(super().__getitem__(key), origin)

    def transpose(self, *axes: Any) -> da.Array:
        """Reorder the axes, as `dask.array.Array.transpose`."""
        order = axes[0] if len(axes) == 1 and isinstance(axes[0], Sequence) else axes
        order = tuple(int(k) % self.ndim for k in order) if order else tuple(range(self.ndim))[::-1]
        return traced(super().transpose(order), self.origin.transpose(order) if self.origin else None)

    def rechunk(self, *args: Any, **kwargs: Any) -> da.Array:
        """Change the chunks, as `dask.array.Array.rechunk`; the values come from where they did."""
        return traced(super().rechunk(*args, **kwargs), self.origin)

    def copy(self) -> da.Array:
        """Return the same array."""
        return traced(_without_origin(self), self.origin)

    def __deepcopy__(self, memo: Any) -> da.Array:
        return self.copy()

    def __reduce__(self) -> Any:
        return traced, (_without_origin(self), self.origin)


def traced(x: da.Array, origin: Origin | None) -> da.Array:
    """Return an array with an origin; without one, the array itself."""
    if origin is None:
        return _without_origin(x)
    made = as_class(TracedArray, with_all_functions(x))
    made._origin, made._traced_name = origin, made.name
    return made


def origin_of(x: Any) -> Origin | None:
    """Return where the values of an array come from, if that is known and they were not changed since."""
    return x.origin if isinstance(x, TracedArray) else None


@dataclass(frozen=True, eq=False)
class Stacked:
    """The origin of arrays that are stacked along a new first axis: each of them, with its own origin."""

    parts: tuple[da.Array, ...]

    def select(self, index: tuple[Index, ...]) -> Origin | None:
        """Return the origin of a selection; of one position, that of the array there."""
        first, rest = index[0], index[1:]
        if isinstance(first, int):
            return origin_of(self.parts[first][rest])
        positions = range(len(self.parts))[first] if isinstance(first, slice) else first.tolist()
        return Stacked(tuple(self.parts[i][rest] for i in positions))

    def transpose(self, axes: tuple[int, ...]) -> Origin | None:
        """Return the origin with the other axes in another order; None if the first axis does not stay the first."""
        if axes[0] != 0:
            return None
        return Stacked(tuple(part.transpose(tuple(k - 1 for k in axes[1:])) for part in self.parts))


def stacked(parts: Sequence[da.Array]) -> da.Array:
    """Stack arrays of equal shape along a new first axis; a position along it has the origin of the array there."""
    return traced(with_all_functions(da.stack(parts)), Stacked(tuple(parts)))


def _without_origin(x: da.Array) -> da.Array:
    return as_class(OwnArray, x) if isinstance(x, TracedArray) else x


def _normalized(key: Any, ndim: int) -> tuple[Index, ...] | None:
    """Return one slice, number or array of positions for each axis; None where the key is of another kind."""
    parts = list(key) if isinstance(key, tuple) else [key]
    if any(part is Ellipsis for part in parts):
        at = next(i for i, part in enumerate(parts) if part is Ellipsis)
        parts[at : at + 1] = [slice(None)] * (ndim - len(parts) + 1)
    parts += [slice(None)] * (ndim - len(parts))
    found: list[Index] = []
    for part in parts:
        if isinstance(part, slice):
            found.append(part)
        elif isinstance(part, (int, np.integer)):
            found.append(int(part))
        elif isinstance(part, (list, np.ndarray)) and np.ndim(part) == 1:
            positions = np.asarray(part)
            found.append(np.flatnonzero(positions) if positions.dtype == bool else positions.astype(np.int64))
        else:
            return None
    return tuple(found) if len(found) == ndim and sum(isinstance(i, np.ndarray) for i in found) <= 1 else None
