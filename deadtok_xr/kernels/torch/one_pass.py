"""Measure motion in one pass over bits on bfloat16's grid, compiled by Triton, which comes with torch for CUDA.

A thread follows a row through some steps. It reads 2 bytes for each dim and writes 40 bytes for each step. Sums are
float64 and stay in registers. Mean and deviation per step are merged from those of each tile in the order of the tiles,
so that a result is always the same.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 128
"""Rows of a program, one for each of its threads: sums stay in a thread, and no work is done twice."""
STEPS = 4
"""Transitions of a program: of five steps read, one is read by the next program too, from the cache."""
LANES = 8
"""Dims that a thread reads at once: 16 bytes."""


@triton.jit
def _floats(words):
    return (words << 16).to(tl.float32, bitcast=True).to(tl.float64)


@triton.jit
def _larger(a, b):
    return tl.where(a > b, a, b)  # neither is NaN here; a maximum that propagates NaN takes twice as many instructions


@triton.jit
def _motion(
    words, displacement, displacement_ulp, lattice_l1, lattice_l2, lattice_linf, moved_dims, sums, squares, lattice,
    magnitude, n_transitions, n_tokens, stride, limits, D: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr,
    LANES: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    first = tl.program_id(1) * STEPS
    rows = tile * ROWS + tl.arange(0, ROWS)
    there = rows < n_tokens
    lanes = tl.arange(0, LANES)
    limit0 = tl.load(limits)
    limit1 = tl.load(limits + 1)
    limit2 = tl.load(limits + 2)
    root = tl.load(limits + 3)
    # int64: a batch may have more elements than an int32 counts
    places = words + first.to(tl.int64) * stride + rows.to(tl.int64)[:, None] * D + lanes[None, :]
    at = first.to(tl.int64) * n_tokens + rows
    here = tile.to(tl.int64) * n_transitions + first
    norm = tl.zeros([ROWS], tl.float64)  # Σ W², which is finite only if every value is
    for d in range(0, D, LANES):
        inside = there[:, None] & (d + lanes < D)[None, :]
        x = _floats(tl.load(places + d, mask=inside, other=0).to(tl.int32))
        norm += tl.sum(x * x, axis=1)
    for _t in range(first, tl.minimum(first + STEPS, n_transitions)):
        square = tl.zeros([ROWS], tl.float64)
        next_norm = tl.zeros([ROWS], tl.float64)
        l1 = tl.zeros([ROWS], tl.float64)
        l2 = tl.zeros([ROWS], tl.float64)
        linf = tl.zeros([ROWS], tl.float64)
        count = tl.zeros([ROWS], tl.int32)
        for d in range(0, D, LANES):
            inside = there[:, None] & (d + lanes < D)[None, :]
            before = tl.load(places + d, mask=inside, other=0).to(tl.int32)
            y = _floats(tl.load(places + stride + d, mask=inside, other=0).to(tl.int32))
            step = tl.abs(y - _floats(before))
            # 1 / ULP = 2^(134 - max(E, 1)), made from its exponent field, which begins at bit 7 of the word
            scale = (1157 << 20) - (tl.maximum(before & 0x7F80, 0x80) << 13)
            cells = step * (scale.to(tl.int64) << 32).to(tl.float64, bitcast=True)
            square += tl.sum(step * step, axis=1)
            next_norm += tl.sum(y * y, axis=1)
            l1 += tl.sum(cells, axis=1)
            l2 += tl.sum(cells * cells, axis=1)
            linf = _larger(linf, tl.reduce(cells, 1, _larger))
            count += tl.sum((step != 0).to(tl.int32), axis=1)
        usable = (norm < float("inf")) & (next_norm < float("inf"))  # false for NaN
        nan = float("nan")
        length = tl.sqrt(square)
        l2 = tl.sqrt(l2)
        relative = length / tl.maximum(tl.sqrt(norm) * 0.0078125, 1e-10)
        in_ulp = tl.where(usable, relative, nan).to(tl.float32)
        tl.store(displacement + at, tl.where(usable, length, nan).to(tl.float32), mask=there)
        tl.store(displacement_ulp + at, in_ulp, mask=there)
        tl.store(lattice_l1 + at, tl.where(usable, l1, nan), mask=there)
        tl.store(lattice_l2 + at, tl.where(usable, l2, nan), mask=there)
        tl.store(lattice_linf + at, tl.where(usable, linf, nan), mask=there)
        tl.store(moved_dims + at, tl.where(usable, count, -1).to(tl.int64), mask=there)
        valid = usable & there
        phase = tl.where(l1 <= 0, 0, tl.where(linf <= 1, 16, tl.where(l2 <= root, 32, 48)))
        x = in_ulp.to(tl.float64)
        regime = tl.where(x < limit0, 0, tl.where(x < limit1, 16, tl.where(x < limit2, 32, 48)))
        one = valid.to(tl.int64)
        total = tl.sum(tl.where(valid, x, 0.0), axis=0)
        off = tl.where(valid, x - total / tl.maximum(tl.sum(one, axis=0), 1).to(tl.float64), 0.0)
        tl.store(sums + here, total)
        tl.store(squares + here, tl.sum(off * off, axis=0))
        tl.store(lattice + here, tl.sum(one << phase.to(tl.int64), axis=0))  # four counts of 16 bits
        tl.store(magnitude + here, tl.sum(one << regime.to(tl.int64), axis=0))
        norm = next_norm
        places += stride
        at += n_tokens
        here += 1


def motion(words: Tensor, magnitudes: tuple[float, float, float], root: float) -> dict[str, Tensor]:
    """Return what `measured` and `per_step` of the eager kernel find, for bits (t + 1, n, d) on bfloat16's grid."""
    t, (n, d) = len(words) - 1, words.shape[1:]
    tiles = triton.cdiv(n, ROWS)
    kinds: dict[str, Any] = {
        "displacement": torch.float32, "displacement_ulp": torch.float32, "lattice_l1": torch.float64,
        "lattice_l2": torch.float64, "lattice_linf": torch.float64, "moved_dims": torch.int64,
    }  # fmt: skip
    found = {name: torch.empty((t, n), dtype=dtype, device=words.device) for name, dtype in kinds.items()}
    sums, squares = (torch.empty((tiles, t), dtype=torch.float64, device=words.device) for _ in range(2))
    counts = [torch.empty((tiles, t), dtype=torch.int64, device=words.device) for _ in range(2)]
    limits = torch.tensor([*magnitudes, root], dtype=torch.float64, device=words.device)
    _motion[(tiles, triton.cdiv(t, STEPS))](
        words, *found.values(), sums, squares, *counts, t, n, n * d, limits,
        D=d, ROWS=ROWS, STEPS=STEPS, LANES=LANES, num_warps=ROWS // 32,
    )  # fmt: skip
    return found | _merged(sums, squares, counts[0], counts[1], n)


def _merged(sums: Tensor, squares: Tensor, lattice: Tensor, magnitude: Tensor, n: int) -> dict[str, Tensor]:
    """Merge the sums, the squares about their own mean and the packed counts of each tile, (tiles, t), by step."""
    lattices, magnitudes = (torch.stack([(x >> k) & 0xFFFF for k in (0, 16, 32, 48)]) for x in (lattice, magnitude))
    each = lattices.sum(0)
    count = each.sum(0)
    mean = sums.sum(0) / count
    apart = torch.where(each > 0, each * (sums / each.clamp(min=1) - mean).square(), 0)
    std = ((squares + apart).sum(0) / (count - 1)).sqrt()
    return {
        "displacement_ulp_mean": mean,
        "displacement_ulp_std": torch.where(count > 1, std, torch.nan),
        "n_invalid": n - count,
        "lattice": lattices.sum(1).T,
        "magnitude": magnitudes.sum(1).T,
    }
