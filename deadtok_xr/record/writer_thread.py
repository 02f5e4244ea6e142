"""The thread that writes blocks while the training goes on."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from deadtok_xr.record.host_buffers import Block

BLOCKS = 2  # one is filled while the other is written: the memory is bounded, and a loop that is faster waits


class Writer:
    """Hands out blocks to fill, and writes the full ones in order.

    Attributes
    ----------
    error
        The first error. After it nothing is written, blocks are still taken, so that a loop never hangs.
    """

    def __init__(self, make_block: Callable[[], Block], write: Callable[[Block], None]) -> None:
        self.error: BaseException | None = None
        self._write = write
        self._jobs: queue.SimpleQueue[Callable[[], None] | Block | None] = queue.SimpleQueue()
        self._free: queue.SimpleQueue[Block] = queue.SimpleQueue()
        for _ in range(BLOCKS):
            self._free.put(make_block())
        self._thread = threading.Thread(target=self._run, name="deadtok-recorder", daemon=True)
        self._thread.start()

    def free_block(self) -> Block:
        """A block to fill; waits while both are full."""
        return self._free.get()

    def submit(self, job: Block | Callable[[], None]) -> None:
        """Write a block, or do something else between two blocks."""
        self._jobs.put(job)

    def close(self) -> None:
        """Wait until everything is written."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                if self.error is None:
                    self._write(job) if isinstance(job, Block) else job()
            except BaseException as error:  # whatever it is, the loop raises it
                self.error = error
            if isinstance(job, Block):
                job.clear()
                self._free.put(job)
