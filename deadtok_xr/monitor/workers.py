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
    """A pool with as many threads as torch uses; without a pool if that is one.

    Attributes
    ----------
    n_threads
        The threads of torch in the training loop.
    """

    def __init__(self) -> None:
        import torch

        self.n_threads = torch.get_num_threads()
        self._pool: ThreadPoolExecutor | None = None
        if self.n_threads > 1:
            self._pool = ThreadPoolExecutor(self.n_threads, "deadtok-monitor", torch.set_num_threads, (1,))

    def map(self, function: Callable[..., T], arguments: Iterable[tuple[Any, ...]]) -> list[T]:
        """Call a function with each tuple of arguments; return the results in their order."""
        import torch

        if self._pool is None:
            return [function(*each) for each in arguments]
        try:
            return list(self._pool.map(lambda each: function(*each), arguments))
        finally:
            torch.set_num_threads(self.n_threads)  # a thread that started has set it for threads to come

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()
