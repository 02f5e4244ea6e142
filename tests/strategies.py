"""Recordings in memory, and hypothesis strategies that draw them."""

from __future__ import annotations

from typing import Any

import dask.array as da
import ml_dtypes
import numpy as np
import xarray as xr
from hypothesis import strategies as st

from deadtok_xr.dask_arrays import with_all_functions


def dataset(W: np.ndarray, chunks: Any = None, *, first: int = 0, **attrs: Any) -> xr.Dataset:
    """A recording in memory, or in Dask chunks of the class that recordings have."""
    data = W if chunks is None else with_all_functions(da.from_array(W, chunks))
    steps, tokens = np.arange(first, first + len(W)), np.arange(W.shape[1]) * 3
    return xr.Dataset({"W": (("step", "token", "dim"), data, attrs)}, {"step": steps, "token": tokens})


@st.composite
def hostile(draw: st.DrawFn) -> xr.Dataset:
    """Any bits: few distinct values so that rows coincide, rest, hop, cross exponents, overflow, are NaN."""
    steps, n, dims = draw(st.integers(2, 9)), draw(st.integers(1, 7)), draw(st.integers(1, 5))
    edges = [0x0000, 0x8000, 0x0001, 0x8001, 0x007F, 0x0080, 0x3F80, 0x3F7F, 0x3F81, 0xBF80, 0x7F7F, 0x3C00]
    special = draw(st.sampled_from([[], [0x7F80, 0xFF80, 0x7FC0, 0x7FA5]]))
    pool = np.array(edges + special + draw(st.lists(st.integers(0, 0x7F7F), max_size=4)), np.uint16)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    bits = pool[rng.integers(0, len(pool), (steps, n, dims))]
    still = rng.random((steps, n, dims)) < draw(st.sampled_from([0.0, 0.6, 0.95]))
    for t in range(1, steps):
        bits[t] = np.where(still[t], bits[t - 1], bits[t])
    values = bits.view(ml_dtypes.bfloat16)
    if draw(st.booleans()):
        with np.errstate(invalid="ignore"):
            values = values.astype(np.float32)
    chunks = tuple(draw(st.integers(1, size)) for size in bits.shape)
    return dataset(values, draw(st.sampled_from([None, chunks])), precision="bfloat16")


@st.composite
def moving(draw: st.DrawFn) -> xr.Dataset:
    """Tokens that drift, rest and turn back, in any chunks; now and then one that is not finite."""
    steps, n, dims = draw(st.integers(2, 12)), draw(st.integers(1, 6)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    W = (rng.normal(size=(steps, n, dims)) * 0.1 + 0.02).cumsum(0).astype(ml_dtypes.bfloat16)
    rest = rng.random((steps, n)) < draw(st.sampled_from([0.0, 0.5, 0.95]))
    for t in range(1, steps):
        W[t, rest[t]] = W[t - 1, rest[t]]
    chunks = tuple(draw(st.integers(1, size)) for size in W.shape)
    return dataset(W, draw(st.sampled_from([None, chunks])), precision="bfloat16")


def hopping() -> xr.Dataset:
    """A recording made of integers, the same on every CPU: 24 tokens hop by bfloat16 numbers, rest, thaw and freeze.

    They start at 1, where the ULP changes, and at -1 in the last dim, whose sign changes every fifth step. The first 12
    hop by one number and stay together; the others by ever fewer. All move at step 20, and none after step 40.
    """
    rng = np.random.default_rng(0)
    shape = (61, 24, 6)
    hops = rng.integers(0, 3, shape) * (2 * rng.integers(0, 2, shape) - 1)
    hops[..., 0] = rng.integers(1, 3, shape[:2])  # no hop is empty
    hops[:, 12:] *= np.array([60, 20, 5, 1, 1])[np.minimum(np.arange(61) // 8, 4), None, None]
    hops[:, :12] = np.sign(hops[:, :12])
    hops[..., 0] *= 1 - 2 * (np.arange(61) % 2)[:, None]  # to and fro
    hops *= rng.integers(0, 2, (61, 24, 1)) | (np.arange(61) == 20)[:, None, None]
    hops[0], hops[41:] = 0, 0
    bits = (0x3F80 + np.cumsum(hops, axis=0)).astype(np.uint16)
    bits[..., 5] |= (np.minimum(np.arange(61), 40) % 10 < 5).astype(np.uint16)[:, None] << 15
    return dataset(bits.view(ml_dtypes.bfloat16))
