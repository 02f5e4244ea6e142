"""Run the kernel of motion in one pass, if Triton is available and works."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import Tensor

from deadtok_xr.kernels import Lattice

_BROKEN: list[str] = []


def motion(steps: Tensor, lattice: Lattice, magnitudes: tuple[float, float, float]) -> dict[str, Tensor] | None:
    """Return the result of one pass over steps (t + 1, n, d); None if it is not available or not suitable."""
    if steps.dtype != torch.bfloat16 or lattice.ulp_offset != 134 or not steps.is_cuda or _BROKEN:
        return None
    one_pass = _triton()
    if one_pass is None or len(steps) < 2:
        return None
    try:
        found: dict[str, Tensor] = one_pass.motion(steps.view(torch.int16), magnitudes, float(steps.shape[2]) ** 0.5)
    except torch.OutOfMemoryError:
        return None  # the eager kernel needs less memory at a time
    except Exception as error:  # a compiler may raise any exception
        _BROKEN.append(repr(error))
        warnings.warn(f"motion runs without Triton, which is slower, because Triton failed: {error!r}", stacklevel=2)
        return None
    return found


@functools.cache
def _triton() -> Any:
    try:
        from deadtok_xr.kernels.torch import one_pass
    except ImportError:
        return None
    return one_pass
