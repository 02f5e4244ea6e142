"""The compiled kernels on rows long enough for vector units, which use other code paths than short rows."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import deadtok_xr as dx
from deadtok_xr.kernels.numba import changed_rows, kinematics, last_motion
from tests import reference
from tests.reference import assert_agree

Words = NDArray[np.uint16]
HOSTILE = np.array([0x0000, 0x8000, 0x0001, 0x8001, 0x007F, 0x0080, 0x3F80, 0x3F7F, 0x7F7F, 0xFF7F, 0x3C00], np.uint16)
INVALID = np.array([0x7F80, 0xFF80, 0x7FC0, 0xFFA5], np.uint16)


@st.composite
def walks(draw: st.DrawFn) -> Words:
    """Random walks on the grid, by single ULP up to whole binades, at any scale, with hostile bits strewn in."""
    steps, n, dims = draw(st.integers(2, 5)), draw(st.integers(1, 6)), draw(st.sampled_from([1, 3, 16, 31, 64, 129]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    middle = draw(st.sampled_from([0x0100, 0x2000, 0x3C00, 0x5000, 0x7000]))
    base = middle + rng.integers(-0x80, 0x800, (1, n, dims)) % 0x7000
    reach = draw(st.sampled_from([1, 3, 40, 70, 3000]))
    moves = rng.integers(-reach, reach + 1, (steps, n, dims)) * (rng.random((steps, n, dims)) < draw(st.floats(0, 1)))
    moves[0] = 0
    moves[:, rng.random(n) < 0.3] = 0  # rows that stand still
    bits = np.clip(base + np.cumsum(moves, axis=0), 0, 0x7F7F).astype(np.uint16)
    bits |= rng.integers(0, 2, (1, n, dims)).astype(np.uint16) << np.uint16(15)
    for pool in draw(st.sampled_from([[], [HOSTILE], [INVALID], [HOSTILE, INVALID]])):
        at = rng.random(bits.shape) < 0.02
        bits[at] = pool[rng.integers(0, len(pool), at.sum())]
    return bits


def motion(bits: Words, *, held: type = ml_dtypes.bfloat16) -> xr.Dataset:
    with np.errstate(invalid="ignore"):
        W = bits.view(ml_dtypes.bfloat16).astype(held)
    return dx.motion(xr.Dataset({"W": (("step", "token", "dim"), W, {"precision": "bfloat16"})}).assign_coords(
        step=np.arange(len(W)), token=np.arange(W.shape[1])
    )).compute()  # fmt: skip


@pytest.mark.slow
@given(bits=walks())
@pytest.mark.filterwarnings("ignore:.*(overflow|invalid|Mean of empty).*:RuntimeWarning")
def test_motion_of_long_rows(bits: Words) -> None:
    found, expected = motion(bits), reference.motion(bits.view(ml_dtypes.bfloat16).astype(np.float32))
    for name, values in expected.items():
        assert_agree(found[name], values, name)
    for name in ("lattice_l1", "lattice_l2", "lattice_linf"):  # float64 is meant: no float32 sum may show
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-14, err_msg=name)
    np.testing.assert_array_equal(found.moved_dims, expected["moved_dims"])


@pytest.mark.slow
@given(bits=walks())
@pytest.mark.filterwarnings("ignore:.*(overflow|invalid|Mean of empty).*:RuntimeWarning")
def test_motion_is_bitwise_equal_for_every_word_type(bits: Words) -> None:
    xr.testing.assert_equal(motion(bits), motion(bits, held=np.float32))


@pytest.mark.parametrize("dims", [1024, 1025, 5000])
@pytest.mark.parametrize("scale", [2.0**-50, 1e-2, 2.0**50])
def test_float32_sums_of_many_dims_keep_their_digits(dims: int, scale: float) -> None:
    rng = np.random.default_rng(dims)
    W = (rng.normal(size=(2, 3, dims)) * scale).astype(ml_dtypes.bfloat16)
    W[1] = np.where(rng.random(W[0].shape) < 0.3, (W[0].view(np.uint16) + 1).view(ml_dtypes.bfloat16), W[0])
    found, expected = motion(W.view(np.uint16)), reference.motion(W.astype(np.float32))
    for name in ("displacement", "displacement_ulp"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6, err_msg=name)
    for name in ("lattice_l1", "lattice_l2", "lattice_linf"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-14, err_msg=name)


@pytest.mark.filterwarnings("ignore:.*(overflow|invalid|Mean of empty).*:RuntimeWarning")
@pytest.mark.parametrize("start", [0x0001, 0x3F80, 0x4000, 0x407F])
def test_each_step_on_the_lattice_is_exact(start: int) -> None:
    """From one number to each of the 65,536 patterns, in rows of 64 of which one element moves."""
    bits = np.full((2, 2**16, 64), 0x3C01, np.uint16)
    bits[0, :, 5] = start
    bits[1, :, 5] = np.arange(2**16)
    found, expected = motion(bits), reference.motion(bits.view(ml_dtypes.bfloat16).astype(np.float32))
    for name in ("lattice_l1", "lattice_l2", "lattice_linf", "moved_dims"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-15, err_msg=name)


@given(
    dims=st.integers(1, 70), dtype=st.sampled_from([np.uint16, np.uint32, np.uint64]), seed=st.integers(0, 2**32 - 1)
)
def test_a_row_has_changed_if_any_bit_has(dims: int, dtype: type, seed: int) -> None:
    rng = np.random.default_rng(seed)
    steps = np.repeat(rng.integers(0, np.iinfo(dtype).max, (1, 9, dims), dtype), 6, axis=0)
    for _ in range(12):
        bit = dtype(1) << dtype(rng.integers(0, 8 * dtype().itemsize))
        steps[rng.integers(0, 6), rng.integers(0, 9), rng.integers(0, dims)] ^= bit
    np.testing.assert_array_equal(changed_rows(steps), (steps[1:] != steps[:-1]).any(axis=2))


@pytest.mark.slow
@given(bits=walks())
def test_last_motion_of_long_rows(bits: Words) -> None:
    W = bits.view(ml_dtypes.bfloat16).astype(np.float32)
    moved = (W[1:] != W[:-1]).any(axis=2)
    labels = 10 + 3 * np.arange(len(moved))
    expected = np.where(moved, labels[:, None], -1).max(axis=0)
    expected[~np.isfinite(W).all(axis=(0, 2))] = 999
    for steps in (bits, W):
        out = np.full(bits.shape[1], -1)
        last_motion(steps, changed_rows(bits), labels, 999, out)
        np.testing.assert_array_equal(out, expected)


@pytest.mark.slow
@given(bits=walks())
@pytest.mark.filterwarnings("ignore:.*(overflow|invalid).*:RuntimeWarning")
def test_kinematics_of_long_rows_for_every_word_type(bits: Words) -> None:
    W = bits.view(ml_dtypes.bfloat16).astype(np.float32)
    expected = reference.kinematics(W)
    for steps in (bits, W):
        out = {k: np.zeros((len(bits), bits.shape[2]) if k == "centroid" else len(bits)) for k in
               ("centroid", "radius", "radius_max", "n_invalid")}  # fmt: skip
        out |= {k: np.zeros(len(bits) - 1) for k in ("bulk_speed", "thermal_rms", "thermal_residual")}
        out["bulk_velocity"] = np.zeros((len(bits) - 1, bits.shape[2]))
        kinematics(steps, changed_rows(bits), None, out)
        for name, values in out.items():
            if name in expected and name != "thermal_residual":
                assert_agree(values, expected[name][-len(values) :], name)
        np.testing.assert_array_equal(out["n_invalid"], (~np.isfinite(W).all(axis=2)).sum(axis=1))
