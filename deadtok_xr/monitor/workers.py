"""Threads that process the tiles of a CPU, each with torch on one thread.

torch's own threads meet after every operation; for the many small operations on tiles this takes longer than the
operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class Workers:
    """A pool with as many threads as torch uses when it is first needed; without a pool while that is one."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None

    @property
    def n_threads(self) -> int:
        """The threads of torch in the training loop, now."""
        import torch

        return torch.get_num_threads()

    def map(self, function: Callable[..., T], arguments: Iterable[tuple[Any, ...]]) -> list[T]:
        """Call a function with each tuple of arguments; return the results in their order."""
        import torch

        n = self.n_threads
        if n == 1:
            return [function(*each) for each in arguments]
        self._pool = self._pool or ThreadPoolExecutor(n, "deadtok-monitor", _use_one_thread)
        try:
            return list(self._pool.map(lambda each: function(*each), arguments))
        finally:
            torch.set_num_threads(n)  # a thread that started has set it for threads to come

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()


def _use_one_thread() -> None:
    """Let torch use one thread in this thread; it reads the number of all threads first, or it would do so later."""
    import torch

    torch.get_num_threads()
    torch.set_num_threads(1)
