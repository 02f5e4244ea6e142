"""Replays reproduce recordings of torch bit for bit, and find the arithmetic that made them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import deadtok_xr as dx
from deadtok_xr.errors import InputError
from deadtok_xr.replay import check
from tests.optimizer_runs import FLAGS, LEARNED, RUNS, STEPS, train, with_flags


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
    ds = train(tmp_path / "r.zarr", *with_flags(RUNS["AdamW, large decay"], FLAGS[flags]), torch.bfloat16)
    hidden = {"foreach": None, "fused": None}
    found = dx.find_arithmetic(ds, hyperparameters=hidden)
    assert found.attrs["verdict"] == flags
    missed = found.n_missed.to_series()
    assert missed[flags] == 0
    assert (missed.drop(flags) > 100).all()
    assert found.n_differ.sel(arithmetic="single", other="fused") > 100
    assert dx.mechanism(ds, arithmetic="find", hyperparameters=hidden).attrs["arithmetic"] == flags


def test_candidates_that_do_not_differ_are_undetermined(tmp_path: Path) -> None:
    ds = train(tmp_path / "r.zarr", *with_flags(RUNS["SGD"], FLAGS["single"]), torch.float32)
    found = dx.find_arithmetic(ds, steps=[1, 2])
    assert found.attrs["verdict"] == "undetermined"
    assert "undetermined, since these give the same bits here" in found.attrs["report"]
    with pytest.raises(InputError, match="step 41 cannot be replayed"):
        dx.find_arithmetic(ds, steps=[1, 41])


def test_fused_sgd_in_16_bits_is_named(tmp_path: Path) -> None:
    ds = train(tmp_path / "r.zarr", *with_flags(RUNS["SGD"], FLAGS["fused"]), torch.bfloat16)
    if (ds.W[0] != ds.W[-1]).any():
        pytest.skip("this torch updates them")
    found = dx.mechanism(ds).compute()
    assert found.n_missed.sum() > 1000
    assert found.n_unknown.sum() >= found.n_missed.sum()  # not "rounded to zero": the update would have moved them
    assert "no element moved, as with torch's fused SGD" in dx.find_arithmetic(ds).attrs["report"]


def test_check_names_the_arithmetic_that_reproduces_an_update(recording: Path) -> None:
    ds = dx.open_recording(recording, raw=True)
    rows = [{n: ds[n][t].values for n in LEARNED} for t in (49, 50)]
    settings = {**ds.attrs["hyperparameters"], "optimizer": "AdamW", "lr": float(ds.lr[50]), "step": 50}
    said = check(*rows, settings)
    # whether others close this update too is chance
    reproduced = r"the updates are reproduced by single( and .* alike)? \(100\.0000% of 4096 elements, 0 missed"
    assert re.match(reproduced, said)
    assert "the gradient is the one that update 50 used" in said
    nested = {"hyperparameters": ds.attrs["hyperparameters"], **{k: settings[k] for k in ("optimizer", "lr", "step")}}
    assert check(*rows, nested) == said
    late = {**rows[1], "grad": ds.grad[49].values}
    assert "the gradient is not the one that update 50 used" in check(rows[0], late, settings)
    assert "learning rate of about" in check(*rows, {**settings, "lr": 1e-2})
    with pytest.raises(InputError, match="check needs lr"):
        check(*rows, {**settings, "lr": None})
