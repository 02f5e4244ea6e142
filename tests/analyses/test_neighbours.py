"""Preservation of neighbours, against scipy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import deadtok_xr as dx
from tests import reference_standalone as reference
from tests.conftest import N_DEAD
from tests.strategies import dataset


class TestNeighbours:
    def test_real_recording(self, recording: Path) -> None:
        rec = dx.open_recording(recording, tokens="dead").isel(token=slice(0, None, 11))
        found = dx.neighbour_preservation(rec, steps=[1, 5, 129, 300]).compute()
        for step in (1, 5, 129, 300):
            expected = reference.rank_correlation(*rec.W.sel(step=[step - 1, step]).values)
            assert float(found.rank_correlation.sel(step=step)) == pytest.approx(expected, rel=1e-9)
        still = dataset(rec.W.values[[5, 5]], precision="bfloat16")
        assert float(dx.neighbour_preservation(still).rank_correlation[0]) == 1
        whole = dx.neighbour_preservation(rec).compute()
        assert whole.sizes["step"] == 65
        assert {1, 300} <= set(whole.step.values)

    def test_ties_and_coincident_tokens(self) -> None:
        W = np.array([[[0, 0], [0, 0], [1, 0], [0, 1], [2, 2]], [[0, 0], [0, 0], [1, 0], [0, 2], [2, 2]]], np.float32)
        found = dx.neighbour_preservation(dataset(W)).compute()
        assert float(found.rank_correlation[0]) == pytest.approx(reference.rank_correlation(*W))

    def test_correlation_is_nan_without_an_order(self) -> None:
        W = np.ones((2, 4, 2), np.float32)
        assert np.isnan(dx.neighbour_preservation(dataset(W)).rank_correlation).all()  # one place
        assert np.isnan(dx.neighbour_preservation(dataset(W[:, :2])).rank_correlation).all()  # one pair
        W[0, 1] = np.nan
        np.testing.assert_array_equal(dx.neighbour_preservation(dataset(W)).n_tokens, [3])

    def test_sample_of_many_tokens(self, recording: Path) -> None:
        rec = dx.open_recording(recording, tokens="dead")
        found = dx.neighbour_preservation(rec, steps=[5], max_tokens=12).compute()
        chosen = rec.W.isel(token=np.linspace(0, N_DEAD - 1, 12).round().astype(int)).sel(step=[4, 5]).values
        assert float(found.rank_correlation[0]) == pytest.approx(reference.rank_correlation(*chosen))
        assert int(found.n_tokens[0]) == found.attrs["max_tokens"] == 12
