"""The cloud in motion, its walk and its spectrum against an independent reference, and what notebooks got wrong."""

from __future__ import annotations

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
from hypothesis import strategies as st

import deadtok_xr as dx
from deadtok_xr.errors import InputError
from tests import reference_cloud as reference
from tests.analyses.test_motion_phases_kinematics_coherence import dataset, hostile
from tests.conftest import once
from tests.reference import assert_agree

CUT = ("walk_residual", "walk_envelope", "walk_bridge", "bias", "bias_to_noise")
LAGS = ("bulk_autocorrelation", "half_lag", "tenth_lag")


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
    return da.from_array(values, ds.W.chunks) if ds.W.chunks else values


def test_rows_of_chunks_do_not_matter(recording: Path) -> None:
    """Persistence needs three steps: across the border of two rows of chunks too."""
    rec = dx.open_recording(recording, tokens="dead").isel(step=slice(0, 60)).load()
    whole = dx.cloud(rec).compute()
    for chunk in (1, 2, 7, 59):
        part = dx.cloud(rec.chunk(step=chunk)).compute()
        xr.testing.assert_allclose(part, whole, rtol=1e-12)
        for name in ("n_lag1", "n_lag1_one_rests", "n_lag1_both_rest", "n_moving"):
            np.testing.assert_array_equal(part[name], whole[name])
    assert (whole.n_lag1[2:] > 0).any()


def test_lazy_and_read_once(recording: Path, lazily: Any, decoded: Counter[Any]) -> None:
    rec = dx.open_recording(recording, tokens="dead")
    with lazily():
        tree = dx.analyze(rec, analyses=["cloud", "kinematics", "spectrum"])
    kin = tree["kinematics"].to_dataset().drop_vars(["position", "thermal_velocity"])
    found, kin, _ = dask.compute(tree["cloud"].to_dataset(), kin, tree["spectrum"].to_dataset())
    assert decoded == once(rec.sizes["step"], "W")
    assert_agree(found.temperature, kin.thermal_rms.values**2)
    assert_agree(found.bulk_thermal_ratio[:200], (kin.bulk_speed / kin.thermal_rms).values[:200])


def test_a_slice_gives_what_the_whole_gives_there(recording: Path) -> None:
    rec = dx.open_recording(recording, tokens="dead")
    names = ["temperature", "lag1_median", "radial_mean", "shear_ratio", "origin_radius", "n_lag1"]
    whole = dx.cloud(rec)[names].sel(step=slice(122, 200)).compute()
    part = dx.cloud(rec.sel(step=slice(120, 200)))[names].sel(step=slice(122, 200)).compute()
    xr.testing.assert_allclose(whole, part, rtol=1e-12)


@pytest.mark.parametrize("steps", [slice(0, 300), slice(100, 280), slice(127, 129)])
def test_chunks_can_be_written_as_they_are(recording: Path, steps: slice, tmp_path: Path) -> None:
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
        with pytest.raises(InputError, match=r"cloud: steps 2\.\.2 are missing.*allow_gaps=True"):
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


def pair(recording: Path) -> tuple[xr.Dataset, xr.Dataset]:
    """A recording, and the same with changes of known place."""
    rec = dx.open_recording(recording, tokens="dead").isel(step=slice(100, 160), token=slice(0, 30))
    W = rec.W.values.copy()
    W[45:, 3] *= -1
    W[50, 7, 2] = np.nan
    W[30, 9], W[40:, 11, 1] = 0.0, 1e30
    return rec, rec.assign(W=rec.W.copy(data=W))


class TestTwoRuns:
    def test_real_recording(self, recording: Path, lazily: Any) -> None:
        a, b = pair(recording)
        with lazily():
            found = dx.compare_runs(a, b.chunk(step=7))
        expected = reference.differences(a.W.values, b.W.values)
        for name in ("token_first_difference", "first_difference"):
            expected[name] = np.where(expected[name] >= 0, a.step.values[expected[name]], -1)
        assert set(found.data_vars) == set(expected)
        for name, value in expected.items():
            assert_agree(found[name].compute(), value, name)

    def test_a_recording_is_itself(self, recording: Path, decoded: Counter[Any]) -> None:
        rec = dx.open_recording(recording, tokens="dead")
        found = dx.compare_runs(rec, dx.open_recording(recording, tokens="dead", raw=True)).compute()
        assert int(found.first_difference) == -1
        assert int(found.n_common_prefix) == 301
        assert int(found.n_equal) == int(found.n_elements) == rec.W.size
        assert (found.frobenius == 0).all()
        assert sum(decoded.values()) == 2 * sum(once(301, "W").values())

    @given(ds=hostile(), data=st.data())
    @pytest.mark.filterwarnings("ignore:.*(overflow|invalid).*:RuntimeWarning")
    def test_hostile_bits(self, ds: xr.Dataset, data: st.DataObject) -> None:
        W = np.asarray(ds.W.values)
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
        other = np.where(rng.random(W.shape) < 0.2, np.roll(W, 1, axis=0), W)
        found = dx.compare_runs(ds, ds.assign(W=ds.W.copy(data=other))).compute()
        for name, value in reference.differences(W, other).items():
            value = value if name != "distance" else value.astype("f4")
            assert_agree(found[name], value, name)

    def test_labels_are_aligned(self, recording: Path) -> None:
        """Two runs of one seed, one of which is longer and has more tokens."""
        rec = dx.open_recording(recording, tokens="dead")
        a, b = rec.isel(step=slice(0, 60)), rec.isel(step=slice(20, 200), token=slice(5, 50))
        with pytest.raises(InputError, match=r"different steps \(60 and 180; step 0 is only in one\).*join='inner'"):
            dx.compare_runs(a, b)
        found = dx.compare_runs(a, b.isel(token=slice(None, None, -1)), join="inner").compute()
        np.testing.assert_array_equal(found.step, np.arange(20, 60))
        np.testing.assert_array_equal(found.token, b.token)
        assert int(found.first_difference) == -1

    def test_signed_zeros_differ_in_bits_and_not_in_value(self) -> None:
        found = dx.compare_runs(line([[0.0]]), line([[-0.0]])).compute()
        assert [int(found[n][0]) for n in ("n_different", "n_unequal")] == [1, 0]
        assert float(found.frobenius[0]) == 0

    def test_formats_may_differ(self, recording: Path) -> None:
        rec = dx.open_recording(recording, tokens="dead").isel(step=slice(0, 9))
        for dtype in ("f4", "f8"):
            found = dx.compare_runs(rec, rec.assign(W=rec.W.copy(data=rec.W.values.astype(dtype)))).compute()
            assert int(found.first_difference) == -1, dtype

    def test_what_does_not_fit(self) -> None:
        a = line([[1, 2]], [[1, 2]])
        with pytest.raises(InputError, match="2 dims in one and 1 in the other"):
            dx.compare_runs(a, line([[1]], [[1]]))
        with pytest.raises(InputError, match="no step in common"):
            dx.compare_runs(a, a.assign_coords(step=[7, 8]), join="inner")
        with pytest.raises(InputError, match="choose one of exact, inner"):
            dx.compare_runs(a, a, join="outer")
        with pytest.raises(InputError, match="compare_runs takes a recording's dataset, not a str"):
            dx.compare_runs(a, "b.zarr")  # type: ignore[arg-type]
