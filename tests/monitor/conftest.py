"""Where the tensors of a test are counted."""

from __future__ import annotations

import pytest

from deadtok_xr.monitor import tiles


@pytest.fixture(params=["on the CPU", "as on a GPU"])
def where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test twice; the second time tensors of the CPU are counted in batches, as those of a GPU are."""
    if request.param == "as on a GPU":
        monkeypatch.setattr(tiles, "on_cpu", lambda x: x.device.type == "none")
