"""Sums over the elements of parameters, and the checksum that proves a prediction.

Each function takes flat tensors in which several parameters lie one after the other (one on the CPU), with the number
of elements of each, and returns `Sums` with a row for each, on their device and without waiting for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deadtok_xr import kernels
from deadtok_xr.kernels.updates import COUNTS, N_BINS, SQUARES
from deadtok_xr.monitor import tiles

if TYPE_CHECKING:
    from torch import Tensor

    from deadtok_xr.monitor.predict import Prediction


class Sums(NamedTuple):
    """Sums over the elements of parameters, a row for each."""

    ints: Tensor
    """int64. Of a prediction: counts, margins (see `deadtok_xr.kernels.updates`) and the two checksums of the weights
    after it. Of a result: the elements that moved, are not finite, and changed as bfloat16, and the checksums."""
    floats: Tensor
    """float64, sums of squares. Of a prediction: see `deadtok_xr.kernels.updates`. Of a result: Σ W[t]² and Σ ΔW²."""


PREDICTED = (len(COUNTS) + N_BINS + 2, len(SQUARES))
FOUND = (3 + 2, 2)
"""The columns of `Sums` of predictions and of results."""


def of_prediction(p: Prediction, sizes: Sequence[int]) -> Sums:
    """Count a predicted update."""
    import torch

    lattice = kernels.lattice(str(p.before.dtype).removeprefix("torch."))
    w = p.before.float()
    on_cpu = tiles.on_cpu(w)
    argument: Any = (lambda x: x.float().numpy()) if on_cpu else (lambda x: x.float())
    intended: Any = p.intended.numpy() if on_cpu else p.intended
    v0, v1 = (w, w) if p.second is None else p.second
    update = kernels.OptimizerUpdate(
        argument(w), argument(p.after), argument(p.gradient), intended,
        p.second is not None, argument(v0), argument(v1), argument(p.decayed),
    )  # fmt: skip
    engine = kernels.engine("updates", not on_cpu)
    if on_cpu:
        ints, floats = np.zeros((1, PREDICTED[0]), np.int64), np.zeros((1, PREDICTED[1]))
        counts, margins = ints[0, : len(COUNTS)], ints[0, len(COUNTS) : -2]
        engine.count_update(update, lattice, {"counts": counts, "margins": margins, "squares": floats[0]})
        ints[:, -2:] = _checksums(p.after, sizes)
        return Sums(torch.from_numpy(ints), torch.from_numpy(floats))
    found = engine.count_updates(update, lattice, sizes)
    return Sums(torch.cat([found["counts"], found["margins"], _checksums(p.after, sizes)], dim=1), found["squares"])


def without_gradient(weights: Tensor, sizes: Sequence[int]) -> Sums:
    """Count elements that the optimizer skips, because there is no gradient."""
    import torch

    found, finite = _zeros(PREDICTED, weights, sizes), weights.isfinite()
    counts = _torch_engine().sums(torch.stack([finite, ~finite]), sizes)
    squares = _torch_engine().squares([weights, weights - weights], sizes)  # the latter is 0, or NaN
    # column by column: a list of columns would be copied to the device, which waits for it
    for k, name in enumerate(("no_gradient", "unknown")):
        found.ints[:, COUNTS.index(name)] = counts[:, k]
    for k, name in enumerate(("weights", "steps")):
        found.floats[:, SQUARES.index(name)] = squares[:, k]
    found.ints[:, -2:] = _checksums(weights, sizes)
    return found


def of_gradient(gradient: Tensor, sizes: Sequence[int]) -> Sums:
    """Sum the squares of gradients whose update is not known."""
    found = _zeros(PREDICTED, gradient, sizes)
    found.floats[:, SQUARES.index("gradients")] = _torch_engine().squares([gradient], sizes)[:, 0]
    return found


def of_result(after: Tensor, before: Tensor | None, sizes: Sequence[int]) -> Sums:
    """Sum up the weights after an update, and compare them with copies from before it, if there are any."""
    found = _zeros(FOUND, after, sizes)
    found.ints[:, -2:] = _checksums(after, sizes)
    if before is not None:
        changes = _torch_engine().count_changes(before, after, sizes)
        found.ints[:, :-2], found.floats[:] = changes["counts"], changes["squares"]
    return found


def added(rows: Iterable[Sums]) -> Sums:
    """Add up the sums of the tiles of the same parameters."""
    first, *others = rows
    for other in others:
        for mine, more in zip(first, other, strict=True):
            mine += more
    return first


def by_parameter(
    found: Sequence[tuple[Sequence[int], Sums]], n: int, columns: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Add up sums by the positions of their parameters, with one transfer per device.

    Parameters
    ----------
    found
        Positions of parameters, and their sums; a parameter may occur several times.
    n
        The number of parameters.
    columns
        `PREDICTED` or `FOUND`.

    Returns
    -------
    The integers and floats of each parameter; the integers modulo 2^64.
    """
    import torch

    ints, floats = np.zeros((n, columns[0]), np.int64), np.zeros((n, columns[1]))
    for device in dict.fromkeys(sums.ints.device for _, sums in found):
        here = [each for each in found if each[1].ints.device == device]
        rows = [i for positions, _ in here for i in positions]
        tables = [torch.cat([sums[k] for _, sums in here]).view(torch.int64) for k in range(2)]
        table = torch.cat(tables, dim=1).cpu().numpy()
        np.add.at(ints, rows, table[:, : columns[0]])
        np.add.at(floats, rows, np.ascontiguousarray(table[:, columns[0] :]).view(np.float64))
    return ints, floats


def _checksums(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return two sums over the bits of each parameter, in any order of its elements."""
    import torch

    if not tiles.on_cpu(x):
        found: Tensor = _torch_engine().checksums(x, sizes)
        return found
    words = x.view(getattr(torch, f"int{8 * x.element_size()}")).numpy()
    return torch.from_numpy(kernels.engine("updates", False).checksums(words))[None]


def _zeros(columns: tuple[int, int], like: Tensor, sizes: Sequence[int]) -> Sums:
    import torch

    dtypes = (torch.int64, torch.float64)
    return Sums(*(like.new_zeros(len(sizes), n, dtype=d) for n, d in zip(columns, dtypes, strict=True)))


def _torch_engine() -> Any:
    return kernels.engine("updates", True)
