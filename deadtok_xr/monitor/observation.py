"""One monitored update: figures predicted before it, compared after it, and transferred from the devices once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.kernels.updates import COUNTS, N_BINS, SQUARES
from deadtok_xr.monitor import ranks
from deadtok_xr.monitor.counting import Tally, checksum, compare
from deadtok_xr.monitor.predict import Rule
from deadtok_xr.monitor.selection import Watched
from deadtok_xr.monitor.tiles import tiles
from deadtok_xr.monitor.workers import Workers

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_COMPARED = 3  # the counts of `compare`


class Observation:
    """An update of the watched parameters, between `before` and `after`.

    Parameters
    ----------
    watched
        The parameters.
    rule
        The name of the update rule; None if it is not known.
    copies
        Keep a copy of the weights during the update, and compare.
    workers
        Threads for tiles on the CPU.
    """

    def __init__(self, watched: Sequence[Watched], rule: str | None, copies: bool, workers: Workers) -> None:
        self._watched, self._rule, self._workers = watched, rule, workers
        self._keep_copies = copies
        self._copies: list[Tensor] = []
        self.predicted = False
        """Whether the gradients have been read."""

    # ---- before the update

    def copy(self) -> None:
        """Copy the weights, if copies are kept."""
        if self._keep_copies and not self._copies:
            self._copies = [w.weights.clone() for w in self._watched]

    def predict(self, optimizer: torch.optim.Optimizer) -> None:
        """Read the gradients, and predict the update of each parameter."""
        self.predicted = True
        groups = {w.group_index: w.group for w in self._watched}
        rates = {i: float(group.get("lr", np.nan)) for i, group in groups.items()}
        self.lr = np.array([rates[w.group_index] for w in self._watched])
        rules = {i: None if self._rule is None else Rule(self._rule, group, optimizer) for i, group in groups.items()}
        tensors = [w.tensors() for w in self._watched]
        self.has_gradient = np.array([x is not None for x in tensors])
        tasks: list[tuple[Any, ...]] = []
        for i, (w, found) in enumerate(zip(self._watched, tensors, strict=True)):
            names = ["W"] if found is None else list(found)
            of_parameter = [w.weights] if found is None else list(found.values())
            for part in self._parts(of_parameter):
                tasks.append((i, names, part, rules[w.group_index], w.step))
        self._tallies = [Tally(w.weights) for w in self._watched]
        for i, tally in self._workers_for(tasks, self._predict_tiles):
            self._tallies[i].merge(tally)

    def _predict_tiles(self, i: int, names: list[str], parts: Any, rule: Rule | None, step: Any) -> tuple[int, Tally]:
        import torch

        tally = Tally(parts[0][0])
        with torch.no_grad():
            for part in parts:
                tile = dict(zip(names, part, strict=True))
                if "grad" not in tile:
                    tally.add_without_update(tile["W"])
                elif rule is None:
                    tally.squares[SQUARES.index("gradients")] += tile["grad"].double().square().sum()
                else:
                    tally.add(tile["W"], rule.predict(tile, step))
        return i, tally

    # ---- after the update

    def compare(self) -> None:
        """Compare the weights after the update with the prediction, and with the copies."""
        tasks: list[tuple[Any, ...]] = []
        for i, w in enumerate(self._watched):
            tensors = [w.weights, self._copies[i]] if self._copies else [w.weights]
            tasks += [(i, part) for part in self._parts(tensors)]
        self._found = [self._zeros(w.weights) for w in self._watched]
        for i, sums in self._workers_for(tasks, self._compare_tiles):
            for total, part in zip(self._found[i], sums, strict=True):
                total += part
        self._copies = []

    def _compare_tiles(self, i: int, parts: Any) -> tuple[int, list[Tensor]]:
        import torch

        sums = self._zeros(parts[0][0])
        with torch.no_grad():
            for part in parts:
                sums[0] += checksum(part[0])
                if len(part) == 2:
                    for total, found in zip(sums[1:], compare(part[1], part[0]), strict=True):
                        total += found
        return i, sums

    @staticmethod
    def _zeros(like: Tensor) -> list[Tensor]:
        import torch

        kinds = ((2, torch.int64), (_COMPARED, torch.int64), (2, torch.float64))
        return [torch.zeros(n, dtype=dtype, device=like.device) for n, dtype in kinds]

    def row(self) -> dict[str, Any]:
        """Return the figures of the update by variable, one value per parameter; this waits for the devices."""
        ints, floats = self._transferred()
        counts, margins = ints[:, : len(COUNTS)], ints[:, len(COUNTS) : len(COUNTS) + N_BINS]
        row: dict[str, Any] = {name: counts[:, k].copy() for k, name in enumerate(COUNTS)}
        row["margin_count"] = margins.copy()
        row["exact"] = ints[:, -1] == 0
        squares = floats[:, : len(SQUARES)].copy()
        numel = np.array([w.numel for w in self._watched])
        if self._keep_copies:
            moved, not_finite, visible = ints[:, -1 - _COMPARED : -1].T
            row |= {"moved": moved.copy(), "visible": visible.copy(), "exact": np.ones(len(numel), bool)}
            squares[:, [SQUARES.index("weights"), SQUARES.index("steps")]] = floats[:, len(SQUARES) :]
            row["unknown"] = np.minimum(np.maximum(row["unknown"], not_finite), numel - moved)
            row["no_gradient"] = np.minimum(row["no_gradient"], numel - moved - row["unknown"])
            row["rounded_to_zero"] = numel - moved - row["unknown"] - row["no_gradient"]
        with np.errstate(invalid="ignore"):
            norms = np.sqrt(squares)
        names = {"weights": "weight_norm", "gradients": "gradient_norm", "updates": "update_norm",
                 "steps": "realised_norm"}  # fmt: skip
        row |= {names[name]: norms[:, k].copy() for k, name in enumerate(SQUARES)}
        row["lr"] = self.lr
        self._mark_unknown(row, numel)
        return row

    def _mark_unknown(self, row: dict[str, Any], numel: NDArray[np.int64]) -> None:
        """Replace the figures that are not known: counts by -1, norms by NaN."""
        row["gradient_norm"][~self.has_gradient] = np.nan
        if self._rule in (None, "SGD"):
            row["stalled"][:] = -1
        row["stalled"][~self.has_gradient] = -1
        if self._rule is None:
            updated = self.has_gradient
            row["unknown"] = np.where(updated, numel - row["moved"], row["unknown"])
            for name in ("rounded_to_zero", "no_gradient", "margin_count"):
                row[name][updated] = -1
            row["update_norm"][updated] = np.nan

    def _transferred(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the sums of all parameters, over all ranks, with one transfer per device."""
        import torch

        n = len(self._watched)
        ints = np.zeros((n, len(COUNTS) + N_BINS + _COMPARED + 1), np.int64)
        floats = np.zeros((n, len(SQUARES) + 2), np.float64)
        devices = [w.weights.device for w in self._watched]
        for device in dict.fromkeys(devices):
            rows = [i for i in range(n) if devices[i] == device]
            int_rows, float_rows = [], []
            for i in rows:
                tally, (found, compared, squares) = self._tallies[i], self._found[i]
                differs = (found != tally.checksum).any().long().reshape(1)
                int_rows.append(torch.cat([tally.counts, tally.margins, compared, differs]))
                float_rows.append(torch.cat([tally.squares, squares]))
            tables = [torch.stack(int_rows), torch.stack(float_rows)]
            ranks.sum_over_ranks([self._watched[i].parameter for i in rows], tables)
            host = torch.cat([tables[0], tables[1].view(torch.int64)], dim=1).cpu().numpy()
            ints[rows], floats[rows] = host[:, : ints.shape[1]], host[:, ints.shape[1] :].copy().view(np.float64)
        return ints, floats

    # ---- tiles

    def _parts(self, tensors: list[Tensor]) -> list[list[list[Tensor]]]:
        """Return the tiles of tensors in as many parts as there are threads; one part on a device."""
        found = list(tiles(tensors, self._workers.n_threads))
        n = 1 if tensors[0].device.type != "cpu" else self._workers.n_threads
        size = max(1, -(-len(found) // n))
        return [found[i : i + size] for i in range(0, len(found), size)]

    def _workers_for(self, tasks: list[tuple[Any, ...]], function: Any) -> list[Any]:
        """Call a function for each task: tiles on the CPU in threads, those on a device here."""
        on_cpu = [task for task in tasks if _tiles_of(task)[0][0].device.type == "cpu"]
        others = [task for task in tasks if _tiles_of(task)[0][0].device.type != "cpu"]
        return [*self._workers.map(function, on_cpu), *(function(*task) for task in others)]


def _tiles_of(task: tuple[Any, ...]) -> Any:
    return task[1] if len(task) == 2 else task[2]
