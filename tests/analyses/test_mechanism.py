"""Replays of real trainings to the bit, and causes against a reference in plain numpy that shares no code."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import xarray as xr

import deadtok_xr as dx
from deadtok_xr import demo
from deadtok_xr.errors import InputError
from deadtok_xr.replay import check
from tests import reference
from tests.conftest import once

BF16 = ml_dtypes.bfloat16
STEPS = 40
LEARNED = ("W", "grad", "exp_avg", "exp_avg_sq")
RUNS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "AdamW": (torch.optim.AdamW, {"lr": 2e-3, "weight_decay": 0.0}),
    "AdamW, large decay": (torch.optim.AdamW, {"lr": 2e-3, "weight_decay": 8.0, "betas": (0.9, 0.95), "eps": 1e-6}),
    "AdamW, amsgrad": (torch.optim.AdamW, {"lr": 2e-3, "amsgrad": True, "maximize": True}),
    "Adam, L2": (torch.optim.Adam, {"lr": 2e-3, "weight_decay": 0.1}),
    "SGD": (torch.optim.SGD, {"lr": 0.5}),
    "SGD, momentum": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
}
FLAGS = {"single": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}


def train(path: Path, cls: Any, options: dict[str, Any], dtype: torch.dtype, *, schedule: bool = False) -> xr.Dataset:
    """A tiny language model on the demo's corpus, recorded."""
    run = demo.Run(steps=STEPS, batch=2, length=8, dims=16, layers=1)
    torch.manual_seed(3)
    model = demo.TinyLM(256, run).to(dtype)
    optimizer = cls(model.parameters(), **options)
    weight = model.embedding.weight
    variables = LEARNED if "Adam" in cls.__name__ else LEARNED[:2]
    sign = -1 if options.get("maximize") else 1
    with dx.Recorder(weight, optimizer, path, variables=variables) as recorder:
        for step, batch in enumerate(demo._batches(demo.corpus(), run)):
            if schedule:
                optimizer.param_groups[0]["lr"] = options["lr"] * (1 - step / STEPS)
            logits = model(batch[:, :-1]) @ weight.T
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
            optimizer.zero_grad()
            (sign * loss).backward()
            optimizer.step()
            recorder.log(loss=loss)
    return dx.open_recording(path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("name", RUNS)
def test_every_recording_replays_to_the_bit(name: str, flags: str, dtype: torch.dtype, tmp_path: Path) -> None:
    cls, options = RUNS[name]
    if cls is torch.optim.SGD and flags == "fused" and dtype == torch.bfloat16:
        pytest.skip("torch up to 2.13 leaves the weights unchanged: test_fused_sgd_in_16_bits_is_named")
    ds = train(tmp_path / "r.zarr", cls, {**options, **FLAGS[flags]}, dtype)
    found = dx.mechanism(ds).compute()
    assert found.attrs["arithmetic"] == flags
    assert found.n_compared.sum() == STEPS * ds.sizes["token"] * ds.sizes["dim"]
    assert found.n_missed.sum() == 0
    assert found.n_moved.sum() > 1000
    assert (found.replay_agreement == 1).all()
    assert found.baseline_agreement.min() < 0.9
    if cls is not torch.optim.SGD:
        assert (found.exp_avg_agreement == 1).all()
        assert (found.exp_avg_sq_agreement == 1).all()


@pytest.mark.parametrize("flags", ["single", "fused"])
def test_the_arithmetic_is_found_without_flags(flags: str, tmp_path: Path) -> None:
    ds = train(tmp_path / "r.zarr", *_with(RUNS["AdamW, large decay"], FLAGS[flags]), torch.bfloat16)
    hidden = {"foreach": None, "fused": None}
    found = dx.find_arithmetic(ds, hyperparameters=hidden)
    assert found.attrs["verdict"] == flags
    missed = found.n_missed.to_series()
    assert missed[flags] == 0
    assert (missed.drop(flags) > 100).all()
    assert found.n_differ.sel(arithmetic="single", other="fused") > 100
    assert dx.mechanism(ds, arithmetic="find", hyperparameters=hidden).attrs["arithmetic"] == flags


def _with(run: tuple[Any, dict[str, Any]], flags: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return run[0], {**run[1], **flags}


def test_candidates_that_do_not_differ_are_undetermined(tmp_path: Path) -> None:
    ds = train(tmp_path / "r.zarr", *_with(RUNS["SGD"], FLAGS["single"]), torch.float32)
    found = dx.find_arithmetic(ds, steps=[1, 2])
    assert found.attrs["verdict"] == "undetermined"
    assert "undetermined, since they differ on" in found.attrs["report"]
    with pytest.raises(InputError, match="step 41 cannot be replayed"):
        dx.find_arithmetic(ds, steps=[1, 41])


def test_fused_sgd_in_16_bits_is_named(tmp_path: Path) -> None:
    ds = train(tmp_path / "r.zarr", *_with(RUNS["SGD"], FLAGS["fused"]), torch.bfloat16)
    if (ds.W[0] != ds.W[-1]).any():
        pytest.skip("this torch updates them")
    found = dx.mechanism(ds).compute()
    assert found.n_missed.sum() > 1000
    assert found.n_unknown.sum() >= found.n_missed.sum()  # not "rounded to zero": the update would have moved them
    assert "nothing moved at all, as under torch's fused SGD" in dx.find_arithmetic(ds).attrs["report"]


# --- causes ----------------------------------------------------------------------------------------------------


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


def test_what_did_not_move_is_frozen_in_motion(recording: Path) -> None:
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


def elements(W: Any, g: Any, *, lr: float = 0.1, **more: Any) -> xr.Dataset:
    """A recording of SGD of one token."""
    dims = ("step", "token", "dim")
    values = {"W": np.array(W, BF16)[:, None], "grad": np.array(g, BF16)[:, None]}
    data = {n: (dims, x, {"precision": "bfloat16"}) for n, x in values.items()}
    attrs = {"optimizer": "SGD", "hyperparameters": {"lr": lr, **more}}
    return xr.Dataset(data, {"step": np.arange(len(W)), "token": [7]}, attrs)


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


# --- laws ------------------------------------------------------------------------------------------------------


def test_nothing_is_read_before_it_is_computed(recording: Path, lazily: Any) -> None:
    with lazily():
        ds = dx.open_recording(recording, tokens="dead")
        dx.mechanism(ds)
        dx.replay_open_loop(ds)


def test_each_step_is_decoded_once(recording: Path, decoded: Counter[Any]) -> None:
    rec = dx.open_recording(recording)
    dx.mechanism(rec).compute()
    assert decoded == once(rec.sizes["step"], *LEARNED)


def test_chunks_do_not_matter(recording: Path) -> None:
    ds = dx.open_recording(recording, tokens="dead")
    whole, cut = dx.mechanism(ds.compute()).compute(), dx.mechanism(ds.chunk({"step": 37, "token": 50})).compute()
    xr.testing.assert_allclose(whole, cut)
    np.testing.assert_array_equal(whole.cause, cut.cause)
    a, b = (dx.replay_open_loop(x, "stochastic", seed=5).compute() for x in (ds, ds.chunk({"step": 37, "token": 50})))
    np.testing.assert_array_equal(a.moved_dims, b.moved_dims)


# --- what is missing -------------------------------------------------------------------------------------------


def test_what_is_missing_is_named(recording: Path, atom: Path) -> None:
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
        with pytest.raises(InputError, match=f"{name} is .* in hyperparameters; needed: {needed}"):
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


def test_without_gradients_standing_still_is_explained_by_the_moments(recording: Path) -> None:
    ds = dx.open_recording(recording, tokens="dead")
    found, whole = dx.mechanism(ds.drop_vars("grad")).compute(), dx.mechanism(ds).compute()
    assert found.attrs["missing"] == ["grad"]
    np.testing.assert_array_equal(found.cause, whole.cause)
    assert found.exp_avg_agreement.isnull().all()


def test_across_a_gap_nothing_is_replayed(recording: Path) -> None:
    ds = dx.open_recording(recording, tokens="dead").isel(step=[0, 1, 250, 251])
    with pytest.raises(InputError, match="steps 2..249 are missing; an update can only be replayed between"):
        dx.mechanism(ds)
    found = dx.mechanism(ds, allow_gaps=True).compute()
    assert found.n_compared.values.tolist() == [162 * 16, 0, 162 * 16]
    assert found.n_missed.sum() == 0
    assert (found.cause[1] == 2).all()
    with pytest.raises(InputError, match="are missing"):
        dx.replay_open_loop(ds)


def test_a_schedule_that_was_lost_is_seen(tmp_path: Path) -> None:
    ds = train(tmp_path / "r.zarr", *_with(RUNS["AdamW"], FLAGS["single"]), torch.bfloat16, schedule=True)
    assert dx.mechanism(ds).compute().n_missed.sum() == 0
    without = ds.drop_vars("lr")
    report = dx.find_arithmetic(without, steps=[30, 31], hyperparameters={"lr": 2e-3}).attrs["report"]
    assert "the motion is that of a learning rate of about" in report
    assert "no variable 'lr'" in report
    tree = dx.analyze(without.assign_attrs(hyperparameters={**ds.attrs["hyperparameters"], "lr": 2e-3}))
    assert "the motion contradicts the learning rate" in dx.summary(tree)
    shown = tree["mechanism"].lr_estimate.values
    np.testing.assert_allclose(shown[20:30], ds.lr.values[21:31], rtol=0.1)
    for rates in (ds.lr.values, ds.lr.values[1:]):  # of each step, or of each update
        assert dx.mechanism(without, lr=rates).compute().n_missed.sum() == 0


# --- open loop -------------------------------------------------------------------------------------------------


def test_open_loop_against_a_plain_master(recording: Path) -> None:
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


def test_open_loop_does_not_take_nan_for_motion(recording: Path) -> None:
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


def test_other_schemes_lose_no_update_either(recording: Path) -> None:
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


# --- the recorder's question -------------------------------------------------------------------------------------


def test_check_says_which_arithmetic_closes_an_update(recording: Path) -> None:
    ds = dx.open_recording(recording, raw=True)
    rows = [{n: ds[n][t].values for n in LEARNED} for t in (49, 50)]
    settings = {**ds.attrs["hyperparameters"], "optimizer": "AdamW", "lr": float(ds.lr[50]), "step": 50}
    said = check(*rows, settings)
    # whether others close this update too is chance
    closes = r"the updates close under single( and .* alike)? \(100\.0000% of 4096 elements, 0 missed"
    assert re.match(closes, said)
    assert "the gradient is the one that update 50 used" in said
    nested = {"hyperparameters": ds.attrs["hyperparameters"], **{k: settings[k] for k in ("optimizer", "lr", "step")}}
    assert check(*rows, nested) == said
    late = {**rows[1], "grad": ds.grad[49].values}
    assert "the gradient is not the one that update 50 used" in check(rows[0], late, settings)
    assert "learning rate of about" in check(*rows, {**settings, "lr": 1e-2})
    with pytest.raises(InputError, match="check needs lr"):
        check(*rows, {**settings, "lr": None})


def test_an_update_that_left_the_parameter_out_has_no_gradient_and_is_not_counted(tmp_path: Path) -> None:
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


def test_tokens_do_not_freeze_at_an_update_that_left_the_parameter_out(tmp_path: Path) -> None:
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
