"""What the kernels share: tensors of arrays, work in parts that fit, and the device for oneself."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deadtok_xr.bfloat16 import BFLOAT16, GRIDS
from deadtok_xr.errors import InputError
from deadtok_xr.kernels.device import check_size, device_lock

F = TypeVar("F", bound=Callable[..., Any])

TILE = 2**22
"""Elements on which a kernel works at once: in float64 a few times 32 MiB, of which much stays in a GPU's cache."""


def has_float64(device: torch.device) -> bool:
    """Whether the device computes in float64."""
    return device.type != "mps"


def host(x: NDArray[Any]) -> Tensor:
    """An array as a tensor of the same memory."""
    return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16) if x.dtype == BFLOAT16 else torch.from_numpy(x)


def pinned_copy(x: NDArray[Any], device: str) -> NDArray[Any]:
    """A copy of an array, in memory that the device reads by itself."""
    if device != "cuda":
        return x.copy()
    pinned = torch.empty(x.shape, dtype=host(x).dtype, pin_memory=True).copy_(host(x))
    return pinned.view(torch.int16).numpy().view(x.dtype) if x.dtype == BFLOAT16 else pinned.numpy()


def to_device(x: NDArray[Any], device: str) -> Tensor:
    """A contiguous array as a tensor on a device: the same memory on the CPU, elsewhere a copy that may be under way.

    What runs there afterwards waits for the copy; the array must stay as it is until then.
    """
    check_size(x.shape, device)
    if device == "mps":
        refuse_derived(x.dtype.name)  # it has no float64
    with device_lock(device):
        return _or_freed(lambda: host(x).to(device, non_blocking=device == "cuda"))


def _or_freed(make: Callable[[], Tensor]) -> Tensor:
    try:
        return make()
    except torch.OutOfMemoryError:
        pass  # outside of this block, so that nothing of what failed is held by its traceback
    torch.cuda.empty_cache()
    return make()


def with_device_lock(kernel: F) -> F:
    """Give a kernel the device of its first argument for itself."""

    @functools.wraps(kernel)
    def alone(steps: Tensor, *args: Any, **kwargs: Any) -> Any:
        with device_lock(steps.device.type):
            return kernel(steps, *args, **kwargs)

    return alone  # type: ignore[return-value]


def over(n: int, at_once: int, work: Callable[[slice], None]) -> None:
    """Do ``work`` on parts of 0..n in order, at most ``at_once`` at a time, and half as many when memory runs out.

    A part that failed is done again, so ``work`` leaves nothing behind before it is done.

    Raises
    ------
    MemoryError
        If the device cannot hold even one.
    """
    first = 0
    while first < n:
        part = slice(first, min(first + max(1, at_once), n))
        if _fits(work, part):
            first = part.stop
            continue
        if part.stop - first == 1:
            raise MemoryError("the device has no memory left for one part of the work: say device='cpu'")
        at_once = (part.stop - first) // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _fits(work: Callable[[slice], None], part: slice) -> bool:
    try:
        work(part)
    except torch.OutOfMemoryError:
        return False
    except RuntimeError as error:
        if "out of memory" not in str(error):  # MPS has no class of its own for it
            raise
        return False
    return True


def parts(n: int, size: int) -> Iterator[slice]:
    """0..n in parts of as many as make a tile, each of ``size`` elements."""
    height = max(1, TILE // max(1, size))
    for first in range(0, n, height):
        yield slice(first, min(first + height, n))


def steps_of(x: Tensor, size: int = 0) -> int:
    """How many steps (n, d) make a tile, or as many elements as are given."""
    return (size or TILE) // max(1, x.shape[1] * x.shape[2])


def taken(x: Tensor, at: NDArray[np.intp]) -> Tensor:
    """Some of the steps; without a copy if one follows the other."""
    if len(at) and at[-1] - at[0] == len(at) - 1:
        return x[int(at[0]) : int(at[-1]) + 1]
    return x[torch.from_numpy(at).to(x.device)]


def bits(x: Tensor) -> Tensor:
    """The bits of values as signed integers, without a copy."""
    return x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def refuse_derived(dtype: str) -> None:
    """Refuse what has no bits of a recording."""
    if dtype not in GRIDS:
        raise InputError(f"the values have the dtype {dtype}; needed: bfloat16, float16 or float32 as recorded")


def words(x: Tensor) -> Tensor:
    """The bits of values; those of float16 as float32, which holds them exactly.

    Raises
    ------
    InputError
        If the dtype is none that a recording can have: derived arrays are often float64.
    """
    refuse_derived(str(x.dtype).removeprefix("torch."))
    return bits(x.float() if x.dtype == torch.float16 else x)


def float32_words(bits: Tensor) -> Tensor:
    """Bits of bfloat16 or float32 as those of float32."""
    return bits.to(torch.int32) << 16 if bits.dtype == torch.int16 else bits


def unsigned_zeros(words: Tensor) -> Tensor:
    """Words of float32 with those of -0 made those of +0."""
    return torch.where((words & 0x7FFFFFFF) == 0, 0, words)


def fill(out: dict[str, NDArray[Any]], found: dict[str, Tensor]) -> None:
    """Put results where they belong."""
    for name, x in found.items():
        out[name][...] = x.cpu().numpy()


def latest(fresh: NDArray[np.bool_]) -> NDArray[np.intp]:
    """For each place along the first axis the last one at or before it that is fresh; the first one always is."""
    return np.maximum.accumulate(np.where(fresh, np.arange(len(fresh)), 0))
