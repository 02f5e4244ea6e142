"""One monitored update: figures predicted before it, compared after it, and transferred from the devices once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.kernels.updates import COUNTS, SQUARES
from deadtok_xr.monitor import counting, ranks, tiles
from deadtok_xr.monitor.counting import Sums
from deadtok_xr.monitor.predict import Rule
from deadtok_xr.monitor.selection import Watched
from deadtok_xr.monitor.tiles import joined
from deadtok_xr.monitor.workers import Workers

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Found = tuple[Sequence[int], Sums]
"""Positions of parameters, and their sums."""
Changes = tuple[NDArray[np.int64], NDArray[np.float64]]
"""What copies show of each parameter: see `counting.Sums`."""


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
        tensors_of = [w.tensors(with_state=self._rule is not None) for w in self._watched]
        self.has_gradient = np.array([x is not None for x in tensors_of])
        pieces = []
        for i, (w, found) in enumerate(zip(self._watched, tensors_of, strict=True)):
            variables = {"W": w.weights} if found is None else found
            rule = None if found is None else rules[w.group_index]
            pieces += self._pieces(i, variables, rule, None if rule is None else w.step)
        self._predicted = self._sum_up(pieces, _predict)

    # ---- after the update

    def compare(self) -> None:
        """Compare the weights after the update with the prediction, and with the copies."""
        pieces = []
        for i, w in enumerate(self._watched):
            pieces += self._pieces(i, {"W": w.weights, **({"before": self._copies[i]} if self._copies else {})})
        self._found = self._sum_up(pieces, _compare)
        self._copies = []

    def row(self) -> dict[str, Any]:
        """Return the figures of the update by variable, one value per parameter; this waits for the devices."""
        counts, squares, changes = self._transferred()
        row: dict[str, Any] = {name: counts[:, k].copy() for k, name in enumerate(COUNTS)}
        row["margin_count"] = counts[:, len(COUNTS) : -1].copy()
        row["exact"] = counts[:, -1] == 0
        numel = np.array([w.numel for w in self._watched])
        if changes is not None:
            moved, not_finite, visible = changes[0].T
            row |= {"moved": moved.copy(), "visible": visible.copy(), "exact": np.ones(len(numel), bool)}
            squares[:, [SQUARES.index("weights"), SQUARES.index("steps")]] = changes[1]
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

    def _transferred(self) -> tuple[NDArray[np.int64], NDArray[np.float64], Changes | None]:
        """Return the sums of all parameters, over all ranks.

        Returns
        -------
        Counts and margins, and after them whether a checksum is not the predicted one; sums of squares; and what the
        comparison with copies gave, if there are any.
        """
        n = len(self._watched)
        ints, squares = counting.by_parameter(self._predicted, n, counting.PREDICTED)
        found, changed_squares = counting.by_parameter(self._found, n, counting.FOUND)
        differs = (ints[:, -2:] != found[:, -2:]).any(axis=1, keepdims=True)
        counts, changes = np.hstack([ints[:, :-2], differs]), (found[:, :-2], changed_squares)
        ranks.sum_over_ranks([w.parameter for w in self._watched], [counts, squares, *changes])
        return counts, squares, changes if self._keep_copies else None

    # ---- sums

    def _pieces(
        self, i: int, variables: Mapping[str, Tensor], rule: Rule | None = None, step: Tensor | None = None
    ) -> list[tiles.Piece]:
        """Return the tiles of a parameter and of what belongs to it."""
        fused = rule is not None and rule.fused
        return [
            tiles.Piece(i, dict(zip(variables, each, strict=True)), rule, step)
            for each in tiles.tiles(list(variables.values()), self._workers.n_threads, fused=fused)
        ]

    def _sum_up(self, pieces: list[tiles.Piece], function: Callable[[list[tiles.Piece]], Sums]) -> list[Found]:
        """Call a function with pieces that are counted together: in batches, or on the CPU one by one in threads."""
        import torch

        def part(some: list[tiles.Piece]) -> Found:
            with torch.no_grad():
                return [some[0].parameter], counting.added(function([piece]) for piece in some)

        parts: list[tuple[list[tiles.Piece]]] = []
        for _, same in itertools.groupby((p for p in pieces if tiles.on_cpu(p.tile["W"])), lambda p: p.parameter):
            of_parameter = list(same)
            size = math.ceil(len(of_parameter) / self._workers.n_threads)
            parts += [(of_parameter[k : k + size],) for k in range(0, len(of_parameter), size)]
        found = self._workers.map(part, parts)
        with torch.no_grad():
            for batch in tiles.batches(p for p in pieces if not tiles.on_cpu(p.tile["W"])):
                found.append(([piece.parameter for piece in batch], function(batch)))
        return found


def _predict(batch: list[tiles.Piece]) -> Sums:
    """Predict the update of the pieces, and count what it does to their elements."""
    rule, sizes = batch[0].rule, [piece.size for piece in batch]
    if "grad" not in batch[0].tile:
        return counting.without_gradient(joined([piece.tile["W"] for piece in batch]), sizes)
    if rule is None:
        return counting.of_gradient(joined([piece.tile["grad"] for piece in batch]), sizes)
    return counting.of_prediction(rule.predict([p.tile for p in batch], [p.step for p in batch]), sizes)


def _compare(batch: list[tiles.Piece]) -> Sums:
    """Sum up the weights of the pieces, and compare them with the copies."""
    tile = {name: joined([piece.tile[name] for piece in batch]) for name in batch[0].tile}
    return counting.of_result(tile["W"], tile.get("before"), [piece.size for piece in batch])
