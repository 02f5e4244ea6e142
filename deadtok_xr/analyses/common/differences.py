"""The reduction that compares two runs of the same steps and tokens, bit by bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr.engine import Batch, Cost, Output, Sizes, StepBlock, allocate_outputs

PER_STEP = (
    "n_different", "n_unequal", "n_different_tokens", "different_fraction", "frobenius", "difference_max", "n_invalid",
    "distance",
)  # fmt: skip
"""The outputs that have a value at each step."""


@dataclass(frozen=True)
class Differences:
    """The reduction that compares two matrices, by their names."""

    one: str = "a"
    other: str = "b"

    @property
    def matrices(self) -> tuple[str, ...]:
        """Both matrices."""
        return (self.one, self.other)

    def outputs(self) -> dict[str, Output]:
        """Return outputs per step and token, and `first`, the position of a token's first difference, -1 for none."""
        kinds = {"different_fraction": "f8", "frobenius": "f8", "difference_max": "f8", "distance": "f4"}
        return {
            **{n: Output(("step", "token") if n == "distance" else "step", dtype=kinds.get(n, "i8")) for n in PER_STEP},
            "first": Output(at="block"),
        }

    def start(self, block: StepBlock) -> _Accumulator:
        """Return an accumulator for a block."""
        return _Accumulator(self, block)

    def cost(self, sizes: Sizes) -> Cost:
        """Return what it costs."""
        return Cost(4e-9 * sizes.elements, floats=self.matrices)


class _Accumulator:
    def __init__(self, reduction: Differences, block: StepBlock) -> None:
        self.block, self.outputs, self.matrices = block, reduction.outputs(), reduction.matrices
        self.out = allocate_outputs(self.outputs, block)
        self.differences = np.zeros((5, block.n_tokens))  # of each token, as of the last step compared
        self.first = np.full(block.n_tokens, -1)
        self.next = np.ones((1, block.n_tokens), bool)  # which tokens to compare at the next step

    def update(self, batch: Batch) -> None:
        from deadtok_xr.kernels.numba.differences import differences

        n, (first, second) = batch.n_states, self.matrices
        a, b = batch.floats(first)[:n], batch.floats(second)[:n]
        compare = np.concatenate([self.next, batch.changed(first) | batch.changed(second)])
        self.next = compare[n : n + 1]
        out = batch.slices(self.out, self.outputs)
        one, two = _words(batch.values[first][:n], batch.values[second][:n], a, b)
        at = self.block.first + batch.start
        differences(one, two, a, b, compare, self.differences, self.first, at, *(out[name] for name in _FILLED))

    def result(self) -> dict[str, Any]:
        self.out["frobenius"][:] = np.sqrt(self.out["frobenius"])
        self.out["different_fraction"][:] = self.out["n_different_tokens"] / self.block.n_tokens
        return {**self.out, "first": self.first}


_FILLED = ("n_different", "n_unequal", "n_different_tokens", "frobenius", "difference_max", "n_invalid", "distance")


def _words(one: NDArray[Any], two: NDArray[Any], a: NDArray[Any], b: NDArray[Any]) -> list[NDArray[Any]]:
    """Return both as unsigned integers: as recorded, or as float32 if the formats differ."""
    pair = (one, two) if one.dtype == two.dtype else (a, b)
    if pair[0].dtype != pair[1].dtype:  # float64 beside others
        pair = (a.astype(np.float64), b.astype(np.float64))
    return [np.ascontiguousarray(x).view(f"u{x.dtype.itemsize}") for x in pair]
