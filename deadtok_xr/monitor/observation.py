"""One monitored update: figures predicted before it, compared after it, and transferred from the devices once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.kernels.updates import COUNTS, N_BINS, SQUARES
from deadtok_xr.monitor import ranks, tiles
from deadtok_xr.monitor.counting import FLOATS, INTS, Sums, add_updates, checksum, compare, tables
from deadtok_xr.monitor.predict import Rule
from deadtok_xr.monitor.selection import Watched
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
        import torch

        self.predicted = True
        groups = {w.group_index: w.group for w in self._watched}
        rates = {i: float(group.get("lr", np.nan)) for i, group in groups.items()}
        self.lr = np.array([rates[w.group_index] for w in self._watched])
        rules = {i: None if self._rule is None else Rule(self._rule, group, optimizer) for i, group in groups.items()}
        tensors_of = [w.tensors() for w in self._watched]
        self.has_gradient = np.array([x is not None for x in tensors_of])
        self._make_sums()
        tasks: list[tuple[Any, ...]] = []
        pieces: list[tiles.Piece] = []
        for i, (w, found) in enumerate(zip(self._watched, tensors_of, strict=True)):
            names = ("W",) if found is None else tuple(found)
            of_parameter = [w.weights] if found is None else list(found.values())
            rule = rules[w.group_index]
            if found is not None and rule is not None and not tiles.on_cpu(w.weights):
                for tensors in tiles.tiles(of_parameter, 1):
                    pieces.append(tiles.Piece(i, rule, w.step, dict(zip(names, tensors, strict=True))))
            else:
                tasks += [(i, part, names, rule, w.step) for part in self._parts(of_parameter)]
        self._sum_up(tasks, self._predict_tiles)
        with torch.no_grad():
            for batch in tiles.batches(pieces):
                update = batch[0].rule.predict([piece.tile for piece in batch], [piece.step for piece in batch])
                add_updates([self._sums[p.parameter] for p in batch], update, [len(p.tile["W"]) for p in batch])

    def _predict_tiles(
        self, sums: Sums, part: Any, names: tuple[str, ...], rule: Rule | None, step: Tensor | None
    ) -> None:
        for tensors in part:
            tile = dict(zip(names, tensors, strict=True))
            if "grad" not in tile:
                sums.add_without_update(tile["W"])
            elif rule is None:
                sums.squares[SQUARES.index("gradients")] += tile["grad"].double().square().sum()
            else:
                add_updates([sums], rule.predict([tile], [step]), [len(tile["W"])])

    # ---- after the update

    def compare(self) -> None:
        """Compare the weights after the update with the prediction, and with the copies."""
        tasks: list[tuple[Any, ...]] = []
        for i, w in enumerate(self._watched):
            tensors = [w.weights, self._copies[i]] if self._copies else [w.weights]
            tasks += [(i, part) for part in self._parts(tensors)]
        self._sum_up(tasks, _compare_tiles)
        self._copies = []

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
        """Return the sums of all parameters, over all ranks, with one transfer per device.

        The last of the integers is not 0 if a parameter's checksum is not the predicted one.
        """
        import torch

        n = len(self._watched)
        ints, floats = np.empty((n, sum(INTS) - 3), np.int64), np.empty((n, sum(FLOATS)), np.float64)
        for rows, found_ints, found_floats in self._tables:
            predicted, found = found_ints[:, -4:].split(2, 1)
            differs = (found != predicted).any(1, keepdim=True)
            both = [torch.cat([found_ints[:, :-4], differs], dim=1), found_floats]
            ranks.sum_over_ranks([self._watched[i].parameter for i in rows], both)
            host = torch.cat([both[0], both[1].view(torch.int64)], dim=1).cpu().numpy()
            ints[rows], floats[rows] = host[:, : ints.shape[1]], host[:, ints.shape[1] :].copy().view(np.float64)
        return ints, floats

    # ---- sums

    def _make_sums(self) -> None:
        """Make the sums of all parameters: zeros, in two tables per device."""
        devices = [w.weights.device for w in self._watched]
        self._tables = []
        found: dict[int, Sums] = {}
        for device in dict.fromkeys(devices):
            rows = [i for i, each in enumerate(devices) if each == device]
            ints, floats = tables(len(rows), device)
            self._tables.append((rows, ints, floats))
            found |= {i: Sums(*row) for i, *row in zip(rows, ints, floats, strict=True)}
        self._sums = [found[i] for i in range(len(devices))]

    def _sum_up(self, tasks: list[tuple[Any, ...]], function: Callable[..., None]) -> None:
        """Call a function with a parameter's sums and other arguments; on the CPU in threads, which add up apart."""
        import torch

        def apart(i: int, *arguments: Any) -> tuple[int, Sums]:
            sums = Sums(*(table[0] for table in tables(1, "cpu")))
            with torch.no_grad():
                function(sums, *arguments)
            return i, sums

        on_cpu = [tiles.on_cpu(self._watched[i].weights) for i, *_ in tasks]
        for i, sums in self._workers.map(apart, itertools.compress(tasks, on_cpu)):
            self._sums[i].merge(sums)
        with torch.no_grad():
            for i, *arguments in itertools.compress(tasks, np.logical_not(on_cpu)):
                function(self._sums[i], *arguments)

    def _parts(self, tensors: list[Tensor]) -> list[list[list[Tensor]]]:
        """Return the tiles of tensors in as many parts as there are threads; one part on a device."""
        found = list(tiles.tiles(tensors, self._workers.n_threads))
        n = self._workers.n_threads if tiles.on_cpu(tensors[0]) else 1
        size = max(1, -(-len(found) // n))
        return [found[i : i + size] for i in range(0, len(found), size)]


def _compare_tiles(sums: Sums, part: list[list[Tensor]]) -> None:
    for after, *before in part:
        sums.found += checksum(after)
        if before:
            counts, squares = compare(before[0], after)
            sums.compared += counts
            sums.compared_squares += squares
