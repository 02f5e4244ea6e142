"""Replays of real trainings to the bit, and causes against a reference in plain numpy that shares no code."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import deadtok_xr as dx
from deadtok_xr.errors import InputError
from tests import reference
from tests.conftest import N_DEAD, once
from tests.optimizer_runs import BF16, FLAGS, LEARNED, RUNS, elements, train, with_flags


def expected_causes(ds: xr.Dataset) -> dict[str, np.ndarray]:
    """AdamW without decay, each operation rounded to bfloat16, from the formulas in the issue."""
    W, g, m, v = (ds[n].values.astype(np.float64) for n in LEARNED)
    lr, (b1, b2), eps = ds.lr.values, ds.attrs["hyperparameters"]["betas"], ds.attrs["hyperparameters"]["eps"]
    cause, margin, missed = [], [], 0
    for t in range(1, len(W)):
        d = reference.round_to_bfloat16(np.sqrt(v[t]))
        d = reference.round_to_bfloat16(d / np.sqrt(1 - b2**t))
        d = reference.round_to_bfloat16(d + eps)
        u = -(lr[t] / (1 - b1**t)) * m[t] / d
        missed += (reference.round_to_bfloat16(W[t - 1] + u) != W[t]).sum()
        moved = W[t] != W[t - 1]
        nothing = (g[t] == 0) & (u == 0)
        cause.append(np.where(moved.any(1), 2, np.where((~moved & ~nothing).any(1), 1, 0)))
        up = np.nextafter(W[t - 1].astype(BF16), np.array(np.inf, BF16)).astype(np.float64) - W[t - 1]
        down = W[t - 1] - np.nextafter(W[t - 1].astype(BF16), np.array(-np.inf, BF16)).astype(np.float64)
        margin.append((np.abs(u) / (np.where(u > 0, up, down) / 2)).max(1))
    return {"cause": np.array(cause), "margin": np.array(margin), "missed": np.array(missed)}


def test_causes_and_margins_are_those_of_the_reference(recording: Path) -> None:
    ds = dx.open_recording(recording)
    found, expected = dx.mechanism(ds).compute(), expected_causes(ds)
    assert found.n_missed.sum() == 0
    assert expected["missed"] <= 5  # float64 rounds twice where torch rounds a float32
    np.testing.assert_array_equal(found.cause, expected["cause"])
    np.testing.assert_allclose(found.margin, expected["margin"], rtol=1e-6)
    assert {1, 2} <= set(np.unique(found.cause))


def test_tokens_that_did_not_move_are_frozen_in_motion(recording: Path) -> None:
    ds = dx.open_recording(recording)
    found, motion = dx.mechanism(ds).compute(), dx.motion(ds).compute()
    np.testing.assert_array_equal(found.cause != 2, motion.moved_dims == 0)
    np.testing.assert_array_equal(found.n_moved, motion.moved_dims.sum("token"))


def test_fractions_and_sums_are_those_of_the_reference(recording: Path) -> None:
    ds = dx.open_recording(recording, tokens="dead")
    found = dx.mechanism(ds).compute()
    W, g, v = (ds[n].values.astype(np.float64) for n in ("W", "grad", "exp_avg_sq"))
    stalled = (v[1:] == v[:-1]) & (g[1:] ** 2 != v[:-1])
    np.testing.assert_allclose(found.stalled_fraction, stalled.mean((1, 2)))
    power = (np.frexp(np.abs(W[:-1]))[0] == 0.5) & (W[:-1] != 0)
    np.testing.assert_allclose(found.at_power_of_two, power.mean((1, 2)))
    np.testing.assert_allclose(found.realised_net, np.linalg.norm(W[-1] - W[0], axis=1))
    np.testing.assert_allclose(found.realised_norm, np.sqrt((np.diff(W, axis=0) ** 2).sum((1, 2))))
    assert (found.intended_net > found.realised_net).mean() > 0.9  # rounding took part of the drift
    assert stalled[-1].mean() > 0.5
    moved = found.cause.values == 2
    last = np.where(moved.any(0), 300 - moved[::-1].argmax(0), -1)
    np.testing.assert_array_equal(found.last_motion, last)
    why = [found.cause.values[k, i] if k < 300 else 2 for i, k in enumerate(last)]  # label last + 1 is row last
    np.testing.assert_array_equal(found.freeze_cause, why)
    after = [np.fmax.reduce(found.margin.values[k:, i], initial=-np.inf) for i, k in enumerate(last)]
    np.testing.assert_allclose(found.margin_after, after)


def test_each_cause_and_the_gap_below_a_power_of_two() -> None:
    half_below = 2.0**-9  # half the gap below 1, a quarter of that above
    nan = np.nan
    for w1, g1, cause, margin in (
        (1.0, 0.0, 0, 0.0),
        (1.0, half_below * 1.0, 1, 1.0),  # inward, a tie, goes to even: stays
        (1.0, -half_below * 1.0, 1, 0.5),
        (1 - 2.0**-8, half_below * 1.25, 2, 1.25),
        (1.0, half_below * 1.25, 3, 1.25),  # should have moved
        (1.0, nan, 3, nan),
        (nan, 0.0, 3, nan),
    ):
        found = dx.mechanism(elements([[1.0], [w1]], [[nan], [g1]], lr=1.0)).compute()
        assert found.cause.item() == cause, (w1, g1)
        np.testing.assert_equal(found.margin.item(), margin)


def test_weight_decay_alone() -> None:
    ds = elements([[1.0, 1.0], [0.5, 0.5]], [[0.0, 0.0], [0.0, 0.0]], lr=0.5)
    moments = {n: ds.grad.copy() for n in ("exp_avg", "exp_avg_sq")}
    ds = ds.assign(moments).assign_attrs(optimizer="AdamW")
    ds.attrs["hyperparameters"] = {"lr": 0.5, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 1.0}
    found = dx.mechanism(ds).compute()
    assert found.n_missed.item() == 0
    assert found.weight_decay_only.item() == 1.0
    ds.attrs["hyperparameters"] |= {"weight_decay": 0.0}
    assert dx.mechanism(ds).compute().weight_decay_only.item() == 0.0


def test_nothing_is_read_before_it_is_computed(recording: Path, lazily: Any) -> None:
    with lazily():
        ds = dx.open_recording(recording, tokens="dead")
        dx.mechanism(ds)
        dx.replay_open_loop(ds)


def test_each_step_is_decoded_once(recording: Path, decoded: Counter[Any]) -> None:
    rec = dx.open_recording(recording)
    dx.mechanism(rec).compute()
    assert decoded == once(rec.sizes["step"], *LEARNED)


def test_results_do_not_depend_on_chunks(recording: Path) -> None:
    ds = dx.open_recording(recording, tokens="dead")
    whole, cut = dx.mechanism(ds.compute()).compute(), dx.mechanism(ds.chunk({"step": 37, "token": 50})).compute()
    xr.testing.assert_allclose(whole, cut)
    np.testing.assert_array_equal(whole.cause, cut.cause)
    a, b = (dx.replay_open_loop(x, "stochastic", seed=5).compute() for x in (ds, ds.chunk({"step": 37, "token": 50})))
    np.testing.assert_array_equal(a.moved_dims, b.moved_dims)


def test_errors_name_what_is_missing(recording: Path, atom: Path) -> None:
    ds = dx.open_recording(recording, tokens="dead")
    with pytest.raises(InputError, match="needs 'exp_avg' and 'exp_avg_sq' to replay AdamW"):
        dx.mechanism(ds.drop_vars(["exp_avg", "exp_avg_sq"]))
    with pytest.raises(InputError, match="needs 'grad' to replay AdamW \\(fused\\)"):
        dx.mechanism(ds.drop_vars("grad"), arithmetic="fused")
    with pytest.raises(InputError, match="does not say which optimizer"):
        dx.mechanism(ds.drop_attrs(deep=False))
    with pytest.raises(InputError, match="does not say the betas and eps"):
        dx.mechanism(ds.assign_attrs(hyperparameters={}))
    with pytest.raises(InputError, match="the optimizer is Lion"):
        dx.mechanism(ds.assign_attrs(optimizer="Lion"))
    with pytest.raises(InputError, match="unknown hyperparameter 'beta1'"):
        dx.mechanism(ds, hyperparameters={"beta1": 0.9})
    for name, value, needed in (
        ("betas", 0.9, "two numbers"), ("betas", (0.9, 1.0), "two numbers"), ("eps", "1e-8", "a number"),
        ("fused", "yes", "True or False"), ("weight_decay", float("nan"), "a number"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=f"{name} is .* in hyperparameters; expected: {needed}"):
            dx.mechanism(ds, hyperparameters={name: value})
    with pytest.raises(InputError, match="betas is '0.9' in the recording"):
        dx.mechanism(ds.assign_attrs(hyperparameters={**ds.attrs["hyperparameters"], "betas": "0.9"}))
    with pytest.raises(InputError, match="hyperparameters is a list"):
        dx.mechanism(ds, hyperparameters=["AdamW"])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="precision='fp8': choose from"):
        dx.mechanism(ds, precision="fp8")
    for before in (-1, "1"):
        with pytest.raises(InputError, match="updates_before=.*; expected a number of updates"):
            dx.mechanism(ds, updates_before=before)  # type: ignore[arg-type]
    for steps in ("3", 3, []):
        with pytest.raises(InputError, match="expected a list of updates to replay"):
            dx.find_arithmetic(ds, steps=steps)  # type: ignore[arg-type]
    for seed in (-1, "a", 2**64):
        with pytest.raises(InputError, match="seed=.*; expected a whole number"):
            dx.replay_open_loop(ds, "stochastic", seed=seed)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="lr holds -1"):
        dx.mechanism(ds, lr=-1.0)
    with pytest.raises(InputError, match="without numbers"):
        dx.mechanism(ds, lr="fast")
    with pytest.raises(InputError, match="master weights, updates do not round to zero"):
        dx.mechanism(ds, arithmetic="float32_master")
    with pytest.raises(InputError, match="one number, one per step"):
        dx.mechanism(ds, lr=[1.0, 2.0])
    without = dx.open_recording(atom, tokens="dead").drop_vars("exp_avg")
    assert "exp_avg" in dx.analyze(without).attrs["left_out"]["mechanism"]


def test_tokens_at_rest_without_gradients_are_explained_by_the_moments(recording: Path) -> None:
    ds = dx.open_recording(recording, tokens="dead")
    found, whole = dx.mechanism(ds.drop_vars("grad")).compute(), dx.mechanism(ds).compute()
    assert found.attrs["missing"] == ["grad"]
    np.testing.assert_array_equal(found.cause, whole.cause)
    assert found.exp_avg_agreement.isnull().all()


def test_updates_across_a_gap_are_not_replayed(recording: Path) -> None:
    ds = dx.open_recording(recording, tokens="dead").isel(step=[0, 1, 250, 251])
    with pytest.raises(InputError, match="steps 2..249 are missing; an update can only be replayed between"):
        dx.mechanism(ds)
    found = dx.mechanism(ds, allow_gaps=True).compute()
    assert found.n_compared.values.tolist() == [N_DEAD * 16, 0, N_DEAD * 16]
    assert found.n_missed.sum() == 0
    assert (found.cause[1] == 2).all()
    with pytest.raises(InputError, match="are missing"):
        dx.replay_open_loop(ds)


@pytest.mark.slow
def test_missing_schedule_is_reported(tmp_path: Path) -> None:
    ds = train(tmp_path / "r.zarr", *with_flags(RUNS["AdamW"], FLAGS["single"]), torch.bfloat16, schedule=True)
    assert dx.mechanism(ds).compute().n_missed.sum() == 0
    without = ds.drop_vars("lr")
    report = dx.find_arithmetic(without, steps=[30, 31], hyperparameters={"lr": 2e-3}).attrs["report"]
    assert "the motion fits a learning rate of about" in report
    assert "no variable 'lr'" in report
    tree = dx.analyze(without.assign_attrs(hyperparameters={**ds.attrs["hyperparameters"], "lr": 2e-3}))
    assert "the motion contradicts the learning rate" in dx.summary(tree)
    shown = tree["mechanism"].lr_estimate.values
    np.testing.assert_allclose(shown[20:30], ds.lr.values[21:31], rtol=0.1)
    for rates in (ds.lr.values, ds.lr.values[1:]):  # of each step, or of each update
        assert dx.mechanism(without, lr=rates).compute().n_missed.sum() == 0


def test_skipped_updates_have_no_gradient_and_are_not_counted(tmp_path: Path) -> None:
    weight = torch.nn.Parameter((torch.randn(4, 8, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16())
    optimizer = torch.optim.AdamW([weight], lr=1e-3, weight_decay=0.0)
    rows: dict[str, list[Any]] = {n: [] for n in LEARNED}
    for step in range(12):
        weight.grad = None if step in (0, 5) else torch.randn(4, 8).bfloat16() * 1e-2
        optimizer.step()
        state = {"W": weight.detach(), "grad": weight.grad, **optimizer.state[weight]}
        for n in LEARNED:
            x = state.get(n)
            rows[n].append(np.zeros((4, 8)) if x is None else x.float().numpy().copy())
    data = {n: (("step", "token", "dim"), np.array(x, BF16), {"precision": "bfloat16"}) for n, x in rows.items()}
    skipped = ("step", np.isin(np.arange(12), (5,)))
    attrs = {
        "optimizer": "AdamW",
        "hyperparameters": {k: v for k, v in optimizer.param_groups[0].items() if k != "params"},
    }
    ds = xr.Dataset({**data, "skipped": skipped}, {"step": np.arange(12), "token": np.arange(4)}, attrs)
    found = dx.mechanism(ds).compute()
    assert (found.cause.sel(step=5) == 0).all()
    assert (found.margin.sel(step=5) == 0).all()
    assert found.n_no_gradient.values.tolist() == [0] * 4 + [32] + [0] * 6
    assert found.n_compared.values.tolist() == [32] * 4 + [0] + [32] * 6
    assert found.n_missed.sum() == 0
    assert dx.mechanism(ds.drop_vars("skipped")).compute().n_missed.sum() > 0  # a count that is one too high


def test_tokens_do_not_freeze_at_skipped_updates(tmp_path: Path) -> None:
    """One moves until step 4, is left out at 5, and then rounds to zero; the other moves to the end."""
    weight = torch.nn.Parameter(torch.ones(2, 4).bfloat16())
    other = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight, other], lr=1.0)
    with dx.Recorder(weight, optimizer, tmp_path / "r.zarr", variables=("W", "grad")):
        for step in range(1, 9):
            small = 2.0**-12 if step > 5 else 2.0**-5
            weight.grad = None if step in (5, 8) else torch.tensor([[small] * 4, [2.0**-5] * 4]).bfloat16()
            other.grad = torch.ones(1)
            optimizer.step()
    ds = dx.open_recording(tmp_path / "r.zarr")
    for chunks in (9, 2, 1):
        found = dx.mechanism(ds.chunk(step=chunks)).compute()
        assert found.cause.values.T.tolist() == [[2, 2, 2, 2, 0, 1, 1, 0], [2, 2, 2, 2, 0, 2, 2, 0]]
        assert found.last_motion.values.tolist() == [4, 7]
        assert found.freeze_cause.values.tolist() == [1, 2]  # rounded to zero; still moving, as far as can be seen
        assert found.n_missed.sum() == 0
