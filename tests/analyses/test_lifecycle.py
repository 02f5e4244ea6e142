"""Life cycles of tokens against an independent reference; pitfalls of lifecycle, freezing and epochs."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import xarray as xr
from hypothesis import given

import deadtok_xr as dx
from deadtok_xr.errors import InputError, OffGridError
from tests import reference_lifecycle as expected_of
from tests.reference import assert_agree
from tests.strategies import dataset, hostile

SCHEMES = ("lattice", "magnitude", "cells")


def line(*values: float, dims: int = 1) -> np.ndarray:
    """The path of one token in bfloat16, (step, 1, dims)."""
    return np.repeat(np.array(values, np.float32)[:, None, None], dims, axis=2).astype(ml_dtypes.bfloat16)


def check_lifecycle(ds: xr.Dataset, scheme: str) -> xr.Dataset:
    found = dx.lifecycle(ds, scheme=scheme).compute()
    for name, value in expected_of.lifecycle(np.asarray(ds.W.values), scheme, ds.step.values).items():
        assert_agree(found[name], value, name)
    return found


@pytest.mark.parametrize("scheme", SCHEMES)
def test_lifecycle_of_real_runs(recording: Path, atom: Path, scheme: str) -> None:
    check_lifecycle(dx.open_recording(recording, tokens="dead"), scheme)
    check_lifecycle(dx.open_recording(recording, tokens="dead").isel(step=slice(0, 200)), scheme)
    check_lifecycle(dx.open_recording(atom, tokens="dead").isel(token=slice(0, 40)), scheme)


@pytest.mark.slow
@given(ds=hostile())
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.filterwarnings("ignore:.*(overflow|invalid).*:RuntimeWarning")
def test_lifecycle_of_hostile_bits(scheme: str, ds: xr.Dataset) -> None:
    check_lifecycle(ds, scheme)


def test_not_moved_is_that_of_mechanism(results: xr.DataTree) -> None:
    moved = results["mechanism"].cause.values == 2
    life = results["lifecycle"].to_dataset()
    np.testing.assert_array_equal(life.moved_steps, moved.sum(0))
    np.testing.assert_array_equal(life.last_motion, results["mechanism"].last_motion)
    np.testing.assert_allclose(life.frozen_fraction, 1 - moved.mean(1))
    np.testing.assert_array_equal(life.stratigraphy > 0, life.step <= life.last_motion)


def test_lifecycle_agrees_with_related_analyses(results: xr.DataTree) -> None:
    life, phases = results["lifecycle"].to_dataset(), results["phases"].to_dataset()
    assert_agree(life.frozen_fraction, phases.fraction.sel(phase="frozen").values)
    predictors = results["freeze_predictors"].to_dataset()
    np.testing.assert_array_equal(life.last_motion + 1, predictors.freeze_step)
    freezing = results["freezing"].to_dataset()
    np.testing.assert_array_equal(life.global_freeze, freezing.global_freeze)
    assert_agree(life.frozen_fraction, freezing.frozen_fraction.values)
    assert_agree(results["epochs"].frozen_fraction[1:], freezing.frozen_fraction.values)
    total = int(life.passages.sum())
    assert total == life.sizes["token"] * 299
    assert int(life.reheats.sum() + life.cools.sum()) == total - int(np.trace(life.passages))


class TestPitfalls:
    """Catalogue 3.7, by their numbers; each of these fails under the pitfall."""

    def test_9_leaving_zero_is_no_freeze(self) -> None:
        """Norms that overflow were set to 0, and such a step counted as frozen."""
        ds = dataset(line(0.0, 1e4, 0.0, 0.0, dims=64))
        found = dx.lifecycle(ds, scheme="cells").compute()
        assert found.last_motion.values.tolist() == [2]
        assert found.first_freeze.values.tolist() == [3]
        assert found.last_step.sel(phase="hypernova").values.tolist() == [2]
        np.testing.assert_array_equal(dx.freezing(ds).n_frozen, [0, 0, 1])
        np.testing.assert_array_equal(dx.freezing(ds, definition="lattice_l2", threshold=0.1).n_frozen, [0, 0, 1])

    def test_38_a_leap_whose_squares_overflow_float32_is_hypernova(self) -> None:
        """L2 overflowed where L1 did not, so that the step was spherical and not hypernova."""
        found = dx.phases(dataset(line(0.0, 1e-3)), scheme="cells").compute()
        assert found.fraction.sel(phase="hypernova").values.tolist() == [1.0]

    def test_10_signed_zeros_are_equal_unless_bits_are_asked_for(self) -> None:
        ds = dataset(line(0.0, -0.0, 0.0, 1.0))
        assert dx.lifecycle(ds).last_motion.values.tolist() == [3]
        assert dx.lifecycle(ds).first_freeze.values.tolist() == [-1]
        np.testing.assert_array_equal(dx.freezing(ds).n_frozen, [1, 1, 0])
        np.testing.assert_array_equal(dx.freezing(ds, definition="bits").n_frozen, [0, 0, 0])

    def test_11_below_a_threshold_is_not_frozen(self) -> None:
        """A move of 1e-5 is below 1e-4, and a move."""
        ds = dataset(line(1e-3, 1.0149e-3, 1.0149e-3))
        np.testing.assert_array_equal(dx.freezing(ds).n_frozen, [0, 1])
        np.testing.assert_array_equal(dx.freezing(ds, definition="displacement", threshold=1e-4).n_frozen, [1, 1])

    def test_18_a_transition_has_the_label_of_its_later_step(self) -> None:
        ds = dataset(line(1, 1, 2, 2), first=100)
        found = dx.lifecycle(ds).compute()
        assert found.last_motion.values.tolist() == [102]
        assert found.first_freeze.values.tolist() == [103]
        run = dx.freezing(ds).freeze_run
        assert run.step.values[run.values > 0].tolist() == [101, 103]

    def test_27_half_a_cell_counts_as_stumbling(self) -> None:
        """By L2, stumbling was 0.1 to 1, which whole cells never reach; half a cell and one cell are in it here."""
        half = line(1.0, 1 - 2**-8, 1 - 2**-8 - 2**-8)  # inwards from a power of two, and on by a whole cell
        found = dx.phases(dataset(half), scheme="cells").compute()
        assert found.fraction.sel(phase="stumbling").values.tolist() == [1.0, 1.0]

    def test_24_invalid_tokens_are_not_frozen(self) -> None:
        W = np.ones((4, 3, 2), np.float32)
        W[:, 1] = np.nan
        W[2, 2, 0] = np.inf
        found = dx.lifecycle(dataset(W, precision="bfloat16")).compute()
        np.testing.assert_array_equal(found.frozen_fraction, [1, 1, 1])
        np.testing.assert_array_equal(found.n_invalid, [1, 2, 2])
        assert not found.global_freeze.any()
        np.testing.assert_array_equal(found.first_freeze, [-1, -1, -1])
        np.testing.assert_array_equal(found.censored, [0, -1, -1])
        np.testing.assert_array_equal(found.stratigraphy.sel(token=3), [-1, -1, -1])
        frozen = dx.freezing(dataset(W, precision="bfloat16")).compute()
        np.testing.assert_array_equal(frozen.n_frozen, [2, 1, 1])
        assert frozen.n_runs == 0
        assert frozen.permanent_freeze == 0
        for definition in ("bits", "lattice_l2"):
            options = {"threshold": 0.1} if definition == "lattice_l2" else {}
            found = dx.freezing(dataset(W, precision="bfloat16"), definition=definition, **options)
            np.testing.assert_array_equal(found.n_frozen, [2, 1, 1])
        allnan = dx.lifecycle(dataset(np.full((3, 2, 2), np.nan, np.float32), precision="bfloat16")).compute()
        assert np.isnan(allnan.frozen_fraction).all()
        assert not allnan.global_freeze.any()

    def test_34_tokens_that_never_moved_or_still_move_did_not_freeze(self) -> None:
        W = np.ones((5, 3, 1), np.float32)
        W[:, 1, 0] = [1, 2, 3, 4, 5]
        W[2:, 2] = 2
        found = dx.lifecycle(dataset(W, precision="bfloat16")).compute()
        np.testing.assert_array_equal(found.first_freeze, [-1, -1, 3])
        np.testing.assert_array_equal(found.last_motion, [-1, 4, 2])
        np.testing.assert_array_equal(found.censored, [0, 1, 0])
        assert [int(found[n]) for n in ("n_never_moved", "n_censored", "n_frozen")] == [1, 1, 1]
        np.testing.assert_array_equal(found.last_motion_range, [2, np.nan, np.nan])
        np.testing.assert_array_equal(found.first_freeze_range, [3, np.nan, np.nan])

    def test_37_a_cohort_has_the_label_of_its_step(self) -> None:
        found = dx.lifecycle(dataset(line(1, 3, 5, 5.03125, 5.03125))).compute()
        assert found.first_stumble.values.tolist() == [3]
        np.testing.assert_array_equal(found.stumble_cohort, [0, 0, 1, 0])
        assert found.last_thrust.values.tolist() == [2]
        assert found.thrust_period.values.tolist() == [1]

    def test_26_the_radius_from_the_origin_is_not_that_from_the_centroid(self) -> None:
        W = np.ones((3, 4, 2), np.float32) * np.array([1, 2, 4], np.float32)[:, None, None]
        np.testing.assert_allclose(dx.epochs(dataset(W)).radius, np.sqrt(2) * np.array([1, 2, 4]))
        np.testing.assert_array_equal(dx.epochs(dataset(W), radius="centroid").radius, [0, 0, 0])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("steps", [2, 5])
def test_one_token_and_tokens_that_never_move(steps: int) -> None:
    ds = dataset(np.ones((steps, 1, 2), np.float32), precision="bfloat16")
    life = dx.lifecycle(ds).compute()
    assert life.last_motion.values.tolist() == [-1]
    assert life.global_freeze.all()
    assert np.isnan(life.last_motion_range).all()
    assert dx.freezing(ds).permanent_freeze == steps - 1
    assert dx.freezing(ds).final_motion == -1
    assert int(dx.epochs(ds).freeze_step) == 1


def test_lifecycle_without_a_lattice(recording: Path) -> None:
    rec = dx.open_recording(recording, tokens="dead").isel(step=slice(0, 30))
    none = rec.assign(W=rec.W.assign_attrs(precision="none"))
    found = dx.lifecycle(none)
    assert_agree(found.first_freeze, dx.lifecycle(rec).first_freeze.values)
    assert "last_step" not in found
    with pytest.raises(InputError, match="unknown precision"):
        dx.freezing(none, definition="lattice_l2", threshold=0.1)
    assert_agree(dx.freezing(none).n_frozen, dx.freezing(rec).n_frozen.values)
    assert_agree(dx.epochs(none).radius, dx.epochs(rec).radius.values)
    off = none.assign(W=(none.W.dims, none.W.values + np.float32(1e-6), {"precision": "bfloat16"}))
    with pytest.raises(OffGridError):
        dx.lifecycle(off).compute()


def test_options_are_checked(recording: Path) -> None:
    rec = dx.open_recording(recording, tokens="dead")
    with pytest.raises(InputError, match="choose one of lattice, magnitude, cells"):
        dx.lifecycle(rec, scheme="v1")
    with pytest.raises(InputError, match="choose one of value, bits, displacement"):
        dx.freezing(rec, definition="exact")
    with pytest.raises(InputError, match="needs a threshold, which is None: say threshold= with a positive number"):
        dx.freezing(rec, definition="lattice_l2")
    with pytest.raises(InputError, match="takes no threshold"):
        dx.freezing(rec, threshold=0.1)
    with pytest.raises(InputError, match="choose one of origin, centroid"):
        dx.epochs(rec, radius="max")
    with pytest.raises(InputError, match="smooth=4; expected an odd number"):
        dx.epochs(rec, smooth=4)
    with pytest.raises(InputError, match=r"frozen_above=1\.5; expected a share"):
        dx.epochs(rec, frozen_above=1.5)
