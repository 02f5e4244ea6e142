"""Before the work, a plan says what analyses cost, leaves out what takes too long, and refuses what does not fit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import dask
import pytest

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
    planned = plan_analyses(rec, budget="1h")
    assert "coherence" in planned.too_long
    assert "connectivity" in plan_analyses(rec, budget="1min").too_long
    by_default = plan_analyses(rec)
    assert "coherence" in by_default.too_long
    assert {"motion", "connectivity", "lattice"} <= by_default.specs.keys()
    assert "motion" in planned.specs
    why = planned.left_out["coherence"]
    assert "analyses=['coherence'] (--only coherence), or allow more with budget=" in why
    assert dict(dx.analyze(rec, budget="1h").attrs["left_out"])["coherence"] == why
    assert plan_analyses(rec, analyses=["motion", "coherence"]).too_long == []
    with pytest.raises(InputError, match=r"coherence is expected to take .* are allowed: allow more with budget="):
        dx.analyze(rec, analyses=["motion", "coherence"], budget="1h")


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
