"""Parts of a parameter, small enough for temporary copies, cut so that torch computes the same bits as in one piece.

torch gives each of its threads one contiguous part of a large tensor, and computes what is left of a part after the
last whole vectors one element at a time. For some operations (adding a multiple, in 16 bits) these elements are rounded
differently. Tiles therefore begin and end where the parts of the threads do, or at whole vectors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

ON_CPU, ON_DEVICE = 2**15, 2**22
"""Elements of a tile, a multiple of the vectors that torch's loops take at once."""
_SERIAL = 2**15  # torch's grain size: smaller tensors are computed by one thread


def tiles(tensors: list[Tensor], n_threads: int) -> Iterator[list[Tensor]]:
    """Yield the tiles of tensors of one shape: flat views in the order of memory, or copies where the orders differ.

    Parameters
    ----------
    tensors
        The parameter and what belongs to it.
    n_threads
        The threads that torch uses for the optimizer's step.
    """
    first = tensors[0]
    n, on_cpu = first.numel(), first.device.type == "cpu"
    if _is_dense(first) and all(x.stride() == first.stride() for x in tensors):
        flat = [x.as_strided((n,), (1,)) for x in tensors]
        for a, b in _cuts(n, n_threads, ON_CPU) if on_cpu else _cuts(n, 1, ON_DEVICE):
            yield [x[a:b] for x in flat]
    elif n:
        height = max(1, first.shape[0] * (ON_CPU if on_cpu else ON_DEVICE) // n)
        for i in range(0, first.shape[0], height):
            yield [x[i : i + height].reshape(-1) for x in tensors]


def _is_dense(x: Tensor) -> bool:
    """Return whether the elements fill a part of memory without gaps, in any order of the dims."""
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True


def _cuts(n: int, n_threads: int, size: int) -> Iterator[tuple[int, int]]:
    n_parts = min(n_threads, -(-n // _SERIAL)) if n > _SERIAL else 1
    part = max(1, -(-n // n_parts))
    for first in range(0, n, part):
        last = min(first + part, n)
        for a in range(first, last, size):
            yield a, min(a + size, last)
