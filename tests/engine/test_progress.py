"""Progress moves within blocks, names what is at work, never goes back, and ends at the end."""

from __future__ import annotations

import threading
from pathlib import Path

import dask
import pytest

import deadtok_xr as dx
from deadtok_xr.engine import progress

ANALYSES = ["motion", "connectivity", "kinematics", "mechanism"]
N_BLOCKS = 3


def shown(tree: object, scheduler: str) -> list[tuple[float, float, str]]:
    """What is reported while a tree is computed."""
    said: list[tuple[float, float, str]] = []

    def report(done: float, total: float, what: str = "") -> None:
        said.append((done, total, what))

    with dask.config.set(scheduler=scheduler), progress._Tasks(report):
        tree.compute()  # type: ignore[attr-defined]
    return said


@pytest.mark.parametrize("scheduler", ["threads", "synchronous"])
def test_progress_within_blocks(recording: Path, scheduler: str) -> None:
    said = shown(dx.analyze(recording, analyses=ANALYSES), scheduler)
    done = [x for x, _, _ in said]
    assert done == sorted(done)
    assert {total for _, total, _ in said} == {N_BLOCKS}
    assert done[-1] == N_BLOCKS
    assert len(set(done)) > 2 * N_BLOCKS
    assert set(ANALYSES) <= {what for _, _, what in said}
    assert progress.listener() is None


@pytest.mark.slow
def test_progress_of_processes_is_per_block(recording: Path) -> None:
    said = shown(dx.analyze(recording, analyses=["kinematics"]), "processes")
    assert [x for x, _, _ in said] == [1, 2, 3]


def test_an_analysis_of_ones_own_is_named(recording: Path) -> None:
    mine = dx.analysis(name="mine", outputs={"x": dx.Output("step")})(lambda batch: {"x": batch.W.max((1, 2))})
    rec = dx.open_recording(recording)
    tree = dx.analyze(rec, analyses=["mine"])
    assert mine.name in {what for _, _, what in shown(tree, "synchronous")}


def test_lines_are_printed_every_tenth_and_after_silence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = progress._lines("analysing", False)
    report(0.0, 10, "motion")
    assert not capsys.readouterr().err
    report(1.0, 10, "motion")
    report(1.5, 10, "connectivity")
    assert capsys.readouterr().err == "analysing: 10% after 0 s, motion\n"
    monkeypatch.setattr(progress, "_SILENCE_S", -1)
    report(1.6, 10, "connectivity")
    assert capsys.readouterr().err == "analysing: 16% after 0 s, connectivity\n"


def test_progress_is_shown_again_while_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_SILENCE_S", 0.02)
    said: list[str] = []
    twice = threading.Event()

    def report(done: float, total: float, what: str = "") -> None:
        said.append(what)
        if len(said) == 3:
            twice.set()

    with progress._Tasks(report) as tasks:
        tasks._begin([("pass-0", 0)])
        tasks._at_work(0.5, "connectivity")
        assert twice.wait(10)
    assert set(said) == {"connectivity"}
