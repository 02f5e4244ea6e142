"""Synthetic recordings for tests and trials, of any size, written in bounded memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deadtok_xr import schema, store
from deadtok_xr.bfloat16 import BFLOAT16


def synthetic_recording(
    path: str | Path,
    *,
    steps: int,
    tokens: int,
    dims: int = 64,
    dead: float = 0.4,
    frozen_at: float = 0.7,
    seed: int = 0,
) -> Path:
    """Write a recording of a cloud that drifts, cools and freezes on the bfloat16 grid.

    Updates fall exponentially and vanish below half a grid cell, so that tokens hop, rest and freeze. It
    looks like a real run but has no optimizer: use it to try code, not to draw conclusions.

    Parameters
    ----------
    path
        The store to write.
    steps, tokens, dims
        Its size; ``steps`` includes step 0.
    dead
        Share of the tokens that are marked dead, spread over the vocabulary.
    frozen_at
        The share of the run after which updates have become too small to move anything.
    seed
        Seed of the random numbers.

    Returns
    -------
    Path
        ``path``.
    """
    rng = np.random.default_rng(seed)
    writer = store.create(path, store.TokenTable(np.arange(tokens), rng.random(tokens) < dead), {"made_by": "testing"})
    writer.add_variable("W", schema.MATRIX, (tokens, dims), BFLOAT16)
    W = rng.normal(0, 0.02, (tokens, dims)).astype(BFLOAT16)
    drift = rng.normal(size=dims)
    for start in range(0, steps, writer.chunk_steps):
        block = np.empty((min(writer.chunk_steps, steps - start), tokens, dims), BFLOAT16)
        for i in range(len(block)):
            size = 3e-3 * 10 ** (-3.5 * (start + i) / (frozen_at * steps))
            if start + i and size > 3e-6:
                noise = rng.standard_normal((tokens, dims), np.float32)
                W = (W.astype(np.float32) + np.float32(size) * (drift + 0.3 * noise)).astype(BFLOAT16)
            block[i] = W
        writer.extend(np.arange(start, start + len(block)))
        writer.write("W", start, block)
    writer.finish()
    return Path(path)


def tidal_toy(
    start: NDArray[np.float64], pull: NDArray[np.float64], *, lr: float = 1e-3, weight_decay: float = 0.01, steps: int
) -> xr.Dataset:
    """Simulate tokens under a constant pull and weight decay: W ← W + lr·pull - weight_decay·W.

    From any start, each token goes to lr/weight_decay·pull, and the component perpendicular to the pull decays as
    (1 - weight_decay)^t. As in the notebook, weight decay is not multiplied by the learning rate.

    Parameters
    ----------
    start
        W[0], (token, dim).
    pull
        Direction and strength of the pull, (dim,).
    lr, weight_decay
        Learning rate and weight decay of the update.
    steps
        Number of updates.

    Returns
    -------
    xarray.Dataset
        A recording in memory, float64, with the precision "none": its values lie on no grid.
    """
    W = np.empty((steps + 1, *np.shape(start)))
    W[0] = start
    for t in range(steps):
        W[t + 1] = W[t] + lr * np.asarray(pull) - weight_decay * W[t]
    coords = {"step": np.arange(steps + 1), "token": np.arange(W.shape[1])}
    return xr.Dataset({"W": (("step", "token", "dim"), W, {"precision": "none"})}, coords, {"made_by": "testing"})
