"""How the kernels are compiled: without the GIL, on one thread, cached beside the files.

Arguments that belong together are named tuples. numba distinguishes these by the name of the class, so no two classes
of the kernels have the same name. Passing one from Python takes 1 µs for each of its arrays, and much longer if it
holds other tuples, so nested tuples exist only inside compiled functions. The cache refers to these classes: after
renaming one, delete the *.nbi files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
_REORDERED = {"reassoc", "contract"}  # without nsz: it lets b - a - c become b - (a + c), which cancels


def _kernel(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    def compiled_when_called(function: Callable[..., Any]) -> Any:
        try:
            return njit(**_OPTIONS, **options, cache=True)(function)
        except RuntimeError:  # there is no folder that can be written: each process compiles what it uses
            return njit(**_OPTIONS, **options)(function)

    return compiled_when_called


compiled = _kernel()
compiled_finite = _kernel(fastmath=True)
"""For finite values only: sums may be reordered, which lets loops use vector units, and NaN does not occur."""
compiled_without_nan = _kernel(fastmath={"nnan", "nsz"})
"""For values that may be infinite but not NaN: a minimum or maximum is then one instruction."""
compiled_sums = _kernel(fastmath=_REORDERED)
"""Sums may be reordered; NaN and infinity keep their meaning."""

# For the work on one row inside a loop over rows: a call costs as much as the work on 64 elements. numba's cache checks
# only the file of the loop: after a change to such a function, delete the *.nbi files of the kernels that use it.
inlined = _kernel(forceinline=True)
inlined_sums = _kernel(fastmath=_REORDERED, forceinline=True)
