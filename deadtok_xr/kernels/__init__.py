"""Dense kernels: arrays in, arrays out; no xarray, no Dask, no files.

One folder per engine, the same function names and signatures in each. Blocks come as *words*: the unsigned
integers that hold the values, uint16 for bfloat16 and uint32 for float32, so that a kernel recognises what
did not change by its bits and never converts what it can skip. Index letters in the files: t steps,
n tokens, d dims.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.bfloat16 import BFLOAT16, get_grid
from deadtok_xr.errors import InputError

_COPIED_BYTES = 2**25


def engine(part: str, on_device: bool) -> Any:
    """A file of kernels, torch's or numba's; imported when it is wanted, since a graph is built without either."""
    return import_module(f"deadtok_xr.kernels.{'torch' if on_device else 'numba'}.{part}")


def needs_compiling() -> bool:
    """Whether numba has kept no compiled kernel yet where it usually does, beside the files."""
    kept = Path(__file__).parent / "numba" / "__pycache__"
    return "NUMBA_CACHE_DIR" not in os.environ and os.access(kept.parent, os.W_OK) and not any(kept.glob("*.nbi"))


@dataclass(frozen=True)
class Lattice:
    """A number format as the kernels see it, through float32 words.

    Attributes
    ----------
    smallest
        The float32 exponent field of the format's smallest normal number.
    ulp_offset
        ULP = 2^(max(E, smallest) - ulp_offset), E the float32 exponent field.
    spare
        The mantissa bits of a float32 word that are zero on the grid, by exponent field (256 entries);
        the last entry is the union of all others.
    largest
        The float32 word of the largest finite value of the format.
    """

    smallest: int
    ulp_offset: int
    spare: NDArray[np.uint32]
    largest: int


def lattice(name: str) -> Lattice:
    """The lattice of a number format by name."""
    grid = get_grid(name)
    smallest = 128 - grid.bias
    # below the smallest normal number fewer mantissa bits are on the grid, one less per binade, down to
    # the power of two that is the smallest number; below that none, not even the leading bit
    fields = np.arange(256)
    kept = grid.mantissa_bits - np.maximum(smallest - fields, 0)
    spare = (1 << (23 - np.clip(kept, 0, 23))) - 1
    if smallest == 1:
        spare[0] = spare[1]  # the format's subnormals are float32's own
    else:
        spare[kept < 0] = 0xFFFFFFFF >> 1
    spare[255] = np.bitwise_or.reduce(spare[:255])
    top = np.float32((2 - 2.0**-grid.mantissa_bits) * 2.0**grid.bias)
    return Lattice(smallest, 127 + grid.mantissa_bits, spare.astype(np.uint32), int(top.view(np.uint32)))


def bit_words(block: NDArray[Any]) -> NDArray[Any]:
    """A block's values as unsigned integers, without a copy where that is possible.

    Raises
    ------
    InputError
        If the dtype is none that a recording can have: derived arrays are often float64.
    """
    block = np.ascontiguousarray(block)
    if block.dtype == BFLOAT16:
        return block.view(np.uint16)
    if block.dtype == np.float16:
        block = block.astype(np.float32)
    if block.dtype != np.float32:
        raise InputError(f"the values have the dtype {block.dtype}; needed: bfloat16, float16 or float32 as recorded")
    return block.view(np.uint32)


def float32_words(block: NDArray[Any]) -> NDArray[Any]:
    """A block's values as the words of float32, but for large blocks of bfloat16, which stay as they are.

    For kernels that take half a minute to compile for each type of words, and much longer to run than the copy.
    """
    found = bit_words(block)
    if found.dtype != np.uint16 or found.nbytes > _COPIED_BYTES:
        return found
    return found.astype(np.uint32) << np.uint32(16)


def word_shift(block_words: NDArray[Any]) -> int:
    """By how many bits a word must be shifted to the left to be a float32 word."""
    return 16 if block_words.dtype == np.uint16 else 0
