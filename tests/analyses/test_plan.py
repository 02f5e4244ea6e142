"""Before the work, a plan says what analyses cost, leaves out what takes too long, and refuses what does not fit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr

import deadtok_xr as dx
from deadtok_xr.analyses import plan, plan_analyses
from deadtok_xr.engine import Sizes
from deadtok_xr.errors import InputError
from tests.strategies import hopping


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every recording is as wide as GPT-2."""
    wide = Sizes(2000, 50_257, 768, 5, 2)
    monkeypatch.setattr("deadtok_xr.engine.spec.Sizes", lambda *_: wide)


def test_what_takes_much_longer_than_reading_is_left_out(wide: None) -> None:
    rec = hopping()
    planned = plan_analyses(rec, budget="20min")
    assert "topology" in planned.too_long
    assert "connectivity" in plan_analyses(rec, budget="1min").too_long
    by_default = plan_analyses(rec)
    assert "topology" in by_default.too_long
    assert {"motion", "connectivity", "lattice"} <= by_default.specs.keys()
    assert "motion" in planned.specs
    why = planned.left_out["topology"]
    assert "analyses=['topology'] (--only topology), or allow more with budget=" in why
    assert dict(dx.analyze(rec, budget="20min").attrs["left_out"])["topology"] == why
    assert plan_analyses(rec, analyses=["motion", "topology"]).too_long == []
    with pytest.raises(InputError, match=r"topology is expected to take .* are allowed: allow more with budget="):
        dx.analyze(rec, analyses=["motion", "topology"], budget="20min")


def test_wide_models_are_described_at_fewer_steps() -> None:
    """Where a step takes seconds; nothing is computed here."""
    zeros = da.zeros((400, 18_413, 768), np.float32, chunks=(4, 18_413, 768))
    expected = {"spectrum": (9, 65), "connectivity": (3, 7), "token_indicators": (9, 17)}
    for name, sizes in expected.items():
        for W, n in zip((zeros, zeros[:, :2000, :64]), sizes, strict=True):
            coords = {"step": np.arange(400), "token": np.arange(W.shape[1])}
            ds = xr.Dataset({"W": (("step", "token", "dim"), W, {"precision": "bfloat16"})}, coords)
            found = getattr(dx, name)(ds)
            dim = {"spectrum": "spectrum_step", "token_indicators": "checkpoint"}.get(name, "step")
            assert found.sizes[dim] == n, name
            assert {0, 399} <= set(found[dim].values.tolist())


def test_memory_says_what_would_fit(wide: None) -> None:
    rec = hopping()
    needed = plan_analyses(rec, analyses=["motion"]).cost.memory(1)
    with dask.config.set(num_workers=2, scheduler="threads"):
        dx.analyze(rec, analyses=["motion"], memory=10 * needed)
        with pytest.raises(InputError, match=r"1 thread would fit; use dask.config.set\(num_workers=1\)"):
            dx.analyze(rec, analyses=["motion"], memory=needed)
        with pytest.raises(InputError, match=r"fit with analyses=\['motion'\], or allow more"):
            dx.analyze(rec, analyses=["motion", "coherence"], memory=needed)
        with pytest.raises(InputError, match="expected a size, such as 500MB"):
            dx.analyze(rec, memory="much")


def test_every_analysis_states_a_cost_that_grows_with_the_recording(recording: Path) -> None:
    planned = plan_analyses(dx.open_recording(recording)).cost
    grown = [Sizes(600, 256, 64, 128, 2), Sizes(1200, 256, 64, 128, 2), Sizes(1200, 2560, 64, 128, 2),
             Sizes(1200, 2560, 640, 128, 2)]  # fmt: skip
    for name, reduction in planned.reductions.items():
        costs = [reduction.cost(sizes) for sizes in grown]
        seconds = [cost.seconds for cost in costs]
        memory = [cost.held + cost.temporary + cost.kept for cost in costs]
        assert 0 < seconds[0] <= seconds[1] < seconds[2] < seconds[3], name
        assert memory == sorted(memory), name
        resting = reduction.cost(dataclasses.replace(grown[3], moving=0.1, changing=0.01)).seconds
        assert 0 < resting <= seconds[3], name


@pytest.mark.parametrize(("budget", "expected"), [(90, 90), ("90s", 90), ("30min", 1800), ("2h", 7200)])
def test_budgets(budget: float | str, expected: float) -> None:
    assert plan.seconds(budget) == expected


def test_shared_reductions_count_once(recording: Path) -> None:
    one, both, other = (
        plan_analyses(dx.open_recording(recording), analyses=names).cost
        for names in (["motion"], ["motion", "phases"], ["phases"])
    )
    assert len(both.reductions) == len(one.reductions) == len(other.reductions) == 1
    assert both.seconds < one.seconds + other.seconds
