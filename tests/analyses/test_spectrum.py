"""Spectrum of the tokens' covariance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import deadtok_xr as dx
from tests import reference_cloud as reference
from tests.reference import assert_agree
from tests.strategies import dataset


class TestSpectrum:
    def test_real_recording(self, recording: Path) -> None:
        rec = dx.open_recording(recording, tokens="dead")
        found = dx.spectrum(rec).compute()
        assert found.sizes["spectrum_step"] == 65
        assert set(found.spectrum_step.values) >= {0, 300}
        for step in found.spectrum_step.values[::16]:
            for name, value in reference.spectrum(rec.W.sel(step=step).values).items():
                assert_agree(found[name].sel(spectrum_step=step), value, name)

    def test_chosen_steps(self, recording: Path) -> None:
        rec = dx.open_recording(recording, tokens="dead")
        found = dx.spectrum(rec, steps=[200, 3, 128])
        np.testing.assert_array_equal(found.spectrum_step, [3, 128, 200])
        assert_agree(found.std_dim[1], reference.spectrum(rec.W.values[128])["std_dim"])

    def test_tight_cloud_far_from_the_origin(self) -> None:
        """Σ W Wᵀ - N C Cᵀ would have no digits left."""
        rng = np.random.default_rng(0)
        W = (1 + 1e-6 * rng.normal(size=(1, 50, 4))).astype("f4")
        assert_agree(dx.spectrum(dataset(W, precision="none")).eigenvalue[0], reference.spectrum(W[0])["eigenvalue"])

    def test_fewer_tokens_than_dims(self) -> None:
        found = dx.spectrum(dataset(np.eye(3, 5, dtype="f4")[None])).compute()
        assert (found.eigenvalue.values >= 0).all()
        assert float(found.participation_ratio[0]) == pytest.approx(2.0)
        assert float(found.eccentricity[0]) > 1e12

    @pytest.mark.parametrize("bad", [(np.nan,), (np.inf,), (np.inf, -np.inf)])
    @pytest.mark.filterwarnings("error")
    def test_a_step_with_nan_or_infinity_is_nan(self, bad: tuple[float, ...]) -> None:
        W = np.random.default_rng(0).normal(size=(2, 30, 4)).astype("f4")
        W[1, 7 : 7 + len(bad), 2] = bad
        found = dx.spectrum(dataset(W, precision="none")).compute()
        assert np.isnan(found.eigenvalue[1]).all()
        assert np.isnan(found.std_dim[1]).all()
        assert_agree(found.eigenvalue[0], reference.spectrum(W[0])["eigenvalue"])
