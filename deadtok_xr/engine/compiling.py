"""Let one process of a machine compile the kernels first, so that the others find them in numba's cache."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from hashlib import sha1
from pathlib import Path

from filelock import FileLock

from deadtok_xr import kernels

_TOGETHER = ContextVar("_TOGETHER", default=False)


@contextmanager
def compiling_together() -> Iterator[None]:
    """Wait for no other process inside a `with` block, because each of them compiles other kernels."""
    token = _TOGETHER.set(True)
    try:
        yield
    finally:
        _TOGETHER.reset(token)


@contextmanager
def one_process_compiles() -> Iterator[None]:
    """Wait while another process of this machine and user does its first work, if nothing is compiled yet.

    The lock is in the temporary folder, because a home folder may be shared by machines with different CPUs.
    """
    with ExitStack() as stack:
        if kernels.needs_compiling() and not _TOGETHER.get():
            lock = stack.enter_context(FileLock(_lock_file()))
            if not kernels.needs_compiling():
                lock.release()  # another process has compiled them meanwhile
        yield


def _lock_file() -> Path:
    user = os.getuid() if hasattr(os, "getuid") else ""
    cache = sha1(str(kernels.cache_folder()).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"deadtok-kernels-{cache}-{user}.lock"
