"""Choose the compiled replay of Adam's updates, where it agrees with torch on this machine to the bit.

torch's operations are the reference (`replay.arithmetic`). The kernel does the same in one loop, several times as fast.
Whether it may is tried once on a machine: torch and the kernel replay the same random bits. The verdict is kept beside
the compiled kernels, because torch takes two seconds to import and bfloat16 needs it for nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deadtok_xr import kernels
from deadtok_xr.analyses.common import replay_verdict
from deadtok_xr.analyses.common.recorded_updates import to_array
from deadtok_xr.bfloat16 import get_grid
from deadtok_xr.replay import arithmetic as arithmetics
from deadtok_xr.replay.settings import Settings

Arrays = Mapping[str, NDArray[Any]]
NEEDED = ("W", "grad", "exp_avg", "exp_avg_sq")
WHOLE = 64
"""Elements: in a multiple of it, all are computed by vector units, for any width that torch knows."""
_N_TRIED, _N_SEARCHED = 2**14, 2**19
OPTIMIZER_COUNTS = (
    "m_compared", "m_equal", "v_compared", "v_equal", "stalled", "v_known", "decay_only", "visible",
)  # fmt: skip
"""What the kernel counts besides what `mechanism`'s does."""


def fused_operations(s: Settings, arithmetic: str, grids: Mapping[str, str]) -> bool | None:
    """Return whether torch fuses multiplications and additions on this machine; None if the kernel must not be used."""
    grid = format_of(s, arithmetic, grids)
    return None if grid is None else tried(arithmetic, grid)


def format_of(s: Settings, arithmetic: str, grids: Mapping[str, str]) -> str | None:
    """Return the number format of updates that the kernel knows; None for others."""
    tensors = (*NEEDED, *(("max_exp_avg_sq",) if s.amsgrad else ()))
    formats = {grids.get(name, "") for name in tensors}
    known = arithmetic in ("single", "foreach") and s.is_adam and not s.added_decay and not s.on_accelerator
    return formats.pop() if known and len(formats) == 1 and formats <= {"bfloat16", "float32"} else None


@cache
def tried(arithmetic: str, grid: str) -> bool | None:
    """Return the verdict of comparing the kernel with torch on this machine; see `fused_operations`."""
    kept = replay_verdict.read(f"{arithmetic}-{grid}")
    if kept is not None:
        return kept.fuses
    fuses = next((fuses for fuses in (True, False) if _agrees(arithmetic, grid, fuses)), None)
    replay_verdict.write(f"{arithmetic}-{grid}", replay_verdict.Verdict(fuses))
    return fuses


def _agrees(arithmetic: str, grid: str, fuses: bool) -> bool:
    """Compare the kernel with torch on random bits, for a few settings."""
    rng = np.random.default_rng(0)
    for betas, t, maximize in (((0.9, 0.999), 3, False), ((0.4, 0.95), 1000, True)):
        s = Settings("AdamW", 1e-3, betas, 1e-3 if t > 3 else 1e-8, 0.1, maximize=maximize)
        before, after = ({name: _random(rng, grid, name) for name in NEEDED} for _ in range(2))
        _put_telling(rng, scalars_of(s, arithmetic, fuses, t, 0.03, before["W"].dtype), before, after)
        intended = updated(s, arithmetic, t, 0.03, before, after)
        out = outputs(_N_TRIED // WHOLE, WHOLE)
        replay(s, arithmetic, fuses, t, 0.03, before, after, kernels.lattice(grid), out)
        n_equal = out["counts"][5], *out["optimizer"][1:4:2]
        usable = np.isfinite(np.stack([before["W"], after["W"]]).astype(np.float32)).all(axis=0)
        if n_equal != (out["counts"][4], *out["optimizer"][0:4:2]):
            return False
        if not np.array_equal(out["net"][:, 0], np.where(usable, intended, np.nan), equal_nan=True):
            return False
    return True


def _random(rng: np.random.Generator, grid: str, name: str) -> NDArray[Any]:
    """Return (n, 64) numbers of a format: half of them of usual sizes, half random bits."""
    dtype = get_grid(grid).dtype
    words = np.dtype(f"u{dtype.itemsize}")
    usual = (rng.normal(size=_N_TRIED // 2) * 10.0 ** rng.integers(-6, 0, _N_TRIED // 2)).astype(dtype)
    bits = rng.integers(0, np.iinfo(words).max, _N_TRIED // 2, words, endpoint=True)
    found = rng.permutation(np.concatenate([usual.view(words), bits]))
    found = found & words.type(np.iinfo(words).max // 2) if name == "exp_avg_sq" else found  # is not negative
    return found.view(dtype).reshape(-1, WHOLE)


def _put_telling(rng: np.random.Generator, scalars: Any, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Put elements in front whose moments differ between one and two roundings: in bfloat16 one of 20,000 does."""
    dtype = before["W"].dtype
    m, v, g = (rng.normal(size=_N_SEARCHED).astype(dtype) for _ in range(3))
    v = np.abs(v.astype(np.float32)).astype(dtype)
    first, second, gradient = (x.astype(np.float32) for x in (m, v, g))
    weight, between = scalars.first_weight, scalars.sign * gradient - first
    small = abs(weight) < 0.5
    base = first if small else scalars.sign * gradient
    decayed = (second * scalars.second_factor).astype(dtype).astype(np.float32)
    weighted = scalars.square_weight * gradient
    lerps = (weight if small else weight - np.float32(1), between, base)
    told = _differs(*lerps, dtype) | _differs(weighted, gradient, decayed, dtype)
    chosen = np.flatnonzero(told)[: _N_TRIED // 4]
    for tensors, name, x in ((before, "exp_avg", m), (before, "exp_avg_sq", v), (after, "grad", g)):
        tensors[name].reshape(-1)[: len(chosen)] = x[chosen]


def _differs(a: Any, b: NDArray[np.float32], c: NDArray[np.float32], dtype: np.dtype[Any]) -> NDArray[np.bool_]:
    """Return where a·b + c, rounded to a format, depends on whether the product is rounded before."""
    once = (np.float64(a) * b + c).astype(np.float32).astype(dtype)
    twice = (np.float32(a) * b + c).astype(dtype)
    return np.asarray(once != twice)


def updated(
    s: Settings, arithmetic: str, t: int, lr: float, before: Arrays, after: dict[str, NDArray[Any]]
) -> NDArray[np.float64]:
    """Put what torch computes from ``before`` and the gradient in ``after``; return the update before rounding."""
    dtype = before["W"].dtype
    first, second = ({name: arithmetics.to_tensor(x) for name, x in x.items()} for x in (before, after))
    second |= arithmetics.moments(arithmetic, s, t, first, second)
    second["W"] = arithmetics.update(arithmetic, s, t, lr, first, second)
    after |= {name: to_array(x, dtype) for name, x in second.items()}
    exact: NDArray[np.float64] = arithmetics.unrounded_update(arithmetic, s, t, lr, first, second).numpy()
    return exact


def outputs(n_tokens: int, n_dims: int) -> dict[str, NDArray[Any]]:
    """Return arrays of zeros for what the kernel fills."""
    from deadtok_xr.kernels.numba.mechanism import COUNTS, SUMS

    return {
        "cause": np.zeros(n_tokens, np.int8), "margin": np.zeros(n_tokens), "length": np.zeros(n_tokens, np.float32),
        "net": np.zeros((n_tokens, 2, n_dims)), "counts": np.zeros(len(COUNTS), np.int64), "sums": np.zeros(len(SUMS)),
        "optimizer": np.zeros(len(OPTIMIZER_COUNTS), np.int64),
    }  # fmt: skip


def replay(
    s: Settings, arithmetic: str, fuses: bool, t: int, lr: float, before: Arrays, after: Arrays,
    lattice: kernels.Lattice, out: dict[str, NDArray[Any]],
) -> None:  # fmt: skip
    """Fill ``out`` with an update, by the kernel."""
    from deadtok_xr.kernels.numba.replayed_adam import replayed_adam

    scalars = scalars_of(s, arithmetic, fuses, t, lr, before["W"].dtype)
    replayed_adam(words_of(s, before, after), scalars, lattice, out)


def words_of(s: Settings, before: Arrays, after: Arrays) -> Any:
    """Return the tensors of an update as bit words."""
    from deadtok_xr.kernels.numba.replayed_adam import AdamWords

    second = after["max_exp_avg_sq" if s.amsgrad else "exp_avg_sq"]
    root = np.empty((0, 0), np.float32)
    if second.dtype == np.float32:
        root = arithmetics.to_tensor(second).sqrt().numpy()
    arrays = (
        before["W"], before["exp_avg"], before["exp_avg_sq"], after["W"], after["grad"], after["exp_avg"],
        after["exp_avg_sq"],
    )  # fmt: skip
    return AdamWords._make([*map(kernels.bit_words, arrays), root, kernels.bit_words(second)])


def scalars_of(s: Settings, arithmetic: str, fuses: bool, t: int, lr: float, dtype: np.dtype[Any]) -> Any:
    """Return the numbers of an update as torch's operations use them.

    A number that is added is rounded to the format of the tensor; one that multiplies is by foreach alone, in place.
    """
    from deadtok_xr.kernels.numba.replayed_adam import AdamScalars

    def rounded(x: float, *, wanted: bool = True) -> np.float32:
        return np.float32(np.asarray(x, np.float32).astype(dtype)) if wanted else np.float32(x)

    (b1, b2), is_foreach = s.betas, arithmetic == "foreach"
    return AdamScalars(
        rounded(1 - lr * s.decoupled_decay, wanted=is_foreach), np.float32((1 - b2**t) ** 0.5), rounded(s.eps),
        np.float32(-(lr / (1 - b1**t))), np.float32(1 - b1), rounded(b2, wanted=is_foreach), np.float32(1 - b2),
        np.float32(-1 if s.maximize else 1), bool(s.decoupled_decay), fuses, float(lr), float(1 - b1**t),
        float(lr * s.decoupled_decay),
    )  # fmt: skip
