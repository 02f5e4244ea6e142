"""Compare the one-pass motion kernel, in Triton's interpreter, with numba's.

TRITON_INTERPRET=1 python -m tests.triton_motion
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

from deadtok_xr import kernels
from deadtok_xr.analyses.common.transitions import MAGNITUDES, OUTPUTS
from deadtok_xr.engine import StepBlock, allocate_outputs
from deadtok_xr.kernels import numba
from deadtok_xr.kernels.torch import one_pass
from deadtok_xr.kernels.torch.parts import bits, from_numpy

EDGES = [0x0000, 0x8000, 0x0001, 0x8001, 0x007F, 0x0080, 0x3F80, 0x3F7F, 0x3F81, 0xBF80, 0x7F7F, 0xFF7F]


def block(rng: np.random.Generator, shape: tuple[int, int, int], *, hostile: bool) -> np.ndarray:
    """Steps in which rows rest and move, with numbers at every edge, or ordinary ones; some are not finite."""
    pool = np.array(EDGES if hostile else rng.integers(0x3C00, 0x3F80, 60), np.uint16)
    x = pool[rng.integers(0, len(pool), shape)]
    x[shape[0] // 2, shape[1] // 2, 0], x[-1, 0, 0] = 0x7FC0, 0xFF80
    for t in range(1, shape[0]):
        still = rng.random(shape[1]) < 0.4
        x[t, still] = x[t - 1, still]
    return x.view(ml_dtypes.bfloat16)


def check(x: np.ndarray) -> None:
    """Compare every variable."""
    t, n, d = x.shape
    expected = allocate_outputs(OUTPUTS, StepBlock(0, t, t - 1, n, d))
    words = kernels.bit_words(x)
    numba.motion(words, numba.changed_rows(words), None, kernels.lattice("bfloat16"), MAGNITUDES, expected)
    found = one_pass.motion(bits(from_numpy(x)), MAGNITUDES, d**0.5)
    for name in found:
        value = expected[name]
        assert found[name].numpy().dtype == value.dtype, name
        np.testing.assert_allclose(
            found[name].numpy(), value, rtol=1e-6 if value.dtype.kind == "f" else 0, err_msg=name
        )


if __name__ == "__main__":
    generator = np.random.default_rng(0)
    for size in ((4, 5, 3), (7, 130, 8), (2, 3, 20), (2, 1, 1), (3, 4, 1)):
        for odd in (True, False):
            check(block(generator, size, hostile=odd))
