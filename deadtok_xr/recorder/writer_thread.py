"""The thread that writes full buffers while the training continues."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from deadtok_xr.recorder.host_buffers import HostBuffer

N_BUFFERS = 2  # one is filled while the other is written: memory is bounded, and a loop that is faster waits


class WriterThread:
    """Provides empty buffers, and writes full ones in order.

    Attributes
    ----------
    error
        The first error. After it nothing is written, but buffers are still accepted, so that the loop does not hang.
    """

    def __init__(self, make_buffer: Callable[[], HostBuffer], write: Callable[[HostBuffer], None]) -> None:
        self.error: BaseException | None = None
        self._write = write
        self._jobs: queue.SimpleQueue[Callable[[], None] | HostBuffer | None] = queue.SimpleQueue()
        self._free: queue.SimpleQueue[HostBuffer] = queue.SimpleQueue()
        for _ in range(N_BUFFERS):
            self._free.put(make_buffer())
        self._thread = threading.Thread(target=self._run, name="deadtok-recorder", daemon=True)
        self._thread.start()

    def free_buffer(self) -> HostBuffer:
        """Return an empty buffer; wait while all are full."""
        return self._free.get()

    @property
    def has_free_buffer(self) -> bool:
        """Whether `free_buffer` would return immediately."""
        return not self._free.empty()

    def submit(self, job: HostBuffer | Callable[[], None]) -> None:
        """Queue a buffer to be written, or a function to be called between two writes."""
        self._jobs.put(job)

    def close(self) -> None:
        """Wait until everything is written, and end the thread."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                if self.error is None:
                    self._write(job) if isinstance(job, HostBuffer) else job()
            except BaseException as error:  # the training loop raises it
                self.error = error
            if isinstance(job, HostBuffer):
                job.clear()
                self._free.put(job)
