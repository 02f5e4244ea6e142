"""Epochs of the radius, against an independent reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given

import deadtok_xr as dx
from tests import reference
from tests.reference import assert_agree
from tests.strategies import dataset, hostile


@given(ds=hostile())
@pytest.mark.filterwarnings("ignore:.*(overflow|invalid).*:RuntimeWarning")
def test_epochs_of_hostile_bits(ds: xr.Dataset) -> None:
    W = np.asarray(ds.W.values).astype(np.float64)
    m = reference.motion(np.asarray(ds.W.values))
    found = dx.epochs(ds).compute()
    with np.errstate(invalid="ignore"):
        r = np.sqrt((W**2).sum(2)).mean(1)
    r[~np.isfinite(r)] = np.nan
    assert_agree(found.radius, r)
    assert_agree(found.velocity[1:], np.diff(r))
    valid, still = (m["moved_dims"] >= 0).sum(1), (m["moved_dims"] == 0).sum(1)
    frozen = np.array([s / v if v else np.nan for s, v in zip(still, valid, strict=True)])
    assert_agree(found.frozen_fraction[1:], frozen)
    np.testing.assert_array_equal(found.n_invalid[1:], ds.sizes["token"] - valid)
    over = [t for t in range(len(frozen)) if frozen[t] > 0.9]
    assert found.freeze_step == (ds.step.values[over[0] + 1] if over else -1)
    np.testing.assert_array_equal(found.epoch == -1, np.isnan(r))


def test_epochs_of_a_known_curve() -> None:
    """It shrinks for 2 steps, grows fastest at step 6, slows down, grows again from step 32 on, and freezes."""
    v = np.concatenate([[-4, -2], [6, 10, 14, 20], np.linspace(16, 2, 25), [1, 3, 4, 3], np.zeros(10)])
    r = 512 + np.concatenate([[0], np.cumsum(np.round(v))])
    found = dx.epochs(dataset(r.astype(np.float32).reshape(-1, 1, 1), (7, 1, 1)).assign_coords(step=np.arange(len(r))))
    found = found.compute()
    names = ("inhale_step", "sneeze_step", "reexpansion_step", "freeze_step")
    assert [int(found[name]) for name in names] == [2, 6, 32, 36]
    np.testing.assert_allclose(found.inhale_depth, 6 / 512)
    expected = np.where(np.arange(len(r)) <= 6, 1, 2)
    expected[:3], expected[36:] = 0, 3
    np.testing.assert_array_equal(found.epoch, expected)
    assert int(dx.epochs(dataset(r.astype(np.float32).reshape(-1, 1, 1)), smooth=5).sneeze_step) != -1


def test_smoothing_averages_finite_values(recording: Path) -> None:
    rec = dx.open_recording(recording, tokens="dead")
    found = dx.epochs(rec, smooth=5).compute()
    v = np.diff(np.sqrt((rec.W.values.astype(float) ** 2).sum(2)).mean(1))
    smooth = [v[max(0, i - 2) : i + 3].mean() for i in range(len(v))]
    assert int(found.sneeze_step) == int(np.argmax(smooth)) + 1
    centroid = dx.epochs(rec, radius="centroid").compute()
    assert_agree(centroid.radius, reference.kinematics(rec.W.values)["radius"])
