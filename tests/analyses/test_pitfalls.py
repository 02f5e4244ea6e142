"""Catalogue 3.7: the pitfalls that the tests of the analyses do not cover, each with a test that detects it.

Elsewhere: 1, 2, 3, 7, 8, 10, 11 in test_lattice; 9, 18, 27, 34, 36, 37, 38 in test_lifecycle; 10, 30 in test_census;
14, 18, 24, 25, 26, 32 in test_cloud; 16, 17 in test_bfloat16 and test_analyses (raw bits); 20, 22, 23, 33 in
test_families and test_convert, whose recordings have these faults; 29 in test_mechanism (lost schedules) and
test_coherence (the first step). 15 and the rest of 16 need a device that the tests do not have.
"""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import xarray as xr

import deadtok_xr as dx
from tests.strategies import dataset

BF16 = ml_dtypes.bfloat16


def places(*rows: list[float]) -> xr.Dataset:
    """Tokens at one step."""
    return dataset(np.array([rows], np.float64).astype(BF16))


def test_4_gaps_are_in_the_ulp_of_the_values_not_of_their_difference() -> None:
    """A difference that is a power of two is 128 of its own ULP: "all separations are exactly 128 ULP"."""
    found = dx.lattice_gaps(places([1.5], [1.5 + 2**-7], [1.5 + 3 * 2**-7])).compute()
    assert (found.gap_min.item(), found.gap_max.item()) == (1, 2)
    assert found.width_ulp.item() == 3.0
    np.testing.assert_array_equal(found.power_of_two_count[:2], [1, 1])


def test_5_black_holes_are_whole_rows_as_recorded() -> None:
    """Grouped by three coordinates, after centring in bfloat16, 13 black holes became 4."""
    base, step = [1.0, 1.0, 1.0, 0.01], 2.0**-14
    ds = places(base, base, [*base[:3], 0.01 + step], [*base[:3], 0.01 + step], [*base[:3], 0.01 + 2 * step])
    found = dx.census(ds).compute()
    assert [int(found[name][0]) for name in ("n_black_holes", "population", "n_singletons")] == [2, 4, 1]
    away = places([100.0, 2**-9], [100.0, 2**-8], [-100.0, 0.0])  # in bfloat16, less the mean, the first two are one
    assert int(dx.census(away).n_black_holes[0]) == 0


def test_6_adjacent_is_near_in_every_dim() -> None:
    """ "At least one dim differs by 1" made a complete graph of the 13 black holes, 78 of 78 pairs."""
    cell = 2.0**-7
    ds = places([1.0, 1.0], [1 + cell, 1 + 50 * cell], [1 + 2 * cell, 1 + 100 * cell], [1 + cell, 1 + cell])
    found = dx.topology(ds, spacing="ordinal").compute()
    assert float(found.density[0]) == pytest.approx(1 / 6)  # the diagonal pair, and no other
    assert int(found.n_singletons[0]) == 2
    near = dx.checkpoint(ds, reference=[0]).compute()
    np.testing.assert_array_equal(near.reference_ordinal, [0, 50, 100, 1])


def test_12_float16_copies_are_recognised_by_their_values() -> None:
    """As float16, rows 1e-9 apart became one, and 12.8 black holes 9.1."""
    ds = places([1e-9], [2e-9], [3e-9])
    assert int(dx.census(ds).n_unique[0]) == 3
    assert dx.grid_test(ds).lives_on.values.tolist() == ["bfloat16"]
    half = ds.assign(W=ds.W.copy(data=ds.W.values.astype(np.float16)))
    assert int(dx.census(half).n_unique[0]) == 1  # what is lost is lost: never on our way


def test_12_nothing_is_rounded_on_the_way_to_a_file_and_back(tmp_path: Path) -> None:
    W = np.array([[[1e-9, 3e38, 2**-133]]], np.float64).astype(BF16)
    np.savez(tmp_path / "a.npz", W=W.view(np.uint16))
    dx.convert(tmp_path / "a.npz", tmp_path / "a.zarr")
    np.testing.assert_array_equal(dx.open_recording(tmp_path / "a.zarr").W, W.astype(np.float32))


def test_13_means_are_not_rounded() -> None:
    """By a mean in bfloat16 the centroid went in steps of 0.0039, and 4096 ones add up to 256."""
    W = np.full((2, 4096, 1), 1.0)
    W[1, 0] = 2.0
    found = dx.kinematics(dataset(W.astype(BF16))).compute()
    np.testing.assert_array_equal(found.centroid[:, 0], [1.0, 1 + 1 / 4096])
    assert float(found.bulk_speed[1]) == 1 / 4096
    assert float(dx.cloud(dataset(W.astype(BF16))).origin_radius[1]) == 1 + 1 / 4096


def test_19_a_state_is_that_after_its_own_update(recording: Path) -> None:
    """exp_avg[t] was taken to predict the step from t to t + 1: an error of 2e-3, and "step 0 predicts 0"."""
    rec = dx.open_recording(recording, tokens="dead").isel(step=slice(0, 30), token=slice(0, 20))
    assert (dx.mechanism(rec).replay_agreement == 1).all()
    names = ("exp_avg", "exp_avg_sq", "grad")
    late = rec.assign({name: rec[name].shift(step=1, fill_value=0) for name in names})
    assert float(dx.mechanism(late).replay_agreement_moved.mean()) < 0.9


def test_21_missing_loss_at_the_first_step_does_not_spoil_correlations(recording: Path) -> None:
    rec = dx.open_recording(recording, tokens="dead")
    assert np.isnan(rec.loss[0])
    moving = (dx.motion(rec).moved_dims > 0).mean("token")
    assert np.isfinite(xr.corr(moving, rec.loss.diff("step")))


def test_31_labels_belong_to_their_rows(recording: Path) -> None:
    """Rows in byte order, read with a list of dead ids and then live ones, had others' names."""
    whole, dead = dx.open_recording(recording), dx.open_recording(recording, tokens="dead")
    assert (np.diff(whole.token) > 0).all()
    np.testing.assert_array_equal(whole.W.sel(token=dead.token), dead.W)
    last = dx.lifecycle(whole).last_motion
    np.testing.assert_array_equal(last.sel(token=dead.token), dx.lifecycle(dead).last_motion)


def test_35_dead_is_never_guessed(recording: Path) -> None:
    """It depends on the corpus: 50, 51, 52 or 34 of the same bytes."""
    unknown = dx.open_recording(recording).drop_vars("dead").isel(step=slice(0, 5))
    found = dx.coherence(unknown)
    assert "separation" not in found
    assert "dead" in str(found.attrs["left_out"]["separation"])
    assert dx.checkpoint(unknown, step=0).kind.values.tolist() == ["all"]


def test_8_rank_correlations_of_distances_do_not_saturate() -> None:
    """L∞ of W/ULP(W) is at most 510 and has few values; distances of the values themselves order all pairs."""
    W = np.array([[[2.0**k] for k in range(8)], [[2.0**k] for k in range(8)]])
    assert float(dx.neighbour_preservation(dataset(W.astype(BF16))).rank_correlation[0]) == 1.0


def test_24_tokens_at_rest_do_not_count_as_turning() -> None:
    """A token that rests between two moves along a line keeps its direction: 0 would not be its cosine."""
    W = np.array([0, 1, 1, 2, 2, 3], np.float32).reshape(-1, 1, 1) + 1
    found = dx.velocity_autocorrelation(dataset(W), max_lag=4).compute()
    np.testing.assert_array_equal(found.cosine, [1, np.nan, 1, np.nan, 1])
    np.testing.assert_array_equal(found.n_cosine, [3, 0, 2, 0, 1])
