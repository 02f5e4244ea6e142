"""The next piece decoded while a device works on this one."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from deadtok_xr.engine.batches import Piece


def ahead(pieces: Generator[Piece, None, None]) -> Generator[Piece, None, None]:
    """The same pieces with arrays of their own, each handed out while a thread decodes the one after it.

    Close it before what the pieces are read from: closing waits for the thread.
    """
    from deadtok_xr.kernels.torch import own

    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, pieces, None)
        while (piece := coming.result()) is not None:
            kept = replace(piece, values={n: own(x, piece.row.device.name) for n, x in piece.values.items()})
            coming = thread.submit(next, pieces, None)
            yield kept
