"""Every block of docs/how-to/recording.md runs; those of trainers where their packages are installed."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import deadtok_xr as dx

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "how-to" / "recording.md").read_text(encoding="utf-8")
TRAINERS = {"Accelerate": "accelerate", "Lightning": "lightning", "Hugging Face": "transformers"}
BATCHES = 50


def blocks(heading: str) -> list[str]:
    sections = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    (section,) = [s for s in sections if heading in s.partition("\n")[0]]
    return re.findall(r"^```python\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, object]]:
    """What the plain loop leaves; the folder of the blocks is the current one."""
    names: dict[str, object] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("docs"))
        run(blocks("A loop of your own"), names)
        yield names


def run(code: list[str], names: dict[str, object]) -> None:
    for block in code:
        exec(compile(block, "docs/how-to/recording.md", "exec"), names)


def test_every_block_is_run() -> None:
    headings = ["A loop of your own", "Why did a token stop", *TRAINERS]
    assert sum(len(blocks(heading)) for heading in headings) == PAGE.count("```python")


def test_the_plain_loop_is_replayed_and_obeys_the_law(names: dict[str, object]) -> None:
    rec = dx.open_recording("plain.zarr", tokens="dead")
    assert dict(rec.sizes) == {"step": BATCHES + 1, "token": 10, "dim": 16}
    found = dx.coherence(rec).compute()
    assert float(found.gradient_p_h_alignment.min()) > 0.99  # p_h_dead is what the page says
    assert float(found.gradient_p_h_deviation.max()) < 0.1


def test_analysis_examples_run(names: dict[str, object], capsys: pytest.CaptureFixture[str]) -> None:
    run(blocks("Why did a token stop"), dict(names))
    said = capsys.readouterr().out
    assert "the updates are reproduced by single" in said
    assert all(scheme in said for scheme in ("nearest", "float32_master", "stochastic", "kahan"))


class Unrecorded(contextlib.nullcontext[Any]):
    """In the place of a Recorder: the same loop, of which nothing is kept."""

    def __init__(self, weight: torch.nn.Parameter, *args: Any, **options: Any) -> None:
        super().__init__(self)
        self.weight = weight

    def log(self, **values: Any) -> None:
        pass


class Monitored:
    """In the place of a Recorder: a Monitor of all parameters of the optimizer."""

    def __init__(self, weight: torch.nn.Parameter, optimizer: Any, *args: Any, **options: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.monitor, self.weight, self.optimizer = dx.Monitor(parameters, optimizer), weight, optimizer
        self.moved: list[int] = []

    def __enter__(self) -> Monitored:
        self.monitor.__enter__()
        optimizer, before = self.monitor.optimizer, self.weight.detach().clone()
        optimizer.register_step_post_hook(
            lambda *_: (self.moved.append(int((self.weight != before).sum())), before.copy_(self.weight.detach()))
        )
        return self

    def __exit__(self, *error: Any) -> None:
        self.monitor.__exit__(*error)

    def log(self, **values: Any) -> None:
        pass


@pytest.mark.parametrize("heading", TRAINERS)
@pytest.mark.filterwarnings("ignore")
def test_a_monitor_counts_in_the_same_loops(
    names: dict[str, object], heading: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(TRAINERS[heading])
    made: list[Monitored] = []
    monkeypatch.setattr(dx, "Recorder", lambda *args, **options: made.append(Monitored(*args)) or made[0])
    torch.manual_seed(1)
    run(blocks(heading), dict(names))
    ds = made[0].monitor.dataset()
    assert ds.sizes["step"] == BATCHES // 2  # two micro-batches each
    assert ds.exact.all()
    (i,) = [k for k, p in enumerate(made[0].monitor._watched) if p.parameter is made[0].weight]
    assert ds.moved[:, i].values.tolist() == made[0].moved
    assert sum(made[0].moved) > 1000


@pytest.mark.parametrize("heading", TRAINERS)
@pytest.mark.filterwarnings("ignore")
def test_trainers_record_every_update_and_change_no_bit(
    names: dict[str, object], heading: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = TRAINERS[heading]
    pytest.importorskip(package)
    torch.manual_seed(1)
    run(blocks(heading), dict(names))
    store = {"transformers": "trainer"}.get(package, package)
    rec = dx.open_recording(f"{store}.zarr")
    assert rec.sizes["step"] == BATCHES // 2 + 1  # two micro-batches each
    assert np.isfinite(rec.loss[1:]).all()
    found = dx.mechanism(rec).compute()
    assert found.n_missed.sum() == 0
    assert found.n_moved.sum() > 1000
    assert found.attrs["arithmetic"] == ("fused" if package == "transformers" else "single")

    made: list[Unrecorded] = []
    monkeypatch.setattr(dx, "Recorder", lambda *args, **options: made.append(Unrecorded(*args)) or made[0])
    torch.manual_seed(1)
    run(blocks(heading), dict(names))
    assert (made[0].weight.detach().float().numpy() == rec.W[-1].values).all()
