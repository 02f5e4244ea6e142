"""k-means clusters and silhouettes, against direct computations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import deadtok_xr as dx
from deadtok_xr.analyses.clusters import k_means, mean_silhouette
from deadtok_xr.errors import InputError
from tests import reference_standalone as reference
from tests.strategies import dataset


class TestClusters:
    def test_real_recording(self, recording: Path) -> None:
        rec = dx.open_recording(recording).isel(token=slice(0, 256, 6))
        found = dx.clusters(rec, steps=[0, 300], k=(2, 3)).compute()
        x = rec.W.sel(step=300).values.astype(np.float64)
        scale = np.abs(x - x.mean(0)).max()
        for i, k in enumerate((2, 3)):
            cluster, inertia = k_means((x - x.mean(0)) / scale, k, np.random.default_rng(0))
            assert float(found.silhouette[1, i]) == pytest.approx(reference.silhouette(x, cluster))
            assert float(found.inertia[1, i]) == pytest.approx(inertia * scale**2)
        assert found.best_k.values.tolist()[1] in (2, 3)

    @pytest.mark.parametrize("seed", range(2))
    def test_few_rows_are_clustered_optimally(self, seed: int) -> None:
        x = np.random.default_rng(seed).normal(size=(8, 2))
        for k in (2, 3):
            cluster, inertia = k_means(x, k, np.random.default_rng(1))
            assert inertia == pytest.approx(reference.least_inertia(x, k))
            apart = np.sqrt(((x[:, None] - x) ** 2).sum(2))
            assert mean_silhouette(apart, cluster, k) == pytest.approx(reference.silhouette(x, cluster))

    def test_three_clusters_are_found(self) -> None:
        rng = np.random.default_rng(0)
        W = np.repeat(np.eye(3, 4), 20, axis=0)[None] + 1e-3 * rng.normal(size=(2, 60, 4))
        W[1, 7] = np.nan
        found = dx.clusters(dataset(W.astype("f4"), precision="none")).compute()
        np.testing.assert_array_equal(found.best_k, [3, 3])
        np.testing.assert_array_equal(found.n_tokens, [60, 59])
        assert (found.silhouette.sel(k=3) > 0.99).all()
        assert (found.inertia.diff("k") < 0).all()

    def test_too_few_distinct_rows_have_no_clusters(self) -> None:
        found = dx.clusters(dataset(np.ones((1, 9, 3), "f4"))).compute()
        assert np.isnan(found.silhouette).all()
        assert found.best_k.values.tolist() == [-1]
        two = dx.clusters(dataset(np.array([[[1.0], [2.0]]], "f4"))).compute()
        assert np.isnan(two.silhouette).all()

    def test_invalid_input_is_refused(self) -> None:
        ds = dataset(np.ones((2, 3, 2), "f4"))
        for k in ((1, 2), (), (2, 2)):
            with pytest.raises(InputError, match="expected different numbers of clusters, each at least 2"):
                dx.clusters(ds, k=k)
        with pytest.raises(InputError, match=r"clusters: step 7 is not in this dataset; choose from its 2 steps"):
            dx.clusters(ds, steps=[7])
        with pytest.raises(InputError, match="max_tokens=1; expected at least 2"):
            dx.clusters(ds, max_tokens=1)
        with pytest.raises(InputError, match=r"neighbour_preservation: step 0 is not in this dataset; choose from"):
            dx.neighbour_preservation(ds, steps=[0])  # no transition leads there
        with pytest.raises(InputError, match="max_lag=0; expected at least 1"):
            dx.velocity_autocorrelation(ds, max_lag=0)
