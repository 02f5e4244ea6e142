"""The kernels that count an update: both engines against plain numpy, over all kinds of values."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deadtok_xr import kernels
from deadtok_xr.bfloat16 import GRIDS, from_bits, ulp
from deadtok_xr.kernels.numba import updates as numba_updates
from deadtok_xr.kernels.torch import updates as torch_updates
from deadtok_xr.kernels.updates import COUNTS, LOWEST, N_BINS, SQUARES

N = 5000
PARTS = [1, 2999, 2000]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("finite", [True, False])
def test_both_engines_count_as_numpy_does(grid: str, finite: bool) -> None:
    rng = np.random.default_rng(0)
    values = values_of(rng, grid, finite)
    w0, w1 = values, np.where(rng.random(N) < 0.5, values, values_of(rng, grid, finite))
    g = np.where(rng.random(N) < 0.4, 0, rng.normal(size=N)).astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        u = np.exp2(rng.integers(-40, 20, N)) * ulp(w0, grid) * rng.choice([-1.5, -1, 0, 1, 1.5], N)
    u[~np.isfinite(u)] = 0
    v0 = rng.random(N).astype(np.float32)
    v1, g[:100] = np.where(rng.random(N) < 0.5, v0, 2), np.sqrt(0.25)
    v0[:100] = v1[:100] = 0.25  # unchanged, and equal to g²
    if not finite:
        g[5:8], u[5:8] = [np.nan, np.inf, -np.inf], [np.nan, np.inf, -np.inf]
    expected = reference(grid, w0, w1, g, u, v0, v1)
    arrays = (w0, w1, g, u, True, v0, v1.astype(np.float32), g)
    sizes = {"counts": (len(COUNTS), "i8"), "squares": (len(SQUARES), "f8"), "margins": (N_BINS, "i8")}
    by_numba = {name: np.zeros(n, dtype) for name, (n, dtype) in sizes.items()}
    numba_updates.count_update(kernels.OptimizerUpdate(*arrays), kernels.lattice(grid), by_numba)
    tensors = (torch.from_numpy(x) if isinstance(x, np.ndarray) else x for x in arrays)
    by_torch = torch_updates.count_updates(kernels.OptimizerUpdate(*tensors), kernels.lattice(grid), PARTS)
    for rows in by_torch.values():
        assert len(rows) == len(PARTS)
    for found in (by_numba, {name: x.sum(0).numpy() for name, x in by_torch.items()}):
        assert dict(zip(COUNTS, found["counts"].tolist(), strict=True)) == expected["counts"]
        np.testing.assert_array_equal(found["margins"], expected["margins"])
        np.testing.assert_allclose(found["squares"], expected["squares"], rtol=1e-10)


def values_of(rng: np.random.Generator, grid: str, finite: bool) -> np.ndarray:
    """Values of a format of any bits; half of them powers of two."""
    form = GRIDS[grid]
    bits = rng.integers(0, 2**form.width, N, dtype=np.uint64).astype(form.bits_dtype)
    bits[::2] = bits[::2] >> form.mantissa_bits << form.mantissa_bits
    bits[:4] = [0, 1 << (form.width - 1), 1, 2]
    if finite:
        field = (bits >> form.mantissa_bits) & form.max_exponent
        bits[field == form.max_exponent] = 0
    return from_bits(bits, grid)


def reference(grid: str, w0: np.ndarray, w1: np.ndarray, g: np.ndarray, u: np.ndarray, v0: np.ndarray, v1: np.ndarray):
    """Counts, margins and sums from their definitions."""
    bf16 = GRIDS["bfloat16"].dtype
    with np.errstate(all="ignore"):
        a, b = w0.astype(np.float64), w1.astype(np.float64)
        finite = np.isfinite(a) & np.isfinite(b)
        moved = finite & (a != b)
        unknown = ~finite | (~moved & np.isnan(u))
        none = finite & ~moved & (u == 0) & (g == 0)
        visible = finite & (w0.astype(bf16).astype(np.float64) != w1.astype(bf16).astype(np.float64))
        square = g.astype(np.float64) ** 2
        counts = {
            "moved": moved.sum(), "rounded_to_zero": N - moved.sum() - unknown.sum() - none.sum(),
            "no_gradient": none.sum(), "unknown": unknown.sum(), "visible": visible.sum(),
            "stalled": ((v0 == v1) & (square != v0) & ~np.isnan(square)).sum(),
        }  # fmt: skip
        used = (u != 0) & np.isfinite(u)
        towards_zero = np.sign(u) == -np.sign(a)
        smallest = 2.0 ** (1 - GRIDS[grid].ulp_offset)
        gap = ulp(w0, grid)
        power = np.frexp(np.abs(a))[0] == 0.5
        gap = np.where(power & towards_zero, np.maximum(gap / 2, smallest), gap)
        gap = np.where(np.isfinite(a), gap, 2.0 ** (128 - GRIDS["bfloat16"].mantissa_bits))
        bins = np.floor(np.log2(np.abs(u[used]) / (gap[used] / 2))).astype(int)
        known = np.isfinite(a[used])
        margins = np.bincount(np.clip(bins[known] - LOWEST, 0, N_BINS - 1), minlength=N_BINS)
        squares = [(x.astype(np.float64) ** 2).sum() for x in (b, g, u, b - a)]
    assert known.all()  # u is 0 where W is not finite
    return {"counts": {k: int(n) for k, n in counts.items()}, "margins": margins, "squares": squares}
