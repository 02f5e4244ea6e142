"""Motion of the cloud, against an independent reference; its pitfalls and bad input."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import ml_dtypes
import numpy as np
import pytest
import xarray as xr
from hypothesis import given

import deadtok_xr as dx
from deadtok_xr.analyses.common.cloud_motion import merge_blocks
from deadtok_xr.dask_arrays import with_all_functions
from deadtok_xr.errors import InputError
from tests import reference_cloud as reference
from tests.conftest import once
from tests.reference import assert_agree
from tests.strategies import dataset, hostile, moving


def check(ds: xr.Dataset, *, max_lag: int = 5, walk: bool = True) -> None:
    found, W = dx.cloud(ds, max_lag=max_lag).compute(), np.asarray(ds.W.values)
    expected = {**reference.cloud(W), **reference.paths(W)}
    if walk:
        expected |= reference.walk(W, found.sizes["lag"])
        assert set(found.data_vars) == set(expected)
    for key, value in expected.items():
        assert_agree(found[key], value, key)


@pytest.mark.parametrize("steps", [slice(0, 9), slice(120, 140), slice(126, 131), slice(250, 260)])
def test_real_recording(recording: Path, steps: slice) -> None:
    check(dx.open_recording(recording, tokens="dead").isel(step=steps, token=slice(0, 40)))


@given(ds=moving())
def test_any_chunks(ds: xr.Dataset) -> None:
    check(ds)


@given(ds=hostile())
@pytest.mark.filterwarnings("ignore:.*(overflow|invalid|divide).*:RuntimeWarning")
def test_hostile_bits(ds: xr.Dataset) -> None:
    """Not where a sum of 1e38 and 1e-38 has no digits left to be compared."""
    W = np.asarray(ds.W.values, np.float64)
    size = np.abs(W[np.isfinite(W) & (W != 0)])
    if size.size and size.max() / size.min() > 1e6:
        W = np.clip(np.abs(W), 2.0**-10, 2.0) * np.sign(W)
        ds = ds.assign(W=ds.W.copy(data=_like(ds, W)))
    check(ds, walk=False)


def _like(ds: xr.Dataset, W: np.ndarray) -> Any:
    values = W.astype(ml_dtypes.bfloat16).astype(ds.W.dtype)
    return with_all_functions(da.from_array(values, ds.W.chunks)) if ds.W.chunks else values


def test_results_do_not_depend_on_chunks(recording: Path) -> None:
    """Persistence needs three steps: across the border of two rows of chunks too."""
    rec = dx.open_recording(recording, tokens="dead").isel(step=slice(0, 60)).load()
    whole = dx.cloud(rec).compute()
    for chunk in (1, 2, 7, 59):
        part = dx.cloud(rec.chunk(step=chunk)).compute()
        xr.testing.assert_allclose(part, whole, rtol=1e-12)
        for name in ("n_lag1", "n_lag1_one_rests", "n_lag1_both_rest", "n_moving"):
            np.testing.assert_array_equal(part[name], whole[name])
    assert (whole.n_lag1[2:] > 0).any()


def test_cloud_is_lazy_and_reads_each_chunk_once(recording: Path, lazily: Any, decoded: Counter[Any]) -> None:
    rec = dx.open_recording(recording, tokens="dead")
    with lazily():
        tree = dx.analyze(rec, analyses=["cloud", "kinematics", "spectrum"])
    kin = tree["kinematics"].to_dataset().drop_vars(["position", "thermal_velocity"])
    found, kin, _ = dask.compute(tree["cloud"].to_dataset(), kin, tree["spectrum"].to_dataset())
    assert decoded == once(rec.sizes["step"], "W", after=2, ends=True)
    assert_agree(found.temperature, kin.thermal_rms.values**2)
    assert_agree(found.bulk_thermal_ratio[:200], (kin.bulk_speed / kin.thermal_rms).values[:200])


def test_slices_agree_with_the_whole(recording: Path) -> None:
    rec = dx.open_recording(recording, tokens="dead")
    names = ["temperature", "lag1_median", "radial_mean", "shear_ratio", "origin_radius", "n_lag1"]
    whole = dx.cloud(rec)[names].sel(step=slice(122, 200)).compute()
    part = dx.cloud(rec.sel(step=slice(120, 200)))[names].sel(step=slice(122, 200)).compute()
    xr.testing.assert_allclose(whole, part, rtol=1e-12)


@pytest.mark.parametrize("steps", [slice(0, 300), slice(100, 280), slice(127, 129)])
def test_chunks_are_writable_to_zarr(recording: Path, steps: slice, tmp_path: Path) -> None:
    tree = dx.analyze(
        dx.open_recording(recording).sel(step=steps), analyses=["cloud", "spectrum", "lattice", "exponents"]
    )
    saved = dx.save_results(tree, tmp_path / "r.zarr")
    assert saved["cloud"].to_dataset().sizes["step"] == len(range(*steps.indices(10**6))) + 1


def line(*places: list[list[float]]) -> xr.Dataset:
    """Tokens at places, step by step."""
    return dataset(np.array(places, np.float64).astype(ml_dtypes.bfloat16))


class TestPitfalls:
    def test_resting_tokens_are_not_tangential(self) -> None:
        """A token at rest counted as 0 in the mean radial part, which became 14% (24)."""
        found = dx.cloud(line([[1, 0], [0, 1]], [[2, 0], [0, 1]])).compute()
        assert float(found.radial_mean[1]) == 1.0
        assert float(found.outward_fraction[1]) == 1.0
        assert float(found.inward_fraction[1]) == 0.0

    def test_resting_tokens_do_not_lose_their_persistence(self) -> None:
        """Over all tokens the mean was .108, over those that move .955 (24)."""
        found = dx.cloud(line([[1], [1], [1]], [[2], [1], [1]], [[3], [1], [2]])).compute()
        assert float(found.lag1_mean[2]) == 1.0
        assert [int(found[n][2]) for n in ("n_lag1", "n_lag1_one_rests", "n_lag1_both_rest")] == [1, 1, 1]

    def test_a_frozen_cloud_has_no_persistence(self) -> None:
        found = dx.cloud(line([[1]], [[1]], [[1]])).compute()
        assert np.isnan(found.lag1_mean).all()
        assert int(found.n_lag1_both_rest[2]) == 1
        assert np.isnan(found.diffusivity).all()
        assert found.diffusivity_class.values.tolist() == [-1]

    def test_the_envelope_does_not_count_dims_twice(self) -> None:
        """√(n·D)·s, with s the length of a step in all dims, is √D too wide (25)."""
        rng = np.random.default_rng(0)
        walks = rng.normal(size=(200, 1, 64)).cumsum(0)
        found = dx.cloud(dataset(walks.astype("f4"), precision="none")).compute()
        assert float(found.walk_envelope[100]) == pytest.approx(np.sqrt(64 * 100), rel=0.05)
        middle = slice(50, 150)
        ratio = (found.walk_residual / found.walk_bridge)[middle]
        assert 0.7 < float(ratio.mean()) < 1.3  # a random walk keeps to it
        assert float(found.walk_residual[-1]) == float(found.walk_bridge[-1]) == 0  # by construction

    def test_radius_from_the_origin_is_named_so(self) -> None:
        """Radius from the centroid and from the origin were confused (26)."""
        ds = line([[3, 4], [3, 4]], [[3, 4], [3, 4]])
        assert float(dx.cloud(ds).origin_radius[0]) == 5.0
        assert float(dx.kinematics(ds).radius[0]) == 0.0

    def test_cosines_do_not_exceed_one(self) -> None:
        """float32 cosines reached 1.000495 (14)."""
        rng = np.random.default_rng(0)
        W = (np.arange(1, 5)[:, None, None] * rng.normal(size=(1, 500, 7))).astype("f4")
        found = dx.cloud(dataset(W, precision="none")).compute()
        for name in ("lag1_mean", "lag1_high", "radial_mean"):
            assert float(found[name].max()) <= 1.0
        assert float(found.lag1_median[2]) == pytest.approx(1.0)

    def test_the_spread_of_a_dim_is_not_that_of_all_elements(self) -> None:
        """σ over all components of one cluster was taken for the spread along a dim, 200,000 times less (32)."""
        rng = np.random.default_rng(0)
        W = (rng.normal(size=64) + 1e-6 * rng.normal(size=(1, 300, 64))).astype("f4")
        found = dx.spectrum(dataset(W, precision="none")).compute()
        assert float(found.std_dim.mean()) == pytest.approx(1e-6, rel=0.2)

    def test_a_label_is_that_of_the_later_step(self) -> None:
        """A displacement was labelled by its earlier step (18)."""
        ds = line([[1]], [[1]], [[2]], [[2]])
        np.testing.assert_array_equal(dx.cloud(ds).n_moving, [-1, 0, 1, 0])


class TestBadInput:
    def test_gaps(self) -> None:
        ds = line([[1]], [[2]], [[3]], [[4]]).isel(step=[0, 1, 3])
        with pytest.raises(InputError, match=r"cloud: step 2 is missing.*allow_gaps=True"):
            dx.cloud(ds)
        np.testing.assert_array_equal(dx.cloud(ds, allow_gaps=True).step_span, [0, 1, 2])
        assert dx.spectrum(ds).sizes["spectrum_step"] == 3

    def test_one_step(self) -> None:
        with pytest.raises(InputError, match="cloud needs at least two steps; this dataset has one"):
            dx.cloud(line([[1]]))

    def test_two_steps_and_one_token(self) -> None:
        check(line([[1.0, 2.0]], [[2.0, 2.0]]))
        found = dx.spectrum(line([[1.0, 2.0]])).compute()
        assert all(np.isnan(v).all() for v in found.data_vars.values())  # one token has no covariance

    def test_frozen_from_the_start(self) -> None:
        found = dx.cloud(line([[1, 2], [2, 3]], [[1, 2], [2, 3]], [[1, 2], [2, 3]])).compute()
        for name in ("bulk_thermal_ratio", "shear_ratio", "participation", "radial_mean", "path_efficiency"):
            assert np.isnan(found[name]).all(), name
        assert (found.temperature[1:] == 0).all()
        assert np.isnan(found.bulk_autocorrelation).all()
        assert int(found.half_lag) == -1

    def test_nan_rows(self) -> None:
        W = np.ones((4, 3, 2), np.float32).cumsum(0)
        W[2, 1, 0] = np.nan
        found = dx.cloud(dataset(W, precision="bfloat16")).compute()
        np.testing.assert_array_equal(found.n_invalid, [-1, 0, 1, 1])
        np.testing.assert_array_equal(np.isnan(found.temperature), [True, False, True, True])
        np.testing.assert_array_equal(found.n_moving, [-1, 3, 2, 2])
        np.testing.assert_array_equal(np.isnan(found.path_length), [False, True, False])
        assert found.diffusivity_class.values.tolist() == [2, -1, 2]
        np.testing.assert_array_equal(found.n_lag1, [-1, -1, 2, 2])
        assert np.isnan(dx.spectrum(dataset(W)).eigenvalue.sel(spectrum_step=2)).all()

    def test_all_nan(self) -> None:
        found = dx.cloud(dataset(np.full((3, 2, 2), np.nan, "f4"))).compute()
        for name in ("temperature_l2", "total_l1", "kinetic_energy", "displacement_max", "origin_radius_max"):
            assert np.isnan(found[name]).all(), name

    def test_options(self) -> None:
        with pytest.raises(InputError, match="max_lag=0; expected at least 1"):
            dx.cloud(line([[1]], [[2]]), max_lag=0)
        with pytest.raises(InputError, match="step 5 is not in this dataset; choose from its 2 steps, 0 to 1"):
            dx.spectrum(line([[1]], [[2]]), steps=[0, 5])


def test_no_step_is_kept_for_the_net_displacement(recording: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last block reads the first step from the store, in pieces; through Dask's graph the ends are passed on."""
    ends = []

    def merged(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
        ends.append({name for part in (a, b) for name in ("first", "last") if part[name] is not None})
        return merge_blocks(a, b)

    monkeypatch.setattr(sys.modules[dx.cloud.__module__], "merge_blocks", merged)
    rec = dx.open_recording(recording, tokens="all").isel(step=slice(1, None), token=slice(None, None, -1))
    stored = dx.cloud(rec).net_displacement.values
    assert ends
    assert not set.union(*ends)
    ends.clear()
    held = dx.cloud(rec.assign(W=rec.W * 1)).net_displacement.values
    assert set.union(*ends) == {"first", "last"}
    np.testing.assert_array_equal(stored, held)
    W = rec.W.values.astype(np.float64)
    np.testing.assert_allclose(stored, np.linalg.norm(W[-1] - W[0], axis=1), rtol=1e-12)
