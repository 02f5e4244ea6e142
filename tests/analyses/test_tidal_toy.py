"""The toy model of tides has its published numbers."""

from __future__ import annotations

import numpy as np
import pytest

import deadtok_xr as dx


@pytest.mark.slow
def test_the_tidal_toy_has_its_published_numbers() -> None:
    """Catalogue R9: np.random.seed(42), 100 x 2, 500 steps."""
    start = np.random.RandomState(42).normal(0, 0.02, (100, 2))
    toy = dx.testing.tidal_toy(start, np.array([1.0, 0.0]), steps=500)
    spread = toy.W.isel(dim=1).std("token")
    assert float(spread[0]) == pytest.approx(0.019877, abs=5e-7)
    assert float(spread[-1]) == pytest.approx(0.000131, abs=5e-7)
    assert float(spread[-1] / spread[0]) == pytest.approx(0.0066, abs=5e-5)
    np.testing.assert_allclose(toy.W[-1].mean("token"), [0.1, 0.0], atol=1e-3)
    assert (dx.cloud(toy).outward_fraction[-1] > 0.9).all()
