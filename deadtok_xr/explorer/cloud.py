"""Positions of tokens along the principal axes of one step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deadtok_xr.errors import InputError
from deadtok_xr.explorer.binned import step_blocks


@dataclass(frozen=True)
class Axes:
    """The first two principal axes of the tokens at one step.

    Attributes
    ----------
    step
        That step.
    mean
        (dim), the centre of the tokens.
    vectors
        (dim, 2), unit vectors.
    share
        The shares of the variance along them.
    """

    step: int
    mean: NDArray[np.float64]
    vectors: NDArray[np.float64]
    share: tuple[float, float]


def principal_axes(w: xr.DataArray, step: int) -> Axes:
    """Find the principal axes of the tokens at the recorded step nearest to ``step``.

    Raises
    ------
    InputError
        If fewer than two tokens have finite weights.
    """
    at = w.sel(step=step, method="nearest")
    x = at.values.astype(np.float64)
    x = x[np.isfinite(x).all(1)]
    if len(x) < 2:
        raise InputError(f"step {int(at['step'])} has fewer than two tokens with finite weights: choose another step")
    mean = x.mean(0)
    variances, vectors = np.linalg.eigh((x - mean).T @ (x - mean))
    largest = np.argsort(variances)[::-1][:2]
    chosen = vectors[:, largest]
    chosen = chosen * np.sign(chosen[np.abs(chosen).argmax(0), range(chosen.shape[1])])  # the same sign every time
    if chosen.shape[1] == 1:
        chosen = np.column_stack([chosen, np.zeros(len(chosen))])
    total = max(variances.sum(), np.finfo(float).tiny)
    shares = [*(float(variances[i]) / total for i in largest), 0.0]
    return Axes(int(at["step"]), mean, chosen, (shares[0], shares[1]))


class Projection:
    """Positions of all tokens along axes; the blocks of steps that were projected last are kept."""

    def __init__(self, w: xr.DataArray, axes: Axes, *, keep: int = 8) -> None:
        self._w, self._axes, self._keep = w.transpose("step", "token", "dim"), axes, keep
        self._blocks: dict[tuple[int, int], NDArray[np.float32]] = {}

    def at(self, step: int) -> tuple[int, NDArray[np.float32]]:
        """Return the last recorded step up to ``step``, else the first, and the positions (token, 2) there."""
        steps = self._w["step"].values
        i = max(int(np.searchsorted(steps, step, "right")) - 1, 0)
        span = next((a, b) for a, b in step_blocks(self._w) if a <= i < b)
        if span not in self._blocks:
            self._blocks[span] = self._project(*span)
            while len(self._blocks) > self._keep:
                del self._blocks[next(iter(self._blocks))]
        return int(steps[i]), self._blocks[span][i - span[0]]

    def _project(self, i: int, j: int) -> NDArray[np.float32]:
        """Project a block of steps, a chunk of tokens at a time."""
        import dask

        vectors, centre = self._axes.vectors.astype(np.float32), self._axes.mean @ self._axes.vectors
        part = self._w[i:j].data
        if not hasattr(part, "dask"):
            return (part @ vectors - centre).astype(np.float32)
        projected = part.rechunk({2: -1}).map_blocks(
            lambda x: (np.asarray(x) @ vectors)[..., :2], chunks=(*part.chunks[:2], (2,)), dtype=np.float32
        )
        with dask.config.set(scheduler="threads", num_workers=2):
            return (np.asarray(projected) - centre).astype(np.float32)
