"""Sources of many files that were damaged at random; `python -m tests.damage_sources` damages more."""

from __future__ import annotations

import pytest

from tests.damage_sources import damage


@pytest.mark.slow
def test_damaged_sources_are_refused_or_read_as_they_are() -> None:
    outcomes = damage(cases=60, seed=0)
    assert not outcomes.wrong, "\n".join(outcomes.wrong)
    assert outcomes.ends["refused"] > 20
    assert outcomes.ends["converted"] > 5
