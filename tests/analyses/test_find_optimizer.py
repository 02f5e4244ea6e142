"""The optimizer of a recording with Adam's moments is found by replay, and asked for only if that fails."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import xarray as xr

import deadtok_xr as dx
from deadtok_xr.errors import InputError
from tests.optimizer_runs import RUNS, train, with_flags


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, xr.Dataset]:
    """Recordings in bfloat16, one per rule."""
    folder = tmp_path_factory.mktemp("runs")
    named = {name: with_flags(RUNS[name], {"foreach": False}) for name in ("AdamW", "AdamW, large decay", "Adam, L2")}
    return {name: train(folder / f"{i}.zarr", *run, torch.bfloat16) for i, (name, run) in enumerate(named.items())}


def nameless(ds: xr.Dataset, **spelled: Any) -> xr.Dataset:
    """The recording as a converter leaves it: settings under other spellings, and no optimizer."""
    ds = ds.copy()
    ds.attrs = {k: v for k, v in ds.attrs.items() if k not in ("optimizer", "implementation")}
    ds.attrs["hyperparameters"] = spelled
    return ds


def settings_of(ds: xr.Dataset) -> dict[str, Any]:
    return dict(ds.attrs["hyperparameters"])


@pytest.mark.parametrize("name", ["AdamW", "AdamW, large decay", "Adam, L2"])
@pytest.mark.parametrize("spelling", ["adam_beta1", "beta1", "betas", "nested"])
def test_the_rule_is_found_under_any_spelling(name: str, spelling: str, runs: dict[str, xr.Dataset]) -> None:
    s = settings_of(runs[name])
    b1, b2 = s["betas"]
    spelled = {
        "adam_beta1": {"adam_beta1": b1, "adam_beta2": b2, "adam_epsilon": s["eps"], "learning_rate": s["lr"]},
        "beta1": {"beta1": b1, "beta2": b2, "epsilon": s["eps"], "lr": s["lr"]},
        "betas": {"betas": [b1, b2], "eps": s["eps"], "lr": s["lr"]},
        "nested": {"optimizer.param_groups.0.betas": [b1, b2], "optimizer.param_groups.0.eps": s["eps"]},
    }[spelling]
    decay = "optimizer.param_groups.0.weight_decay" if spelling == "nested" else "weight_decay"
    ds = nameless(runs[name], **spelled, **{decay: s["weight_decay"]})
    found = dx.mechanism(ds)
    assert found.attrs["optimizer"] == ("Adam" if name == "Adam, L2" else "AdamW")
    evidence = found.attrs["optimizer_from"]
    assert "found by replay of 4 updates" in evidence
    assert ("AdamW and Adam are the same here: weight decay 0" in evidence) == (s["weight_decay"] == 0)
    expected = dx.mechanism(runs[name])
    xr.testing.assert_equal(found.compute(), expected.compute())
    assert dx.critical_boundary(ds).attrs["optimizer_from"] == evidence


def test_the_weight_decay_of_one_of_two_groups_is_found(runs: dict[str, xr.Dataset]) -> None:
    s = settings_of(runs["AdamW, large decay"])
    groups = {"g.0.weight_decay": s["weight_decay"], "g.1.weight_decay": 0.0}
    ds = nameless(runs["AdamW, large decay"], betas=s["betas"], eps=s["eps"], lr=s["lr"], **groups)
    assert "AdamW with weight decay 8" in dx.mechanism(ds).attrs["optimizer_from"]


def test_what_replay_does_not_show_is_asked_for_and_the_answer_works(runs: dict[str, xr.Dataset]) -> None:
    s = settings_of(runs["AdamW"])
    wrong = nameless(runs["AdamW"].drop_vars("lr"), betas=s["betas"], eps=s["eps"], lr=9 * s["lr"], weight_decay=0)
    with pytest.raises(
        InputError, match=r"replay of 4 updates does not show it; .* comes closest, .*'optimizer': 'AdamW'"
    ):
        dx.mechanism(wrong)
    assert dx.mechanism(wrong, hyperparameters={"optimizer": "AdamW"}).attrs["optimizer"] == "AdamW"
    with pytest.raises(InputError, match="does not say which optimizer made it: give .*'optimizer': 'AdamW'"):
        dx.mechanism(nameless(runs["AdamW"]))
