"""The cloud of tokens as a whole: centroid, its velocity, and what is left in the centre-of-mass frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.kernels.numba.words import compiled, compiled_sums


def centroid(blocks: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    """The mean over tokens at each step, (t, d) in float64, of token blocks (t, n, d) of the same steps.

    NaN in the dims in which a token is not finite.
    """
    sums = np.zeros((blocks[0].shape[0], blocks[0].shape[2]))
    for block in blocks:
        _add(block, sums)
    sums[~np.isfinite(sums)] = np.nan
    return sums / sum(block.shape[1] for block in blocks)


def kinematics(blocks: Sequence[NDArray[Any]], before: Sequence[NDArray[Any]], out: dict[str, NDArray[Any]]) -> None:
    """Fill ``out`` with the per-step quantities of all tokens.

    Parameters
    ----------
    blocks
        The token blocks of the same steps, (t, n, d) each, float32 or float64.
    before
        The step before each block, (1, n, d); NaN where there is none.
    out
        Arrays (t, ...) to fill: centroid, bulk_velocity, bulk_speed, thermal_rms, radius,
        radius_max, thermal_residual and n_invalid.
    """
    centre = centroid(blocks)
    bulk = np.diff(centre, axis=0, prepend=centroid(before))
    n_steps, n_dims = centre.shape
    sums = np.zeros((n_steps, 4))
    residual = np.zeros((n_steps, n_dims))
    for block, last in zip(blocks, before, strict=True):
        _spread(block, last, centre, bulk, sums, residual)
    n_tokens = sum(block.shape[1] for block in blocks)
    out["centroid"][:], out["bulk_velocity"][:] = centre, bulk
    out["bulk_speed"][:] = np.linalg.norm(bulk, axis=1)
    out["radius"][:], out["radius_max"][:] = sums[:, 0] / n_tokens, sums[:, 1]
    out["thermal_rms"][:] = np.sqrt(sums[:, 2] / n_tokens)
    out["thermal_residual"][:] = np.linalg.norm(residual, axis=1)
    out["n_invalid"][:] = sums[:, 3]


@compiled
def _add(block, sums):
    T, N, D = block.shape
    for t in range(T):
        for n in range(N):
            for d in range(D):
                sums[t, d] += block[t, n, d]


@compiled
def _spread(block, before, centre, bulk, sums, residual):
    """Add each token's share to ``sums``: radius, largest radius, squared thermal speed, not finite."""
    T, N, _ = block.shape
    for t in range(T):
        last, u = (block, t - 1) if t > 0 else (before, 0)
        whole = np.isfinite(centre[t]).all()  # a mean is finite only if everything in it is
        for n in range(N):
            squares, heat = _token(block, last, u, centre, bulk, t, n, residual)
            radius = np.sqrt(squares)
            sums[t, 0] += radius
            if not sums[t, 1] >= radius:
                sums[t, 1] = radius
            sums[t, 2] += heat
            if not whole:
                sums[t, 3] += not np.isfinite(block[t, n]).all()


@compiled_sums
def _token(block, last, u, centre, bulk, t, n, residual):
    squares = 0.0
    heat = 0.0
    for d in range(block.shape[2]):
        x = np.float64(block[t, n, d])
        off = x - centre[t, d]
        own = x - np.float64(last[u, n, d]) - bulk[t, d]
        squares += off * off
        heat += own * own
        residual[t, d] += own
    return squares, heat
