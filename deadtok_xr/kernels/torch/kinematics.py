"""The cloud of tokens as a whole: centroid, its velocity, and what is left in the centre-of-mass frame."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deadtok_xr.kernels.torch.parts import latest, over, parts, steps_of, with_device_lock

Floats = NDArray[np.float64]


@with_device_lock
def centroid(steps: Tensor) -> Floats:
    """The mean over tokens of steps (t, n, d), (t, d) in float64; NaN in the dims in which a token is not finite."""
    out = np.empty((steps.shape[0], steps.shape[2]))

    def work(part: slice) -> None:
        mean = _sum(steps[part]) / steps.shape[1]
        out[part] = torch.where(mean.isfinite(), mean, torch.nan).cpu().numpy()

    over(len(out), steps_of(steps), work)
    return out


@with_device_lock
def kinematics(
    steps: Tensor, changed: NDArray[np.bool_], before: Floats | None, out: dict[str, NDArray[Any]]
) -> Floats:
    """Fill ``out`` with what steps (t, n, d) are like, and the transitions between them, as numba's kernel does.

    Returns
    -------
    The centroid of the last step.
    """
    anything = np.asarray(changed.any(axis=1))
    centre = _centres(steps, anything, before)
    n_states = len(out["centroid"])
    out["centroid"][:] = centre[:n_states]
    _spread(steps[:n_states], anything, centre, out)
    out["bulk_velocity"][:] = bulk = np.diff(centre, axis=0)
    out["bulk_speed"][:] = np.linalg.norm(bulk, axis=1)
    _heat(steps, anything, bulk, out)
    return centre[-1]


def _sum(x: Tensor) -> Tensor:
    """The sum over tokens in float64, (t, d), without all of x in float64 at once."""
    total = torch.zeros((x.shape[0], x.shape[2]), dtype=torch.float64, device=x.device)
    for rows in parts(x.shape[1], x.shape[0] * x.shape[2]):
        total += x[:, rows].double().sum(1)
    return total


def _centres(steps: Tensor, anything: NDArray[np.bool_], before: Floats | None) -> Floats:
    fresh = np.append(before is None, anything)
    centre = np.empty((len(steps), steps.shape[2]))
    if before is not None:
        centre[0] = before
    centre[fresh] = centroid(_select(steps, fresh))
    return centre[latest(fresh)]


def _select(steps: Tensor, wanted: NDArray[np.bool_]) -> Tensor:
    """The wanted steps; no copy if they are all."""
    return steps if wanted.all() else steps[torch.from_numpy(np.flatnonzero(wanted)).to(steps.device)]


def _spread(steps: Tensor, anything: NDArray[np.bool_], centre: Floats, out: dict[str, NDArray[Any]]) -> None:
    """Distances from the centroid, and rows that are not finite; a step like the one before has its answers."""
    fresh = np.append(True, anything)[: len(steps)]
    chosen, middle = _select(steps, fresh), torch.from_numpy(centre[: len(steps)][fresh]).to(steps.device)
    found = np.empty((3, len(chosen)))

    def work(part: slice) -> None:
        total, top, invalid = (torch.zeros(part.stop - part.start, dtype=torch.float64).to(steps.device) for _ in "123")
        for rows in parts(steps.shape[1], (part.stop - part.start) * steps.shape[2]):
            x = chosen[part, rows].double()
            distance = (x - middle[part, None]).square().sum(2).sqrt()
            total += distance.sum(1)
            top = torch.maximum(top, distance.amax(1))
            invalid += (~x.isfinite().all(dim=2)).sum(1)
        found[:, part] = torch.stack([total / steps.shape[1], top, invalid]).cpu().numpy()

    over(len(chosen), steps_of(steps), work)
    index = np.cumsum(fresh) - 1
    for name, values in zip(("radius", "radius_max", "n_invalid"), found, strict=True):
        out[name][:] = values[index]


def _heat(steps: Tensor, anything: NDArray[np.bool_], bulk: Floats, out: dict[str, NDArray[Any]]) -> None:
    """What the tokens move by beside the centroid. Where nothing changed, that is nothing, or NaN like the bulk."""
    n = steps.shape[1]
    out["thermal_rms"][:] = out["bulk_speed"]
    out["thermal_residual"][:] = n * out["bulk_speed"]
    places = np.flatnonzero(anything)
    drift = torch.from_numpy(bulk).to(steps.device)

    def work(part: slice) -> None:
        at = torch.from_numpy(places[part]).to(steps.device)
        heat = torch.zeros(len(at), dtype=torch.float64, device=steps.device)
        sums = torch.zeros((len(at), steps.shape[2]), dtype=torch.float64, device=steps.device)
        for rows in parts(n, len(at) * steps.shape[2]):
            own = steps[:, rows][at + 1].double() - steps[:, rows][at].double() - drift[at, None]
            heat += own.square().sum((1, 2))
            sums += own.sum(1)
        out["thermal_rms"][places[part]] = (heat / n).sqrt().cpu().numpy()
        out["thermal_residual"][places[part]] = sums.square().sum(1).sqrt().cpu().numpy()

    over(len(places), steps_of(steps), work)
