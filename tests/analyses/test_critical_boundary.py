"""Adam's step against half the gap, element by element."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import deadtok_xr as dx
from deadtok_xr.errors import InputError
from tests import reference
from tests.conftest import N_DEAD
from tests.reference import assert_agree
from tests.strategies import dataset


class TestCriticalBoundary:
    def reference(self, rec: xr.Dataset, eps: float = 1e-8) -> tuple[np.ndarray, np.ndarray]:
        """Ratio of each element, and whether it moved, in plain numpy."""
        W, m, v = (rec[name].values.astype(np.float64) for name in ("W", "exp_avg", "exp_avg_sq"))
        t = rec.step.values[1:, None, None].astype(float)
        lr = rec.lr.values[1:, None, None]
        step = -lr * (m[1:] / (1 - 0.9**t)) / (np.sqrt(v[1:] / (1 - 0.999**t)) + eps)
        towards = np.where(step < 0, -1, 1) * np.where(W[:-1] < 0, -1, 1)
        gap = np.where((towards < 0) & (np.frexp(np.abs(W[:-1]))[0] == 0.5), 0.5, 1.0) * reference.ulp(W[:-1])
        return np.abs(step) / (gap / 2), W[1:] != W[:-1]

    def test_boundary_of_a_real_run(self, recording: Path) -> None:
        rec = dx.open_recording(recording, tokens="dead")
        found = dx.critical_boundary(rec).compute()
        ratio, moved = self.reference(rec)
        np.testing.assert_allclose(found.critical_ratio, ratio.max(2), rtol=1e-6)
        assert_agree(found.above_fraction, (ratio > 1).mean((1, 2)))
        assert_agree(found.tokens_above, (ratio > 1).any(2).mean(1))
        above = (ratio > 1).sum((1, 2))
        some = above > 0
        assert_agree(found.moved_above[some], ((ratio > 1) & moved).sum((1, 2))[some] / above[some])
        assert (found.n_invalid == 0).all()

    def test_boundary_is_where_motion_begins(self, recording: Path) -> None:
        """But for three roundings to bfloat16 in torch's denominator, 2⁻⁹ each."""
        rec = dx.open_recording(recording, tokens="dead")
        ratio, moved = dx.critical_boundary(rec).critical_ratio.values, dx.motion(rec).moved_dims.values > 0
        assert moved[ratio > 1.01].all()
        assert not moved[ratio < 0.99].any()

    def test_36_a_norm_over_all_dims_lies_above_what_no_dim_does(self) -> None:
        """Each element steps by 0.6 half gaps; the norm of 64 of them is 4.8, and nothing can move."""
        shape = (3, 2, 64)
        g = 1e-2
        t = np.arange(3)[:, None, None]
        m = np.broadcast_to(g * (1 - 0.9**t), shape).astype(np.float32)
        v = np.broadcast_to(g**2 * (1 - 0.999**t), shape).astype(np.float32)
        ds = dataset(np.full(shape, 1.5, np.float32), precision="bfloat16")
        lr = 0.6 * 2.0**-8  # the step is lr, half the gap 2^-8
        ds = ds.assign(exp_avg=(ds.W.dims, m), exp_avg_sq=(ds.W.dims, v))
        hyper = {"optimizer": "AdamW", "betas": (0.9, 0.999), "eps": 1e-12, "weight_decay": 0.0}
        found = dx.critical_boundary(ds, hyperparameters=hyper, lr=lr).compute()
        np.testing.assert_allclose(found.critical_ratio, 0.6, rtol=1e-4)  # at step 1 too: the bias is corrected
        assert (found.tokens_above == 0).all()
        up = dx.critical_boundary(ds, hyperparameters=hyper, lr=2 * lr).compute()
        assert (up.above_fraction == 1).all()

    def test_below_a_power_of_two_half_the_gap_is_half_as_wide(self) -> None:
        ds = dataset(np.ones((2, 2, 1), np.float32), precision="bfloat16")
        m = np.array([1e-3, -1e-3], np.float32).reshape(1, 2, 1).repeat(2, axis=0)  # down, and up
        ds = ds.assign(exp_avg=(ds.W.dims, m), exp_avg_sq=(ds.W.dims, np.full(m.shape, 1e-7, np.float32)))
        hyper = {"optimizer": "Adam", "betas": (0.9, 0.999), "eps": 0.0}
        found = dx.critical_boundary(ds, hyperparameters=hyper, lr=1e-3).compute()
        np.testing.assert_allclose(found.critical_ratio[0], [1e-3 * 2**9, 1e-3 * 2**8], rtol=1e-5)

    def test_unknown_ratios_are_nan(self, recording: Path) -> None:
        rec = dx.open_recording(recording, tokens="dead").isel(step=[0, 1, 2, 5, 6])
        with pytest.raises(InputError, match=r"critical_boundary: steps 3\.\.4 are missing"):
            dx.critical_boundary(rec)
        found = dx.critical_boundary(rec, allow_gaps=True).compute()
        np.testing.assert_array_equal(found.n_invalid, [0, 0, N_DEAD, 0])
        assert np.isnan(found.critical_ratio[2]).all()
        W = rec.W.load().copy()
        W[1, 3, 0] = np.nan
        holes = dx.critical_boundary(rec.assign(W=W), allow_gaps=True).compute()
        np.testing.assert_array_equal(holes.n_invalid, [1, 1, N_DEAD, 0])

    def test_required_variables(self, recording: Path) -> None:
        rec = dx.open_recording(recording, tokens="dead")
        with pytest.raises(InputError, match=r"critical_boundary needs 'exp_avg' and 'exp_avg_sq'"):
            dx.critical_boundary(rec.drop_vars(["exp_avg", "exp_avg_sq"]))
        with pytest.raises(InputError, match="is defined for Adam; this recording's optimizer is SGD"):
            dx.critical_boundary(rec, hyperparameters={"optimizer": "SGD"})
