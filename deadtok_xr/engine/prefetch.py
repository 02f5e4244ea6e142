"""Decode the next batch while a device works on the current one."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from deadtok_xr.engine.batches import Batch


def prefetch(batches: Generator[Batch, None, None]) -> Generator[Batch, None, None]:
    """Yield copies of batches, while a thread decodes the next one.

    Close it before the readers of the batches: closing waits for the thread.
    """
    from deadtok_xr.kernels.torch import pinned_copy

    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            kept = replace(batch, values={n: pinned_copy(x, batch.block.device.name) for n, x in batch.values.items()})
            coming = thread.submit(next, batches, None)
            yield kept
