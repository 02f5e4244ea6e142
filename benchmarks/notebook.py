"""The notebooks' way, for comparison: everything in memory, torch eager, a Python loop over steps.

Formulas from the notebooks 1.31b (motion and phases) and 14.2b (topology); the ULP of 14.2b, which came out
as 0 there, is replaced by the right one, so that both sides do the same work.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csgraph


def motion_and_phases(path: Path) -> dict[str, Any]:
    """Mean, deviation and phase fractions of the dead tokens of an HDF5 file of uint16 bits."""
    with h5py.File(path, "r") as file:
        dead = torch.from_numpy(file["dead_mask"][:])
        everything = torch.from_numpy(file["W"][:]).view(torch.bfloat16)
    W = everything[:, dead, :].to(torch.float32)
    delta = W[1:] - W[:-1]
    length = torch.norm(delta, dim=2)
    gap = torch.norm(W[:-1], dim=2) * 2.0**-7
    ratio = length / gap.clamp(min=1e-10)
    edges = (0.0, 0.1, 10.0, 100.0, float("inf"))
    fraction = [((ratio >= a) & (ratio < b)).float().mean(dim=1) for a, b in pairwise(edges)]
    return {
        "mean": ratio.mean(dim=1).numpy(),
        "std": ratio.std(dim=1).numpy(),
        "fraction": torch.stack(fraction, dim=1).numpy(),
    }


def topology(positions: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """The adjacency graph of (step, token, dim) positions, one dense N x N x D difference per step."""
    rows = []
    for at_step in torch.from_numpy(positions):
        centre = at_step.mean(dim=0).to(torch.bfloat16).abs()
        gap = (torch.nextafter(centre, torch.full_like(centre, torch.inf)) - centre).float().mean().item()
        places = at_step.to(torch.bfloat16)
        distance = (places.unsqueeze(0) - places.unsqueeze(1)).abs().max(dim=2)[0]
        adjacent = ((distance > 0) & (distance <= gap)).numpy()
        n = len(at_step)
        count, labels = csgraph.connected_components(adjacent, directed=False)
        sizes = np.bincount(labels)
        rows.append((adjacent.sum() / (n * (n - 1)), sizes.max(), (sizes == 1).sum(), count))
    names = ("density", "largest_component", "n_singletons", "n_components")
    return {name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
