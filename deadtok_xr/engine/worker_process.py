"""Let the worker processes of a pool end when the process that started them has ended, also if it was killed."""

from __future__ import annotations

import os
import threading
from contextlib import AbstractContextManager, nullcontext
from multiprocessing import parent_process
from typing import Any

import dask


def end_with_parent() -> None:
    """Wait in a thread of a worker for the end of its parent, and then end the worker: an initializer of pools.

    A worker of `concurrent.futures` would wait for work for ever, as its siblings keep the queue open.
    """
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after, args=(parent,), name="end-with-parent", daemon=True).start()


def _exit_after(parent: Any) -> None:
    parent.join()
    os._exit(1)


def ending_with_parent() -> AbstractContextManager[Any]:
    """Return a context in which workers of Dask's scheduler "processes" end with this process."""
    if dask.config.get("multiprocessing.initializer", None) is not None:  # the user's own
        return nullcontext()
    return dask.config.set({"multiprocessing.initializer": end_with_parent})
