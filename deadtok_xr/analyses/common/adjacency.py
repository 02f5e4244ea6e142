"""Define which tokens are adjacent, and measure their graph at the steps of a block, with numba or on a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.bfloat16 import get_grid, ulp
from deadtok_xr.engine import Batch, Cost, Sizes, StepBlock
from deadtok_xr.engine.series import Series
from deadtok_xr.errors import InputError, OffGridError

COINCIDENT = ("separate", "linked")
SPACINGS = {
    "centroid": "max_d |a - b| <= k·mean_d ULP(C)",
    "pair": "max_d |a - b| <= k·max(mean_d ULP(a), mean_d ULP(b))",
    "element": "|a - b| <= k·max(ULP(a), ULP(b)) in every dim",
    "ordinal": "at most k representable steps between a and b in every dim",
}
HELD = (None, "threshold", "positions")


def n_bins(n_tokens: int) -> int:
    """Return how many bins 0, 1, 2 to 3, 4 to 7, ... hold all numbers up to the number of tokens."""
    return int(n_tokens).bit_length() + 1


def check_options(purpose: str, k: float, spacing: str, coincident: str, held: str | None = None) -> None:
    """Check the options that define adjacency.

    Raises
    ------
    InputError
        If one is unknown, or two exclude each other.
    """
    choices = (("coincident", coincident, COINCIDENT), ("spacing", spacing, tuple(SPACINGS)), ("held", held, HELD))
    for name, value, known in choices:
        if value not in known:
            raise InputError(f"{purpose}: {name}={value!r}: choose one of {', '.join(map(str, known))}")
    if not (np.isfinite(k) and k > 0):
        raise InputError(f"{purpose}: k={k!r}: the threshold is a positive number of spacings; 1 is the notebook's")
    if held and spacing != "centroid":
        raise InputError(
            f"{purpose}: held={held!r} needs one threshold for all pairs, and spacing={spacing!r} has many; choose "
            "spacing='centroid'"
        )


@dataclass(frozen=True)
class Adjacency:
    """Which tokens are adjacent; the options of `topology`.

    Attributes
    ----------
    variable
        The weights.
    grid
        The number format of their lattice.
    k, spacing
        The threshold, in spacings, and what one spacing is, see `SPACINGS`.
    linked
        Whether tokens in the same place are adjacent.
    n_tokens
        The number of tokens.
    held, initial
        What stays as it was at the first step, see `HELD`, and the positions at that step.
    """

    variable: str
    grid: str
    k: float
    spacing: str
    linked: bool
    n_tokens: int
    held: str | None = None
    initial: Series | None = None

    def cost(self, sizes: Sizes) -> Cost:
        """Return what the graphs of all steps cost, for tokens that are not all adjacent.

        Where few elements change, lists of pairs last longer.
        """
        pairs, kept = sizes.tokens**2 / 2, 0.2 + 1.2 * sizes.changing**2
        seconds = (0.5e-9 * pairs + 10e-9 * sizes.step) * sizes.steps * sizes.moving * kept
        nodes = 8 * 8 * 2 * sizes.tokens + 16 * 4 * sizes.tokens
        return Cost(seconds, held=nodes, temporary=(2 * 4 * sizes.step if sizes.is_small else 0) + nodes)


class AdjacencyTracker:
    """Measure the graph at each step of a block in order, reusing the results of the step before.

    A device measures it for the spacing of the centroid, which is one threshold for all pairs, and labels no
    components. The centroid itself is always summed by numba, token after token: an edge can depend on its last bit.

    Parameters
    ----------
    adjacency
        Which tokens are adjacent.
    block
        The block.
    labels
        Whether to label the component of each token.
    """

    def __init__(self, adjacency: Adjacency, block: StepBlock, *, labels: bool = False) -> None:
        from deadtok_xr import kernels
        from deadtok_xr.kernels.numba import topology as kernel

        self.adjacency, self.lattice = adjacency, kernels.lattice(adjacency.grid)
        spacings = {"pair": kernel.PAIR, "element": kernel.ELEMENT}
        self.rule = kernel.rule(
            spacings.get(adjacency.spacing, kernel.CENTROID), adjacency.k, adjacency.linked, self.lattice
        )
        self.verlet_list = kernel.empty_verlet_list(block.n_tokens, block.n_dims)
        bins = n_bins(block.n_tokens)
        self.widths = {"figures": len(kernel.FIGURES), "degrees": bins, "sizes": bins}
        self.widths["label"] = block.n_tokens if labels else 0
        self.on_device = block.device.runs("topology") and adjacency.spacing == "centroid" and not labels
        self.last: dict[str, NDArray[Any]] | None = None
        self.initial = kernels.float32_words(adjacency.initial.values()) if adjacency.initial is not None else None
        self.first_positions: Any = None

    def update(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """Return the outputs of the kernel, and `mean_ulp`, at all steps of a batch, the one after it included."""
        from deadtok_xr import kernels
        from deadtok_xr.kernels.numba import topology as kernel

        values = batch.values[self.adjacency.variable]
        check_grid(self.adjacency.variable, values, self.adjacency.grid)
        words = kernels.float32_words(values)
        if self.on_device and self.adjacency.held != "positions":
            batch.tensor(self.adjacency.variable)  # first: batch.changed compares the steps where the values are
        changed = batch.changed(self.adjacency.variable)
        found: dict[str, Any] = {name: np.empty((len(words), n), np.int64) for name, n in self.widths.items()}
        if self.last is not None:
            for name in self.widths:
                found[name][0] = self.last[name]
        found["centre"] = kernel.centroids(words, changed, self.last["centre"] if self.last else None)
        found["mean_ulp"] = self._mean_ulp(found["centre"])
        threshold = self.adjacency.k * found["mean_ulp"]
        if self.adjacency.held == "threshold":
            threshold = np.full(len(words), self._first_threshold())
        measure = self._measure_on_device if self.on_device else self._measure
        measure(batch, words, threshold, found)
        self.last = {name: found[name][-1].copy() for name in (*self.widths, "centre")}
        return found

    def _measure(self, batch: Batch, words: Any, threshold: NDArray[np.float64], found: dict[str, Any]) -> None:
        from deadtok_xr import kernels

        if self.adjacency.held == "positions":
            words = self.initial
        words, threshold = self._comparable(words, threshold)
        self.verlet_list = kernels.engine("topology", False).topology(
            words, batch.changed(self.adjacency.variable), threshold, self.rule, self.verlet_list, found,
            first=int(self.last is not None),
        )  # fmt: skip

    def _measure_on_device(
        self, batch: Batch, words: Any, threshold: NDArray[np.float64], found: dict[str, Any]
    ) -> None:
        from deadtok_xr import kernels

        steps = (
            self._first_positions(batch)
            if self.adjacency.held == "positions"
            else batch.tensor(self.adjacency.variable)
        )
        kernels.engine("topology", True).topology(
            steps, batch.changed(self.adjacency.variable), threshold, self.adjacency.linked, found,
            first=int(self.last is not None),
        )  # fmt: skip

    def _first_positions(self, batch: Batch) -> Any:
        """Return the positions at the first step, on the device of the block."""
        from deadtok_xr.kernels.torch import to_device

        if self.first_positions is None:
            assert self.adjacency.initial is not None
            self.first_positions = to_device(
                np.ascontiguousarray(self.adjacency.initial.values()), batch.block.device.name
            )
        return self.first_positions

    def _mean_ulp(self, centre: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(over="ignore"):
            rounded = centre.astype(np.float32).astype(get_grid(self.adjacency.grid).dtype)
        return ulp(rounded, self.adjacency.grid).mean(axis=1)

    def _first_threshold(self) -> float:
        from deadtok_xr.kernels.numba import topology as kernel

        assert self.initial is not None
        centre = kernel.centroids(self.initial, np.zeros((0, self.initial.shape[1]), np.bool_), None)
        return self.adjacency.k * float(self._mean_ulp(centre)[0])

    def _comparable(self, words: Any, threshold: NDArray[np.float64]) -> tuple[Any, Any]:
        """Return the words to compare and the thresholds: ordinals for the spacing that counts them."""
        from deadtok_xr.kernels.numba.ordinals import ordinals

        if self.adjacency.spacing == "ordinal":
            words = ordinals(words, self.lattice, get_grid(self.adjacency.grid).mantissa_bits)
            return words, np.full(len(threshold), self.adjacency.k)
        return words, threshold


def check_grid(variable: str, values: NDArray[Any], grid: str) -> None:
    """Refuse values that are not on the grid, because its spacing would have no meaning for them.

    Raises
    ------
    OffGridError
        If there are any; the message gives the number of such rows.
    """
    from deadtok_xr import kernels
    from deadtok_xr.kernels.numba.ordinals import count_off_grid

    if values.dtype.name == grid or grid == "float32":
        return  # all their values are on it
    words = kernels.bit_words(values)
    if n := count_off_grid(words, kernels.lattice(grid)):
        raise OffGridError(
            f"{variable}: {n} rows of a block hold values that are not on the grid of {grid}; measure the recorded "
            "values, not derived ones, or say precision="
        )
