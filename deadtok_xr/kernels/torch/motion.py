"""Measure how far each token moved at each step, in its own units and on the lattice, and count tokens by phase."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deadtok_xr.errors import OffGridError
from deadtok_xr.kernels import Lattice
from deadtok_xr.kernels.torch.parts import (
    TILE,
    bit_words,
    fill,
    float32_words,
    has_float64,
    run_in_parts,
    steps_per_tile,
    with_device_lock,
)

USABLE, NOT_FINITE, OFF_GRID = 0, 1, 2
"""The status of a row of a step."""
INFINITY = 0x7F800000
_REACH = 24
"""The number of binades around 1 within which squares of differences neither overflow nor underflow in float32."""
_FOUND = {
    "displacement": torch.float32, "displacement_ulp": torch.float32, "lattice_l1": torch.float64,
    "lattice_l2": torch.float64, "lattice_linf": torch.float64, "moved_dims": torch.int64,
}  # fmt: skip


@with_device_lock
def motion(
    steps: Tensor,
    changed: NDArray[np.bool_],
    state: bool | None,
    lattice: Lattice,
    magnitudes: tuple[float, float, float],
    out: dict[str, NDArray[Any]],
) -> bool:
    """Fill ``out`` with the transitions between steps (t + 1, n, d), as numba's kernel does.

    ``state`` is what an earlier call returned, None at first: then the first step is checked too. Where Triton is
    available, one pass does it all (`one_pass`); otherwise the rows that changed are measured, a tile at a time.

    Raises
    ------
    OffGridError
        If a value is not on the lattice.
    """
    from deadtok_xr.kernels.torch import fused

    found = fused.motion(steps, lattice, magnitudes)
    if found is None:
        status = row_status(bit_words(steps), lattice)
        _refuse_off_grid(status, changed, first=state is None)
        found = measured(steps, changed, status, lattice)
        found |= per_step(found, magnitudes, np.sqrt(steps.shape[2]))
    fill(out, found)
    return True


def row_status(bits: Tensor, lattice: Lattice) -> Tensor:
    """Return the status of each row, uint8 (t, n), by its bits (t, n, d)."""
    status = torch.empty(bits.shape[:2], dtype=torch.uint8, device=bits.device)
    spare = torch.from_numpy(lattice.spare.view(np.int32)).to(bits.device)
    shared = int(lattice.spare[255]) & (0xFFFF0000 if bits.dtype == torch.int16 else 0xFFFFFFFF)

    def work(part: slice) -> None:
        w = float32_words(bits[part])
        top = (w & 0x7FFFFFFF).amax(dim=2)
        off = top > lattice.largest
        if shared:  # every word of 16 bits is on bfloat16's grid
            off |= ((spare[((w >> 23) & 0xFF).long()] & w) != 0).any(dim=2)
        status[part] = torch.where(top >= INFINITY, NOT_FINITE, torch.where(off, OFF_GRID, USABLE)).to(torch.uint8)

    run_in_parts(len(bits), steps_per_tile(bits), work)
    return status


def _refuse_off_grid(status: Tensor, changed: NDArray[np.bool_], *, first: bool) -> None:
    off = (status == OFF_GRID).cpu().numpy()
    n = int((off[1:] & changed).sum()) + (int(off[0].sum()) if first else 0)
    if n:
        raise OffGridError(f"{n} rows of a block hold values that are not on the grid")


def measured(steps: Tensor, changed: NDArray[np.bool_], status: Tensor, lattice: Lattice) -> dict[str, Tensor]:
    """Measure each transition and token, (t, n): 0 where a row did not change, NaN and -1 where it is not finite."""
    rows = bit_words(steps)
    home = steps.device if has_float64(steps.device) else torch.device("cpu")
    usable = (status[:-1] == USABLE) & (status[1:] == USABLE)
    found = {name: torch.zeros(usable.shape, dtype=dtype, device=home) for name, dtype in _FOUND.items()}
    t, n = torch.nonzero(torch.from_numpy(changed).to(steps.device) & usable, as_tuple=True)

    def work(part: slice) -> None:
        first, tokens = t[part], n[part]
        a, b = (float32_words(rows[at, tokens]) for at in (first, first + 1))
        sums = row_sums(a, b, lattice) if has_float64(rows.device) else row_sums_float32(a, b, lattice)
        for name, x in sums.items():
            found[name][first.to(home), tokens.to(home)] = x.to(_FOUND[name])

    run_in_parts(len(t), TILE // rows.shape[2], work)
    unusable = ~usable.to(home)
    for name, x in found.items():
        x[unusable] = -1 if name == "moved_dims" else torch.nan
    return found


def row_sums(a: Tensor, b: Tensor, lattice: Lattice, wide: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Measure how far rows moved, from float32 words (k, d) before and after; all are finite and on the lattice."""
    exponent = (a & INFINITY).clamp(min=lattice.smallest << 23)
    # 2^(128 - max(E, smallest)) as a float32 made from its exponent field: 1 / ULP except for a constant factor
    scale = ((255 << 23) - exponent).view(torch.float32).to(wide)
    x, y = a.view(torch.float32).to(wide), b.view(torch.float32).to(wide)
    step = y - x
    cells = step.abs() * scale * 2.0 ** (lattice.ulp_offset - 128)
    length, norm = step.square().sum(1).sqrt(), x.square().sum(1).sqrt()
    return {
        "displacement": length,
        "displacement_ulp": length / (norm * 2.0**-7).clamp(min=1e-10),
        "lattice_l1": cells.sum(1),
        "lattice_l2": cells.square().sum(1).sqrt(),
        "lattice_linf": cells.amax(1),
        "moved_dims": (x != y).sum(1),
    }


def row_sums_float32(a: Tensor, b: Tensor, lattice: Lattice) -> dict[str, Tensor]:
    """Measure as `row_sums` on a device without float64; rows that need more than float32 are measured on the CPU."""
    inside = in_reach(a, b)
    sums = {name: x.cpu() for name, x in row_sums(a, b, lattice, torch.float32).items()}
    for x in sums.values():
        inside &= x.isfinite().to(a.device)
    rest = torch.nonzero(~inside)[:, 0]
    exact = row_sums(a[rest].cpu(), b[rest].cpu(), lattice)
    wide = {name: x.to(exact[name].dtype) for name, x in sums.items()}
    for name, x in wide.items():
        x[rest.cpu()] = exact[name]
    return wide


def in_reach(a: Tensor, b: Tensor) -> Tensor:
    """Find the rows (k,) whose numbers are neither too small nor too large for float32, and of which none was zero."""
    near = []
    for w in (a, b):
        e = (w >> 23) & 0xFF
        near.append((e > 127 - _REACH) & (e < 127 + _REACH))
    no_a, no_b = (a & 0x7FFFFFFF) == 0, (b & 0x7FFFFFFF) == 0
    return ((near[0] & (near[1] | no_b)) | (no_a & no_b)).all(dim=1)


def per_step(found: dict[str, Tensor], magnitudes: tuple[float, float, float], root: float) -> dict[str, Tensor]:
    """Return, for each step, mean and deviation over valid tokens, and the tokens in each phase of each scheme."""
    valid = found["moved_dims"] >= 0
    x = found["displacement_ulp"].double()
    count = valid.sum(1)
    mean = torch.where(valid, x, 0).sum(1) / count
    squares = torch.where(valid, x - mean[:, None], 0).square().sum(1)
    colder = [found["lattice_l1"] <= 0, found["lattice_linf"] <= 1, found["lattice_l2"] <= root]
    return {
        "displacement_ulp_mean": mean,
        "displacement_ulp_std": torch.where(count > 1, squares / (count - 1), torch.nan).sqrt(),
        "n_invalid": valid.shape[1] - count,
        "lattice": _phases(colder, valid),
        "magnitude": _phases([x < limit for limit in magnitudes], valid),
    }


def _phases(colder: list[Tensor], valid: Tensor) -> Tensor:
    """Count the tokens of each step in each phase, (t, 4): that of the first condition that holds, or the last."""
    left, counts = valid, []
    for condition in colder:
        counts.append((left & condition).sum(1))
        left = left & ~condition
    return torch.stack([*counts, left.sum(1)], dim=1)
