"""Count elements on their lattice, for `lattice` and `exponents`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.analyses.common.step_series import SERIES
from deadtok_xr.bfloat16 import get_grid
from deadtok_xr.engine import Batch, Cost, Output, SingleVariable, Sizes, StepBlock, allocate_outputs
from deadtok_xr.errors import OffGridError

STATES = ("n_zero", "n_negative", "n_power_of_two")
COUNTS = (
    "n_moved", "n_outward", "n_upward", "n_half", "n_fractional", "n_crossings_up", "n_crossings_down",
    "n_sign_changes", "n_from_zero", "n_to_zero",
)  # fmt: skip
TOKEN_ULPS = ("mean", "mean_upward", "largest")
HOPS = ("frozen", "lattice", "thermal")
REGIMES = ("frozen", "quantum", "classical")
PER_TOKEN = ("ordinal_l1", "ordinal_linf", "exponent_crossings")
MANTISSAS = 128
_SHARES = {
    "moved_fraction": ("n_moved", "n_elements"),
    "outward_fraction": ("n_outward", "n_moved"),
    "half_fraction": ("n_half", "n_moved"),
    "fractional_fraction": ("n_fractional", "n_moved"),
    "lattice_mean": ("lattice_sum", "n_elements"),
    "hop_fraction": ("hops", "n_valid"),
    "regime_fraction": ("regimes", "n_valid"),
}
"""Shares: numerator and denominator; NaN where the denominator is 0."""


@dataclass(frozen=True)
class LatticeCounts(SingleVariable):
    """The reduction that counts the elements of a variable on a grid."""

    label: ClassVar[str] = "lattice"

    grid: str

    def outputs(self) -> dict[str, Output]:
        """Return counts of exponents and mantissas, outputs per token, and a `series` of all outputs per step."""
        separate = (*PER_TOKEN, "exponent_count", "mantissa_count")
        return {
            **{name: output for name, output in self.block_outputs().items() if name in separate},
            SERIES: Output(at="block"),
        }

    def block_outputs(self) -> dict[str, Output]:
        """Return the outputs of a block: `STATES`, exponents, mantissas and ULP of states; the rest of transitions."""
        heights = np.dtype(("i8", (get_grid(self.grid).max_exponent,)))
        return {
            "exponent_count": Output(("step", "exponent"), dtype=heights),
            "mantissa_count": Output(("step", "mantissa"), dtype=np.dtype(("i8", (MANTISSAS,)))),
            **dict.fromkeys((*STATES, "n_invalid_now"), Output("step", dtype="i8")),
            "ulp_min": Output("step"),
            "ulp_max": Output("step"),
            **dict.fromkeys(PER_TOKEN, Output(("step", "token"), dtype="i8", at="transitions")),
            **dict.fromkeys(
                (*COUNTS, "n_valid", "n_elements", "n_invalid"), Output("step", dtype="i8", at="transitions")
            ),
            **dict.fromkeys(
                ("lattice_sum", "lattice_max", "l2_over_l1", "linf_over_l2"), Output("step", at="transitions")
            ),
            "hops": Output(("step", "token_ulp", "hop"), dtype=np.dtype(("i8", (3, 3))), at="transitions"),
            "regimes": Output(("step", "regime"), dtype=np.dtype(("i8", (3,))), at="transitions"),
            **dict.fromkeys(
                (*tuple(_SHARES)[:4], "crossing_fraction", "lattice_mean"), Output("step", at="transitions")
            ),
            "hop_fraction": Output(("step", "token_ulp", "hop"), dtype=np.dtype(("f8", (3, 3))), at="transitions"),
            "regime_fraction": Output(("step", "regime"), dtype=np.dtype(("f8", (3,))), at="transitions"),
        }

    def start(self, block: StepBlock) -> _Accumulator:
        """Return an accumulator for a block."""
        return _Accumulator(self, block)

    def cost(self, sizes: Sizes) -> Cost:
        """Return what it costs."""
        return Cost(1e-4 * sizes.steps + 2.5e-9 * sizes.moved + 14e-9 * sizes.changed)


class _Accumulator:
    def __init__(self, reduction: LatticeCounts, block: StepBlock) -> None:
        from deadtok_xr import kernels

        self.reduction, self.block, self.lattice = reduction, block, kernels.lattice(reduction.grid)
        self.outputs = reduction.block_outputs()
        self.out = allocate_outputs(self.outputs, block)
        self.counts: Any = None

    def update(self, batch: Batch) -> None:
        from deadtok_xr import kernels
        from deadtok_xr.kernels.numba.incremental_counts import IncrementalCounts
        from deadtok_xr.kernels.numba.lattice import lattice_steps

        name = self.reduction.variable
        words = kernels.bit_words(batch.values[name])
        try:
            if self.counts is None:
                self.counts = IncrementalCounts(words, self.lattice)
            out = batch.slices(self.out, self.outputs)
            lattice_steps(words, batch.changed(name), self.counts, self.lattice, out)
        except OffGridError as error:
            raise OffGridError(
                f"{name}: {error} of {self.reduction.grid}; measure the recorded values, not derived ones, or say "
                "precision="
            ) from None

    def result(self) -> dict[str, Any]:
        out = self.out
        out["n_elements"][:] = out["n_valid"] * self.block.n_dims
        out["n_invalid"][:] = self.block.n_tokens - out["n_valid"]
        for name, (part, whole) in _SHARES.items():
            out[name][:] = _share(out[part], out[whole])
        out["crossing_fraction"][:] = _share(out["n_crossings_up"] + out["n_crossings_down"], out["n_elements"])
        out["lattice_max"][out["n_valid"] == 0] = np.nan
        out["ulp_min"][:], out["ulp_max"][:] = _spacings(out["exponent_count"], self.reduction.grid)
        separate = self.reduction.outputs()
        series = {name: x for name, x in out.items() if name not in separate}
        return {**{name: out[name] for name in separate if name in out}, SERIES: (series,)}


def _share(part: NDArray[Any], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    whole = whole.reshape(whole.shape + (1,) * (part.ndim - whole.ndim))
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def _spacings(counts: NDArray[np.int64], grid: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the smallest and largest ULP of the counted elements."""
    ulp = np.ldexp(1.0, np.maximum(np.arange(counts.shape[1]), 1) - get_grid(grid).ulp_offset)
    occurs = counts > 0
    none = ~occurs.any(axis=1)
    first, last = occurs.argmax(axis=1), counts.shape[1] - 1 - occurs[:, ::-1].argmax(axis=1)
    return np.where(none, np.nan, ulp[first]), np.where(none, np.nan, ulp[last])


def step_shapes(grid: str, n: int, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the dims, shapes and dtypes of outputs over n steps, for `compute_together`."""
    known = LatticeCounts("", grid).block_outputs()
    outputs = {name: known["n_invalid_now" if name == "n_invalid" else name] for name in names}
    return {name: (o.all_dims, (n, *o.inner_shape(0, 0)), o.base.str) for name, o in outputs.items()}
