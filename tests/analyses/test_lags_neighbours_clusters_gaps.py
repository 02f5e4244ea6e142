"""The analyses beside the one pass: lags, neighbours, clusters, gaps; each against its definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import xarray as xr
from hypothesis import example, given, settings

import deadtok_xr as dx
from deadtok_xr.analyses.clusters import k_means, mean_silhouette
from deadtok_xr.errors import InputError, OffGridError
from tests import reference_beside as reference
from tests.analyses.test_cloud_and_spectrum import moving
from tests.analyses.test_motion_phases_kinematics_coherence import dataset, hostile
from tests.reference import assert_agree

BF16 = ml_dtypes.bfloat16
FUNCTIONS = {
    "velocity_autocorrelation": dx.velocity_autocorrelation,
    "neighbour_preservation": dx.neighbour_preservation,
    "clusters": dx.clusters,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_lazy_documented_and_nothing_but_coordinates_at_first(recording: Path, name: str, lazily: Any) -> None:
    with lazily():
        found = FUNCTIONS[name](dx.open_recording(recording, tokens="dead"))
        gaps = dx.lattice_gaps(dx.open_recording(recording, tokens="dead"), step=3)
    for ds in (found, gaps):
        for variable in ds.data_vars.values():
            assert variable.chunks is not None
            assert {"long_name", "units"} <= variable.attrs.keys(), variable.name


class TestLags:
    @pytest.mark.parametrize("steps", [slice(0, 30), slice(120, 150)])
    def test_real_recording(self, recording: Path, steps: slice) -> None:
        rec = dx.open_recording(recording, tokens="dead").isel(step=steps, token=slice(0, 162, 20))
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

    def test_of_one_token_it_is_that_of_the_centroid(self, recording: Path) -> None:
        rec = dx.open_recording(recording, tokens="dead").isel(token=[5])
        found, cloud = dx.velocity_autocorrelation(rec).compute(), dx.cloud(rec).compute()
        assert_agree(found.autocorrelation[0], cloud.bulk_autocorrelation.values)
        assert_agree(found.pooled, cloud.bulk_autocorrelation.values)
        assert int(found.half_lag[0]) == int(found.pooled_half_lag) == int(cloud.half_lag)

    def test_what_is_not_finite_takes_part_in_nothing(self) -> None:
        W = np.arange(5, dtype=np.float32)[:, None, None].repeat(3, 1)
        W[2, 1], W[:, 2] = np.nan, 1
        found = dx.velocity_autocorrelation(dataset(W), max_lag=3).compute()
        np.testing.assert_array_equal(found.autocorrelation[0], [1, 1, 1, 1])
        np.testing.assert_array_equal(found.autocorrelation[1], [1, np.nan, np.nan, 1])  # only steps 1 and 4 remain
        assert np.isnan(found.autocorrelation[2]).all()  # it never moved
        np.testing.assert_array_equal(found.half_lag, [-1, -1, -1])
        np.testing.assert_array_equal(found.n_cosine, [6, 3, 2, 2])


class TestNeighbours:
    def test_real_recording(self, recording: Path) -> None:
        rec = dx.open_recording(recording, tokens="dead").isel(token=slice(0, 162, 11))
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

    def test_where_there_is_no_order(self) -> None:
        W = np.ones((2, 4, 2), np.float32)
        assert np.isnan(dx.neighbour_preservation(dataset(W)).rank_correlation).all()  # one place
        assert np.isnan(dx.neighbour_preservation(dataset(W[:, :2])).rank_correlation).all()  # one pair
        W[0, 1] = np.nan
        np.testing.assert_array_equal(dx.neighbour_preservation(dataset(W)).n_tokens, [3])

    def test_of_many_tokens_some_are_taken(self, recording: Path) -> None:
        rec = dx.open_recording(recording, tokens="dead")
        found = dx.neighbour_preservation(rec, steps=[5], max_tokens=12).compute()
        chosen = rec.W.isel(token=np.linspace(0, 161, 12).round().astype(int)).sel(step=[4, 5]).values
        assert float(found.rank_correlation[0]) == pytest.approx(reference.rank_correlation(*chosen))
        assert int(found.n_tokens[0]) == found.attrs["max_tokens"] == 12


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
    def test_few_rows_are_cut_as_well_as_can_be(self, seed: int) -> None:
        x = np.random.default_rng(seed).normal(size=(8, 2))
        for k in (2, 3):
            cluster, inertia = k_means(x, k, np.random.default_rng(1))
            assert inertia == pytest.approx(reference.least_inertia(x, k))
            apart = np.sqrt(((x[:, None] - x) ** 2).sum(2))
            assert mean_silhouette(apart, cluster, k) == pytest.approx(reference.silhouette(x, cluster))

    def test_three_heaps(self) -> None:
        rng = np.random.default_rng(0)
        W = np.repeat(np.eye(3, 4), 20, axis=0)[None] + 1e-3 * rng.normal(size=(2, 60, 4))
        W[1, 7] = np.nan
        found = dx.clusters(dataset(W.astype("f4"), precision="none")).compute()
        np.testing.assert_array_equal(found.best_k, [3, 3])
        np.testing.assert_array_equal(found.n_tokens, [60, 59])
        assert (found.silhouette.sel(k=3) > 0.99).all()
        assert (found.inertia.diff("k") < 0).all()

    def test_where_there_are_no_clusters(self) -> None:
        found = dx.clusters(dataset(np.ones((1, 9, 3), "f4"))).compute()
        assert np.isnan(found.silhouette).all()
        assert found.best_k.values.tolist() == [-1]
        two = dx.clusters(dataset(np.array([[[1.0], [2.0]]], "f4"))).compute()
        assert np.isnan(two.silhouette).all()

    def test_what_does_not_fit(self) -> None:
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


class TestGaps:
    @pytest.mark.parametrize("kind", ["recording", "atom"])
    def test_real_recording(self, kind: str, request: pytest.FixtureRequest) -> None:
        rec = dx.open_recording(request.getfixturevalue(kind), tokens="dead")
        found = dx.lattice_gaps(rec, step=100).compute()
        expected = reference.gaps(rec.W.sel(step=100).values)
        assert set(found.data_vars) == set(expected)
        for name, value in expected.items():
            assert_agree(found[name], value, name)

    @settings(max_examples=15)
    @given(ds=hostile())
    @example(ds=dataset(np.array([[[np.inf, 1.0]], [[1.0, 1.0]]], BF16)))  # a dim without a finite value comes first
    def test_hostile_bits(self, ds: xr.Dataset) -> None:
        W = np.asarray(ds.W.values[:1], np.float32)
        found = dx.lattice_gaps(ds.isel(step=[0])).compute()
        kept = np.isfinite(W).any((0, 1))
        for name, value in reference.gaps(W[0][:, kept]).items() if kept.any() else ():
            assert_agree(found[name][kept] if found[name].dims == ("dim",) else found[name], value, name)
        assert (found.n_distinct[~kept] == 0).all()
        assert (found.width[~kept] == -1).all()
        assert found.n_not_finite.values.tolist() == (~np.isfinite(W)).sum((0, 1)).tolist()

    def test_blocks_of_tokens_do_not_matter(self, atom: Path) -> None:
        rec = dx.open_recording(atom).isel(step=[0])
        whole = dx.lattice_gaps(rec.load()).compute()
        xr.testing.assert_equal(dx.lattice_gaps(rec.chunk(token=7)).compute(), whole)
        assert int(whole.gap_count.sum()) == int((whole.n_distinct - 1).sum())

    def test_formats(self) -> None:
        W = np.array([[[1.0], [1 + 2**-10], [2.0]]], np.float16)
        found = dx.lattice_gaps(dataset(W, precision="float16")).compute()
        assert (found.gap_min.item(), found.gap_max.item()) == (1, 1023)
        with pytest.raises(InputError, match="has the precision float32; expected a format of 16 bits"):
            dx.lattice_gaps(dataset(W.astype("f4"), precision="float32"))
        with pytest.raises(OffGridError, match="W: 1 of 3 values are not on the bfloat16 grid"):
            dx.lattice_gaps(dataset(W.astype("f4"))).compute()
        with pytest.raises(InputError, match=r"lattice_gaps takes one step; this dataset has 2"):
            dx.lattice_gaps(dataset(np.ones((2, 1, 1), ml_dtypes.bfloat16)))


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
