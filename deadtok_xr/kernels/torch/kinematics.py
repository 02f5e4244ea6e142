"""Measure the cloud of tokens as a whole: see numba's module."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deadtok_xr.kernels.torch.parts import last_fresh, run_in_parts, steps_per_tile, tiles, with_device_lock

Floats = NDArray[np.float64]


@with_device_lock
def centroid(steps: Tensor) -> Floats:
    """Return the mean over tokens of steps (t, n, d), (t, d) in float64; NaN in the dims in which one is not finite."""
    out = np.empty((steps.shape[0], steps.shape[2]))

    def work(part: slice) -> None:
        mean = _sum(steps[part]) / steps.shape[1]
        out[part] = torch.where(mean.isfinite(), mean, torch.nan).cpu().numpy()

    run_in_parts(len(out), steps_per_tile(steps), work)
    return out


@with_device_lock
def kinematics(
    steps: Tensor, changed: NDArray[np.bool_], before: Floats | None, out: dict[str, NDArray[Any]]
) -> Floats:
    """Fill ``out`` with the steps (t, n, d) and the transitions between them, as numba's kernel does.

    Returns
    -------
    The centroid of the last step.
    """
    any_changed = np.asarray(changed.any(axis=1))
    centre = _centres(steps, any_changed, before)
    n_states = len(out["centroid"])
    out["centroid"][:] = centre[:n_states]
    _spread(steps[:n_states], any_changed, centre, out)
    out["bulk_velocity"][:] = bulk = np.diff(centre, axis=0)
    out["bulk_speed"][:] = np.linalg.norm(bulk, axis=1)
    _heat(steps, any_changed, bulk, out)
    return centre[-1]


def _sum(x: Tensor) -> Tensor:
    """Return the sum over tokens in float64, (t, d), without all of x in float64 at once."""
    total = torch.zeros((x.shape[0], x.shape[2]), dtype=torch.float64, device=x.device)
    for rows in tiles(x.shape[1], x.shape[0] * x.shape[2]):
        total += x[:, rows].double().sum(1)
    return total


def _centres(steps: Tensor, any_changed: NDArray[np.bool_], before: Floats | None) -> Floats:
    fresh = np.append(before is None, any_changed)
    centre = np.empty((len(steps), steps.shape[2]))
    if before is not None:
        centre[0] = before
    centre[fresh] = centroid(_select(steps, fresh))
    return centre[last_fresh(fresh)]


def _select(steps: Tensor, wanted: NDArray[np.bool_]) -> Tensor:
    """Return the wanted steps, without a copy if all are."""
    return steps if wanted.all() else steps[torch.from_numpy(np.flatnonzero(wanted)).to(steps.device)]


def _spread(steps: Tensor, any_changed: NDArray[np.bool_], centre: Floats, out: dict[str, NDArray[Any]]) -> None:
    """Fill in the distances from the centroid and the number of invalid rows; unchanged steps repeat the last one."""
    fresh = np.append(True, any_changed)[: len(steps)]
    chosen, middle = _select(steps, fresh), torch.from_numpy(centre[: len(steps)][fresh]).to(steps.device)
    found = np.empty((3, len(chosen)))

    def work(part: slice) -> None:
        total, top, invalid = (torch.zeros(part.stop - part.start, dtype=torch.float64).to(steps.device) for _ in "123")
        for rows in tiles(steps.shape[1], (part.stop - part.start) * steps.shape[2]):
            x = chosen[part, rows].double()
            distance = (x - middle[part, None]).square().sum(2).sqrt()
            total += distance.sum(1)
            top = torch.maximum(top, distance.amax(1))
            invalid += (~x.isfinite().all(dim=2)).sum(1)
        found[:, part] = torch.stack([total / steps.shape[1], top, invalid]).cpu().numpy()

    run_in_parts(len(chosen), steps_per_tile(steps), work)
    index = np.cumsum(fresh) - 1
    for name, values in zip(("radius", "radius_max", "n_invalid"), found, strict=True):
        out[name][:] = values[index]


def _heat(steps: Tensor, any_changed: NDArray[np.bool_], bulk: Floats, out: dict[str, NDArray[Any]]) -> None:
    """Fill in the motion of tokens relative to the centroid: 0, or NaN like the bulk motion, if nothing changed."""
    n = steps.shape[1]
    out["thermal_rms"][:] = out["bulk_speed"]
    out["thermal_residual"][:] = n * out["bulk_speed"]
    places = np.flatnonzero(any_changed)
    drift = torch.from_numpy(bulk).to(steps.device)

    def work(part: slice) -> None:
        at = torch.from_numpy(places[part]).to(steps.device)
        heat = torch.zeros(len(at), dtype=torch.float64, device=steps.device)
        sums = torch.zeros((len(at), steps.shape[2]), dtype=torch.float64, device=steps.device)
        for rows in tiles(n, len(at) * steps.shape[2]):
            own = steps[:, rows][at + 1].double() - steps[:, rows][at].double() - drift[at, None]
            heat += own.square().sum((1, 2))
            sums += own.sum(1)
        out["thermal_rms"][places[part]] = (heat / n).sqrt().cpu().numpy()
        out["thermal_residual"][places[part]] = sums.square().sum(1).sqrt().cpu().numpy()

    run_in_parts(len(places), steps_per_tile(steps), work)
