"""What the kernels share: conversion to tensors, work in parts that fit into memory, and the lock of the device."""

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
"""Elements that a kernel processes at once: in float64 a few times 32 MiB, much of which stays in a GPU's cache."""


def has_float64(device: torch.device) -> bool:
    """Return whether the device computes in float64."""
    return device.type != "mps"


def from_numpy(x: NDArray[Any]) -> Tensor:
    """Return an array as a tensor of the same memory, bfloat16 included."""
    return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16) if x.dtype == BFLOAT16 else torch.from_numpy(x)


def pinned_copy(x: NDArray[Any], device: str) -> NDArray[Any]:
    """Return a copy of an array, for CUDA in page-locked memory, which the device reads by itself."""
    if device != "cuda":
        return x.copy()
    pinned = torch.empty(x.shape, dtype=from_numpy(x).dtype, pin_memory=True).copy_(from_numpy(x))
    return pinned.view(torch.int16).numpy().view(x.dtype) if x.dtype == BFLOAT16 else pinned.numpy()


def to_device(x: NDArray[Any], device: str) -> Tensor:
    """Return a contiguous array as a tensor on a device: the same memory on the CPU, elsewhere a copy.

    The copy may be asynchronous: later work on the device waits for it, and the array must not change until then.
    """
    check_size(x.shape, device)
    if device == "mps":
        refuse_derived(x.dtype.name)  # MPS has no float64
    with device_lock(device):
        return _with_retry(lambda: from_numpy(x).to(device, non_blocking=device == "cuda"))


def _with_retry(make: Callable[[], Tensor]) -> Tensor:
    """Make a tensor; if memory runs out, empty torch's cache and try once more."""
    try:
        return make()
    except torch.OutOfMemoryError:
        pass  # retried outside of this block: the traceback would keep what failed in memory
    torch.cuda.empty_cache()
    return make()


def with_device_lock(kernel: F) -> F:
    """Decorate a kernel so that it runs under the lock of its first argument's device."""

    @functools.wraps(kernel)
    def locked(steps: Tensor, *args: Any, **kwargs: Any) -> Any:
        with device_lock(steps.device.type):
            return kernel(steps, *args, **kwargs)

    return locked  # type: ignore[return-value]


def run_in_parts(n: int, at_once: int, work: Callable[[slice], None]) -> None:
    """Call ``work`` for parts of 0..n in order, of at most ``at_once`` items, and of half as many if memory runs out.

    A part that failed is repeated, so ``work`` must not add to existing results.

    Raises
    ------
    MemoryError
        If the device cannot hold even one item.
    """
    first = 0
    while first < n:
        part = slice(first, min(first + max(1, at_once), n))
        if _fits(work, part):
            first = part.stop
            continue
        if part.stop - first == 1:
            raise MemoryError("the device has too little memory for the smallest part of the work: use device='cpu'")
        at_once = (part.stop - first) // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _fits(work: Callable[[slice], None], part: slice) -> bool:
    try:
        work(part)
    except torch.OutOfMemoryError:
        return False
    except RuntimeError as error:
        if "out of memory" not in str(error):  # MPS has no exception class for it
            raise
        return False
    return True


def tiles(n: int, size: int) -> Iterator[slice]:
    """Yield 0..n in slices of as many items as make a tile, each item of ``size`` elements."""
    height = max(1, TILE // max(1, size))
    for first in range(0, n, height):
        yield slice(first, min(first + height, n))


def steps_per_tile(x: Tensor, size: int = 0) -> int:
    """Return how many steps (n, d) make a tile, or ``size`` elements."""
    return (size or TILE) // max(1, x.shape[1] * x.shape[2])


def select_steps(x: Tensor, at: NDArray[np.intp]) -> Tensor:
    """Return some of the steps, without a copy if they are consecutive."""
    if len(at) and at[-1] - at[0] == len(at) - 1:
        return x[int(at[0]) : int(at[-1]) + 1]
    return x[torch.from_numpy(at).to(x.device)]


def bits(x: Tensor) -> Tensor:
    """Return the bits of values as signed integers, without a copy."""
    return x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def refuse_derived(dtype: str) -> None:
    """Refuse dtypes that a recording cannot have."""
    if dtype not in GRIDS:
        raise InputError(f"the values have the dtype {dtype}; expected: bfloat16, float16 or float32 as recorded")


def bit_words(x: Tensor) -> Tensor:
    """Return the bits of values; those of float16 as float32, which holds them exactly.

    Raises
    ------
    InputError
        If a recording cannot have this dtype: derived arrays are often float64.
    """
    refuse_derived(str(x.dtype).removeprefix("torch."))
    return bits(x.float() if x.dtype == torch.float16 else x)


def float32_words(bits: Tensor) -> Tensor:
    """Convert bits of bfloat16 or float32 to those of float32."""
    return bits.to(torch.int32) << 16 if bits.dtype == torch.int16 else bits


def unsigned_zeros(words: Tensor) -> Tensor:
    """Return float32 words, with -0 replaced by +0."""
    return torch.where((words & 0x7FFFFFFF) == 0, 0, words)


def fill(out: dict[str, NDArray[Any]], found: dict[str, Tensor]) -> None:
    """Copy results into the arrays with the same names, from CUDA by way of page-locked memory.

    The arrays themselves stay ordinary memory, since results are kept for long. torch reuses the page-locked memory of
    earlier calls.
    """
    staged = {name: torch.empty_like(x, device="cpu", pin_memory=True) for name, x in found.items() if x.is_cuda}
    for name, x in staged.items():
        x.copy_(found[name], non_blocking=True)
    if staged:
        torch.cuda.current_stream().synchronize()
    for name, x in (found | staged).items():
        out[name][...] = x.cpu().numpy()


def last_fresh(fresh: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Return, for each step, the last one up to it that is fresh; the first one always is."""
    return np.maximum.accumulate(np.where(fresh, np.arange(len(fresh)), 0))
