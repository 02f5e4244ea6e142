"""Parts of a parameter, small enough for temporary copies, cut so that torch computes the same bits as in one piece.

torch gives each of its threads one contiguous part of a large tensor, and computes what is left of a part after the
last whole vectors one element at a time. For some operations (adding a multiple, in 16 bits) these elements are rounded
differently. Tiles therefore begin and end where the parts of the threads do, or at whole vectors. Fused optimizers
divide a tensor of any size, into whole cache lines.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from deadtok_xr.monitor.predict import Rule

ON_CPU, ON_DEVICE = 2**17, 2**22
"""Elements of a tile, a multiple of the vectors that torch's loops take at once."""
_SERIAL = 2**15  # torch's grain size: smaller tensors are computed by one thread
_CACHE_LINE = 64  # bytes


def tiles(tensors: list[Tensor], n_threads: int, *, fused: bool = False) -> Iterator[list[Tensor]]:
    """Yield the tiles of tensors of one shape: flat views in the order of memory, or rows where the orders differ.

    Parameters
    ----------
    tensors
        The parameter and what belongs to it.
    n_threads
        The threads that torch uses for the optimizer's step.
    fused
        Whether the optimizer is fused.
    """
    first = tensors[0]
    n, size, n_parts, unit = first.numel(), ON_DEVICE, 1, 1
    if on_cpu(first):
        size, n_parts = ON_CPU, n_threads if fused else min(n_threads, max(1, math.ceil(n / _SERIAL)))
        unit = _CACHE_LINE // first.element_size() if fused else 1
    if _is_dense(first) and all(x.stride() == first.stride() for x in tensors):
        flat = [x.as_strided((n,), (1,)) for x in tensors]
        for a, b in _cuts(n, n_parts, unit, size):
            yield flat if b - a == n else [x[a:b] for x in flat]
    elif n:
        height = max(1, first.shape[0] * size // n)
        for i in range(0, first.shape[0], height):
            yield [x[i : i + height] for x in tensors]


class Piece(NamedTuple):
    """A tile of a parameter, and how it is updated."""

    parameter: int
    """The position of the parameter."""
    tile: dict[str, Tensor]
    """Tensors by variable, which are flat or read as such."""
    rule: Rule | None = None
    """How its group is updated; None if that is not known, or the piece is not updated."""
    step: Tensor | None = None
    """The optimizer's count of its updates."""

    @property
    def size(self) -> int:
        """The number of elements."""
        return self.tile["W"].numel()

    def kind(self) -> tuple[Any, ...]:
        """Return what pieces have in common that are counted together; the counts of a device need not be equal."""
        step = "none" if self.step is None else float(self.step) if on_cpu(self.step) else "on the device"
        dtypes = tuple((name, x.dtype) for name, x in self.tile.items())
        return self.rule, self.tile["W"].device, dtypes, step


def batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Yield the pieces in batches of one kind, of at most a tile's elements."""
    kinds: dict[Any, list[Piece]] = {}
    for piece in pieces:
        kinds.setdefault(piece.kind(), []).append(piece)
    for alike in kinds.values():
        batch: list[Piece] = []
        size = 0
        for piece in alike:
            if batch and size + piece.size > ON_DEVICE:
                yield batch
                batch, size = [], 0
            batch.append(piece)
            size += piece.size
        yield batch


def on_cpu(x: Tensor) -> bool:
    """Return whether a tensor is in the memory of the CPU: small tiles in threads, and kernels of numba."""
    return x.device.type == "cpu"


def _is_dense(x: Tensor) -> bool:
    """Return whether the elements fill a part of memory without gaps, in any order of the dims."""
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """Return the elements of tensors one after the other, flat; without a copy of a single one that is flat."""
    import torch

    flat = [x.reshape(-1) for x in tensors]
    return flat[0].contiguous() if len(flat) == 1 else torch.cat(flat)


def _cuts(n: int, n_parts: int, unit: int, size: int) -> Iterator[tuple[int, int]]:
    part = max(1, math.ceil(math.ceil(n / unit) / n_parts) * unit)
    for first in range(0, n, part):
        last = min(first + part, n)
        for a in range(first, last, size):
            yield a, min(a + size, last)
