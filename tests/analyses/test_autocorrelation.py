"""Autocorrelation of the tokens' velocities, against a direct computation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings

import deadtok_xr as dx
from tests import reference_standalone as reference
from tests.reference import assert_agree
from tests.strategies import dataset, moving


class TestLags:
    @pytest.mark.parametrize("steps", [slice(0, 30), slice(120, 150)])
    def test_real_recording(self, recording: Path, steps: slice) -> None:
        rec = dx.open_recording(recording, tokens="dead").isel(step=steps, token=slice(0, None, 20))
        found = dx.velocity_autocorrelation(rec, max_lag=12).compute()
        for name, value in reference.lags(rec.W.values, 13).items():
            assert_agree(found[name], value, name)
        assert (found.autocorrelation[:, 0].dropna("token") == 1).all()

    @settings(max_examples=25)
    @given(ds=moving())
    def test_any_chunks(self, ds: xr.Dataset) -> None:
        found = dx.velocity_autocorrelation(ds, max_lag=4).compute()
        expected = reference.lags(np.asarray(ds.W.values), found.sizes["lag"])
        for name, value in expected.items():
            assert_agree(found[name], value, name)
        for name, limit in (("half_lag", 0.5), ("tenth_lag", 0.1)):
            first = [next((k for k, r in enumerate(row) if r <= limit), -1) for row in found.autocorrelation.values]
            np.testing.assert_array_equal(found[name], first)

    @pytest.mark.slow
    def test_single_token_agrees_with_the_centroid(self, recording: Path) -> None:
        rec = dx.open_recording(recording, tokens="dead").isel(token=[5])
        found, cloud = dx.velocity_autocorrelation(rec).compute(), dx.cloud(rec).compute()
        assert_agree(found.autocorrelation[0], cloud.bulk_autocorrelation.values)
        assert_agree(found.pooled, cloud.bulk_autocorrelation.values)
        assert int(found.half_lag[0]) == int(found.pooled_half_lag) == int(cloud.half_lag)

    def test_values_that_are_not_finite_are_left_out(self) -> None:
        W = np.arange(5, dtype=np.float32)[:, None, None].repeat(3, 1)
        W[2, 1], W[:, 2] = np.nan, 1
        found = dx.velocity_autocorrelation(dataset(W), max_lag=3).compute()
        np.testing.assert_array_equal(found.autocorrelation[0], [1, 1, 1, 1])
        np.testing.assert_array_equal(found.autocorrelation[1], [1, np.nan, np.nan, 1])  # only steps 1 and 4 remain
        assert np.isnan(found.autocorrelation[2]).all()  # it never moved
        np.testing.assert_array_equal(found.half_lag, [-1, -1, -1])
        np.testing.assert_array_equal(found.n_cosine, [6, 3, 2, 2])
