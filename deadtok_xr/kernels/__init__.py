"""Kernels: arrays in, arrays out. They do not use xarray, Dask or files.

There are two engines with the same names and signatures, so that they can be compared file by file:

numba/
    For the CPU. Takes NumPy arrays of *bit words*, the unsigned integers that hold the values: uint16 for bfloat16 and
    uint32 for float32, so that a kernel recognises unchanged values by their bits, and converts no value that it can
    skip. Runs on one thread without the GIL: Dask provides the threads. The complete set of kernels.
torch/
    For GPUs. Takes tensors on a device and fills NumPy arrays. The kernels that a GPU may run faster: motion,
    kinematics, mechanism, topology and census. `device` chooses between the engines, and `engine` gives the module.

Kernels fill arrays that the caller allocates. Index letters in the files: t steps, n tokens, d dims; ``out`` is a dict
of arrays by variable. They import `bfloat16`, `errors` and each other. Analyses, the engine, conversion and the store
import them inside functions, so that a graph can be built without loading numba or torch.
"""

from __future__ import annotations

import functools
import os
import sys
from hashlib import sha1
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.bfloat16 import BFLOAT16, get_grid
from deadtok_xr.errors import InputError
from deadtok_xr.kernels.stale_cache import forget_stale

PIECE = 2**21
"""Elements that are float64 at the same time, 16 MiB, of a step that is larger."""
CACHED = 2**15
"""Elements in float64 that stay in a core's cache from one loop over them to the next."""
WIDE = 256
"""Dims from which on the directions of tokens are compared with BLAS, in float32."""
MOST_COPIED_BYTES = 2**25


def engine(name: str, on_device: bool) -> Any:
    """Import a module of kernels by its name: torch's if they run on a device, else numba's."""
    return import_module(f"deadtok_xr.kernels.{'torch' if on_device else 'numba'}.{name}")


def needs_compiling(kernel: str = "motion") -> bool:
    """Return whether numba has no compiled function of a kernel in its cache; almost all analyses use `motion`."""
    forget_stale(cache_folder(), Path(__file__).parent / "numba" / f"{kernel}.py")
    return not any(cache_folder().glob(f"{kernel}.*.nbi"))


def cache_folder() -> Path:
    """Return the folder of numba's cache for the kernels.

    It is in NUMBA_CACHE_DIR if that is set, or beside the files, or, if they are read-only, in the user's cache folder.
    """
    beside = Path(__file__).parent / "numba"
    if not (given := os.environ.get("NUMBA_CACHE_DIR")):
        if os.access(beside, os.W_OK):
            return beside / "__pycache__"
        user = "~/Library/Caches" if sys.platform == "darwin" else os.environ.get("XDG_CACHE_HOME", "~/.cache")
        given = f"{user}/numba"
    return Path(given).expanduser() / f"numba_{sha1(str(beside.absolute()).encode()).hexdigest()}"


class Lattice(NamedTuple):
    """A number format, described by float32 words; E is the exponent field of such a word."""

    smallest: int
    """E of the format's smallest normal number."""
    ulp_offset: int
    """ULP = 2^(max(E, smallest) - ulp_offset)."""
    spare: NDArray[np.uint32]
    """The mantissa bits of a float32 word that are zero on the grid, by E (256,); the last entry is the union of all
    others."""
    largest: int
    """The float32 word of the format's largest finite value."""


@functools.cache
def lattice(name: str) -> Lattice:
    """Return the lattice of a number format by its name, the same object each time."""
    grid = get_grid(name)
    smallest = 128 - grid.bias
    # below the smallest normal number, each binade has one mantissa bit less on the grid, down to the power of two
    # that is the smallest number; below that there are none, not even the leading bit
    fields = np.arange(256)
    kept = grid.mantissa_bits - np.maximum(smallest - fields, 0)
    spare = (1 << (23 - np.clip(kept, 0, 23))) - 1
    if smallest == 1:
        spare[0] = spare[1]  # the format has the same subnormals as float32
    else:
        spare[kept < 0] = 0xFFFFFFFF >> 1
    spare[255] = np.bitwise_or.reduce(spare[:255])
    top = np.float32((2 - 2.0**-grid.mantissa_bits) * 2.0**grid.bias)
    return Lattice(smallest, 127 + grid.mantissa_bits, spare.astype(np.uint32), int(top.view(np.uint32)))


class ReplayedUpdate(NamedTuple):
    """What is known about the update of a transition, by a replay: arrays or tensors (n, d)."""

    predicted: Any
    """W after the replayed update, float32."""
    has_prediction: bool
    gradient: Any
    """The gradient, float32."""
    has_gradient: bool
    intended: Any
    """The update before rounding, float64; NaN if it is unknown."""


class OptimizerUpdate(NamedTuple):
    """An update of a flat tile of a parameter, before and after: arrays for numba, tensors for torch."""

    before: Any
    """W at t-1, float32."""
    after: Any
    """W at t, float32."""
    gradient: Any
    """The gradient, float32."""
    intended: Any
    """u, the update before W is rounded, float64; NaN if it is unknown."""
    has_second: bool
    """Whether the optimizer keeps second moments; if not, the following are not read."""
    second_before: Any
    """The second moment at t-1, float32."""
    second_after: Any
    """The second moment at t, float32."""
    decayed: Any
    """The gradient as it enters the moments, with the L2 decay added, float32."""


def bit_words(block: NDArray[Any]) -> NDArray[Any]:
    """Return a block's values as unsigned integers, without a copy where that is possible; float16 as float32.

    Raises
    ------
    InputError
        If a recording cannot have this dtype: derived arrays are often float64.
    """
    block = np.ascontiguousarray(block)
    if block.dtype == BFLOAT16:
        return block.view(np.uint16)
    if block.dtype == np.float16:
        block = block.astype(np.float32)
    if block.dtype != np.float32:
        raise InputError(f"the values have the dtype {block.dtype}; expected: bfloat16, float16 or float32 as recorded")
    return block.view(np.uint32)


def float32_words(block: NDArray[Any]) -> NDArray[Any]:
    """Return a block's values as float32 words; large blocks of bfloat16 as words of 16 bits, which need no copy.

    For kernels that take half a minute to compile for each type of word, so that small blocks use one type only.
    """
    words = bit_words(block)
    if words.dtype != np.uint16 or words.nbytes > MOST_COPIED_BYTES:
        return words
    words = words.astype(np.uint32)
    words <<= np.uint32(16)
    return words
