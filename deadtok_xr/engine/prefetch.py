"""The next batch is decoded while a device works on this one."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from deadtok_xr.engine.batches import Batch


def prefetch(batches: Generator[Batch, None, None]) -> Generator[Batch, None, None]:
    """Yield the same batches with arrays of their own, each while a thread decodes the one after it.

    Close it before what the batches are read from: closing waits for the thread.
    """
    from deadtok_xr.kernels.torch import pinned_copy

    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            kept = replace(batch, values={n: pinned_copy(x, batch.block.device.name) for n, x in batch.values.items()})
            coming = thread.submit(next, batches, None)
            yield kept
