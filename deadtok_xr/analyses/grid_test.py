"""Test on the grid of which number format the values of a recording lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deadtok_xr.analyses.common import checks
from deadtok_xr.analyses.registry import built_in
from deadtok_xr.bfloat16 import GRIDS, on_grid
from deadtok_xr.engine import AnalysisSpec, Batch, Cost, Output, ReductionResults, SingleVariable, Sizes, StepBlock
from deadtok_xr.engine.small_results import Arrays, compute_together
from deadtok_xr.errors import InputError

ATTRS: dict[str, dict[str, Any]] = {
    "n_on_grid": {"long_name": "values that the format represents exactly", "units": "1",
                  "comment": "including NaN and infinity"},
    "fraction_on_grid": {"long_name": "share of the values that the format represents exactly", "units": "1"},
    "n_values": {"long_name": "values", "units": "1"},
    "n_not_finite": {"long_name": "values that are NaN or infinite", "units": "1"},
    "lives_on": {"long_name": "first format that represents every value; 'none' if there is none", "units": "1",
                 "comment": "in the order bfloat16, float16, float32"},
}  # fmt: skip


@built_in
def grid_test(ds: xr.Dataset, *, variables: Sequence[str] | None = None) -> AnalysisSpec:
    """Count, for each variable and number format, the values that lie on the format's grid.

    Parameters
    ----------
    ds
        A recording, (step, token, dim).
    variables
        The variables to test. None: all with the dimensions (step, token, dim).

    Returns
    -------
    xarray.Dataset
        Lazy dataset. `n_on_grid` int64 and `fraction_on_grid` float64 (variable, grid); the grids are bfloat16,
        float16 and float32; `n_values`, `n_not_finite` int64 and `lives_on` text (variable). -0 is on every grid.

        Weights that were trained in float32, or under autocast, use the whole float32 grid; one in 65,536 of them lies
        on that of bfloat16: analyses of the lattice do not apply to them.

    Raises
    ------
    InputError
        If there is no such variable.
    """
    if not isinstance(ds, xr.Dataset):
        checks.require(ds, "W", "grid_test")  # raises the error
    dims = {"step", "token", "dim"}
    names = [str(n) for n, v in ds.data_vars.items() if set(v.dims) == dims] if variables is None else list(variables)
    if not names:
        raise InputError(
            "grid_test: no variable of this dataset has the dimensions (step, token, dim) (found: "
            f"{', '.join(map(str, ds.data_vars)) or 'none'}); of several runs select one with .isel(run=0)"
        )
    matrices = {name: checks.as_dask(checks.require(ds, name, "grid_test").data) for name in names}
    pair, one = (len(names), len(GRIDS)), (len(names),)
    shapes: dict[str, Any] = {
        "n_on_grid": (("variable", "grid"), pair, "i8"), "fraction_on_grid": (("variable", "grid"), pair, "f8"),
        "n_values": (("variable",), one, "i8"), "n_not_finite": (("variable",), one, "i8"),
        "lives_on": (("variable",), one, "U8"),
    }  # fmt: skip

    def finish(results: ReductionResults) -> xr.Dataset:
        inputs = {name: results.merged(name, "counts", np.add) for name in names}
        sizes = tuple(int(x.size) for x in matrices.values())
        values = compute_together(inputs, _measure, shapes, ATTRS, sizes=sizes)
        return xr.Dataset(values, {"variable": names, "grid": list(GRIDS)}, checks.result_attrs(ds))

    return AnalysisSpec(matrices, {name: GridCounts(name) for name in names}, finish)


@dataclass(frozen=True)
class GridCounts(SingleVariable):
    """The reduction that counts the values of a variable that are off each grid."""

    def outputs(self) -> dict[str, Output]:
        """Return `counts` per block: the values that are not finite, and those off each grid."""
        return {"counts": Output(at="block")}

    def start(self, block: StepBlock) -> _Accumulator:
        """Return an accumulator for a block."""
        return _Accumulator(self.variable, block)

    def cost(self, sizes: Sizes) -> Cost:
        """Return what it costs."""
        return Cost(2e-9 * sizes.elements, floats=self.matrices)


class _Accumulator:
    def __init__(self, variable: str, block: StepBlock) -> None:
        from deadtok_xr import kernels

        self.name, self.grids = variable, [kernels.lattice(name) for name in GRIDS]
        self.counts = np.zeros(1 + len(GRIDS), np.int64)
        self.token_counts = np.zeros((block.n_tokens, 1 + len(GRIDS)), np.int64)  # as of the last step counted
        self.next = np.ones((1, block.n_tokens), bool)  # which tokens to count anew at the next step

    def update(self, batch: Batch) -> None:
        from deadtok_xr.kernels.numba.grids import count_off_grid

        n = batch.n_states
        values = batch.floats(self.name)[:n]
        if values.dtype == np.float64:
            self.counts += _count(values)
            return
        changed = np.concatenate([self.next, batch.changed(self.name)])
        self.next = changed[n : n + 1]
        count_off_grid(values.view(np.uint32), changed[:n], self.grids, self.token_counts, self.counts)

    def result(self) -> dict[str, Any]:
        return {"counts": self.counts}


def _count(values: NDArray[np.float64]) -> NDArray[np.int64]:
    with np.errstate(over="ignore"):
        return np.array([(~np.isfinite(values)).sum(), *((~on_grid(values, name)).sum() for name in GRIDS)])


def _measure(inputs: dict[str, list[Any]], *, sizes: tuple[int, ...]) -> Arrays:
    counts = np.stack([blocks[0] for blocks in inputs.values()])
    n = np.array(sizes)
    on = n[:, None] - counts[:, 1:]
    whole = np.concatenate([on == n[:, None], np.ones((len(n), 1), bool)], axis=1)
    return {
        "n_on_grid": on, "fraction_on_grid": on / n[:, None], "n_values": n, "n_not_finite": counts[:, 0],
        "lives_on": np.array([*GRIDS, "none"])[whole.argmax(axis=1)],
    }  # fmt: skip
