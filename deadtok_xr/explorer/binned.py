"""Average quantities over bins of steps, read block by block, and make pictures of them."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

MAX_BINS = 1024
"""Bins along the steps, more than a picture has columns."""
CACHE_BYTES = 2**28
_READERS = 2  # threads that read blocks: the memory for a block each


@dataclass(frozen=True)
class Binned:
    """A quantity over bins of steps.

    Attributes
    ----------
    values
        (bin, row) float32: means of finite values, NaN without any; of categories, the value at the last step.
    first, last
        The first and last step of each bin.
    width
        Recorded steps in a bin.
    """

    values: NDArray[np.float32]
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    width: int

    @property
    def middle(self) -> NDArray[np.float64]:
        """The middle of each bin, in steps."""
        return (self.first + self.last) / 2

    @property
    def spans(self) -> list[str]:
        """The steps of each bin in words: `801`, or `801 to 802`."""
        ends = zip(self.first.tolist(), self.last.tolist(), strict=True)
        return [f"{first:,}" if first == last else f"{first:,} to {last:,}" for first, last in ends]

    def value_within(
        self, first: NDArray[np.int64], last: NDArray[np.int64]
    ) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Return for ranges of steps the first bin whose last step is in each of them, and whether there is one."""
        at = np.searchsorted(self.last, first)
        inside = at < len(self.last)
        at = np.where(inside, at, 0)
        return at, inside & (self.last[at] <= last) if len(self.last) else inside


class Blocks:
    """Bins of quantities, of which each block of steps is read once, and kept in a cache of limited size."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, NDArray[np.float32]] = OrderedDict()
        self._lock = Lock()

    def binned(
        self, key: str, x: xr.DataArray, start: float = -np.inf, stop: float = np.inf, *, max_bins: int = MAX_BINS,
        rows: list[int] | None = None,
    ) -> Binned:  # fmt: skip
        """Return the means of a quantity over bins of the steps from ``start`` to ``stop``.

        Parameters
        ----------
        key
            A name that stands for this quantity in the cache.
        x
            (step, row), lazy or not.
        max_bins
            How many bins there are at most, about.
        rows
            The rows that are returned, None for all; all of them are read and kept.
        """
        steps = x["step"].values
        a, b = np.searchsorted(steps, [start, stop + 1])  # whole blocks are read, and cut afterwards
        width = bin_width(b - a, max_bins)
        spans = [(i, j) for i, j in step_blocks(x) if i < b and j > a]
        names: list[Hashable] = [(key, int(steps[i]), int(steps[j - 1]), width) for i, j in spans]
        with self._lock:
            kept = {name: self._kept[name] for name in names if name in self._kept}
        missing = [(name, x[slice(*span)]) for name, span in zip(names, spans, strict=True) if name not in kept]
        read = dict(zip([name for name, _ in missing], _bin_all([part for _, part in missing], width), strict=True))
        self._keep(kept | read)
        edges = [_edges(steps[i:j], width) for i, j in spans]
        first, last = (np.concatenate([e[k] for e in edges] or [steps[:0]]) for k in (0, 1))
        chosen = slice(None) if rows is None else rows
        parts = [(kept | read)[name][:, chosen] for name in names]
        values = np.concatenate(parts) if parts else np.empty((0, x.shape[1]), np.float32)[:, chosen]
        inside = (last >= start) & (first <= stop)
        if inside.all():
            return Binned(values, first, last, width)
        return Binned(values[inside], first[inside], last[inside], width)

    def _keep(self, found: dict[Hashable, NDArray[np.float32]]) -> None:
        """Keep blocks, and forget those that were used the longest time ago."""
        with self._lock:
            for name, values in found.items():
                self._kept[name] = values
                self._kept.move_to_end(name)
            size = sum(values.nbytes for values in self._kept.values())
            while size > CACHE_BYTES and len(self._kept) > 1:
                size -= self._kept.popitem(last=False)[1].nbytes


def _bin_all(parts: list[xr.DataArray], width: int) -> list[NDArray[np.float32]]:
    """Read blocks and bin them, a few at a time."""
    if not parts:
        return []
    last = is_category(parts[0])
    if parts[0].chunks is None:
        with ThreadPoolExecutor(_READERS) as pool:
            return list(pool.map(lambda part: bin_steps(part.values, width, last_value=last), parts))
    import dask

    def lazily_binned(part: xr.DataArray) -> Any:
        sizes = tuple(-(-n // width) for n in part.data.chunks[0])
        options: dict[str, Any] = {"dtype": np.float32, "chunks": (sizes, part.data.chunks[1])}
        return part.data.map_blocks(bin_steps, width, last_value=last, **options)

    binned = map(lazily_binned, parts)
    return list(dask.compute(*binned, scheduler="threads", num_workers=_READERS))  # one graph, culled once


def is_category(x: xr.DataArray) -> bool:
    """Return whether the values of a quantity stand for words, so that a mean of them means nothing."""
    return "flag_meanings" in x.attrs or x.dtype == bool


def bin_width(n_steps: int, max_bins: int = MAX_BINS) -> int:
    """Return the smallest power of two that makes at most ``max_bins`` bins of steps."""
    width = 1
    while width * max_bins < n_steps:
        width *= 2
    return width


def step_blocks(x: xr.DataArray) -> list[tuple[int, int]]:
    """Return the blocks of steps in which a quantity is stored, as half-open ranges of positions."""
    n = x.sizes["step"]
    sizes = x.chunksizes.get("step")
    height = x.encoding.get("preferred_chunks", {}).get("step", n)  # of a stored array that is no Dask array
    edges = [0, *itertools.accumulate(sizes)] if sizes else [*range(0, n, max(height, 1)), n]
    return [(i, j) for i, j in itertools.pairwise(edges) if j > i]


def bin_steps(values: NDArray[Any], width: int, *, last_value: bool = False) -> NDArray[np.float32]:
    """Return means (bin, row) over ``width`` steps each, of finite values; or the values at the last step of each."""
    if width == 1:
        return values.astype(np.float32)
    if last_value:
        return values[np.minimum(np.arange(width - 1, len(values) + width - 1, width), len(values) - 1)].astype("f4")
    valid = np.isfinite(values)
    if valid.all():
        total, count = _sums(values, width), np.diff([*range(0, len(values), width), len(values)])[:, None]
    else:
        total, count = _sums(np.where(valid, values, 0), width), _sums(valid, width)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def extremes(values: NDArray[Any], n: int = MAX_BINS) -> NDArray[np.intp]:
    """Return the positions of the smallest and the largest value of each of at most ``n`` bins, in their order."""
    starts = np.arange(0, len(values), bin_width(len(values), n))
    ends = [pick(part) + start for start, part in zip(starts, np.split(values, starts[1:]), strict=True)
            for pick in (lambda x: np.where(np.isnan(x), np.inf, x).argmin(),
                         lambda x: np.where(np.isnan(x), -np.inf, x).argmax())] if len(values) else []  # fmt: skip
    return np.unique(np.array(ends, np.intp))


def _sums(values: NDArray[Any], width: int) -> NDArray[np.float64]:
    """Return sums (bin, row) over ``width`` steps each; `np.add.reduceat` takes three times as long, or more."""
    total = np.zeros((-(-len(values) // width), values.shape[1]))
    for k in range(min(width, len(values))):
        part = values[k::width]
        total[: len(part)] += part
    return total


def _edges(steps: NDArray[np.int64], width: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    starts = np.arange(0, len(steps), width)
    return steps[starts], steps[np.minimum(starts + width - 1, len(steps) - 1)]


def picture(
    x: Binned, order: NDArray[np.intp], span: tuple[float, float], size: tuple[int, int], *, mean: bool = True
) -> NDArray[np.float32]:
    """Return a quantity as pixels (row, column), of equal widths in steps.

    Parameters
    ----------
    x
        The bins.
    order
        The positions of the rows to show, from the bottom up.
    span
        The steps at the left and the right edge.
    size
        Rows and columns at most. More rows are averaged, or without ``mean`` one of them is shown.
    """
    rows = _grouped(x.values, order, size[0], mean)
    if not len(rows):
        return np.full((max(rows.shape[1], 1), 1), np.nan, "f4")
    return np.ascontiguousarray(rows[bins_of_columns(x, span, size[1])].T)


def bins_of_columns(x: Binned, span: tuple[float, float], n: int) -> NDArray[np.intp]:
    """Return which bin each of at most ``n`` columns of a picture shows: the one nearest to its middle."""
    columns = min(n, len(x.first))
    at = span[0] + (np.arange(columns) + 0.5) * (span[1] - span[0]) / max(columns, 1)
    return np.clip(np.searchsorted(x.last, at - 0.5), 0, max(len(x.last) - 1, 0))


def rows_of_pixels(n_rows: int, n: int) -> NDArray[np.intp]:
    """Return the first row that each of at most ``n`` rows of pixels shows."""
    return np.linspace(0, n_rows, min(n, n_rows), endpoint=False).astype(np.intp)


def _grouped(values: NDArray[np.float32], order: NDArray[np.intp], n: int, mean: bool) -> NDArray[np.float32]:
    if len(order) <= n:
        return values[:, order]
    starts = rows_of_pixels(len(order), n)
    if not mean:
        return values[:, order[starts]]
    chosen = values[:, order]
    valid = np.isfinite(chosen)
    total = np.add.reduceat(np.where(valid, chosen, 0), starts, axis=1, dtype=np.float64)
    count = np.add.reduceat(valid, starts, axis=1, dtype=np.int64)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def fold_blocks(x: xr.DataArray, after: int | None, fold: Callable[[NDArray[np.int64], NDArray[Any]], None]) -> None:
    """Call ``fold`` with the steps and values of each block of a quantity, from the step behind ``after`` on."""
    steps = x["step"].values
    done = 0 if after is None else int(np.searchsorted(steps, after, "right"))
    for i, j in step_blocks(x):
        if j > done:
            i = max(i, done)
            fold(steps[i:j], x[i:j].values)
