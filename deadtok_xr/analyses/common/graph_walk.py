"""The adjacency graph along the steps of a row of chunks, by numba or on a device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.bfloat16 import get_grid, ulp
from deadtok_xr.engine import Batch, StepBlock
from deadtok_xr.errors import OffGridError

if TYPE_CHECKING:
    from deadtok_xr.analyses.topology import Graph


def n_bins(n_tokens: int) -> int:
    """How many bins 0, 1, 2 to 3, 4 to 7, ... hold all numbers up to the number of tokens."""
    return int(n_tokens).bit_length() + 1


class Walk:
    """The graph along the steps of a row: what is known of a step is not measured again at the next one.

    A device measures it for the spacing of the centroid, which is one threshold for all pairs, and names no
    components. The centroid itself is always summed by numba, token after token: an edge can hang on its last bit.

    Parameters
    ----------
    probe
        Which tokens are adjacent.
    row
        The row.
    labels
        Whether to name the component of each token.
    """

    def __init__(self, reduction: Graph, block: StepBlock, *, labels: bool = False) -> None:
        from deadtok_xr import kernels
        from deadtok_xr.kernels.numba import topology as kernel

        self.reduction, self.lattice = reduction, kernels.lattice(reduction.grid)
        spacings = {"pair": kernel.PAIR, "element": kernel.ELEMENT}
        self.rule = kernel.rule(
            spacings.get(reduction.spacing, kernel.CENTROID), reduction.k, reduction.linked, self.lattice
        )
        self.shell = kernel.empty_verlet_list(block.n_tokens, block.n_dims)
        bins = n_bins(block.n_tokens)
        self.widths = {"figures": len(kernel.FIGURES), "degrees": bins, "sizes": bins}
        self.widths["label"] = block.n_tokens if labels else 0
        self.on_device = block.device.runs("topology") and reduction.spacing == "centroid" and not labels
        self.last: dict[str, NDArray[Any]] | None = None
        self.initial = kernels.float32_words(reduction.initial.values()) if reduction.initial is not None else None
        self.still: Any = None

    def update(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """The kernel's figures, and `mean_ulp`, at each step of a piece; with the step after it, where there is one."""
        from deadtok_xr import kernels
        from deadtok_xr.kernels.numba import topology as kernel

        values = batch.values[self.reduction.variable]
        check_grid(self.reduction.variable, values, self.reduction.grid)
        words = kernels.float32_words(values)
        if self.on_device and self.reduction.held != "positions":
            batch.tensor(self.reduction.variable)  # before what changed, which is found where the values are
        shift, changed = kernels.word_shift(words), batch.changed(self.reduction.variable)
        found: dict[str, Any] = {name: np.empty((len(words), n), np.int64) for name, n in self.widths.items()}
        if self.last is not None:
            for name in self.widths:
                found[name][0] = self.last[name]
        found["centre"] = kernel.centroids(words, shift, changed, self.last["centre"] if self.last else None)
        found["mean_ulp"] = self._mean_ulp(found["centre"])
        threshold = self.reduction.k * found["mean_ulp"]
        if self.reduction.held == "threshold":
            threshold = np.full(len(words), self._first_threshold())
        measure = self._measure_on_device if self.on_device else self._measure
        measure(batch, words, threshold, found)
        self.last = {name: found[name][-1].copy() for name in (*self.widths, "centre")}
        return found

    def _measure(self, batch: Batch, words: Any, threshold: NDArray[np.float64], found: dict[str, Any]) -> None:
        from deadtok_xr import kernels

        if self.reduction.held == "positions":
            words = self.initial
        words, shift, threshold = self._compared(words, kernels.word_shift(words), threshold)
        self.shell = kernels.engine("topology", False).topology(
            words, shift, batch.changed(self.reduction.variable), threshold, self.rule, self.shell, found,
            first=int(self.last is not None),
        )  # fmt: skip

    def _measure_on_device(
        self, batch: Batch, words: Any, threshold: NDArray[np.float64], found: dict[str, Any]
    ) -> None:
        from deadtok_xr import kernels

        steps = self._still(batch) if self.reduction.held == "positions" else batch.tensor(self.reduction.variable)
        kernels.engine("topology", True).topology(
            steps, batch.changed(self.reduction.variable), threshold, self.reduction.linked, found,
            first=int(self.last is not None),
        )  # fmt: skip

    def _still(self, batch: Batch) -> Any:
        """The positions at the first step, on the device of a piece."""
        from deadtok_xr.kernels.torch import to_device

        if self.still is None:
            assert self.reduction.initial is not None
            self.still = to_device(np.ascontiguousarray(self.reduction.initial.values()), batch.block.device.name)
        return self.still

    def _mean_ulp(self, centre: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(over="ignore"):
            rounded = centre.astype(np.float32).astype(get_grid(self.reduction.grid).dtype)
        return ulp(rounded, self.reduction.grid).mean(axis=1)

    def _first_threshold(self) -> float:
        from deadtok_xr import kernels
        from deadtok_xr.kernels.numba import topology as kernel

        assert self.initial is not None
        shift = kernels.word_shift(self.initial)
        centre = kernel.centroids(self.initial, shift, np.zeros((0, self.initial.shape[1]), np.bool_), None)
        return self.reduction.k * float(self._mean_ulp(centre)[0])

    def _compared(self, words: Any, shift: int, threshold: NDArray[np.float64]) -> tuple[Any, int, Any]:
        """What is compared, and with what: ordinals as words, for the spacing that counts them."""
        from deadtok_xr.kernels.numba.ordinals import ordinals

        if self.reduction.spacing == "ordinal":
            words = ordinals(words, shift, self.lattice, get_grid(self.reduction.grid).mantissa_bits)
            return words, 0, np.full(len(threshold), self.reduction.k)
        return words, shift, threshold


def check_grid(variable: str, values: NDArray[Any], grid: str) -> None:
    """Refuse values that are not on the grid: its spacing there says nothing of them.

    Raises
    ------
    OffGridError
        With the number of rows.
    """
    from deadtok_xr import kernels
    from deadtok_xr.kernels.numba.ordinals import count_off_grid

    if values.dtype.name == grid or grid == "float32":
        return  # all their values are on it
    words = kernels.bit_words(values)
    if n := count_off_grid(words, kernels.word_shift(words), kernels.lattice(grid)):
        raise OffGridError(
            f"{variable}: {n} rows of a block hold values that are not on the grid of {grid}; measure the recorded "
            "values, not derived ones, or say precision="
        )
