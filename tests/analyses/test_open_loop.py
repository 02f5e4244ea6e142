"""The recorded gradients replayed with other ways of storing weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import deadtok_xr as dx
from deadtok_xr.errors import InputError
from tests import reference
from tests.optimizer_runs import RUNS, train


def test_float32_master_agrees_with_a_reference(recording: Path) -> None:
    ds = dx.open_recording(recording, tokens="dead")
    found = dx.replay_open_loop(ds).compute()
    W, g = ds.W.values.astype(np.float64), ds.grad.values.astype(np.float64)
    w, m, v = W[0].copy(), 0.0, 0.0
    for t in range(1, len(W)):
        m, v = 0.9 * m + 0.1 * g[t], 0.999 * v + 0.001 * g[t] ** 2
        w -= ds.lr.values[t] / (1 - 0.9**t) * m / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    distance = np.linalg.norm(reference.round_to_bfloat16(w) - W[0], axis=1)
    np.testing.assert_allclose(found.distance[-1], distance, rtol=1e-3)
    moved = dx.motion(ds).compute().moved_dims > 0
    np.testing.assert_allclose(found.recorded_moved_fraction, moved.mean("token"))
    assert found.recorded_moved_fraction[250] == 0
    assert found.moved_fraction[250] > 0.5  # it would not have frozen there


def test_open_loop_of_amsgrad(tmp_path: Path) -> None:
    ds = train(tmp_path / "r.zarr", *RUNS["AdamW, amsgrad"], torch.bfloat16)
    found = dx.replay_open_loop(ds).compute()
    W, g = ds.W.values.astype(np.float64), -ds.grad.values.astype(np.float64)  # maximize
    w, m, v, largest, decay = W[0].copy(), 0.0, 0.0, 0.0, ds.attrs["hyperparameters"]["weight_decay"]
    for t in range(1, len(W)):
        m, v = 0.9 * m + 0.1 * g[t], 0.999 * v + 0.001 * g[t] ** 2
        largest = np.maximum(largest, v)
        d = np.sqrt(largest / (1 - 0.999**t)) + 1e-8
        w -= 2e-3 * decay * w + 2e-3 / (1 - 0.9**t) * m / d
    distance = np.linalg.norm(reference.round_to_bfloat16(w) - W[0], axis=1)
    np.testing.assert_allclose(found.distance[-1], distance, rtol=1e-3, atol=1e-7)
    recorded = dx.replay_open_loop(ds, "nearest", moments="recorded").compute()
    assert (recorded.moved_fraction == recorded.recorded_moved_fraction).mean() > 0.9
    with pytest.raises(InputError, match="'max_exp_avg_sq', which was not recorded, and can be computed from"):
        dx.replay_open_loop(ds.isel(step=slice(3, None)), moments="recorded")


def test_open_loop_does_not_count_nan_as_motion(recording: Path) -> None:
    ds = dx.open_recording(recording, tokens="dead").isel(step=slice(0, 20)).compute()
    whole = dx.replay_open_loop(ds).compute()
    ds["grad"][10, 3, 2] = np.nan
    found = dx.replay_open_loop(ds).compute()
    assert (found.moved_dims[9:, 3] == -1).all()
    assert found.distance[9:, 3].isnull().all()
    others = {"token": np.arange(ds.sizes["token"]) != 3}
    xr.testing.assert_equal(
        found[["moved_dims", "distance"]].isel(others), whole[["moved_dims", "distance"]].isel(others)
    )
    assert (found.moved_fraction[9:] == (whole.moved_dims.isel(others)[9:] > 0).mean("token")).all()


def test_open_loop_across_gaps_is_refused(recording: Path) -> None:
    ds = dx.open_recording(recording, tokens="dead")
    with pytest.raises(InputError, match="steps 3..6 are missing; the replay needs every update: select steps"):
        dx.replay_open_loop(ds.isel(step=[0, 1, 2, 7, 8]))
    with pytest.raises(InputError, match="needs the variable 'grad', which was not recorded: record it$"):
        dx.replay_open_loop(ds.drop_vars("grad"))
    with pytest.raises(InputError, match="needs the variable 'exp_avg', which was not recorded: record it"):
        dx.replay_open_loop(ds.drop_vars("exp_avg"), moments="recorded")


def test_other_schemes_lose_no_update(recording: Path) -> None:
    ds = dx.open_recording(recording, tokens="dead")
    ends = {s: dx.replay_open_loop(ds, s).compute().distance[-1].values for s in ("nearest", "stochastic", "kahan")}
    master = dx.replay_open_loop(ds).compute().distance[-1].values
    assert np.abs(ends["kahan"] / master - 1).max() < 0.02
    assert abs(ends["stochastic"].mean() / master.mean() - 1) < 0.02
    assert ends["nearest"].mean() < 0.9 * master.mean()
    again, other = (dx.replay_open_loop(ds, "stochastic", seed=s).compute().distance[-1].values for s in (0, 1))
    np.testing.assert_array_equal(again, ends["stochastic"])
    assert (other != again).any()
    with pytest.raises(InputError, match="choose one of nearest"):
        dx.replay_open_loop(ds, "float64")
    with pytest.raises(InputError, match="begins at step 5"):
        dx.replay_open_loop(ds.isel(step=slice(5, None)))
    assert dx.replay_open_loop(ds.isel(step=slice(5, 9)), moments="recorded").compute().sizes["step"] == 3
