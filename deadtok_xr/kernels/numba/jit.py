"""How the kernels are compiled: without the GIL, on one thread, cached beside the files.

Arguments that belong together are named tuples. numba distinguishes these by the name of the class, so no two classes
of the kernels have the same name. Passing one from Python takes 1 µs for each of its arrays, and much longer if it
holds other tuples, so nested tuples exist only inside compiled functions.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numba import njit
from numba.extending import register_jitable

from deadtok_xr.kernels.cache_safety import unsafe_because
from deadtok_xr.kernels.stale_cache import forget_stale

_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": False, "no_cfunc_wrapper": True}
"""Nobody calls a kernel through ctypes."""
_REORDERED = {"reassoc", "contract"}  # without nsz: it lets b - a - c become b - (a + c), which cancels


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function that Python calls, when it is first called."""
    return _compiled(function, _OPTIONS)


def compiled_finite(function: Callable[..., Any]) -> Any:
    """Compile such a function for finite values only, as `inner_finite`."""
    return _compiled(function, {**_OPTIONS, "fastmath": True})


def _compiled(function: Callable[..., Any], options: dict[str, Any]) -> Any:
    try:
        made = njit(**options, cache=True)(function)
    except RuntimeError:  # there is no folder that can be written: each process compiles what it uses
        return njit(**options)(function)
    if why := unsafe_because(made.stats.cache_path):
        _warn(why)
        return njit(**options)(function)
    forget_stale(Path(made.stats.cache_path), Path(function.__code__.co_filename))
    return made


@cache
def _warn(why: str) -> None:
    warnings.warn(
        f"{why}, and numba's cache is code that runs as you: it is not used, and every process compiles its kernels; "
        "take these permissions away, or set NUMBA_CACHE_DIR to a folder of your own",
        UserWarning,
        stacklevel=2,
    )


def _inner(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    return register_jitable(**{**_OPTIONS, "no_cpython_wrapper": True, **options})


# Functions that only compiled functions call. They are compiled as a part of these, without entries for Python and C,
# and a file in the cache, which takes a third less time; called from Python, they run as Python.
inner = _inner()
inner_finite = _inner(fastmath=True)
"""For finite values only: sums may be reordered, which lets loops use vector units, and NaN does not occur."""
inner_without_nan = _inner(fastmath={"nnan", "nsz"})
"""For values that may be infinite but not NaN: a minimum or maximum is then one instruction."""
inner_sums = _inner(fastmath=_REORDERED)
"""Sums may be reordered; NaN and infinity keep their meaning."""

# For the work on one row inside a loop over rows: a call costs as much as the work on 64 elements.
inlined = _inner(forceinline=True)
inlined_sums = _inner(fastmath=_REORDERED, forceinline=True)
