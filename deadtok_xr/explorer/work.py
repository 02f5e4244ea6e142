"""The work that runs beside a page: computed in other threads, shown by the page's own, later requests first."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bokeh.document import Document

SETTLED = 60  # milliseconds of rest


class Work:
    """Threads of one page.

    Parameters
    ----------
    document
        The document of the page.
    say
        Shows a sentence on the page.
    """

    def __init__(self, document: Document, say: Callable[[str], None]) -> None:
        self._document, self._say = document, say
        self._pool = ThreadPoolExecutor(2)
        self._slow_pool = ThreadPoolExecutor(1)  # for what no one waits for, so that a selection need not wait either
        self._closed = False
        self._asked: dict[str, int] = {}
        self._waiting: dict[str, Any] = {}

    def later(self, key: str, compute: Callable[[], Any], show: Callable[[Any], None], *, slow: bool = False) -> None:
        """Compute in another thread, then show; a later request with the same key replaces an earlier one."""
        number = self._asked[key] = self._asked.get(key, 0) + 1

        def work() -> Any:
            return compute() if self._asked[key] == number else None

        def arrived(future: Future[Any]) -> None:
            if self._asked[key] != number or future.cancelled():
                return
            error = future.exception()
            if error is None:
                show(future.result())
            else:
                self._say(f"{key}: {' '.join(str(error).split()) or type(error).__name__}")

        future = (self._slow_pool if slow else self._pool).submit(work)

        def tell(done: Future[Any]) -> None:
            if not self._closed:
                self._document.add_next_tick_callback(partial(arrived, done))

        future.add_done_callback(tell)

    def soon(self, key: str, act: Callable[[], None]) -> None:
        """Act when requests with the same key have rested for a moment."""
        if key in self._waiting:
            self._document.remove_timeout_callback(self._waiting.pop(key))

        def now() -> None:
            self._waiting.pop(key, None)
            act()

        self._waiting[key] = self._document.add_timeout_callback(now, SETTLED)

    def forget(self) -> None:
        """Ignore every answer to what was asked until now."""
        for key in self._asked:
            self._asked[key] += 1

    def close(self) -> None:
        """Show nothing more."""
        self._closed = True
        for pool in (self._pool, self._slow_pool):
            pool.shutdown(wait=False, cancel_futures=True)
